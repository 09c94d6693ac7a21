//! The two ways in: the local socket and TCP, both bounded.
//!
//! Owns: who may connect and for how long. Promises: the local socket serves the server's own user
//! and root only (SO_PEERCRED); each way in has at most `limits::CONTROL_CONNECTIONS` connections, and
//! one that neither sends nor takes bytes for `limits::CONTROL_IDLE_WAIT` ends. Must not: read
//! requests.
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

use crate::limits;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

async fn free_slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    slots.clone().acquire_owned().await.expect("the semaphore is never closed")
}

/// The local socket.
pub struct Local {
    listener: UnixListener,
    slots: Arc<Semaphore>,
}

impl Local {
    /// Must be called within the runtime. The listener must not block.
    pub fn new(listener: std::os::unix::net::UnixListener) -> io::Result<Local> {
        let listener = UnixListener::from_std(listener)?;
        Ok(Local { listener, slots: Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS)) })
    }
}

/// The kernel's word on who connects, not the client's: only the user the server runs as, and root.
fn is_welcome(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

impl axum::serve::Listener for Local {
    type Io = Bounded<UnixStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            let slot = free_slot(&self.slots).await;
            match self.listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if is_welcome(peer.uid()) => {
                        return (Bounded::new(stream, slot, limits::CONTROL_IDLE_WAIT), ());
                    }
                    Ok(peer) => tracing::warn!("control socket: refused a process of user {}", peer.uid()),
                    Err(error) => {
                        tracing::warn!("control socket: refused a process without credentials: {error}")
                    }
                },
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// `--control`.
pub struct Remote {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl Remote {
    /// Must be called within the runtime. The listener must not block.
    pub fn new(listener: std::net::TcpListener) -> io::Result<Remote> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Remote { listener, slots: Arc::new(Semaphore::new(limits::CONTROL_CONNECTIONS)) })
    }
}

impl axum::serve::Listener for Remote {
    type Io = Bounded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let slot = free_slot(&self.slots).await;
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    return (Bounded::new(stream, slot, limits::CONTROL_IDLE_WAIT), peer);
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The address a request comes from; of the local socket it is this host's.
#[derive(Clone, Copy, Debug)]
pub struct Caller(pub IpAddr);

impl Connected<IncomingStream<'_, Local>> for Caller {
    fn connect_info(_: IncomingStream<'_, Local>) -> Caller {
        Caller(Ipv4Addr::LOCALHOST.into())
    }
}

impl Connected<IncomingStream<'_, Remote>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Remote>) -> Caller {
        Caller(stream.remote_addr().ip())
    }
}

/// A connection that counts against a limit and ends when nothing moves.
pub struct Bounded<S> {
    stream: S,
    idle: Pin<Box<Sleep>>,
    wait: Duration,
    _slot: OwnedSemaphorePermit,
}

impl<S> Bounded<S> {
    fn new(stream: S, slot: OwnedSemaphorePermit, wait: Duration) -> Bounded<S> {
        Bounded { stream, idle: Box::pin(sleep(wait)), wait, _slot: slot }
    }

    /// Passes `progress` on; while there is none, the idle wait runs.
    fn watch<T>(&mut self, cx: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            let until = Instant::now() + self.wait;
            self.idle.as_mut().reset(until);
            return progress;
        }
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch(cx, progress)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_user_and_root_are_welcome() {
        let own = rustix::process::geteuid().as_raw();
        assert!(is_welcome(own) && is_welcome(0));
        assert!(!is_welcome(own + 1) && !is_welcome(u32::MAX));
    }

    #[tokio::test]
    async fn a_connection_that_does_nothing_ends() {
        use tokio::io::AsyncReadExt;
        let slots = Arc::new(Semaphore::new(1));
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut bounded = Bounded::new(ours, free_slot(&slots).await, Duration::from_millis(1));
        let error = bounded.read_u8().await.expect_err("nothing is sent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(slots.available_permits(), 0);
        drop(bounded);
        assert_eq!(slots.available_permits(), 1);
    }
}
