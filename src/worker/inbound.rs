//! The inbound driver: one task per SMTP session.
//!
//! Owns: the loop that feeds the sans-IO session with what the socket gave, stores the messages it
//! yields, and sends its replies. Promises: a reply to the end of data goes out only when the commit's
//! fate is known (RFC 5321 §4.2.5, §6.1); a session holds one small buffer while it talks commands, and none
//! while it is silent; no wait is without a bound, and a trickle of bytes renews none (RFC 5321 §4.5.3.2).
//! Must not: know the grammar of SMTP.
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroize;

use super::Worker;
use super::arrival::{self, Arrival};
use super::doors::Doors;
use super::gate::Place;
use super::incoming::{self, Credentials, Incoming, LEAST_READ, Opening, Stored};
use super::patience::{Patience, Waits};
use super::wire::Wire;
use crate::auth::{Exchange, User};
use crate::clock::Tick;
use crate::limits;
use crate::mail::text::printable;
use crate::ring;
use crate::smtp::server::{Goodbye, ServerSession, Step, Verdict};
use crate::tls;

/// Who ended the session.
pub enum Ended {
    ByUs,
    ByPeer,
}

/// One session at work.
pub struct Talk {
    pub(super) worker: Rc<Worker>,
    wire: Wire,
    /// Whom the client is taken for.
    pub(super) client: SocketAddr,
    /// Who it was when it came: what it may say with XCLIENT depends on that.
    pub(super) from: SocketAddr,
    pub(super) place: Place,
    doors: Arc<Doors>,
    pub(super) session: ServerSession,
    /// What was read; `input[start..]` is not yet consumed.
    input: Vec<u8>,
    start: usize,
    pub(super) replies: Vec<u8>,
    incoming: Option<Incoming>,
    pub(super) tls: Option<tls::Session>,
    /// The authentication exchange under way.
    pub(super) exchange: Option<Box<Exchange>>,
    /// Who has logged in.
    pub(super) user: Option<Arc<User>>,
    patience: Patience,
    /// When the input was read.
    heard: Tick,
}

impl Talk {
    pub fn new(worker: Rc<Worker>, arrival: Arrival) -> Box<Talk> {
        let Arrival { wire, client, service, place, doors, tls, early } = arrival;
        let config = &worker.shared.config;
        let waits = Waits { command: config.command_wait, data: config.data_wait };
        let now = ring::now();
        let mut talk = Box::new(Talk {
            session: ServerSession::new(doors.smtp(service), super::login::peer(&worker, client, client)),
            worker,
            wire,
            client,
            from: client,
            place,
            doors,
            input: early,
            start: 0,
            replies: Vec::new(),
            incoming: None,
            tls: None,
            exchange: None,
            user: None,
            patience: Patience::new(waits, now),
            heard: now,
        });
        if let Some(session) = tls {
            talk.secured(session);
        }
        talk
    }

    /// The channel is protected from here on.
    fn secured(&mut self, session: tls::Session) {
        self.tls = Some(session);
        self.session.tls_started(self.bindings().is_some());
    }

    /// From the greeting to the end. What waits here waits by the thousand: rare and large steps have a
    /// place of their own on the heap, so that a silent session is small.
    pub async fn run(mut self: Box<Self>) -> Ended {
        let ended = self.converse().await;
        self.hold_errors_against_client();
        self.wire.end().await;
        ended
    }

    pub(super) fn hold_errors_against_client(&mut self) {
        let (client, errors) = (self.client.ip(), self.session.take_errors());
        if !self.worker.shared.may_relay(client) {
            self.worker.shared.gate.erred(client, errors, self.worker.clock.tick());
        }
    }

    async fn converse(&mut self) -> Ended {
        self.session.greet(&mut self.replies);
        // What came behind a PROXY header is there already.
        if !self.input.is_empty() && self.work().await {
            self.flush().await;
            return Ended::ByUs;
        }
        loop {
            if self.worker.draining.get() && self.incoming.is_none() {
                return self.say_goodbye(Goodbye::Stopping).await;
            }
            if !self.post().await {
                return Ended::ByPeer;
            }
            // The stop may have come while the replies went out.
            if self.worker.draining.get() && self.incoming.is_none() {
                continue;
            }
            match self.read().await {
                Read::Some => {}
                Read::End => return Ended::ByPeer,
                Read::TimedOut => return self.say_goodbye(Goodbye::TimedOut).await,
            }
            if self.work().await {
                self.flush().await;
                return Ended::ByUs;
            }
        }
    }

    async fn say_goodbye(&mut self, why: Goodbye) -> Ended {
        self.session.say_goodbye(why, &mut self.replies);
        self.flush().await;
        Ended::ByUs
    }

    /// Has the replies sent while the client's next words are waited for; false if it did not take the last.
    async fn post(&mut self) -> bool {
        if self.replies.is_empty() {
            return true;
        }
        let replies = std::mem::take(&mut self.replies);
        let (result, mut replies) = self.wire.post(replies, limits::REPLY_WRITE_WAIT).await;
        replies.clear();
        self.replies = replies;
        result.is_ok()
    }

    /// Sends the replies; false if the peer does not take them.
    async fn flush(&mut self) -> bool {
        if self.replies.is_empty() {
            return self.wire.settle(limits::REPLY_WRITE_WAIT).await.0.is_ok();
        }
        let replies = std::mem::take(&mut self.replies);
        let (result, mut replies) = self.wire.write_all(replies, limits::REPLY_WRITE_WAIT).await;
        replies.clear();
        self.replies = replies;
        result.is_ok()
    }

    /// Reads more behind what is not yet consumed.
    async fn read(&mut self) -> Read {
        let left = self.patience.left(ring::now());
        if left.is_zero() {
            return Read::TimedOut;
        }
        if self.incoming.as_ref().is_some_and(Incoming::is_direct) {
            return self.read_direct(left).await;
        }
        if self.session.in_body() {
            return self.read_within(left).await;
        }
        // Most clients answer soon; one that does not must not pin a buffer while it is silent.
        let soon = left.min(limits::IDLE_BUFFER_WAIT);
        match self.read_within(soon).await {
            Read::TimedOut if soon < left => self.read_when_it_speaks().await,
            read => read,
        }
    }

    /// Reads into a fragment buffer, which a silent client does not keep from others who wait for one.
    async fn read_direct(&mut self, left: Duration) -> Read {
        let deadline = ring::now().saturating_add(left);
        let mut left = left;
        loop {
            let Some(incoming) = &mut self.incoming else { return Read::Some };
            let result = incoming.read(&mut self.wire, left.min(limits::FRAGMENT_HOLD_WAIT)).await;
            let is_late = result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut);
            left = deadline.since(ring::now());
            if !is_late || left.is_zero() {
                return self.have_read(result);
            }
            if self.worker.fragments.is_short() {
                let rest = Box::pin(incoming.step_back(&self.worker)).await;
                self.input.extend_from_slice(&rest);
                return self.read_within(left).await;
            }
        }
    }

    async fn read_within(&mut self, wait: Duration) -> Read {
        self.make_room();
        let input = std::mem::take(&mut self.input);
        let (result, input) = self.wire.read(input, wait).await;
        self.input = input;
        self.have_read(result)
    }

    /// Waits for a client that has been silent for a while, holding no more than it has sent, and makes
    /// room for others where the server is nearly full.
    async fn read_when_it_speaks(&mut self) -> Read {
        // The last replies with their buffer: they were taken long ago, or are waited for like any others.
        if self.wire.settle(limits::REPLY_WRITE_WAIT).await.0.is_err() {
            return Read::End;
        }
        self.put_down_buffers();
        if self.worker.draining.get() {
            // Nobody interrupts a wait for replies.
            return Read::Some;
        }
        loop {
            let left = self.patience.left(ring::now());
            match self.wire.readable(left.min(limits::CROWDED_WAIT)).await {
                // Without anything new: the caller comes back here and reads.
                Ok(()) => return Read::Some,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    if left <= limits::CROWDED_WAIT || self.worker.shared.gate.is_crowded() {
                        return Read::TimedOut;
                    }
                }
                Err(error) => return Read::from_error(&error),
            }
        }
    }

    fn have_read(&mut self, result: std::io::Result<usize>) -> Read {
        self.heard = ring::now();
        match result {
            Ok(0) => Read::End,
            Ok(_) => Read::Some,
            // Woken because the server stops; the caller looks again.
            Err(error) => Read::from_error(&error),
        }
    }

    /// The client has finished what it owed: from here on it owes the next.
    fn goes_on(&mut self) {
        self.patience.renew(ring::now());
    }

    /// Takes note of what a step has made of the input: bytes of a body, or something whole, which is
    /// answered. Bytes of a command alone are no progress.
    fn heed(&mut self, consumed: usize, is_whole: bool) {
        if self.session.in_body() {
            self.patience.body(consumed, self.heard);
        } else if is_whole {
            self.patience.renew(self.heard);
        }
    }

    /// Moves the unconsumed rest to the front. A client that fills the buffer, or sends a body, gets a larger
    /// one.
    fn make_room(&mut self) {
        let was_filled = !self.input.is_empty() && self.input.len() == self.input.capacity();
        if self.start == self.input.len() {
            self.input.clear();
        } else if self.start > 0 {
            self.input.drain(..self.start);
        }
        self.start = 0;
        if self.input.capacity() > limits::SESSION_BUFFER_BYTES {
            self.input.shrink_to(limits::SESSION_BUFFER_BYTES);
        }
        let much = was_filled || self.session.in_body();
        let wanted = if much { limits::SESSION_BUFFER_BYTES } else { limits::FIRST_BUFFER_BYTES };
        if self.input.capacity() < wanted {
            self.input.reserve_exact(wanted - self.input.len());
        }
        if self.input.len() == self.input.capacity() {
            self.input.reserve(self.input.capacity());
        }
    }

    /// An idle session keeps what it has not consumed, and no more.
    fn put_down_buffers(&mut self) {
        self.input.shrink_to_fit();
        self.replies = Vec::new();
    }

    /// Makes all it can of the input. True when the session is over.
    async fn work(&mut self) -> bool {
        loop {
            if self.incoming.as_ref().is_some_and(Incoming::is_direct) {
                match Box::pin(self.work_direct()).await {
                    Worked::Some => continue,
                    Worked::Stuck => return false,
                    Worked::Over => return true,
                }
            }
            // A client that pipelines without pause would else keep a stopping server busy.
            if self.worker.draining.get() && self.incoming.is_none() {
                self.session.say_goodbye(Goodbye::Stopping, &mut self.replies);
                return true;
            }
            self.session.set_room(self.worker.room_for_mail());
            let answered = self.replies.len();
            let (consumed, step) = self.session.step(&self.input[self.start..], &mut self.replies);
            self.heed(consumed, !matches!(step, Step::More) || self.replies.len() != answered);
            match step {
                Step::More => {
                    self.start += consumed;
                    // A session that keeps its replies back makes progress once they are sent.
                    if self.replies.len() >= limits::REPLY_BYTES && self.start < self.input.len() {
                        if !self.flush().await {
                            return true;
                        }
                        continue;
                    }
                    return false;
                }
                Step::BodyStarts => {
                    self.start += consumed;
                    self.count_recipients();
                    let (tls, user) = (self.tls.as_ref(), self.user.as_deref());
                    let may_relay = self.worker.shared.may_relay(self.client.ip());
                    let opening = Opening::of_session(&self.session, self.client.ip(), tls, user, may_relay);
                    self.incoming = Some(Incoming::begin(&self.worker, &opening));
                }
                Step::Body(range) => {
                    if let Some(incoming) = &mut self.incoming {
                        incoming.take(&self.input[self.start..][range]);
                    }
                    self.start += consumed;
                    self.maybe_go_direct().await;
                }
                Step::BodyRefused | Step::BodyWithdrawn => {
                    self.start += consumed;
                    self.drop_incoming(step == Step::BodyRefused);
                }
                Step::BodyEnds => {
                    self.start += consumed;
                    Box::pin(self.finish_message()).await;
                }
                Step::StartTls => {
                    // What was sent behind the command was sent in the clear: nobody knows by whom.
                    self.input.clear();
                    self.start = 0;
                    if !Box::pin(self.start_tls()).await {
                        return true;
                    }
                    return false;
                }
                Step::Auth(said) => {
                    self.start += consumed;
                    self.input[..self.start].zeroize();
                    Box::pin(self.authenticate(said)).await;
                    self.goes_on();
                }
                Step::AuthEnds => {
                    self.start += consumed;
                    self.exchange = None;
                }
                Step::Xclient(said) => {
                    self.start += consumed;
                    if !self.rename(&said) {
                        return true;
                    }
                }
                Step::MayMail => {
                    self.start += consumed;
                    self.admit_mail();
                }
                Step::Close => return true,
            }
        }
    }

    /// Does the handshake that the client asked for. False if the connection is over.
    async fn start_tls(&mut self) -> bool {
        if !self.flush().await {
            return false;
        }
        let (doors, client) = (self.doors.clone(), self.client.ip());
        let session = arrival::handshake(&self.worker, &mut self.wire, &doors, client, Vec::new());
        match Box::pin(session).await {
            Some(session) => {
                self.secured(session);
                self.goes_on();
                true
            }
            None => false,
        }
    }

    /// Once a body has outgrown the copy path, what follows is received into fragment buffers.
    async fn maybe_go_direct(&mut self) {
        let Some(incoming) = &mut self.incoming else { return };
        // With more than that left the body is about to end: the rest is the next commands.
        if incoming.wants_direct() && self.input.len() - self.start < LEAST_READ {
            let rest = self.input[self.start..].to_vec();
            let begun = ring::now();
            Box::pin(incoming.go_direct(&self.worker, &rest)).await;
            // A wait for our buffers is not the client's.
            self.patience.forgive(ring::now().since(begun));
            if incoming.is_direct() {
                self.input.clear();
                self.start = 0;
            }
        }
    }

    /// Feeds the session from the fragment buffer, in which commands may stand between two chunks.
    async fn work_direct(&mut self) -> Worked {
        let incoming = self.incoming.as_mut().expect("the caller has looked");
        let (consumed, step) = self.session.step(incoming.unconsumed(), &mut self.replies);
        self.patience.body(consumed, self.heard);
        match step {
            Step::More => {
                incoming.skip(consumed);
                if self.replies.len() >= limits::REPLY_BYTES && !incoming.unconsumed().is_empty() {
                    return if self.flush().await { Worked::Some } else { Worked::Over };
                }
                let begun = ring::now();
                let mut rest = incoming.make_room(&self.worker).await;
                if incoming.is_direct() && incoming.lingers(self.heard) && self.worker.fragments.is_short() {
                    rest = incoming.step_back(&self.worker).await;
                }
                self.input.extend_from_slice(&rest);
                self.patience.forgive(ring::now().since(begun));
                return Worked::Stuck;
            }
            Step::Body(range) => {
                incoming.skip(range.start);
                incoming.consume(range.len());
                incoming.skip(consumed - range.end);
            }
            Step::BodyRefused | Step::BodyWithdrawn => {
                incoming.skip(consumed);
                self.input.extend_from_slice(incoming.unconsumed());
                self.drop_incoming(step == Step::BodyRefused);
            }
            Step::BodyEnds => {
                incoming.skip(consumed);
                self.input.extend_from_slice(incoming.unconsumed());
                self.finish_message().await;
            }
            Step::Close => return Worked::Over,
            _ => unreachable!("a body has begun, and nothing else may begin before it ends"),
        }
        Worked::Some
    }

    fn drop_incoming(&mut self, refused: bool) {
        if let Some(incoming) = self.incoming.take() {
            incoming.discard();
        }
        if refused {
            self.worker.counters.rejected_permanently.add(1);
        }
        self.goes_on();
    }

    /// Stores the message and answers for it.
    async fn finish_message(&mut self) {
        let incoming = self.incoming.take().expect("BodyEnds follows BodyStarts");
        let mut envelope = self.session.take_transaction().envelope;
        envelope.user = self.user.as_ref().map(|user| user.name.clone());
        let stored = incoming.store(&self.worker, envelope).await;
        let verdict = match stored {
            Stored::Durable { slot, message, bytes } => {
                incoming::accept(&self.worker, slot, &message, bytes, || Credentials {
                    user: self.user.as_ref().map(|user| printable(user.name.as_bytes())),
                    tls: self.tls.as_ref().map(|session| session.description.clone()),
                    certificate: self.tls.as_ref().and_then(|session| session.client.clone()),
                });
                Verdict::Accepted(message.id)
            }
            Stored::NoRoom => Verdict::NoRoom,
            Stored::Failed => Verdict::Failed,
            Stored::Loop => Verdict::Loop,
            Stored::Busy => Verdict::Busy,
        };
        match verdict {
            Verdict::Accepted(_) => {}
            Verdict::Loop => self.worker.counters.rejected_permanently.add(1),
            Verdict::NoRoom | Verdict::Failed | Verdict::Busy => {
                self.worker.counters.rejected_temporarily.add(1)
            }
        }
        self.session.finish(verdict, &mut self.replies);
        self.goes_on();
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            incoming.discard();
        }
    }
}

/// What came of the input.
enum Worked {
    Some,
    /// More must be read first.
    Stuck,
    /// The session is over.
    Over,
}

enum Read {
    Some,
    End,
    TimedOut,
}

impl Read {
    fn from_error(error: &std::io::Error) -> Read {
        match error.kind() {
            std::io::ErrorKind::TimedOut => Read::TimedOut,
            std::io::ErrorKind::Interrupted => Read::Some,
            _ => Read::End,
        }
    }
}
