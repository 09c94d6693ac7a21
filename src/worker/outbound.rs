//! The outbound driver: one task per connection.
//!
//! Owns: carrying the entries the shard hands to a connection through a client session, in as many
//! transactions as the peer's limits make of each, pipelining the next message behind the body of the
//! last. Promises: every entry given to a connection is answered
//! to the shard exactly once (finished, deferred or returned) before the connection is reported
//! closed; a peer can stall only its own connection. Must not: choose mail or set retry times.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use super::dial::{self, DialError, Dialled};
use super::home::Home;
use super::link::Link;
use super::message::Message;
use super::outcome::{self, Peer, Tried};
use super::post::ShardEvent;
use super::signal::Signal;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::reply::Reply;
use crate::ring;
use crate::schedule::{ConnId, Entry, Verdict};
use crate::smtp::body::DotStuffer;
use crate::smtp::client::{ClientEvent, ClientPhase, ClientSession, Outgoing, Transfer};
use crate::spool::Slot;

/// A connection as the rest of the worker sees it.
#[derive(Default)]
pub struct Connection {
    inbox: RefCell<VecDeque<Entry>>,
    signal: Signal,
    closing: Cell<bool>,
    /// The shard lets it go to the hosts that were found.
    agreed: Cell<bool>,
    /// From this local address; None: as the configuration says.
    source: Cell<Option<IpAddr>>,
    draining: Cell<bool>,
    /// Messages started and not yet answered.
    flying: RefCell<Vec<Slot>>,
}

impl Connection {
    /// Whether it holds any part of the message in `slot`.
    pub fn holds(&self, slot: Slot) -> bool {
        self.flying.borrow().contains(&slot) || self.inbox.borrow().iter().any(|e| e.slot == slot)
    }

    /// Hands over an entry the shard has granted.
    pub fn give(&self, entry: Entry) {
        self.inbox.borrow_mut().push_back(entry);
        self.signal.raise();
    }
    /// It may go on, from that local address.
    pub fn proceed(&self, source: Option<IpAddr>) {
        self.source.set(source);
        self.agreed.set(true);
        self.signal.raise();
    }
    /// No more mail after what it holds.
    pub fn close(&self) {
        self.closing.set(true);
        self.signal.raise();
    }
    /// No more mail after what has been started; the rest goes back.
    pub fn drain(&self) {
        self.draining.set(true);
        self.close();
    }
}

/// What a connection is for.
pub struct Errand {
    pub destination: Domain,
    /// Where a place is kept for it.
    pub source: Option<IpAddr>,
    /// The stream with limits whose mail it carries.
    pub stream: Option<u16>,
}

/// Opens a connection in the name of `conn` of shard `shard`.
pub fn start(worker: &Rc<Worker>, home: &Rc<Home>, (shard, conn): (u8, ConnId), errand: Errand) {
    if worker.draining.get() || !home.may_deliver() || !worker.may_connect() {
        worker.tell_shard(shard.into(), ShardEvent::ConnectPutOff { conn });
        return;
    }
    let connection = Rc::new(Connection::default());
    home.connections.borrow_mut().insert((shard, conn), connection.clone());
    worker.counters.outbound_open.add(1);
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        let ended = run(&worker, &home, (shard, conn), &errand, &connection).await;
        home.connections.borrow_mut().remove(&(shard, conn));
        let waiting = connection.inbox.take();
        for entry in waiting.into_iter().rev() {
            worker.tell_shard(shard.into(), ShardEvent::Returned { conn, entry });
        }
        worker.counters.outbound_open.sub(1);
        worker.tell_shard(shard.into(), ended);
        worker.session_gone.raise();
    });
}

/// Runs the connection to its end; returns what the shard is told last.
async fn run(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    (shard, conn): (u8, ConnId),
    errand: &Errand,
    connection: &Rc<Connection>,
) -> ShardEvent {
    let dialled = tokio::select! {
        dialled = reach(worker, (shard, conn), errand, connection) => match dialled {
            Ok(Some(dialled)) => Ok(dialled),
            Ok(None) => return ShardEvent::Closed { conn },
            Err(error) => Err(error),
        },
        // Connecting may take minutes; a stop does not wait for it.
        () = worker.drain_begins() => return ShardEvent::ConnectPutOff { conn },
    };
    match dialled {
        Err(DialError::PutOff) => ShardEvent::ConnectPutOff { conn },
        Err(DialError::Failed { permanent, reply }) => {
            worker.counters.connect_failures.add(1);
            let verdict = outcome::verdict(worker, &reply);
            ShardEvent::ConnectFailed { conn, permanent, verdict, why: Arc::new(reply) }
        }
        Ok(Dialled { link, session, host, out }) => {
            worker.counters.outbound_total.add(1);
            let tls = link.tls_description().map(Rc::from);
            let peer = Peer { host, tls, dsn: session.capabilities().dsn };
            let delivery = Delivery {
                worker,
                home,
                shard,
                conn,
                connection,
                link,
                session,
                peer,
                out,
                flying: VecDeque::with_capacity(limits::CONNECTION_WINDOW),
                rest_of: VecDeque::new(),
                asked: false,
                next_key: 0,
                answered: 0,
            };
            delivery.run().await;
            ShardEvent::Closed { conn }
        }
    }
}

/// Finds the hosts, has the shard agree, and connects. None: the shard has closed the connection instead.
async fn reach(
    worker: &Rc<Worker>,
    (shard, conn): (u8, ConnId),
    errand: &Errand,
    connection: &Rc<Connection>,
) -> Result<Option<Dialled>, DialError> {
    let mut way = dial::find(worker, &errand.destination).await?;
    if let Some(source) = errand.source {
        way.begin_with(source);
    }
    let mut failure = None;
    for leg in &way.legs {
        let (hosts, provider, sources) = (way.hosts, way.provider, leg.set());
        if worker.live().policies.shares(hosts, provider, sources, errand.stream) {
            connection.agreed.set(false);
            worker.tell_shard(shard.into(), ShardEvent::Resolved { conn, hosts, provider, sources });
            while !connection.agreed.get() {
                if connection.closing.get() {
                    return Ok(None);
                }
                connection.signal.wait().await;
            }
        }
        match dial::dial(worker, leg, connection.source.take()).await {
            Ok(dialled) => return Ok(Some(dialled)),
            Err(error @ DialError::Failed { .. }) if !worker.draining.get() => failure = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(failure.unwrap_or(DialError::PutOff))
}

/// A message on its way, in one transaction or in several.
struct Work {
    /// Of the transaction under way.
    key: u64,
    entry: Entry,
    message: Rc<Message>,
    recipients: Vec<u16>,
    /// One for each recipient of the transactions before.
    replies: Vec<Reply>,
    /// Behind the last recipient of the transaction under way.
    until: usize,
}

impl Work {
    /// Where the next transaction ends: at most `most` recipients, and none that needs SMTPUTF8 beside one
    /// that does not, for the peer may lack it.
    fn part_end(&self, most: usize) -> usize {
        let from = self.replies.len();
        let all = &self.recipients[from..];
        let is_ascii = |r: &u16| self.message.envelope.recipients[usize::from(*r)].address.is_ascii();
        let like = match all.first() {
            Some(first) if self.message.envelope.smtp_utf8 => {
                let first = is_ascii(first);
                all.iter().take_while(|r| is_ascii(r) == first).count()
            }
            _ => all.len(),
        };
        from + like.min(most.max(1))
    }
}

struct Delivery<'a> {
    worker: &'a Rc<Worker>,
    home: &'a Rc<Home>,
    shard: u8,
    conn: ConnId,
    connection: &'a Rc<Connection>,
    link: Link,
    session: ClientSession,
    peer: Peer,
    out: Vec<u8>,
    /// In the order they were started: at most `limits::CONNECTION_WINDOW`.
    flying: VecDeque<Work>,
    /// Messages that a transaction has carried a part of, and that need another one.
    rest_of: VecDeque<Work>,
    /// The shard knows that this connection has room.
    asked: bool,
    next_key: u64,
    /// Messages this connection has carried to an answer.
    answered: u64,
}

impl Delivery<'_> {
    async fn run(mut self) {
        let failure = loop {
            // A delivery whose outcome could not be recorded would be made again.
            if !self.home.may_deliver() {
                self.connection.drain();
            }
            if self.connection.draining.get() {
                self.return_waiting();
            }
            self.start_waiting().await;
            if self.session.is_spent() {
                self.connection.drain();
                self.return_waiting();
            }
            self.ask();
            if self.flying.is_empty() && self.session.is_at_rest() {
                let waiting = !self.connection.inbox.borrow().is_empty();
                if self.connection.closing.get() && !waiting {
                    self.quit().await;
                    break self.rest_of.front().map(|_| self.spent());
                }
                if waiting || self.rest().await {
                    continue;
                }
            }
            if let Err(reply) = self.turn().await {
                break Some(reply);
            }
        };
        if let Some(reply) = failure {
            self.give_up(&reply);
        }
        self.link.close().await;
    }

    /// Starts what the shard has granted, as far as the session takes it.
    async fn start_waiting(&mut self) {
        while self.session.can_start() && self.flying.len() < limits::CONNECTION_WINDOW {
            if let Some(work) = self.rest_of.pop_front() {
                self.start_part(work);
                continue;
            }
            let Some(entry) = self.connection.inbox.borrow_mut().pop_front() else { return };
            self.asked = false;
            self.connection.flying.borrow_mut().push(entry.slot);
            let message = match self.home.load(entry.slot).await {
                Ok(message) => message,
                Err(error) => {
                    self.unreadable(entry, &error);
                    continue;
                }
            };
            let recipients = self.home.pending(&message, entry);
            if recipients.is_empty() {
                self.landed(entry);
                self.tell(ShardEvent::Finished { conn: self.conn, entry, verdict: Verdict::Nothing });
                continue;
            }
            self.start(entry, message, recipients);
        }
    }

    /// Gives back what has not been started, last granted first, so that the order is kept.
    fn return_waiting(&self) {
        for entry in self.connection.inbox.take().into_iter().rev() {
            self.tell(ShardEvent::Returned { conn: self.conn, entry });
        }
    }

    fn start(&mut self, entry: Entry, message: Rc<Message>, recipients: Vec<u16>) {
        let work = Work { key: 0, entry, message, recipients, replies: Vec::new(), until: 0 };
        self.start_part(work);
    }

    /// Starts the next transaction of a message.
    fn start_part(&mut self, mut work: Work) {
        work.key = self.next_key;
        self.next_key += 1;
        let most = self.session.capabilities().recipients.unwrap_or(usize::MAX);
        work.until = work.part_end(most);
        let outgoing = Outgoing {
            key: work.key,
            envelope: &work.message.envelope,
            recipients: &work.recipients[work.replies.len()..work.until],
            body: &work.message.body,
        };
        self.session.start(outgoing, &mut self.out);
        self.flying.push_back(work);
    }

    fn unreadable(&self, entry: Entry, error: &super::message::LoadError) {
        self.landed(entry);
        if self.home.log().live().get(entry.slot).is_none_or(|m| m.pending == 0) {
            self.tell(ShardEvent::Finished { conn: self.conn, entry, verdict: Verdict::Nothing });
            return;
        }
        tracing::error!(slot = entry.slot, %error, "a queued message cannot be read; it is tried again later");
        // Without the message the recipients of the part are not known; the shard counts one.
        let (conn, verdict) = (self.conn, Verdict::Nothing);
        self.tell(ShardEvent::Deferred { conn, entry, recipients_left: 1, verdict });
    }

    /// Tells the shard that there is room, once until it answers.
    fn ask(&mut self) {
        if self.asked || self.connection.closing.get() || self.worker.draining.get() {
            return;
        }
        let held = self.flying.len() + self.rest_of.len() + self.connection.inbox.borrow().len();
        let room = limits::CONNECTION_WINDOW.saturating_sub(held);
        if room > 0 {
            self.asked = true;
            self.tell(ShardEvent::Want { conn: self.conn, room: room as u8 });
        }
    }

    fn tell(&self, event: ShardEvent) {
        self.worker.tell_shard(self.shard.into(), event);
    }

    /// With nothing in flight: waits for mail, an order to close, or the peer. True if mail or an
    /// order came.
    async fn rest(&mut self) -> bool {
        tokio::select! {
            () = self.connection.signal.wait() => true,
            _ = self.link.readable(Duration::MAX) => false,
        }
    }

    /// Sends what is due, reads, and works through what was read.
    async fn turn(&mut self) -> Result<(), Reply> {
        // What is there may be half a reply; only if nothing comes of it is more waited for.
        if !self.work_off().await? {
            self.link.post(&mut self.out, limits::DATA_WRITE_WAIT).await.map_err(|e| self.lost(&e))?;
            let wait = match self.session.phase() {
                ClientPhase::DataStart => limits::DATA_START_WAIT,
                ClientPhase::DataEnd => limits::DATA_END_WAIT,
                _ => limits::COMMAND_REPLY_WAIT,
            };
            if self.link.receive(wait).await.map_err(|e| self.lost(&e))? == 0 {
                return Err(self.lost(&std::io::ErrorKind::UnexpectedEof.into()));
            }
            self.work_off().await?;
        }
        Ok(())
    }

    /// Works through what was read. False if nothing came of it.
    async fn work_off(&mut self) -> Result<bool, Reply> {
        let mut progress = false;
        loop {
            let (consumed, event) = self.session.feed(self.link.input(), &mut self.out);
            self.link.consume(consumed);
            progress |= consumed > 0 || event != ClientEvent::More;
            match event {
                ClientEvent::More => return Ok(progress),
                ClientEvent::SendBody { key, transfer } => self.send_body(key, transfer).await?,
                ClientEvent::Done { key, replies } => self.done(key, replies),
                ClientEvent::Failed(reply) => return Err(reply),
                ClientEvent::Bye => return Err(self.lost(&std::io::ErrorKind::UnexpectedEof.into())),
                ClientEvent::Ready => {}
                ClientEvent::StartTls => unreachable!("TLS is settled before mail is sent"),
            }
        }
    }

    /// Sends the body and what ends it. A small one goes out together with the commands of the next message.
    async fn send_body(&mut self, key: u64, transfer: Transfer) -> Result<(), Reply> {
        let work = self.flying.iter().find(|w| w.key == key).expect("the session answers what was started");
        let message = work.message.clone();
        let mut stuffer = DotStuffer::default();
        let small = message.body.len() <= limits::COPY_BYTES;
        for piece in message.body.chunks(limits::FRAGMENT_BYTES) {
            match transfer {
                Transfer::Stored | Transfer::Chunk => self.out.extend_from_slice(piece),
                Transfer::Stuffed => stuffer.push(piece, &mut self.out),
            }
            if !small {
                self.link.send(&mut self.out, limits::DATA_WRITE_WAIT).await.map_err(|e| self.lost(&e))?;
            }
        }
        match transfer {
            Transfer::Stored => self.out.extend_from_slice(b".\r\n"),
            Transfer::Stuffed => stuffer.end(&mut self.out),
            Transfer::Chunk => {}
        }
        self.session.body_sent(key);
        self.start_waiting().await;
        Ok(())
    }

    fn done(&mut self, key: u64, replies: Vec<Reply>) {
        let at = self.flying.iter().position(|w| w.key == key).expect("the session answers what was started");
        let mut work = self.flying.remove(at).expect("the position was just found");
        self.asked = false;
        self.answered += 1;
        work.replies.extend(replies);
        if work.replies.len() < work.recipients.len() {
            self.rest_of.push_back(work);
            return;
        }
        let replies = std::mem::take(&mut work.replies);
        self.settle(&work, replies);
    }

    /// The entry is no longer on its way.
    fn landed(&self, entry: Entry) {
        let mut flying = self.connection.flying.borrow_mut();
        if let Some(at) = flying.iter().position(|&slot| slot == entry.slot) {
            flying.swap_remove(at);
        }
    }

    fn settle(&self, work: &Work, replies: Vec<Reply>) {
        self.landed(work.entry);
        let tried = Tried {
            shard: self.shard,
            conn: self.conn,
            entry: work.entry,
            message: &work.message,
            recipients: &work.recipients,
            peer: &self.peer,
        };
        outcome::settle(self.worker, self.home, &tried, replies);
    }

    /// The connection died or the peer closed the session: the first message in flight has had its
    /// attempt, as has every one whose final dot was sent; the others go back untried.
    fn give_up(&mut self, reply: &Reply) {
        self.return_waiting();
        let flying = std::mem::take(&mut self.flying);
        for (nth, work) in flying.into_iter().enumerate().rev() {
            // Many hosts close after so many messages: what they had not begun to take has not been
            // tried, if the connection has carried something else.
            let untouched = nth > 0 || (self.answered > 0 && !self.session.is_answered(work.key));
            if untouched && work.replies.is_empty() && !self.session.is_body_sent(work.key) {
                self.landed(work.entry);
                self.tell(ShardEvent::Returned { conn: self.conn, entry: work.entry });
                continue;
            }
            self.settle_cut_short(work, reply);
        }
        for work in std::mem::take(&mut self.rest_of) {
            self.settle_cut_short(work, reply);
        }
    }

    /// Settles a message whose transaction was not answered: refusals that did arrive count; the rest is
    /// tried again. A failure of the session is never final for the message.
    fn settle_cut_short(&self, mut work: Work, reply: &Reply) {
        let lost = if reply.is_permanent() {
            Reply::local(451, (4, 4, 2), &format!("the session failed: {reply}"))
        } else {
            reply.clone()
        };
        let mut replies = std::mem::take(&mut work.replies);
        let known = self.session.refusals(work.key);
        replies.extend(known.iter().map(|known| known.clone().unwrap_or_else(|| lost.clone())));
        replies.resize(work.recipients.len(), lost);
        self.settle(&work, replies);
    }

    /// Why the rest of a message has to wait for another connection.
    fn spent(&self) -> Reply {
        let text = format!("{} takes no more transactions on this connection", self.peer.host);
        Reply::local(451, (4, 5, 3), &text)
    }

    fn lost(&self, error: &std::io::Error) -> Reply {
        let host = &self.peer.host;
        let text = match error.kind() {
            std::io::ErrorKind::TimedOut => format!("{host} did not answer in time"),
            std::io::ErrorKind::UnexpectedEof => format!("{host} closed the connection"),
            _ => format!("connection to {host} lost: {error}"),
        };
        Reply::local(451, (4, 4, 2), &text)
    }

    async fn quit(&mut self) {
        self.session.quit(&mut self.out);
        if self.link.send(&mut self.out, limits::QUIT_WAIT).await.is_err() {
            return;
        }
        loop {
            let (consumed, event) = self.session.feed(self.link.input(), &mut self.out);
            self.link.consume(consumed);
            match event {
                ClientEvent::More => match self.link.receive(limits::QUIT_WAIT).await {
                    Ok(read) if read > 0 => {}
                    _ => return,
                },
                _ => return,
            }
        }
    }
}
