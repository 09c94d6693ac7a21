//! A message on its way in: from the first body byte to the fate of its commit.
//!
//! Owns: where body bytes are kept meanwhile. A small body is gathered in one block, which afterwards
//! is the copy kept for delivery. One that outgrows `limits::COPY_BYTES` is received straight into
//! aligned fragment buffers, which are written as they are; a sender too slow to fill one while others wait
//! is received in pieces of the first kind, each of which needs such a buffer for a moment only. Promises:
//! memory per message stays at one fragment buffer; a message is reported durable only when every group that
//! holds a part of it is, and queued, counted and announced the same way however it came. Must not:
//! interpret SMTP or HTTP.
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Worker;
use super::fate::Watch;
use super::fragments::Holder;
use super::home::Home;
use super::message::Message;
use super::wire::Wire;
use crate::auth::User;
use crate::clock::Tick;
use crate::config::Durability;
use crate::events::Event;
use crate::limits;
use crate::mail::envelope::Envelope;
use crate::mail::header;
use crate::mail::id::MessageId;
use crate::mail::submission;
use crate::mail::trace::{self, HopCounter, Received};
use crate::ring::{self, AlignedBuf, Block};
use crate::smtp::server::ServerSession;
use crate::spool::{FRAGMENT_HEADROOM, FragmentRef, NewMessage, Refusal, Slot};
use crate::tls;

/// What became of a message.
pub enum Stored {
    Durable {
        slot: Slot,
        message: Rc<Message>,
        bytes: u64,
    },
    NoRoom,
    Failed,
    Loop,
    /// Large bodies of others took all there is to receive them into.
    Busy,
}

/// What is known of a message before its body.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    pub client: IpAddr,
    pub tls: Option<&'a tls::Session>,
    /// Who has logged in.
    pub user: Option<&'a User>,
    /// Its header may name a stream.
    pub names_stream: bool,
    /// The name the client gave.
    pub helo: &'a str,
    /// As the trace header names it.
    pub protocol: &'a str,
    pub envelope: &'a Envelope,
    pub declared_bytes: u64,
    /// Whether what its header lacks is to be added.
    pub is_submission: bool,
}

impl<'a> Opening<'a> {
    /// Of the transaction of an SMTP session.
    pub fn of_session(
        session: &'a ServerSession,
        client: IpAddr,
        tls: Option<&'a tls::Session>,
        user: Option<&'a User>,
        may_relay: bool,
    ) -> Opening<'a> {
        let transaction = session.transaction();
        let (helo, is_ehlo) = session.greeting_of_client();
        let utf8 = transaction.envelope.smtp_utf8;
        Opening {
            client,
            tls,
            user,
            names_stream: may_relay || user.is_some(),
            helo,
            protocol: trace::protocol(is_ehlo, utf8, session.is_secure(), session.login().is_some()),
            envelope: &transaction.envelope,
            declared_bytes: transaction.declared_bytes,
            is_submission: session.is_submission(),
        }
    }
}

/// How the client of an accepted message showed who it is, for its event.
#[derive(Default)]
pub struct Credentials {
    pub user: Option<String>,
    pub tls: Option<String>,
    pub certificate: Option<String>,
}

pub struct Incoming {
    id: MessageId,
    client: IpAddr,
    home: Rc<Home>,
    /// Trace headers and body as long as it is small.
    body: Block,
    /// Where in `body` what the client sent begins, until what goes between is there.
    sent_at: Option<usize>,
    /// Whether what its header lacks is to be added.
    is_submission: bool,
    /// Counts the hops of a header that goes on beyond `body`.
    hops: HopCounter,
    direct: Option<Direct>,
    fragments: Vec<FragmentRef>,
    /// Those of them that were handed over before they were full.
    short_fragments: usize,
    commits: Vec<Watch>,
    bytes: u64,
    /// That of its user, or the one that its header names.
    stream: Option<Box<str>>,
    /// Its header may name the stream.
    names_stream: bool,
    /// Why it will not be stored; body bytes are then dropped as they come.
    refused: Option<Stored>,
}

/// The fragment buffer being received into.
struct Direct {
    buffer: Option<AlignedBuf>,
    /// Body bytes are `buffer[FRAGMENT_HEADROOM..body_end]`.
    body_end: usize,
    /// Bytes not yet consumed by the session are `buffer[body_end..filled]`.
    filled: usize,
    /// Since when it is watched how fast the buffer fills, and how much of the body there was then.
    watched: (Tick, u64),
    /// Counts the buffer as the client's.
    holder: Holder,
}

/// Where body bytes must end in a fragment buffer.
const FRAGMENT_END: usize = FRAGMENT_HEADROOM + limits::FRAGMENT_BYTES;
/// Least free space worth a read, and most that may be left over when a body goes direct.
pub const LEAST_READ: usize = 4096;

impl Incoming {
    /// Takes an id and writes the trace header (RFC 5321 §4.4).
    pub fn begin(worker: &Rc<Worker>, opening: &Opening<'_>) -> Incoming {
        let client = opening.client.to_canonical();
        let home = worker.inbox().clone();
        let now = worker.clock.now();
        let id = home.next_id(now);
        let refused = match home.admits(opening.declared_bytes) {
            _ if worker.memory_short.get() => Some(Stored::NoRoom),
            Ok(()) | Err(Refusal::Busy) => None,
            Err(Refusal::NoRoom) => Some(Stored::NoRoom),
            Err(Refusal::Unwritable) => Some(Stored::Failed),
        };
        let expected = (opening.declared_bytes as usize).min(limits::COPY_BYTES);
        let mut header = worker.scratch.take();
        header.clear();
        let recipient = match &opening.envelope.recipients[..] {
            [only] => Some(&only.address),
            _ => None,
        };
        trace::received(
            &mut header,
            &Received {
                helo: opening.helo,
                client: Some(client),
                by: &worker.shared.config.hostname,
                protocol: opening.protocol,
                tls: opening.tls.map(|session| session.description.as_str()),
                certificate: opening.tls.and_then(|session| session.client.as_deref()),
                id,
                recipient,
                at: now,
            },
        );
        let mut body = worker.bodies.block(header.len() + expected.max(1024));
        body.extend_from_slice(&header);
        worker.scratch.replace(header);
        Incoming {
            id,
            client,
            home,
            sent_at: Some(body.len()),
            is_submission: opening.is_submission,
            hops: HopCounter::default(),
            body,
            direct: None,
            fragments: Vec::new(),
            short_fragments: 0,
            commits: Vec::new(),
            bytes: 0,
            stream: opening.user.and_then(|user| stream_of_user(worker, user)),
            names_stream: opening.names_stream,
            refused,
        }
    }

    /// Takes a whole body that is in memory, in the envelope's form.
    pub async fn take_whole(&mut self, worker: &Rc<Worker>, mut body: &[u8]) {
        while !body.is_empty() {
            if self.wants_direct() {
                self.go_direct(worker, &[]).await;
            }
            let taken = if self.is_direct() {
                self.make_room(worker).await;
                let Direct { buffer, filled, .. } = self.direct();
                let buffer = buffer.as_mut().expect("a buffer is there between two calls");
                let taken = body.len().min(buffer.len() - *filled);
                buffer[*filled..*filled + taken].copy_from_slice(&body[..taken]);
                *filled += taken;
                self.consume(taken);
                taken
            } else {
                let taken = body.len().min(limits::COPY_BYTES);
                self.take(&body[..taken]);
                taken
            };
            body = &body[taken..];
        }
        if self.wants_direct() {
            self.go_direct(worker, &[]).await;
        }
    }

    /// Takes body bytes on the copy path.
    pub fn take(&mut self, bytes: &[u8]) {
        if self.refused.is_none() {
            self.bytes += bytes.len() as u64;
            self.body.extend_from_slice(bytes);
            if !self.fragments.is_empty() {
                self.count_hops(bytes);
            }
        }
    }

    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    pub fn wants_direct(&self) -> bool {
        self.direct.is_none() && self.refused.is_none() && self.body.len() > limits::COPY_BYTES
    }

    /// Goes over to fragment buffers. `rest`, of less than [`LEAST_READ`] bytes, is what the session has
    /// not consumed yet; it stays the caller's where no buffer is to be had and the message is refused.
    pub async fn go_direct(&mut self, worker: &Rc<Worker>, rest: &[u8]) {
        debug_assert!(rest.len() < LEAST_READ);
        self.complete_header(worker);
        if self.fragments.is_empty() {
            self.find_stream(worker);
            let header = std::mem::take(&mut self.body);
            self.count_hops(&header);
            self.body = header;
        }
        let body = std::mem::take(&mut self.body);
        let mut left = &body[..];
        loop {
            let (now, later) = left.split_at(left.len().min(limits::FRAGMENT_BYTES));
            let unconsumed = if later.is_empty() { rest } else { &[] };
            self.take_buffer(worker, now, unconsumed).await;
            if later.is_empty() || !self.is_direct() {
                return;
            }
            self.hand_over().await;
            left = later;
        }
    }

    /// Gets a fragment buffer that begins with `body` and what the session has not consumed. The message is
    /// refused if there is none in time.
    async fn take_buffer(&mut self, worker: &Rc<Worker>, body: &[u8], unconsumed: &[u8]) {
        if self.refused.is_some() {
            return;
        }
        let Some((mut buffer, holder)) = worker.fragments.take(self.client).await else {
            self.refused = Some(Stored::Busy);
            return;
        };
        let body_end = FRAGMENT_HEADROOM + body.len();
        let filled = body_end + unconsumed.len();
        buffer[FRAGMENT_HEADROOM..body_end].copy_from_slice(body);
        buffer[body_end..filled].copy_from_slice(unconsumed);
        let watched = (ring::now(), self.bytes);
        self.direct = Some(Direct { buffer: Some(buffer), body_end, filled, watched, holder });
    }

    /// Adds what goes between our trace header and what the client sent, before it leaves memory: what a
    /// submitted message lacks (RFC 6409 §8), and an empty line before what is no header, which would else be
    /// read as a part of ours.
    fn complete_header(&mut self, worker: &Worker) {
        let Some(at) = self.sent_at.take() else { return };
        let sent = &self.body[at..];
        let mut between = Vec::new();
        if self.is_submission {
            let now = worker.clock.now();
            between = submission::missing_header(sent, self.id, &worker.shared.config.hostname, now);
        }
        if header::needs_separator(sent) {
            between.extend_from_slice(b"\r\n");
        }
        if !between.is_empty() {
            let mut whole = worker.bodies.block(self.body.len() + between.len());
            whole.extend_from_slice(&self.body[..at]);
            whole.extend_from_slice(&between);
            whole.extend_from_slice(sent);
            self.body = whole;
        }
    }

    fn direct(&mut self) -> &mut Direct {
        self.direct.as_mut().expect("the caller asked is_direct")
    }

    /// Reads into the fragment buffer.
    pub async fn read(&mut self, wire: &mut Wire, wait: Duration) -> io::Result<usize> {
        let direct = self.direct();
        let buffer = direct.buffer.take().expect("a buffer is there between two calls");
        let from = direct.filled;
        let (result, buffer) = wire.read_aligned(buffer, from, wait).await;
        let direct = self.direct();
        direct.buffer = Some(buffer);
        if let Ok(read) = result {
            direct.filled += read;
        }
        result
    }

    /// What the session has not consumed yet.
    pub fn unconsumed(&self) -> &[u8] {
        match &self.direct {
            Some(Direct { buffer: Some(buffer), body_end, filled, .. }) => &buffer[*body_end..*filled],
            _ => &[],
        }
    }

    /// The next `bytes` of the unconsumed are body, and lie where they belong.
    pub fn consume(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if let Some(Direct { buffer: Some(buffer), body_end, .. }) = &mut self.direct {
            self.hops.push(&buffer[*body_end..*body_end + bytes]);
            *body_end += bytes;
        }
        self.stop_a_loop();
    }

    fn count_hops(&mut self, body: &[u8]) {
        self.hops.push(body);
        self.stop_a_loop();
    }

    fn stop_a_loop(&mut self) {
        if self.hops.is_loop() && self.refused.is_none() {
            self.refused = Some(Stored::Loop);
        }
    }

    /// The next `bytes` of the unconsumed are not body (the final dot); the rest is the next command's.
    pub fn skip(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let direct = self.direct();
        let buffer = direct.buffer.as_mut().expect("a buffer is there between two calls");
        buffer.copy_within(direct.body_end + bytes..direct.filled, direct.body_end);
        direct.filled -= bytes;
    }

    /// Makes sure that there is room to read: a full buffer is handed to the log and a fresh one
    /// takes over what the session has not consumed. Where there is none in time the message is refused, and
    /// what was not consumed comes back.
    pub async fn make_room(&mut self, worker: &Rc<Worker>) -> Vec<u8> {
        let direct = self.direct();
        let size = direct.buffer.as_ref().map_or(0, |b| b.len());
        if direct.body_end < FRAGMENT_END && size - direct.filled >= LEAST_READ {
            return Vec::new();
        }
        // The full one goes first: sessions that each hold one and wait for another would wait for ever.
        let rest = self.unconsumed().to_vec();
        let excess = self.hand_over().await;
        self.take_buffer(worker, &excess, &rest).await;
        if self.is_direct() { Vec::new() } else { rest }
    }

    /// Whether the sender is slow to fill its fragment buffer. Asked after each read; says no until it was
    /// watched for long enough.
    pub fn lingers(&mut self, now: Tick) -> bool {
        let bytes = self.bytes;
        let Direct { watched: (since, before), .. } = self.direct();
        if now.since(*since) < limits::FRAGMENT_HOLD_WAIT {
            return false;
        }
        let brought = bytes - *before;
        (*since, *before) = (now, bytes);
        brought < limits::COPY_BYTES as u64
    }

    /// Gives the fragment buffer back before it is full, because others wait for one: what is in it goes to
    /// the log, or to ordinary memory if it is little. Returns what the session has not consumed.
    pub async fn step_back(&mut self, worker: &Rc<Worker>) -> Vec<u8> {
        let rest = self.unconsumed().to_vec();
        let Some(Direct { buffer: Some(buffer), body_end, .. }) = &self.direct else { return rest };
        let held = &buffer[FRAGMENT_HEADROOM..*body_end];
        if held.len() < limits::COPY_BYTES {
            let mut body = worker.bodies.block(held.len().max(1024));
            body.extend_from_slice(held);
            self.body = body;
            self.direct = None;
            return rest;
        }
        if self.short_fragments == limits::SHORT_FRAGMENTS {
            self.refused.get_or_insert(Stored::Busy);
        }
        self.short_fragments += 1;
        self.body = self.hand_over().await.into();
        rest
    }

    /// Hands the current fragment to the log. Returns the body bytes that lie past its end.
    async fn hand_over(&mut self) -> Vec<u8> {
        let Some(Direct { buffer: Some(mut buffer), body_end, holder, .. }) = self.direct.take() else {
            return Vec::new();
        };
        // From here on it waits for the disk, not for the client.
        drop(holder);
        let end = body_end.min(FRAGMENT_END);
        let excess = buffer[end..body_end].to_vec();
        let body_bytes = (end - FRAGMENT_HEADROOM) as u32;
        if self.refused.is_some() || body_bytes == 0 {
            return excess;
        }
        loop {
            let index = self.fragments.len() as u32;
            match self.home.append_fragment(self.id, index, buffer, body_bytes) {
                Ok(fragment) => {
                    self.commits.push(self.home.watch(fragment.group));
                    self.fragments.push(fragment);
                    return excess;
                }
                Err((Refusal::Busy, returned)) => {
                    buffer = returned;
                    self.home.progress.wait().await;
                }
                Err((Refusal::NoRoom, _)) => {
                    self.refused = Some(Stored::NoRoom);
                    return excess;
                }
                Err((Refusal::Unwritable, _)) => {
                    self.refused = Some(Stored::Failed);
                    return excess;
                }
            }
        }
    }

    /// The body has ended: writes the commit record and waits until all of the message is durable.
    pub async fn store(mut self, worker: &Rc<Worker>, mut envelope: Envelope) -> Stored {
        if self.is_direct() {
            self.body = self.hand_over().await.into();
        } else {
            self.complete_header(worker);
        }
        if self.fragments.is_empty() && self.refused.is_none() {
            let mut hops = HopCounter::default();
            hops.push(&self.body);
            if hops.is_loop() {
                self.refused = Some(Stored::Loop);
            }
        }
        // A commit record must not name a fragment that was lost.
        for commit in std::mem::take(&mut self.commits) {
            if !commit.wait().await {
                self.refused = Some(Stored::Failed);
            }
        }
        envelope.received_at = worker.clock.now();
        envelope.client = Some(self.client);
        if self.fragments.is_empty() {
            self.find_stream(worker);
        }
        if envelope.stream.is_none() {
            envelope.stream = self.stream.take();
        }
        envelope.urgent |= envelope.stream.as_ref().is_some_and(|s| worker.live().is_transactional(s));
        envelope.group_by_destination();
        while !worker.outboxes.has_room() {
            ring::sleep(limits::MAILBOX_RETRY_WAIT).await;
        }
        let appended = loop {
            if let Some(refused) = self.refused.take() {
                self.home.abort(self.id, &self.fragments);
                return refused;
            }
            let new = NewMessage {
                id: self.id,
                envelope: &envelope,
                fragments: &self.fragments,
                parts: &[&self.body],
                reports: None,
                kept: false,
            };
            match self.home.append(&new) {
                Ok(appended) => break appended,
                Err(Refusal::Busy) => self.home.progress.wait().await,
                Err(Refusal::NoRoom) => self.refused = Some(Stored::NoRoom),
                Err(Refusal::Unwritable) => self.refused = Some(Stored::Failed),
            }
        };
        let (slot, group) = appended;
        let commit = self.home.watch(group);
        if worker.shared.config.durability != Durability::Memory && !commit.wait().await {
            return Stored::Failed;
        }
        let message = Message::new(self.id, envelope, std::mem::take(&mut self.body));
        if self.fragments.is_empty() {
            self.home.keep(slot, message.clone());
        }
        Stored::Durable { slot, message, bytes: self.bytes }
    }

    /// The stream by the header, which is whole, unless it is known. A stranger's header does not count:
    /// streams have priorities and limits.
    fn find_stream(&mut self, worker: &Worker) {
        if self.stream.is_none() && self.names_stream {
            self.stream = stream_of(worker, &self.body);
        }
    }

    /// The message was refused or the session ended: what was written of it is dead.
    pub fn discard(self) {
        self.home.abort(self.id, &self.fragments);
    }
}

/// The stream of a user's mail.
fn stream_of_user(worker: &Worker, user: &User) -> Option<Box<str>> {
    let by_name = || {
        let name = user.name.to_ascii_lowercase();
        let most = name.floor_char_boundary(limits::STREAM_NAME_BYTES);
        worker.live().config.stream_by_user.then(|| name[..most].into())
    };
    user.stream.clone().or_else(by_name)
}

/// Counts, announces and queues a message that is durable. `credentials` is asked for where events are on.
pub fn accept(
    worker: &Rc<Worker>,
    slot: Slot,
    message: &Message,
    bytes: u64,
    credentials: impl FnOnce() -> Credentials,
) {
    let envelope = &message.envelope;
    worker.counters.accepted.add(1);
    worker.counters.accepted_recipients.add(envelope.recipients.len() as u64);
    worker.counters.accepted_bytes.add(bytes);
    if worker.shared.events.is_on() {
        let Credentials { user, tls, certificate } = credentials();
        let received = Event::Received {
            id: message.id,
            from: envelope.reverse_path.as_ref().map_or(String::new(), ToString::to_string),
            recipients: envelope.recipients.iter().map(|r| r.address.to_string()).collect(),
            bytes,
            client: envelope.client,
            user,
            tls,
            certificate,
        };
        worker.shared.events.send(worker.clock.now(), received);
    }
    worker.enqueue(worker.inbox(), slot, envelope);
}

/// The stream that the header of a message names (`--stream-header`).
fn stream_of(worker: &Worker, message: &[u8]) -> Option<Box<str>> {
    let name = worker.shared.config.stream_header.as_ref()?;
    header::value(message, name, limits::STREAM_NAME_BYTES)
}
