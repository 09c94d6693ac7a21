//! One thread of the sink: its connections and their readiness.
//!
//! Owns: the sockets of its connections. Promises: per batch of pipelined commands one read and one
//! write; the seen log is written before the replies; a client that does not read its replies is
//! not read from. Must not: parse (the session does) or count (the ledger does).
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, SendFlags, SocketFlags};
use slab::Slab;

use crate::clock::wall_us;
use crate::epoll::{Events, Poller, Ready};
use crate::report::Latency;
use crate::sink::Shared;
use crate::sink::content::Summary;
use crate::sink::session::{Answer, GREETING, Receiver, Session};
use crate::{cpu, limits};

struct Connection {
    socket: OwnedFd,
    session: Session,
    /// Replies the socket has not taken yet.
    unsent: Vec<u8>,
    /// Bytes may wait in the socket that no event will announce again.
    may_read: bool,
    is_over: bool,
}

/// A thread of the sink.
pub struct Worker {
    index: usize,
    listeners: Vec<Arc<TcpListener>>,
    poller: Poller,
    connections: Slab<Connection>,
    desk: Desk,
    buffer: Vec<u8>,
    replies: Vec<u8>,
}

/// Where the sessions of a thread hand their messages in.
struct Desk {
    shared: Arc<Shared>,
    latency: Latency,
    seen: Vec<u8>,
    /// Wall time of the read that is being worked on.
    now_us: u64,
    took_mail: bool,
}

impl Receiver for Desk {
    fn answer(&mut self) -> Answer {
        let shared = &self.shared;
        if shared.reject_every.is_none() && shared.tempfail_every.is_none() {
            return Answer::Take;
        }
        let number = shared.transactions.fetch_add(1, Ordering::Relaxed) + 1;
        let is_due = |every: Option<std::num::NonZeroU64>| {
            every.is_some_and(|every| number.is_multiple_of(every.get()))
        };
        let answer = match () {
            () if is_due(shared.reject_every) => Answer::Reject,
            () if is_due(shared.tempfail_every) => Answer::TempFail,
            () => return Answer::Take,
        };
        shared.refused.fetch_add(1, Ordering::Relaxed);
        answer
    }
    fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]) {
        if let Some(stamp) = summary.stamp {
            self.latency.record(self.now_us.saturating_sub(stamp.sent_us));
        }
        let log = self.shared.seen_log.is_some().then_some(&mut self.seen);
        self.shared.ledger().enter(summary, recipients, log);
        self.took_mail = true;
    }
}

impl Worker {
    pub fn new(index: usize, shared: Arc<Shared>, listeners: Vec<Arc<TcpListener>>) -> io::Result<Worker> {
        let poller = Poller::new()?;
        for (place, listener) in listeners.iter().enumerate() {
            poller.add_listener(listener, place as u64)?;
        }
        let desk =
            Desk { shared, latency: Latency::default(), seen: Vec::new(), now_us: 0, took_mail: false };
        Ok(Worker {
            index,
            listeners,
            poller,
            connections: Slab::new(),
            desk,
            buffer: vec![0; limits::SINK_READ_BYTES],
            replies: Vec::new(),
        })
    }
    /// Serves until the sink is stopped. Returns the end-to-end latencies.
    pub fn run(mut self) -> anyhow::Result<Latency> {
        let mut events = Events::new();
        let mut published_at = Instant::now();
        while !self.desk.shared.stop.load(Ordering::Relaxed) {
            self.poller.wait(limits::SINK_SLEEP, &mut events)?;
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
        Ok(self.desk.latency)
    }
    fn publish(&self) {
        self.desk.shared.cpu_ns[self.index].store(cpu::thread().as_nanos() as u64, Ordering::Relaxed);
    }
    fn accept(&mut self, place: usize) -> io::Result<()> {
        for _ in 0..limits::ACCEPTS_PER_WAKE {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match net::accept_with(&self.listeners[place], flags) {
                Ok(socket) => socket,
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
            // The greeting fits the empty socket buffer; a client that left already has no use for it.
            if net::send(&socket, GREETING, SendFlags::NOSIGNAL) != Ok(GREETING.len()) {
                continue;
            }
            let entry = self.connections.vacant_entry();
            self.poller.add_connection(&socket, (entry.key() + self.listeners.len()) as u64)?;
            let session = Session::new();
            entry.insert(Connection { socket, session, unsent: Vec::new(), may_read: false, is_over: false });
            self.desk.shared.open.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
    fn serve(&mut self, key: usize, event: &Ready) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        connection.may_read |= event.readable;
        let keep = drive(connection, &mut self.desk, &mut self.buffer, &mut self.replies, event.ending)?;
        if !keep {
            self.connections.remove(key);
            self.desk.shared.open.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Moves a connection on as far as it goes. Returns false when it is to be closed; an error only
/// when the seen log cannot be written.
fn drive(
    connection: &mut Connection,
    desk: &mut Desk,
    buffer: &mut [u8],
    replies: &mut Vec<u8>,
    is_ending: bool,
) -> io::Result<bool> {
    loop {
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
        let read = match net::recv(&connection.socket, &mut *buffer, net::RecvFlags::empty()) {
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
        connection.may_read = read == buffer.len() || is_ending;
        replies.clear();
        desk.now_us = wall_us();
        connection.is_over = !connection.session.feed(&buffer[..read], desk, replies);
        desk.settle()?;
        if replies.is_empty() {
            continue;
        }
        let sent = if connection.unsent.is_empty() {
            match net::send(&connection.socket, replies, SendFlags::NOSIGNAL) {
                Ok(sent) => sent,
                Err(Errno::AGAIN | Errno::INTR) => 0,
                Err(_) => return Ok(false),
            }
        } else {
            0
        };
        connection.unsent.extend_from_slice(&replies[sent..]);
    }
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
