//! The control thread: the local socket, the HTTP API, metrics and health probes.
//!
//! Owns: everything cold, on one thread with an ordinary tokio runtime. Promises: it reaches the
//! workers through [`Server`] only, waits for them at most `limits::CONTROL_REPLY_WAIT`, and holds at
//! most `limits::CONTROL_CONNECTIONS` connections on each of its two ways in. `SPOOL/control.sock`
//! (0600) answers the server's own user and root; `--control` answers holders of the token, and
//! health probes to all. Must not: touch the data plane, block a worker, or know how one is made.
mod counters;
mod guard;
mod http;
mod inject;
mod listener;
mod metrics;
mod order;
mod selector;
pub mod socket;
mod view;

use std::future::{Future, IntoFuture};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

pub use counters::{Counters, Distribution, ProcessView, Report};
pub use inject::{Injected, Injection, Mail, Refused, Said, To, Wishes};
pub use order::{Act, OperationView, Order, Progress, Stage};
pub use selector::Selector;
pub use view::{
    DeliveryView, DestinationView, GateView, MessageDetail, MessageView, RecipientView, Resumed, State,
    SuspensionView, Timestamp, WhyDestination, WhyMessage,
};

use self::listener::Caller;
use crate::config::{Config, Durability, read_token};
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;

/// What [`Server`] answers with. `'static`: an answer does not borrow the server.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What the control plane may ask of the server. A future that is not done within
/// `limits::CONTROL_REPLY_WAIT` is dropped, but for those of orders.
pub trait Server: Send + Sync + 'static {
    /// Summed over workers.
    fn counters(&self) -> BoxFuture<Counters>;
    /// Up to `limit` destinations that have mail, most first.
    fn destinations(&self, limit: usize) -> BoxFuture<Vec<DestinationView>>;
    /// Up to `limit` messages that the selector takes, oldest first.
    fn list(&self, selector: Selector, limit: usize) -> BoxFuture<Vec<MessageView>>;
    /// One message in full; none if it is not in the spool (any more).
    fn show(&self, id: MessageId) -> BoxFuture<Option<MessageDetail>>;
    /// What holds each delivery of a message; none if it is not in the spool (any more).
    fn why_message(&self, id: MessageId) -> BoxFuture<Option<WhyMessage>>;
    /// What holds the mail of a destination.
    fn why_destination(&self, domain: Domain) -> BoxFuture<WhyDestination>;
    /// Carries out an order, however long that takes; what was changed is durable when it ends. The error
    /// says what to do.
    fn operate(&self, order: Order, progress: Arc<Progress>) -> BoxFuture<Result<(), String>>;
    /// Holds back all mail of a destination, durably.
    fn suspend(&self, domain: Domain, view: SuspensionView) -> BoxFuture<Result<(), String>>;
    /// Ends that; false if it was not suspended.
    fn resume(&self, domain: Domain, reason: String) -> BoxFuture<Result<bool, String>>;
    /// The suspensions in force, by name.
    fn suspensions(&self) -> Vec<SuspensionView>;
    /// Accepts messages of a client that may send to anyone; the answers are in their order. It goes on
    /// with what it has begun even if its future is dropped.
    fn inject(&self, messages: Vec<Injection>, client: IpAddr) -> BoxFuture<Vec<Injected>>;
    /// Whether mail is being accepted: recovery has ended and no drain has begun.
    fn is_ready(&self) -> bool;
}

/// How to start the control thread.
#[derive(Clone)]
pub struct ControlConfig {
    pub spool: PathBuf,
    /// `--control`.
    pub address: Option<SocketAddr>,
    /// What `--control-token-file` holds.
    pub token: Option<String>,
    pub durability: Durability,
    pub workers: usize,
    /// `--max-recipients`, for each message.
    pub max_recipients: usize,
    /// Bytes of requests with mail at a time, and so in one of them.
    pub injection_bytes: usize,
}

impl ControlConfig {
    /// Takes what it needs, and reads the token: call it before privileges are dropped.
    pub fn new(config: &Config) -> anyhow::Result<ControlConfig> {
        let token = match (&config.control, &config.control_token_file) {
            (Some(_), Some(path)) => Some(read_token(path).map_err(anyhow::Error::msg)?),
            _ => None,
        };
        Ok(ControlConfig {
            spool: config.spool.clone(),
            address: config.control,
            token,
            durability: config.durability,
            workers: config.workers,
            max_recipients: config.max_recipients,
            injection_bytes: injection_bytes(config.memory_limit_bytes),
        })
    }
}

/// Of a request there are up to three copies at a time; together they stay at three eighths of the memory.
fn injection_bytes(memory_limit_bytes: u64) -> usize {
    limits::INJECTION_BYTES.min((memory_limit_bytes / 8) as usize)
}

/// The running control thread. Dropping it stops it too.
pub struct ControlHandle {
    address: Option<SocketAddr>,
    spool: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// How long answers under way may take once the thread is told to stop.
const STOP_WAIT: Duration = Duration::from_secs(1);

/// Binds the socket in the spool and `--control`, then starts the thread. Needs the spool's lock to be
/// held: a socket that is already there is taken for one a dead server left, and replaced.
pub fn start(config: ControlConfig, server: Arc<dyn Server>) -> anyhow::Result<ControlHandle> {
    let local = socket::bind(&config.spool)
        .with_context(|| format!("cannot make the socket {}", config.spool.join(socket::NAME).display()))?;
    let tcp = config.address.map(bind_tcp).transpose()?;
    let address = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
    let spool = config.spool.clone();
    let (stop, stopped) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime of the control thread")?;
    let state = Arc::new(http::Context::new(config, server));
    let thread = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            if let Err(error) = runtime.block_on(run(local, tcp, state, stopped)) {
                tracing::error!("the control thread has ended: {error}");
            }
            runtime.shutdown_timeout(STOP_WAIT);
        })
        .context("cannot start the control thread")?;
    Ok(ControlHandle { address, spool, stop, thread: Some(thread) })
}

fn bind_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("cannot listen on --control {address}: is another program using the port? Name another one")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn run(
    local: std::os::unix::net::UnixListener,
    tcp: Option<TcpListener>,
    state: Arc<http::Context>,
    mut stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let local = axum::serve(
        listener::Local::new(local)?,
        http::local_routes(state.clone()).into_make_service_with_connect_info::<Caller>(),
    );
    tokio::spawn(local.into_future());
    if let Some(tcp) = tcp {
        let remote = axum::serve(
            listener::Remote::new(tcp)?,
            http::remote_routes(state).into_make_service_with_connect_info::<Caller>(),
        );
        tokio::spawn(remote.into_future());
    }
    // An error means that the handle is gone, which asks for the same.
    let _ = stopped.wait_for(|stop| *stop).await;
    Ok(())
}

impl ControlHandle {
    /// The address `--control` listens on, with the port it was given.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops the thread, waits for it, and removes the socket.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.send_replace(true);
        if thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
        socket::remove(&self.spool);
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
