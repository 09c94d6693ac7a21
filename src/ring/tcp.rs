//! TCP connections.
//!
//! Owns: [`Stream`], its reads, writes and close. Promises: every wait has a deadline; a read that ends at
//! its deadline is really over in the kernel before its future ends, so it can never swallow bytes that
//! come later; nothing is sent or received on behalf of a future that was dropped. Must not: interpret a
//! byte.
//!
//! # Dropping futures
//!
//! The kernel owns a buffer from submission to completion. When the future of a read or write is dropped
//! in between (its task was aborted, a `select!` took another branch), the operation cannot be taken back
//! at once, and a read would swallow the next bytes of the peer. The rule is: do not drop them; end a wait
//! from elsewhere with [`Stream::interrupt`] or [`Stream::shutdown`], and await the future. Where it
//! happens all the same the connection is shut down in both directions and every later call fails with
//! `ConnectionAborted`: a dead connection is better than one that lies. [`Stream::readable`] may be
//! dropped.
//!
//! # Cost
//!
//! A read or write is one entry on the submission queue and no system call of its own; the deadline is an
//! entry on the worker's wheel. Receiving waits for data first (`IORING_RECVSEND_POLL_FIRST`), because a
//! server asks for the next command right after its reply, when it cannot be there yet.
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as NewSocket, Type};

use super::buffer::{AlignedBuf, Piece};
use super::deadline::{TimerKey, fire_early, now};
use super::op::{CancelOnDrop, Op, POLL_FIRST, Timed, with_ioprio};

/// Pieces handed to the kernel in one send; more go out in several.
pub const MAX_PIECES: usize = 64;
/// Buffer in which input is discarded while a connection closes.
const DISCARD_BYTES: usize = 4096;
/// Input discarded at most while a connection closes: a peer that keeps sending is cut off.
const DISCARD_LIMIT: usize = 1024 * 1024;
/// Sends finish in the kernel (`MSG_WAITALL`) and raise no signal.
const SEND_FLAGS: i32 = (SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits()) as i32;

/// A connection; clones are handles to the same one. One read and one write may be in flight at a time.
#[derive(Clone, Debug)]
pub struct Stream(Rc<Socket>);

struct Socket {
    /// Taken when the connection is closed.
    fd: RefCell<Option<OwnedFd>>,
    /// Operations the kernel holds.
    operations: Cell<usize>,
    /// Waits in `close` for the last of them.
    closer: Cell<Option<Waker>>,
    /// The timer of the read that waits now.
    reading: Cell<Option<TimerKey>>,
    interrupted: Cell<bool>,
    /// A future was dropped in the middle of an operation, or the connection is being closed.
    broken: Cell<bool>,
    /// Kept between gathered sends.
    gather: Cell<Option<Box<Gather>>>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("fd", &self.fd).field("operations", &self.operations).finish()
    }
}

/// One operation's hold on the socket.
struct InUse(Rc<Socket>);

impl InUse {
    fn new(socket: &Rc<Socket>) -> InUse {
        socket.operations.set(socket.operations.get() + 1);
        InUse(socket.clone())
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let left = self.0.operations.get() - 1;
        self.0.operations.set(left);
        if left == 0
            && let Some(closer) = self.0.closer.take()
        {
            closer.wake();
        }
    }
}

/// Shuts the connection down when the future around it is dropped in the middle of an operation.
struct BreakOnDrop<'a> {
    socket: &'a Socket,
    done: bool,
}

impl Drop for BreakOnDrop<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.socket.broken.set(true);
            self.socket.shut(Shutdown::Both);
        }
    }
}

/// The kernel's description of a gathered send.
struct Gather {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
}

impl Socket {
    fn fd(&self) -> io::Result<RawFd> {
        if self.broken.get() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match &*self.fd.borrow() {
            Some(fd) => Ok(fd.as_raw_fd()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(fd) = &*self.fd.borrow() {
            // Fails only where the peer has ended the connection already.
            let _ = SockRef::from(fd).shutdown(how);
        }
    }
}

impl Stream {
    /// Takes over a connected socket in blocking mode.
    pub(super) fn from_fd(fd: OwnedFd) -> Stream {
        Stream(Rc::new(Socket {
            fd: RefCell::new(Some(fd)),
            operations: Cell::new(0),
            closer: Cell::new(None),
            reading: Cell::new(None),
            interrupted: Cell::new(false),
            broken: Cell::new(false),
            gather: Cell::new(None),
        }))
    }

    /// Connects to `addr`, from `source` if given.
    ///
    /// Errors: `TimedOut` after `wait`, and those of `connect(2)` and `bind(2)`. Dropping the future ends
    /// the attempt.
    pub async fn connect(addr: SocketAddr, source: Option<IpAddr>, wait: Duration) -> io::Result<Stream> {
        // Blocking mode: on a non-blocking socket the ring would report EAGAIN instead of waiting.
        let socket = NewSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(ip) = source {
            bind_source(&socket, ip)?;
        }
        let stream = Stream::from_fd(socket.into());
        let fd = stream.0.fd()?;
        let target = Box::new(SockAddr::from(addr));
        let entry = opcode::Connect::new(Fd(fd), target.as_ptr().cast(), target.len()).build();
        let mut guard = CancelOnDrop { fd, code: opcode::Connect::CODE, done: false };
        // SAFETY: the address is boxed, so it stays in place; it and the descriptor are owned by the
        // operation.
        let op = unsafe { Op::submit((InUse::new(&stream.0), target), entry) };
        let (result, _, _) = Timed::new(op, fd, opcode::Connect::CODE, wait).await;
        guard.done = true;
        result.map(|_| stream)
    }

    /// Appends to `buf` what arrives, within its capacity: it never grows. `Ok(0)` is the end of the
    /// stream.
    ///
    /// Errors: `TimedOut` after `wait` and `Interrupted` after [`interrupt`](Stream::interrupt), both of
    /// which leave the stream usable with nothing lost; `InvalidInput` where `buf` has no room;
    /// `ConnectionAborted` and `NotConnected` where the stream is dead; those of `recv(2)`.
    pub async fn read(&self, mut buf: Vec<u8>, wait: Duration) -> (io::Result<usize>, Vec<u8>) {
        let room = buf.spare_capacity_mut();
        let (ptr, len) = (room.as_mut_ptr().cast::<u8>(), room.len());
        // SAFETY: `ptr` and `len` describe the spare capacity on the heap, which does not move with `buf`.
        let (result, mut buf) = unsafe { self.receive(buf, ptr, len, wait) }.await;
        if let Ok(n) = result {
            // SAFETY: the kernel has written `n` bytes, at most the spare capacity, behind the old length.
            unsafe { buf.set_len(buf.len() + n) };
        }
        (result, buf)
    }

    /// [`read`](Stream::read) into `buf[from..]`.
    pub async fn read_aligned(
        &self,
        mut buf: AlignedBuf,
        from: usize,
        wait: Duration,
    ) -> (io::Result<usize>, AlignedBuf) {
        let room = &mut buf[from..];
        let (ptr, len) = (room.as_mut_ptr(), room.len());
        // SAFETY: `ptr` and `len` describe a part of the buffer's memory, which does not move with `buf`.
        unsafe { self.receive(buf, ptr, len, wait) }.await
    }

    /// # Safety
    ///
    /// `ptr` and `len` must describe memory that `buf` owns exclusively, and that stays where it is when
    /// `buf` moves.
    async unsafe fn receive<B: Unpin + 'static>(
        &self,
        buf: B,
        ptr: *mut u8,
        len: usize,
        wait: Duration,
    ) -> (io::Result<usize>, B) {
        let fd = match self.0.fd() {
            Ok(_) if len == 0 => return (Err(io::ErrorKind::InvalidInput.into()), buf),
            Ok(fd) => fd,
            Err(e) => return (Err(e), buf),
        };
        self.0.interrupted.set(false);
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let entry = with_ioprio(opcode::Recv::new(Fd(fd), ptr, len).build(), POLL_FIRST);
        let mut guard = BreakOnDrop { socket: &self.0, done: false };
        // SAFETY: as the caller promises; buffer and descriptor are owned by the operation.
        let op = unsafe { Op::submit((InUse::new(&self.0), buf), entry) };
        let (result, (_, buf), _) = Timed::new(op, fd, opcode::Recv::CODE, wait).show(&self.0.reading).await;
        guard.done = true;
        let result = match result {
            Err(e) if e.kind() == io::ErrorKind::TimedOut && self.0.interrupted.take() => {
                Err(io::ErrorKind::Interrupted.into())
            }
            other => other.map(|n| n as usize),
        };
        (result, buf)
    }

    /// Waits until there is something to read, the end of the stream and errors included, with no buffer
    /// tied up. Errors as [`read`](Stream::read). May be dropped.
    pub async fn readable(&self, wait: Duration) -> io::Result<()> {
        let fd = self.0.fd()?;
        self.0.interrupted.set(false);
        let flags = u32::from((PollFlags::IN | PollFlags::RDHUP).bits());
        let entry = opcode::PollAdd::new(Fd(fd), flags).build();
        let mut guard = CancelOnDrop { fd, code: opcode::PollAdd::CODE, done: false };
        // SAFETY: the entry points to nothing; the descriptor is owned by the operation.
        let op = unsafe { Op::submit(InUse::new(&self.0), entry) };
        let (result, _, _) = Timed::new(op, fd, opcode::PollAdd::CODE, wait).show(&self.0.reading).await;
        guard.done = true;
        match result {
            Err(e) if e.kind() == io::ErrorKind::TimedOut && self.0.interrupted.take() => {
                Err(io::ErrorKind::Interrupted.into())
            }
            other => other.map(drop),
        }
    }

    /// Writes all of `buf` and gives it back.
    ///
    /// Errors: `TimedOut` after `wait` (how much was sent is unknown then: the connection is of no further
    /// use); `ConnectionAborted`, `NotConnected` as for reads; those of `send(2)`.
    pub async fn write_all(&self, buf: Vec<u8>, wait: Duration) -> (io::Result<()>, Vec<u8>) {
        let mut buf = buf;
        let mut done = 0;
        while done < buf.len() {
            let fd = match self.0.fd() {
                Ok(fd) => fd,
                Err(e) => return (Err(e), buf),
            };
            let rest = &buf[done..];
            let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            let entry = opcode::Send::new(Fd(fd), rest.as_ptr(), len).flags(SEND_FLAGS).build();
            // SAFETY: the entry points into the vector's heap memory, which does not move with `buf`.
            let sent = unsafe { self.send(buf, fd, opcode::Send::CODE, entry, wait) }.await;
            buf = sent.1;
            match sent.0 {
                Ok(n) => done += n,
                Err(e) => return (Err(e), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Has all of `buf` sent while the caller goes on: nobody is woken when that is done, which saves a turn
    /// where an answer is waited for next. One send at a time: settle it before the next, and before the
    /// connection is closed.
    pub fn post(&self, buf: Vec<u8>) -> io::Result<Posted> {
        let fd = self.0.fd()?;
        let bytes = u32::try_from(buf.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd), buf.as_ptr(), bytes).flags(SEND_FLAGS).build();
        // SAFETY: the entry points into the vector's heap memory, which does not move with `buf`; it and the
        // descriptor are owned by the operation.
        let op = unsafe { Op::submit((InUse::new(&self.0), buf), entry) };
        Ok(Posted { op, fd, bytes: bytes as usize })
    }

    /// Writes all of `pieces`, in order, as one gathered send, and gives them back. Errors as
    /// [`write_all`](Stream::write_all).
    pub async fn write_pieces(&self, pieces: Vec<Piece>, wait: Duration) -> (io::Result<()>, Vec<Piece>) {
        let mut pieces = pieces;
        let mut done = 0;
        loop {
            let mut gather = self.0.gather.take().unwrap_or_else(Gather::empty);
            gather.describe(&pieces, done);
            if gather.parts.is_empty() {
                self.0.gather.set(Some(gather));
                return (Ok(()), pieces);
            }
            let fd = match self.0.fd() {
                Ok(fd) => fd,
                Err(e) => return (Err(e), pieces),
            };
            let entry =
                opcode::SendMsg::new(Fd(fd), &raw const gather.header).flags(SEND_FLAGS as u32).build();
            // SAFETY: the header is boxed and its parts are on the heap; they point into the heap memory of
            // the pieces (or static memory). All move into the operation without changing place.
            let sent = unsafe { self.send((gather, pieces), fd, opcode::SendMsg::CODE, entry, wait) }.await;
            let (gather, back) = sent.1;
            self.0.gather.set(Some(gather));
            pieces = back;
            match sent.0 {
                Ok(n) => done += n,
                Err(e) => return (Err(e), pieces),
            }
        }
    }

    /// One send. A send stopped at its deadline after a part has gone out is `TimedOut`.
    ///
    /// # Safety
    ///
    /// What `entry` points to must be owned by `data` and stay where it is when `data` moves.
    async unsafe fn send<D: Unpin + 'static>(
        &self,
        data: D,
        fd: RawFd,
        code: u8,
        entry: squeue::Entry,
        wait: Duration,
    ) -> (io::Result<usize>, D) {
        let mut guard = BreakOnDrop { socket: &self.0, done: false };
        // SAFETY: as the caller promises; the descriptor is owned by the operation.
        let op = unsafe { Op::submit((InUse::new(&self.0), data), entry) };
        let (result, (_, data), stopped) = Timed::new(op, fd, code, wait).await;
        guard.done = true;
        match result {
            Ok(_) if stopped => (Err(io::ErrorKind::TimedOut.into()), data),
            Ok(0) => (Err(io::ErrorKind::WriteZero.into()), data),
            Ok(n) => (Ok(n as usize), data),
            Err(e) => (Err(e), data),
        }
    }

    /// Ends the read (or [`readable`](Stream::readable)) that waits now with `Interrupted`, unless it has
    /// data already. Does nothing where none waits.
    pub fn interrupt(&self) {
        if let Some(timer) = self.0.reading.take() {
            self.0.interrupted.set(true);
            fire_early(timer);
        }
    }

    /// Ends both directions: pending operations end, the peer sees the end of the stream.
    pub fn shutdown(&self) {
        self.0.shut(Shutdown::Both);
    }

    /// Tells the peer that nothing more will be sent (FIN).
    pub fn shutdown_write(&self) {
        self.0.shut(Shutdown::Write);
    }

    /// Closes the connection, for all handles: pending operations are ended and awaited, then the
    /// descriptor is closed.
    pub async fn close(self) {
        self.0.broken.set(true);
        if self.0.operations.get() > 0 {
            self.0.shut(Shutdown::Both);
            poll_fn(|cx| {
                if self.0.operations.get() == 0 {
                    return Poll::Ready(());
                }
                self.0.closer.set(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
        }
        drop(self.0.fd.take());
    }

    /// Sends FIN, discards input until the peer's FIN, and closes. `true` when the peer has confirmed in
    /// that way, `false` after `wait`, an error, or too much input.
    ///
    /// The last bytes sent are safer than with [`close`](Stream::close): closing a socket with unread
    /// input resets the connection, which can destroy what the peer has not read yet.
    pub async fn close_after_peer(self, wait: Duration) -> bool {
        self.0.shut(Shutdown::Write);
        let end = now().saturating_add(wait);
        let mut buf = Vec::with_capacity(DISCARD_BYTES);
        let mut discarded = 0;
        let confirmed = loop {
            let left = end.since(now());
            if left.is_zero() || discarded > DISCARD_LIMIT {
                break false;
            }
            let (result, back) = self.read(buf, left).await;
            buf = back;
            buf.clear();
            match result {
                Ok(0) => break true,
                Ok(n) => discarded += n,
                Err(_) => break false,
            }
        };
        self.close().await;
        confirmed
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.address(|socket| socket.peer_addr())
    }

    /// This end's address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address(|socket| socket.local_addr())
    }

    fn address(&self, ask: impl Fn(&SockRef) -> io::Result<SockAddr>) -> io::Result<SocketAddr> {
        let fd = self.0.fd.borrow();
        let fd = fd.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ask(&SockRef::from(&fd.as_fd()))?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// A send under way, see [`Stream::post`]. Dropping it lets the send go on.
pub struct Posted {
    op: Op<(InUse, Vec<u8>)>,
    fd: RawFd,
    bytes: usize,
}

impl Posted {
    /// Waits until the bytes are with the kernel, as a rule no time at all, and gives the buffer back.
    /// Errors as [`Stream::write_all`].
    pub async fn settle(self, wait: Duration) -> (io::Result<()>, Vec<u8>) {
        let (result, (_, buf), _) = Timed::new(self.op, self.fd, opcode::Send::CODE, wait).await;
        let result = match result {
            Ok(sent) if sent as usize == self.bytes => Ok(()),
            // Stopped at the deadline: what went out is of no use.
            Ok(_) => Err(io::ErrorKind::TimedOut.into()),
            Err(e) => Err(e),
        };
        (result, buf)
    }
}

impl Gather {
    fn empty() -> Box<Gather> {
        // SAFETY: `msghdr` is a plain C structure of integers and pointers, for which zero is valid: no
        // address, no parts, no control data.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Gather { header, parts: Vec::new() })
    }

    /// Describes `pieces` from byte `skip` on, as far as [`MAX_PIECES`] reaches.
    fn describe(&mut self, pieces: &[Piece], mut skip: usize) {
        self.parts.clear();
        for piece in pieces {
            let bytes = piece.bytes();
            let part = &bytes[skip.min(bytes.len())..];
            skip -= bytes.len() - part.len();
            if !part.is_empty() && self.parts.len() < MAX_PIECES {
                self.parts
                    .push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            }
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = self.parts.len() as _;
    }
}

/// Binds to a source address, leaving the choice of the port to `connect(2)`: a port bound first could
/// not be shared between connections to different peers.
fn bind_source(socket: &NewSocket, ip: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int; pointer and length describe one that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SockAddr::from(SocketAddr::new(ip, 0)))
}

#[cfg(test)]
mod tests;
