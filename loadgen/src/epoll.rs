//! Readiness of many sockets: a thin epoll.
//!
//! Owns: the epoll descriptor and the list of events. Promises: connections are registered once,
//! edge-triggered for reading and writing, and never modified, so that a busy connection costs no
//! epoll_ctl; a listener is level-triggered and wakes one thread. Must not: own the sockets; closing
//! one removes it here.
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::limits;

/// What became of one descriptor since the last wait.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The token it was registered with.
    pub token: u64,
    /// There may be bytes, an end or an error to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has closed or the connection failed: read until it says so.
    pub ending: bool,
}

/// One thread's epoll instance.
pub struct Poller {
    epoll: OwnedFd,
}

/// What one wait has brought. Belongs to the thread that waits.
pub struct Events(Vec<epoll::Event>);

impl Events {
    pub fn new() -> Events {
        Events(Vec::with_capacity(limits::EVENTS_PER_WAIT))
    }
    /// Gives out the events of the last wait.
    pub fn drain(&mut self) -> impl Iterator<Item = Ready> {
        use epoll::EventFlags as F;
        self.0.drain(..).map(|event| {
            let flags = event.flags;
            let ending = flags.intersects(F::RDHUP | F::HUP | F::ERR);
            Ready {
                token: event.data.u64(),
                readable: ending || flags.contains(F::IN),
                writable: flags.contains(F::OUT),
                ending,
            }
        })
    }
}

impl Poller {
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }
    /// Watches a connection for bytes and for room, by edges.
    pub fn add_connection(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        use epoll::EventFlags as F;
        let flags = F::IN | F::OUT | F::RDHUP | F::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }
    /// Watches a listener that several pollers share.
    pub fn add_listener(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        use epoll::EventFlags as F;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), F::IN | F::EXCLUSIVE)?)
    }
    /// Waits until something is ready or `timeout` has passed, and puts it into `events`. A signal
    /// ends the wait early with nothing.
    pub fn wait(&self, timeout: Duration, events: &mut Events) -> io::Result<()> {
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        events.0.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events.0), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
