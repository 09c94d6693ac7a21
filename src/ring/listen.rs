//! Listening sockets.
//!
//! Owns: [`Listener`]. Promises: no accepted connection is lost when a wait is dropped or the listener
//! closed, because the kernel is only asked to wait: the connection itself is taken by a plain call when
//! it is there. Must not: decide who may connect.
use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::opcode;
use io_uring::types::Fd;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::op::{CancelOnDrop, Op};
use super::runtime::yield_turn;
use super::tcp::Stream;

/// Connections that wait to be accepted, per listener; the kernel's `net.core.somaxconn` lowers it.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Connections accepted in a row before other tasks get their turn.
const ACCEPTED_IN_A_ROW: u32 = 16;

/// A listening socket of one worker; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Listener(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    closed: Cell<bool>,
    in_a_row: Cell<u32>,
}

impl Listener {
    /// Binds a listening socket that other workers may bind as well (SO_REUSEPORT). May be called on any
    /// thread, before privileges are dropped. An IPv6 address takes IPv6 connections only.
    pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Accepted connections inherit it, which saves a system call each.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&addr.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        Ok(socket.into())
    }

    /// Takes over a listening socket (also one that a service manager has bound).
    pub fn from_std(listener: TcpListener) -> io::Result<Listener> {
        listener.set_nonblocking(true)?;
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        Ok(Listener(Rc::new(Shared {
            fd: listener.into(),
            closed: Cell::new(false),
            in_a_row: Cell::new(0),
        })))
    }

    /// The next connection. Several tasks may wait; dropping the future is safe.
    ///
    /// Errors: `NotConnected` once the listener is closed; errors of `accept(2)` that will not pass by
    /// themselves at once, such as too many open files: wait a little before the next call.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let shared = &self.0;
        if shared.in_a_row.get() >= ACCEPTED_IN_A_ROW {
            shared.in_a_row.set(0);
            yield_turn().await;
        }
        loop {
            if shared.closed.get() {
                return Err(io::ErrorKind::NotConnected.into());
            }
            match rustix::net::acceptfrom_with(&shared.fd, SocketFlags::CLOEXEC) {
                Ok((fd, peer)) => {
                    let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { continue };
                    shared.in_a_row.set(shared.in_a_row.get() + 1);
                    return Ok((Stream::from_fd(fd), peer));
                }
                Err(Errno::WOULDBLOCK) => {
                    shared.in_a_row.set(0);
                    self.wait().await?;
                }
                // The connection that waited has gone (accept(2) hands network errors of it on).
                Err(
                    Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH,
                ) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until a connection is there, or the wait is cancelled.
    async fn wait(&self) -> io::Result<()> {
        let fd = self.0.fd.as_raw_fd();
        let entry = opcode::PollAdd::new(Fd(fd), u32::from(PollFlags::IN.bits())).build();
        let mut guard = CancelOnDrop { fd, code: opcode::PollAdd::CODE, done: false };
        // SAFETY: the entry points to nothing; the descriptor is owned by the operation.
        let (result, _) = unsafe { Op::submit(self.0.clone(), entry) }.await;
        guard.done = true;
        match result {
            Err(e) if e.raw_os_error() != Some(Errno::CANCELED.raw_os_error()) => Err(e),
            // A cancelled wait of another task cancels this one too: both look again.
            Err(_) if super::op::is_ending() => Err(io::ErrorKind::NotConnected.into()),
            _ => Ok(()),
        }
    }

    /// Ends all waits with `NotConnected`. The socket itself is closed with the last handle; connections
    /// not yet accepted are reset then.
    pub fn close(&self) {
        if !self.0.closed.replace(true) {
            drop(CancelOnDrop { fd: self.0.fd.as_raw_fd(), code: opcode::PollAdd::CODE, done: false });
        }
    }

    /// The address bound, with the port that was chosen where 0 was asked for.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let addr = SockRef::from(&self.0.fd).local_addr()?;
        addr.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}
