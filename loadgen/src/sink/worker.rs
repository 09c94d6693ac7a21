//! One thread of the sink: its connections and their readiness.
//!
//! Owns: the sockets of its connections. Promises: per batch of pipelined commands one read and one
//! write; the seen log is written before the replies; a client that does not read its replies is
//! not read from. Must not: parse (the session does) or count (the ledger does).
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, SendFlags, SocketFlags};
use rustls::ServerConnection;
use slab::Slab;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::wall_us;
use crate::cpu::{self, Meter, Strain};
use crate::epoll::{Events, Poller, Ready};
use crate::limits;
use crate::sink::content::Summary;
use crate::sink::model::TlsVariant;
use crate::sink::session::{Answer, Receiver, Session};
use crate::sink::{Listener, Shared};

/// The first words of a sink without models.
const GREETING: &[u8] = b"220 sink.ringpost.invalid ESMTP ringpost sink\r\n";

struct Connection {
    socket: OwnedFd,
    session: Session,
    visit: Visit,
    tls: Option<Box<ServerConnection>>,
    /// Nothing is read or sent before this time, in microseconds since the sink's start.
    paused_until_us: u64,
    /// The end of its pause is among the thread's.
    is_queued: bool,
    /// Tells this connection from earlier ones with its key.
    serial: u64,
    /// Replies the socket has not taken yet.
    unsent: Vec<u8>,
    /// Bytes may wait in the socket that no event will announce again.
    may_read: bool,
    is_over: bool,
}

/// A client's stay at one receiver.
struct Visit {
    /// The receiver's place in the world; none where there is no world.
    receiver: Option<usize>,
    client: IpAddr,
    /// Messages begun.
    begun: u32,
    /// Hash of the sender of the message under way.
    sender: u64,
    /// How long the replies to what was read last are held back.
    delay_us: u64,
}

/// A thread of the sink.
pub struct Worker {
    index: usize,
    listeners: Vec<Listener>,
    poller: Poller,
    connections: Slab<Connection>,
    /// When paused connections go on: time, key, serial.
    pauses: BinaryHeap<Reverse<(u64, usize, u64)>>,
    serial: u64,
    desk: Desk,
    /// Begun with the first mail this thread took, read while mail comes.
    meter: Option<Meter>,
    buffer: Vec<u8>,
    plain: Vec<u8>,
    replies: Vec<u8>,
}

/// What one thread has measured: what it had of the time in which mail came, and of the worst stretch of it.
#[derive(Default)]
pub struct Measured {
    pub strain: Strain,
    pub worst: Strain,
}

/// Where the sessions of a thread hand their messages in.
struct Desk {
    shared: Arc<Shared>,
    seen: Vec<u8>,
    /// Wall time of the read that is being worked on.
    now_us: u64,
    took_mail: bool,
    /// Mail has come since the thread last published.
    has_news: bool,
}

/// One connection at its thread's desk.
struct Scene<'a> {
    desk: &'a mut Desk,
    visit: &'a mut Visit,
}

impl Scene<'_> {
    fn refused(&self) {
        self.desk.shared.refused.fetch_add(1, Ordering::Relaxed);
    }
    /// What `--reject-every` and `--tempfail-every` say.
    fn every(&self) -> Answer {
        let shared = &self.desk.shared;
        if shared.reject_every.is_none() && shared.tempfail_every.is_none() {
            return Answer::Take;
        }
        let number = shared.transactions.fetch_add(1, Ordering::Relaxed) + 1;
        let is_due = |every: Option<std::num::NonZeroU64>| {
            every.is_some_and(|every| number.is_multiple_of(every.get()))
        };
        let reply = match () {
            () if is_due(shared.reject_every) => "550 5.1.1 refused, as asked",
            () if is_due(shared.tempfail_every) => "451 4.3.0 not now, as asked",
            () => return Answer::Take,
        };
        self.refused();
        Answer::RefuseRecipients(reply.into())
    }
}

impl Receiver for Scene<'_> {
    fn mail(&mut self, sender: &[u8]) -> Answer {
        let shared = self.desk.shared.clone();
        let Some(receiver) = shared.receiver(self.visit.receiver) else { return self.every() };
        self.visit.begun += 1;
        self.visit.sender = xxh3_64(sender);
        self.visit.delay_us += receiver.model.reply_delay.us();
        match receiver.mail(self.visit.client, self.visit.begun, shared.now_us()) {
            Some(reply) => {
                self.refused();
                Answer::Refuse(reply)
            }
            None => self.every(),
        }
    }
    fn rcpt(&mut self, address: &[u8], count: usize) -> Answer {
        let shared = self.desk.shared.clone();
        let Some(world) = &shared.world else { return Answer::Take };
        let domain = address.rsplit(|&c| c == b'@').next().unwrap_or_default().to_ascii_lowercase();
        let of_domain = world.find(&domain).map(|(receiver, _)| receiver);
        let Some(receiver) = of_domain.or(shared.receiver(self.visit.receiver)) else { return Answer::Take };
        self.visit.delay_us += receiver.model.reply_delay.us();
        let (client, sender) = (self.visit.client, self.visit.sender);
        match receiver.rcpt(client, sender, address, count as u32, shared.now_us()) {
            Some(reply) => {
                self.refused();
                Answer::Refuse(reply)
            }
            None => Answer::Take,
        }
    }
    fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]) -> bool {
        if let Some(receiver) = self.desk.shared.receiver(self.visit.receiver) {
            if receiver.drops() {
                self.refused();
                return false;
            }
            self.visit.delay_us += receiver.model.data_delay.us();
        }
        let desk = &mut *self.desk;
        let log = desk.shared.seen_log.is_some().then_some(&mut desk.seen);
        desk.shared.ledger().enter(summary, recipients, desk.now_us, log);
        (desk.took_mail, desk.has_news) = (true, true);
        true
    }
}

impl Worker {
    pub fn new(index: usize, shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<Worker> {
        let poller = Poller::new()?;
        for (place, listener) in listeners.iter().enumerate() {
            poller.add_listener(&listener.socket, place as u64)?;
        }
        let desk = Desk { shared, seen: Vec::new(), now_us: 0, took_mail: false, has_news: false };
        Ok(Worker {
            index,
            listeners,
            poller,
            connections: Slab::new(),
            pauses: BinaryHeap::new(),
            serial: 0,
            desk,
            meter: None,
            buffer: vec![0; limits::SINK_READ_BYTES],
            plain: Vec::new(),
            replies: Vec::new(),
        })
    }
    /// Serves until the sink is stopped.
    pub fn run(mut self) -> anyhow::Result<Measured> {
        let mut events = Events::new();
        let mut published_at = Instant::now();
        while !self.desk.shared.stop.load(Ordering::Relaxed) {
            let timeout = self.wake()?;
            self.poller.wait(timeout, &mut events)?;
            for event in events.drain() {
                match event.token.checked_sub(self.listeners.len() as u64) {
                    None => self.accept(event.token as usize)?,
                    Some(key) => self.serve(key as usize, &event)?,
                }
            }
            if published_at.elapsed() >= limits::PUBLISH_EVERY {
                self.publish();
                published_at = Instant::now();
            }
        }
        self.publish();
        self.desk.shared.open.fetch_sub(self.connections.len() as u64, Ordering::Relaxed);
        let Some(meter) = self.meter else { return Ok(Measured::default()) };
        let (_, strain, worst) = meter.so_far();
        Ok(Measured { strain, worst })
    }
    /// Moves those on whose pause is over. Returns how long nothing is due.
    fn wake(&mut self) -> io::Result<Duration> {
        while let Some(&Reverse((due_us, key, serial))) = self.pauses.peek() {
            let now_us = self.desk.shared.now_us();
            if due_us > now_us {
                return Ok(Duration::from_micros(due_us - now_us).min(limits::SINK_SLEEP));
            }
            self.pauses.pop();
            if self.connections.get(key).is_some_and(|connection| connection.serial == serial) {
                self.connections[key].paused_until_us = 0;
                self.serve(key, &Ready { token: 0, readable: false, writable: true, ending: false })?;
            }
        }
        Ok(limits::SINK_SLEEP)
    }
    fn publish(&mut self) {
        let shared = &self.desk.shared;
        let cpu = cpu::thread();
        shared.cpu_ns[self.index].store(cpu.as_nanos() as u64, Ordering::Relaxed);
        if std::mem::take(&mut self.desk.has_news) {
            let now_us = shared.now_us();
            self.meter.get_or_insert_with(|| Meter::begin(now_us)).read(now_us);
        }
    }
    fn accept(&mut self, place: usize) -> io::Result<()> {
        for _ in 0..limits::ACCEPTS_PER_WAKE {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (socket, client) = match accept(&self.listeners[place].socket, flags, &self.desk.shared) {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return Ok(()),
                // The client is gone again; or another thread's turn comes when descriptors are free.
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(Errno::MFILE | Errno::NFILE) => {
                    // The listener stays ready: without a pause this would be a busy loop.
                    std::thread::sleep(Duration::from_millis(1));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            self.desk.shared.connections.fetch_add(1, Ordering::Relaxed);
            let entry = self.connections.vacant_entry();
            let key = entry.key();
            self.poller.add_connection(&socket, (key + self.listeners.len()) as u64)?;
            self.serial += 1;
            let connection =
                begin(socket, client, self.listeners[place].receiver, &self.desk.shared, self.serial)?;
            entry.insert(connection);
            self.desk.shared.open.fetch_add(1, Ordering::Relaxed);
            self.serve(key, &Ready { token: 0, readable: false, writable: true, ending: false })?;
        }
        Ok(())
    }
    fn serve(&mut self, key: usize, event: &Ready) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        connection.may_read |= event.readable;
        let mut room = Room { desk: &mut self.desk, buffer: &mut self.buffer, plain: &mut self.plain };
        let keep = drive(connection, &mut room, &mut self.replies, event.ending)?;
        if connection.paused_until_us > 0 && keep {
            let pause = (connection.paused_until_us, key, connection.serial);
            // Woken by its client while it waits, it is in the queue already.
            if !std::mem::replace(&mut connection.is_queued, true) {
                self.pauses.push(Reverse(pause));
            }
        } else {
            connection.is_queued = false;
        }
        if !keep {
            let visit = &self.connections[key].visit;
            if let Some(receiver) = self.desk.shared.receiver(visit.receiver) {
                receiver.leave(visit.client);
            }
            self.connections.remove(key);
            self.desk.shared.open.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Accepts a connection; who the client is matters only where there are models.
fn accept(socket: &TcpListener, flags: SocketFlags, shared: &Shared) -> Result<(OwnedFd, IpAddr), Errno> {
    const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    if shared.world.is_none() {
        return Ok((net::accept_with(socket, flags)?, NOBODY));
    }
    let (socket, client) = net::acceptfrom_with(socket, flags)?;
    let client = client.and_then(|client| SocketAddr::try_from(client).ok());
    Ok((socket, client.map_or(NOBODY, |client| client.ip())))
}

/// A new connection with its greeting, or with the refusal of one.
fn begin(
    socket: OwnedFd,
    client: IpAddr,
    place: Option<usize>,
    shared: &Shared,
    serial: u64,
) -> io::Result<Connection> {
    let mut connection = Connection {
        socket,
        session: Session::new(shared.features(place)),
        visit: Visit { receiver: place, client, begun: 0, sender: 0, delay_us: 0 },
        tls: None,
        paused_until_us: 0,
        is_queued: false,
        serial,
        unsent: Vec::new(),
        may_read: false,
        is_over: false,
    };
    let mut greeting = Vec::new();
    match shared.receiver(place) {
        None => greeting.extend_from_slice(GREETING),
        Some(receiver) => match receiver.enter(client) {
            Some(reply) => {
                write!(greeting, "{}\r\n", reply.replace('\n', "\r\n"))?;
                connection.is_over = true;
            }
            None => {
                write!(greeting, "220 {}\r\n", receiver.model.banner)?;
                let delay_us = receiver.model.banner_delay.us();
                if delay_us > 0 {
                    connection.paused_until_us = shared.now_us() + delay_us;
                }
            }
        },
    }
    if shared.features(place).tls == TlsVariant::Implicit {
        connection.tls = Some(shared.tls(place)?);
    }
    connection.queue(&greeting);
    Ok(connection)
}

impl Connection {
    /// Puts replies behind what is unsent.
    fn queue(&mut self, replies: &[u8]) {
        match &mut self.tls {
            None => self.unsent.extend_from_slice(replies),
            Some(tls) => {
                // Writing to memory cannot fail, and the buffer of TLS has no limit.
                let _ = tls.writer().write_all(replies);
                self.pull();
            }
        }
    }
    /// Takes what TLS wants to send.
    fn pull(&mut self) {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            if tls.write_tls(&mut self.unsent).is_err() {
                return;
            }
        }
    }
}

/// What the connections of a thread use in turn.
struct Room<'a> {
    desk: &'a mut Desk,
    buffer: &'a mut [u8],
    plain: &'a mut Vec<u8>,
}

/// Moves a connection on as far as it goes. Returns false when it is to be closed; an error only
/// when the seen log cannot be written.
fn drive(
    connection: &mut Connection,
    room: &mut Room<'_>,
    replies: &mut Vec<u8>,
    is_ending: bool,
) -> io::Result<bool> {
    loop {
        if connection.paused_until_us > 0 {
            return Ok(true);
        }
        if !connection.unsent.is_empty() {
            match net::send(&connection.socket, &connection.unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(connection.unsent.drain(..sent)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Ok(false),
            }
        }
        if connection.is_over && connection.unsent.is_empty() {
            return Ok(false);
        }
        if connection.is_over || !connection.may_read || connection.unsent.len() > limits::UNREAD_REPLY_BYTES
        {
            return Ok(true);
        }
        let read = match net::recv(&connection.socket, &mut *room.buffer, net::RecvFlags::empty()) {
            Ok((0, _)) => return Ok(false),
            Ok((read, _)) => read,
            Err(Errno::AGAIN) => {
                connection.may_read = false;
                continue;
            }
            Err(Errno::INTR) => continue,
            Err(_) => return Ok(false),
        };
        // A short read has emptied the socket; what comes later is a new event.
        connection.may_read = read == room.buffer.len() || is_ending;
        replies.clear();
        room.desk.now_us = wall_us();
        if !hear(connection, room, read, replies) {
            return Ok(false);
        }
        room.desk.settle()?;
        let delay_us = std::mem::take(&mut connection.visit.delay_us);
        if delay_us > 0 {
            connection.paused_until_us = room.desk.shared.now_us() + delay_us;
        }
        let is_plain = connection.tls.is_none() && connection.unsent.is_empty() && delay_us == 0;
        let mut sent = 0;
        if is_plain && !replies.is_empty() {
            sent = match net::send(&connection.socket, replies, SendFlags::NOSIGNAL) {
                Ok(sent) => sent,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(_) => return Ok(false),
            };
        }
        connection.queue(&replies[sent..]);
        if std::mem::take(&mut connection.session.begins_tls) {
            connection.tls = Some(room.desk.shared.tls(connection.visit.receiver)?);
        }
    }
}

/// Gives the session what was read. Returns false when the connection is to be cut.
fn hear(connection: &mut Connection, room: &mut Room<'_>, read: usize, replies: &mut Vec<u8>) -> bool {
    let mut scene = Scene { desk: room.desk, visit: &mut connection.visit };
    let input = match &mut connection.tls {
        None => &room.buffer[..read],
        Some(tls) => {
            room.plain.clear();
            if decrypt(tls, &room.buffer[..read], room.plain).is_none() {
                // The alert that says why is sent on the way out, as far as it goes.
                connection.pull();
                let _ = net::send(&connection.socket, &connection.unsent, SendFlags::NOSIGNAL);
                return false;
            }
            &room.plain[..]
        }
    };
    connection.is_over = !connection.session.feed(input, &mut scene, replies);
    !connection.session.is_cut
}

/// Decrypts what has come into `plain`; none when it is no TLS.
fn decrypt(tls: &mut ServerConnection, mut bytes: &[u8], plain: &mut Vec<u8>) -> Option<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes).ok()?;
        let state = tls.process_new_packets().ok()?;
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut plain[start..]).ok()?;
    }
    Some(())
}

impl Desk {
    /// Makes lasting what the last read brought, before its replies are sent.
    fn settle(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.took_mail) {
            return Ok(());
        }
        let us = self.shared.started.elapsed().as_micros() as u64 + 1;
        // Whoever finds it zero is the first; a race between threads shifts it by microseconds.
        if self.shared.first_us.load(Ordering::Relaxed) == 0 {
            self.shared.first_us.store(us, Ordering::Relaxed);
        }
        self.shared.last_us.fetch_max(us, Ordering::Relaxed);
        if let Some(log) = &self.shared.seen_log {
            io::Write::write_all(&mut &*log, &self.seen)?;
            self.seen.clear();
        }
        Ok(())
    }
}
