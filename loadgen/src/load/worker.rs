//! One thread of the source: its connections, their readiness and their waits.
//!
//! Owns: the sockets. Promises: a batch of replies costs one read, what they lead to one write, and
//! no allocation; a connection that fails is opened again after a pause for as long as there is
//! mail to send. Must not: know SMTP (the session does).
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

use crate::epoll::{Events, Poller, Ready};
use crate::load::plan::{Plan, Shared, Supply};
use crate::load::session::{Desk, Ending, Session};
use crate::load::stats::{Kind, Stats};
use crate::message::Template;
use crate::{cpu, limits};

/// A place for one connection at a time.
struct Slot {
    socket: Option<OwnedFd>,
    session: Session,
    /// Run time of the last sign of life.
    alive_us: u64,
    heard: bool,
}

/// A thread of the source.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    poller: Poller,
    slots: Vec<Slot>,
    desk: Desk,
    template: Template,
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
    pub fn new(index: usize, plan: Plan, shared: Arc<Shared>, template: Template) -> io::Result<Worker> {
        let slot = || Slot { socket: None, session: Session::new(), alive_us: 0, heard: false };
        let slots: Vec<Slot> = std::iter::repeat_with(slot).take(plan.connections_of(index)).collect();
        let supply = Supply::new(index, &plan, shared.clone());
        let keeps_log = shared.ack_log.is_some();
        Ok(Worker {
            index,
            poller: Poller::new()?,
            waiting: (0..slots.len()).map(|slot| (0, slot)).collect(),
            slots,
            desk: Desk { plan, supply, stats: Stats::default(), acked: Vec::new(), keeps_log },
            template,
            buffer: vec![0; limits::SOURCE_READ_BYTES],
            idle: Vec::new(),
            fruitless: 0,
            open: 0,
            published_us: 0,
            swept_us: 0,
            shared,
        })
    }
    /// Sends until nothing is left to send. Fails only where this side's resources do.
    pub fn run(mut self) -> anyhow::Result<Stats> {
        let result = self.serve();
        if let Err(error) = &result {
            self.shared.fail(error.to_string());
        }
        self.publish();
        self.desk.stats.unsent += self.desk.supply.returned();
        result.map(|()| self.desk.stats)
    }
    fn serve(&mut self) -> anyhow::Result<()> {
        let mut events = Events::new();
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
            for event in events.drain() {
                self.drive(&event, now_us);
            }
            self.flush_log()?;
            if now_us - self.published_us >= limits::PUBLISH_EVERY.as_micros() as u64 {
                self.published_us = now_us;
                self.publish();
            }
            if now_us - self.swept_us >= 1_000_000 {
                self.swept_us = now_us;
                self.sweep(now_us);
            }
        }
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
        self.desk.stats.connections += 1;
        self.open += 1;
        let place = &mut self.slots[slot];
        place.session.open(now_us);
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
            if let Err(lost) = self.flush(slot) {
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
            match place.session.feed(&self.buffer[..read], now_us, &mut self.desk) {
                Ok(()) => self.flush(slot)?,
                Err(Ending::Quit) => return Err(Lost::Quit),
                Err(Ending::Closing) => return Err(Lost::Ended("the server closed with 421")),
                Err(Ending::Unwelcome) => return Err(Lost::Ended("the server refused the greeting")),
                Err(Ending::BadReply) => return Err(Lost::Ended("the server's reply was not understood")),
            }
        }
        Ok(())
    }
    /// Writes what a session has to write, as far as the socket takes it.
    fn flush(&mut self, slot: usize) -> Result<(), Lost> {
        let place = &mut self.slots[slot];
        let Some(socket) = &place.socket else { return Ok(()) };
        let out = &mut place.session.out;
        while !out.is_empty() {
            let result = match out.body {
                None => net::send(socket, &out.commands, SendFlags::NOSIGNAL),
                Some(body) => {
                    // The commands are put behind the prepared body for the length of one write.
                    let stamp_us = self.shared.clock.wall_at(body.stamp_us);
                    let wire_bytes = self.template.wire_bytes();
                    let wire = self.template.patched(body.number, stamp_us);
                    wire.extend_from_slice(&out.commands);
                    let result = net::send(socket, &wire[body.cursor..], SendFlags::NOSIGNAL);
                    wire.truncate(wire_bytes);
                    result
                }
            };
            match result {
                Ok(sent) => out.advance(sent, self.template.wire_bytes()),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                // The server may have said why before it closed: the read that follows sees it.
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
                Err(error) => return Err(Lost::Broken(Kind::ConnectionLost, say(error))),
            }
        }
        Ok(())
    }
    /// Settles a connection that has ended, and decides what follows.
    fn close(&mut self, slot: usize, lost: Lost, now_us: u64) {
        let place = &mut self.slots[slot];
        place.socket = None;
        let is_leaving = place.session.is_leaving();
        place.session.end(&mut self.desk);
        self.open -= 1;
        let pause_us = limits::RECONNECT_WAIT.as_micros() as u64;
        if place.session.was_fruitful {
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
        Ok(())
    }
    fn publish(&self) {
        let published = &self.shared.published[self.index];
        let stats = &self.desk.stats;
        published.accepted.store(stats.accepted, Ordering::Relaxed);
        published.troubled.store(stats.rejected + stats.unknown, Ordering::Relaxed);
        published.open.store(self.open, Ordering::Relaxed);
        published.cpu_ns.store(cpu::thread().as_nanos() as u64, Ordering::Relaxed);
    }
}

fn say(error: Errno) -> String {
    io::Error::from(error).to_string()
}
