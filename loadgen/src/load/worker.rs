//! One thread of the source: its connections, their readiness and their waits.
//!
//! Owns: the sockets. Promises: a batch of replies costs one read, what they lead to one write, and
//! no allocation; a connection that fails is opened again after a pause for as long as there is
//! mail to send. Must not: know SMTP or HTTP (the sessions do).
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use rustls::{ClientConfig, ClientConnection};

use crate::cpu::{self, Meter};
use crate::epoll::{Events, Poller, Ready};
use crate::limits;
use crate::load::desk::Desk;
use crate::load::plan::{Plan, Shared, Supply};
use crate::load::session::Ending;
use crate::load::stats::{Kind, Stage, Stats};
use crate::load::talk::Talk;
use crate::load::tls::{self, TlsMode};
use crate::message::Stock;

/// A place for one connection at a time.
struct Slot {
    socket: Option<OwnedFd>,
    /// Once TLS has begun.
    tls: Option<Tls>,
    session: Talk,
    /// Run time of the last sign of life.
    alive_us: u64,
    heard: bool,
}

/// TLS on one connection.
struct Tls {
    connection: Box<ClientConnection>,
    begun_us: u64,
    is_measured: bool,
}

/// A thread of the source.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    poller: Poller,
    slots: Vec<Slot>,
    desk: Desk,
    stock: Stock,
    /// The same messages for BDAT or HTTP; empty where those are not asked for.
    chunks: Stock,
    tls: Arc<ClientConfig>,
    plain: Vec<u8>,
    interval: u64,
    interval_us: u64,
    buffer: Vec<u8>,
    /// Slots to be opened, and from when on.
    waiting: VecDeque<(u64, usize)>,
    /// Slots whose connection waits for the next arrival.
    idle: Vec<usize>,
    /// Connections in a row that ended without an accepted message.
    fruitless: u64,
    open: u64,
    published_us: u64,
    swept_us: u64,
    /// Begun when the warm-up is over.
    meter: Option<Meter>,
}

/// How a connection came to its end.
enum Lost {
    /// As it should.
    Quit,
    /// By the server's will or a fault of the wire; the text says what.
    Broken(Kind, String),
    /// All local ports are taken by connections that have closed lately; some will be free again.
    NoPort,
    /// The session has counted the reason already.
    Ended(&'static str),
}

impl Worker {
    pub fn new(
        index: usize,
        plan: Plan,
        shared: Arc<Shared>,
        stock: Stock,
        chunks: Stock,
    ) -> anyhow::Result<Worker> {
        let session = || Talk::new(plan.http.is_some());
        let slot = || Slot { socket: None, tls: None, session: session(), alive_us: 0, heard: false };
        let slots: Vec<Slot> = std::iter::repeat_with(slot).take(plan.connections_of(index)).collect();
        let supply = Supply::new(index, &plan, shared.clone());
        let stats = Stats::new(plan.warmup_us);
        let (keeps_log, keeps_refused) = (shared.ack_log.is_some(), shared.refused_log.is_some());
        let interval_us = shared.timeline().interval_us();
        Ok(Worker {
            index,
            poller: Poller::new()?,
            waiting: (0..slots.len()).map(|slot| (0, slot)).collect(),
            slots,
            desk: Desk {
                plan,
                supply,
                stats,
                acked: Vec::new(),
                keeps_log,
                refused: Vec::new(),
                keeps_refused,
            },
            stock,
            chunks,
            tls: tls::config()?,
            plain: Vec::new(),
            interval: 0,
            interval_us,
            buffer: vec![0; limits::SOURCE_READ_BYTES],
            idle: Vec::new(),
            fruitless: 0,
            open: 0,
            published_us: 0,
            swept_us: 0,
            meter: None,
            shared,
        })
    }
    /// Sends until nothing is left to send. Fails only where this side's resources do.
    pub fn run(mut self) -> anyhow::Result<Stats> {
        let result = self.serve();
        if let Err(error) = &result {
            self.shared.fail(error.to_string());
        }
        let now_us = self.shared.clock.now_us();
        self.desk.close(now_us);
        self.hand_in();
        self.publish(now_us);
        let stats = &mut self.desk.stats;
        if let Some(meter) = self.meter {
            (stats.cpu, stats.strain, stats.worst) = meter.finish(now_us);
        }
        result.map(|()| self.desk.stats)
    }
    fn serve(&mut self) -> anyhow::Result<()> {
        let mut events = Events::new();
        self.publish(self.shared.clock.now_us());
        loop {
            let now_us = self.shared.clock.now_us();
            self.open_due(now_us)?;
            let arrival_us = self.begin_due(now_us);
            self.flush_log()?;
            if self.open == 0 && self.waiting.is_empty() {
                return Ok(());
            }
            let reopen_us = self.waiting.front().map(|&(due_us, _)| due_us);
            let wake_us = [arrival_us, reopen_us].into_iter().flatten().min().unwrap_or(u64::MAX);
            let timeout = Duration::from_micros(wake_us.saturating_sub(now_us)).min(limits::SOURCE_SLEEP);
            self.poller.wait(timeout, &mut events)?;
            let now_us = self.shared.clock.now_us();
            // Those whose time came in the wait go to connections that have nothing to do, rather than
            // behind a body on one that has.
            self.begin_due(now_us);
            if now_us / self.interval_us > self.interval {
                self.hand_in();
                self.interval = now_us / self.interval_us;
            }
            for event in events.drain() {
                self.drive(&event, now_us);
            }
            self.flush_log()?;
            if now_us - self.published_us >= limits::PUBLISH_EVERY.as_micros() as u64 {
                self.published_us = now_us;
                self.publish(now_us);
            }
            if now_us - self.swept_us >= 1_000_000 {
                self.swept_us = now_us;
                self.sweep(now_us);
            }
        }
    }
    /// Adds what this interval brought to the timeline.
    fn hand_in(&mut self) {
        let share = self.desk.stats.take_share();
        self.shared.timeline().add(self.interval, &share);
    }
    /// Opens the connections whose time has come, as far as there is mail for them.
    fn open_due(&mut self, now_us: u64) -> anyhow::Result<()> {
        while let Some(&(due_us, slot)) = self.waiting.front() {
            let is_stopped = self.shared.is_stopped();
            if due_us > now_us && !is_stopped {
                return Ok(());
            }
            self.waiting.pop_front();
            if is_stopped || self.desk.supply.is_done(now_us) {
                continue;
            }
            self.connect(slot, now_us)?;
        }
        Ok(())
    }
    fn connect(&mut self, slot: usize, now_us: u64) -> anyhow::Result<()> {
        let to = self.desk.plan.to;
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)
            .context("cannot open a socket; --connections may exceed the descriptor limit (ulimit -n)")?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        let sources = &self.desk.plan.sources;
        if !sources.is_empty() {
            let source = sources[slot % sources.len()];
            match net::bind(&socket, &std::net::SocketAddr::new(source, 0)) {
                // All ports of this address are taken by connections that have closed lately.
                Err(Errno::ADDRINUSE) => {
                    self.open += 1;
                    self.slots[slot].session.open(now_us, false);
                    self.close(slot, Lost::NoPort, now_us);
                    return Ok(());
                }
                result => result.with_context(|| format!("cannot connect from {source}"))?,
            }
        }
        self.desk.stats.connections += 1;
        self.open += 1;
        let place = &mut self.slots[slot];
        let is_encrypted = self.desk.plan.tls == TlsMode::Implicit;
        place.session.open(now_us, is_encrypted);
        place.tls = if is_encrypted {
            Some(Tls {
                connection: tls::connection(&self.tls, to.ip())?,
                begun_us: now_us,
                is_measured: false,
            })
        } else {
            None
        };
        (place.alive_us, place.heard) = (now_us, false);
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {
                self.poller.add_connection(&socket, slot as u64)?;
                place.socket = Some(socket);
            }
            Err(Errno::ADDRNOTAVAIL) => self.close(slot, Lost::NoPort, now_us),
            Err(error) => self.close(slot, Lost::Broken(Kind::ConnectFailed, say(error)), now_us),
        }
        Ok(())
    }
    /// Gives messages whose time has come to idle connections. Returns when the next one is due.
    fn begin_due(&mut self, now_us: u64) -> Option<u64> {
        while let Some(&slot) = self.idle.last() {
            let place = &mut self.slots[slot];
            if place.socket.is_none() || !place.session.is_idle() {
                self.idle.pop();
                continue;
            }
            if let Some(due_us) = self.desk.supply.wait_until(now_us) {
                return Some(due_us);
            }
            self.idle.pop();
            place.session.begin(now_us, &mut self.desk);
            place.alive_us = now_us;
            if place.session.is_over() {
                self.close(slot, Lost::Quit, now_us);
            } else if let Err(lost) = self.flush(slot) {
                self.close(slot, lost, now_us);
            }
        }
        None
    }
    /// Moves a connection on as far as its readiness allows.
    fn drive(&mut self, event: &Ready, now_us: u64) {
        let slot = event.token as usize;
        if let Err(lost) = self.exchange(slot, event, now_us) {
            self.close(slot, lost, now_us);
        } else if self.slots[slot].session.is_idle() {
            self.idle.push(slot);
        }
    }
    fn exchange(&mut self, slot: usize, event: &Ready, now_us: u64) -> Result<(), Lost> {
        if event.writable {
            if !event.ending {
                let session = &mut self.slots[slot].session;
                session.connected(now_us, &mut self.desk);
                if session.is_over() {
                    return Err(Lost::Quit);
                }
            }
            self.flush(slot)?;
        }
        let mut may_read = event.readable;
        while may_read {
            let place = &mut self.slots[slot];
            let Some(socket) = &place.socket else { return Ok(()) };
            let read = match net::recv(socket, &mut self.buffer[..], net::RecvFlags::empty()) {
                Ok((0, _)) => return Err(Lost::Broken(Kind::ConnectionLost, "closed by the server".into())),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => {
                    let kind = if place.heard { Kind::ConnectionLost } else { Kind::ConnectFailed };
                    return Err(Lost::Broken(kind, say(error)));
                }
            };
            (place.heard, place.alive_us) = (true, now_us);
            // A short read has emptied the socket; what comes later is a new event.
            may_read = read == self.buffer.len() || event.ending;
            let fed = match &mut place.tls {
                None => place.session.feed(&self.buffer[..read], now_us, &mut self.desk),
                Some(tls) => {
                    decrypt(tls, &self.buffer[..read], &mut self.plain, now_us, &mut self.desk)?;
                    place.session.feed(&self.plain, now_us, &mut self.desk)
                }
            };
            if place.session.takes_up_tls() && fed.is_ok() {
                let connection = tls::connection(&self.tls, self.desk.plan.to.ip())
                    .map_err(|error| Lost::Broken(Kind::TlsFailed, error.to_string()))?;
                place.tls = Some(Tls { connection, begun_us: now_us, is_measured: false });
            }
            match fed {
                Ok(()) if place.session.is_over() => return Err(Lost::Quit),
                Ok(()) => self.flush(slot)?,
                Err(Ending::Quit) => return Err(Lost::Quit),
                Err(Ending::Closing) => return Err(Lost::Ended("the server closed with 421")),
                Err(Ending::Unwelcome) => return Err(Lost::Ended("the server does not want this session")),
                Err(Ending::BadReply) => return Err(Lost::Ended("the server's reply was not understood")),
            }
        }
        Ok(())
    }
    /// Writes what a session has to write, as far as the socket takes it.
    fn flush(&mut self, slot: usize) -> Result<(), Lost> {
        if self.slots[slot].tls.is_some() {
            return self.flush_tls(slot);
        }
        let place = &mut self.slots[slot];
        let Some(socket) = &place.socket else { return Ok(()) };
        let out = place.session.out();
        while !out.is_empty() {
            let mut body_bytes = 0;
            let result = match out.body {
                // What stands before a chunk leaves in one packet with its beginning.
                _ if !out.before.is_empty() => {
                    net::send(socket, &out.before, SendFlags::NOSIGNAL | SendFlags::MORE)
                }
                None => net::send(socket, &out.commands, SendFlags::NOSIGNAL),
                Some(body) => {
                    // The commands are put behind the prepared body for the length of one write.
                    let stock = if body.is_chunk { &mut self.chunks } else { &mut self.stock };
                    let template = &mut stock.0[self.desk.plan.classes.of(body.number)];
                    let stamp_us = self.shared.clock.wall_at(body.stamp_us);
                    body_bytes = template.wire_bytes();
                    let wire = template.patched(body.number, stamp_us);
                    wire.extend_from_slice(&out.commands);
                    let result = net::send(socket, &wire[body.cursor..], SendFlags::NOSIGNAL);
                    wire.truncate(body_bytes);
                    result
                }
            };
            match result {
                Ok(sent) => out.advance(sent, body_bytes),
                Err(error) => match unsent(error)? {
                    true => {}
                    false => return Ok(()),
                },
            }
        }
        Ok(())
    }
    /// The same through TLS. What is handed to TLS counts as written: a message lost behind that is
    /// in doubt, which is the careful side.
    fn flush_tls(&mut self, slot: usize) -> Result<(), Lost> {
        let place = &mut self.slots[slot];
        let (Some(socket), Some(tls)) = (&place.socket, &mut place.tls) else { return Ok(()) };
        let out = place.session.out();
        let mut writer = tls.connection.writer();
        let mut take = |bytes: &[u8]| {
            writer.write_all(bytes).map_err(|error| Lost::Broken(Kind::TlsFailed, error.to_string()))
        };
        take(&out.before)?;
        if let Some(body) = out.body.take() {
            let stock = if body.is_chunk { &mut self.chunks } else { &mut self.stock };
            let template = &mut stock.0[self.desk.plan.classes.of(body.number)];
            take(template.patched(body.number, self.shared.clock.wall_at(body.stamp_us)))?;
        }
        take(&out.commands)?;
        out.before.clear();
        out.commands.clear();
        while tls.connection.wants_write() {
            match tls.connection.write_tls(&mut Plug(socket)) {
                Ok(_) => {}
                Err(error) => match unsent(Errno::from_io_error(&error).unwrap_or(Errno::IO))? {
                    true => {}
                    false => return Ok(()),
                },
            }
        }
        Ok(())
    }
    /// Settles a connection that has ended, and decides what follows.
    fn close(&mut self, slot: usize, lost: Lost, now_us: u64) {
        let place = &mut self.slots[slot];
        (place.socket, place.tls) = (None, None);
        let is_leaving = place.session.is_leaving();
        place.session.end(now_us, &mut self.desk);
        self.open -= 1;
        let pause_us = limits::RECONNECT_WAIT.as_micros() as u64;
        if place.session.was_fruitful() {
            self.fruitless = 0;
        }
        let due_us = match lost {
            Lost::Quit => now_us,
            // The server has left without a word, but nothing is missing.
            Lost::Broken(..) if is_leaving => now_us,
            Lost::NoPort => {
                self.desk.stats.error(Kind::ConnectFailed, b"no local port is free");
                now_us + pause_us
            }
            Lost::Ended(reason) => {
                self.fruitless += 1;
                if self.fruitless >= limits::FRUITLESS_CONNECTIONS && !self.desk.plan.tolerate_errors {
                    self.shared.fail(format!("{} connections in a row: {reason}", self.fruitless));
                }
                now_us + pause_us
            }
            Lost::Broken(kind, text) => {
                self.desk.stats.error(kind, text.as_bytes());
                if !self.desk.plan.tolerate_errors {
                    self.shared.fail(format!("{kind}: {text}"));
                }
                now_us + pause_us
            }
        };
        // Those that wait come before those that need not, so that the first is always the next.
        if due_us > now_us {
            self.waiting.push_back((due_us, slot));
        } else {
            self.waiting.push_front((due_us, slot));
        }
    }
    /// Gives up the connections that have been silent for too long.
    fn sweep(&mut self, now_us: u64) {
        for slot in 0..self.slots.len() {
            let place = &self.slots[slot];
            let is_due = place.alive_us.saturating_add(self.desk.plan.reply_timeout_us) < now_us;
            if place.socket.is_some() && is_due && !place.session.is_idle() {
                let text = format!("after {:?}", Duration::from_micros(self.desk.plan.reply_timeout_us));
                self.close(slot, Lost::Broken(Kind::ReplyTimeout, text), now_us);
            }
        }
    }
    /// Writes the acknowledgements of this turn to the log.
    fn flush_log(&mut self) -> anyhow::Result<()> {
        if let (false, Some(log)) = (self.desk.acked.is_empty(), &self.shared.ack_log) {
            io::Write::write_all(&mut &*log, &self.desk.acked)?;
            self.desk.acked.clear();
        }
        if let (false, Some(log)) = (self.desk.refused.is_empty(), &self.shared.refused_log) {
            io::Write::write_all(&mut &*log, &self.desk.refused)?;
            self.desk.refused.clear();
        }
        Ok(())
    }
    fn publish(&mut self, now_us: u64) {
        match &mut self.meter {
            Some(meter) => meter.read(now_us),
            None if now_us >= self.desk.plan.warmup_us => self.meter = Some(Meter::begin(now_us)),
            None => {}
        }
        let published = &self.shared.published[self.index];
        let stats = &self.desk.stats;
        published.accepted.store(stats.accepted, Ordering::Relaxed);
        published.troubled.store(stats.rejected + stats.unknown, Ordering::Relaxed);
        published.bytes.store(stats.bytes, Ordering::Relaxed);
        published.open.store(self.open, Ordering::Relaxed);
        published.cpu_ns.store(cpu::thread().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// What follows from a write that failed: true to write again, false to wait.
fn unsent(error: Errno) -> Result<bool, Lost> {
    match error {
        Errno::INTR => Ok(true),
        // The server may have said why before it closed: the read that follows sees it.
        Errno::AGAIN | Errno::PIPE | Errno::CONNRESET => Ok(false),
        error => Err(Lost::Broken(Kind::ConnectionLost, say(error))),
    }
}

/// A socket that TLS writes to.
struct Plug<'a>(&'a OwnedFd);

impl Write for Plug<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(net::send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts what has come into `plain`.
fn decrypt(
    tls: &mut Tls,
    mut bytes: &[u8],
    plain: &mut Vec<u8>,
    now_us: u64,
    desk: &mut Desk,
) -> Result<(), Lost> {
    let failed = |error: String| Lost::Broken(Kind::TlsFailed, error);
    plain.clear();
    while !bytes.is_empty() {
        tls.connection.read_tls(&mut bytes).map_err(|error| failed(error.to_string()))?;
        let state = tls.connection.process_new_packets().map_err(|error| failed(error.to_string()))?;
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        tls.connection.reader().read_exact(&mut plain[start..]).map_err(|error| failed(error.to_string()))?;
    }
    if !tls.is_measured && !tls.connection.is_handshaking() {
        tls.is_measured = true;
        desk.stats.timed(Stage::Tls, tls.begun_us, now_us);
    }
    Ok(())
}

fn say(error: Errno) -> String {
    io::Error::from(error).to_string()
}
