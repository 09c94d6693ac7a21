//! The measuring receiver: takes mail, accounts for each delivery, and says what arrived.
//!
//! Owns: [`SinkArgs`], the running sink behind [`SinkHandle`], and its report. Promises: a message is
//! entered in the account (and in the seen log) before its 250 is sent; stopping loses no count.
//! Must not: deliver or keep mail.
mod args;
mod content;
mod dns;
mod dots;
mod ledger;
mod model;
mod session;
mod tls;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use rustls::{ServerConfig, ServerConnection};

use crate::limits;
use crate::progress::{Progress, Snapshot};
use crate::report::{RunReport, SinkReport};
pub use args::SinkArgs;
pub use ledger::Arrived;
use ledger::{Counts, Ledger};
use model::{Certificate, Described, Model};
pub use model::{TlsVariant, shipped as shipped_models};
use session::Features;
use worker::Measured;
use world::{Receiver, World};

/// What a running sink has counted so far; the fields mean what [`SinkReport`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkCounters {
    pub messages: u64,
    pub unique: u64,
    pub duplicates: u64,
    pub corrupt: u64,
    pub foreign: u64,
    pub refused: u64,
    pub from_future: u64,
    pub bytes: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open: u64,
    /// CPU of the sink's threads, at most a tenth of a second old.
    pub cpu: Duration,
}

/// What the threads of a sink share.
struct Shared {
    started: Instant,
    stop: AtomicBool,
    ledger: Mutex<Ledger>,
    seen_log: Option<File>,
    reject_every: Option<NonZeroU64>,
    tempfail_every: Option<NonZeroU64>,
    transactions: AtomicU64,
    refused: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    /// CPU in nanoseconds of each thread.
    cpu_ns: Vec<AtomicU64>,
    /// Microseconds since the start at which the first and the last message were complete, plus one;
    /// zero before the first.
    first_us: AtomicU64,
    last_us: AtomicU64,
    /// The receivers, where there are models or domains.
    world: Option<World>,
    /// What sessions offer without a world.
    features: Features,
    /// Ready where any receiver speaks TLS.
    tls: BTreeMap<u8, Arc<ServerConfig>>,
}

/// One address a sink listens on.
#[derive(Clone)]
struct Listener {
    socket: Arc<TcpListener>,
    /// The place of its receiver in the world.
    receiver: Option<usize>,
}

impl Shared {
    /// Microseconds since the sink's start.
    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
    fn receiver(&self, place: Option<usize>) -> Option<&Receiver> {
        self.world.as_ref()?.receivers.get(place?)
    }
    fn features(&self, place: Option<usize>) -> Features {
        self.receiver(place).map_or(self.features, |receiver| features(&receiver.model))
    }
    /// The TLS of a new connection at a receiver.
    fn tls(&self, place: Option<usize>) -> io::Result<Box<ServerConnection>> {
        let certificate = self.receiver(place).map_or(Certificate::SelfSigned, |r| r.model.certificate);
        let config = self.tls.get(&(certificate as u8)).ok_or(io::ErrorKind::Unsupported)?;
        tls::connection(config).map_err(io::Error::other)
    }
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The ledger is entered without a point at which a panic could leave it half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.iter().map(|ns| ns.load(Ordering::Relaxed)).sum())
    }
    fn counters(&self) -> SinkCounters {
        let Counts { messages, unique, duplicates, corrupt, foreign, from_future, bytes } =
            self.ledger().counts();
        SinkCounters {
            messages,
            unique,
            duplicates,
            corrupt,
            foreign,
            from_future,
            bytes,
            refused: self.refused.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            cpu: self.cpu(),
        }
    }
    /// How long no message has come; none before the first.
    fn quiet_for(&self) -> Option<Duration> {
        let last_us = self.last_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_micros(last_us)))
    }
}

/// A sink that runs in threads of this process.
pub struct Sink;

impl Sink {
    /// Binds the listeners and starts the threads. Connections are taken when this returns.
    pub fn start(args: &SinkArgs) -> anyhow::Result<SinkHandle> {
        anyhow::ensure!(!args.listen.is_empty(), "a sink needs an address to listen on: --listen ADDR:PORT");
        let world = world(args)?;
        let listeners = listeners(args, world.as_ref())?;
        let addrs = listeners.iter().map(|l| l.socket.local_addr()).collect::<io::Result<Vec<_>>>()?;
        let own = Model { tls: args.tls, chunking: args.chunking, auth: args.auth, ..Model::default() };
        let tls = certificates(world.as_ref(), &own)?;
        let dns = args.dns.map(dns::bind).transpose()?;
        let seen_log = args.seen_log.as_ref().map(|path| crate::open_log(path)).transpose()?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            stop: AtomicBool::new(false),
            ledger: Mutex::default(),
            seen_log,
            reject_every: args.reject_every,
            tempfail_every: args.tempfail_every,
            transactions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            cpu_ns: (0..args.threads).map(|_| AtomicU64::new(0)).collect(),
            first_us: AtomicU64::new(0),
            last_us: AtomicU64::new(0),
            world,
            features: features(&own),
            tls,
        });
        let threads = (0..usize::from(args.threads))
            .map(|index| {
                let worker = worker::Worker::new(index, shared.clone(), listeners.clone())?;
                let builder = std::thread::Builder::new().name(format!("sink-{index}"));
                Ok(builder.spawn(move || worker.run())?)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let dns_addr = dns.as_ref().map(|(.., addr)| *addr);
        if let Some((udp, tcp, _)) = dns {
            let (of_udp, of_tcp) = (shared.clone(), shared.clone());
            let named = |name: &str| std::thread::Builder::new().name(name.into());
            named("sink-dns-udp").spawn(move || dns::serve_udp(&udp, &of_udp))?;
            named("sink-dns-tcp").spawn(move || dns::serve_tcp(&tcp, &of_tcp))?;
        }
        Ok(SinkHandle { addrs, dns_addr, shared, threads })
    }
}

fn features(model: &Model) -> Features {
    Features {
        tls: model.tls,
        has_no_pipelining: !model.pipelining,
        chunking: model.chunking,
        auth: model.auth,
    }
}

/// The receivers that `args` ask for: those of the models, or one for all generated domains.
fn world(args: &SinkArgs) -> anyhow::Result<Option<World>> {
    let described = match (&args.models, args.domains, args.dns) {
        (Some(path), ..) => model::read(path)?,
        (None, None, None) => return Ok(None),
        (None, ..) => {
            let model = Model { tls: args.tls, chunking: args.chunking, auth: args.auth, ..Model::default() };
            let hosts = limits::PLAIN_HOSTS;
            vec![Described { name: "all".into(), domains: Vec::new(), share: 1.0, hosts, model }]
        }
    };
    World::new(described, args.domains.unwrap_or(0), args.hosts_from).map(Some)
}

/// Listens on `--listen`, and on the hosts of all receivers at the same port.
fn listeners(args: &SinkArgs, world: Option<&World>) -> anyhow::Result<Vec<Listener>> {
    let open = |addr: SocketAddr, receiver| -> anyhow::Result<Listener> {
        let socket = listen(addr).with_context(|| format!("cannot listen on {addr}"))?;
        Ok(Listener { socket: Arc::new(socket), receiver })
    };
    let first = world.map(|_| 0);
    let mut listeners =
        args.listen.iter().map(|&addr| open(addr, first)).collect::<anyhow::Result<Vec<Listener>>>()?;
    let port = listeners[0].socket.local_addr()?.port();
    for (index, receiver) in world.iter().flat_map(|world| &world.receivers).enumerate() {
        for &host in &receiver.hosts {
            let addr = SocketAddr::from((host, port));
            if !args.listen.contains(&addr) {
                listeners.push(open(addr, Some(index))?);
            }
        }
    }
    Ok(listeners)
}

/// A configuration for each kind of certificate that is shown.
fn certificates(world: Option<&World>, own: &Model) -> anyhow::Result<BTreeMap<u8, Arc<ServerConfig>>> {
    let models = world.iter().flat_map(|world| &world.receivers).map(|receiver| &receiver.model).chain([own]);
    let mut configs = BTreeMap::new();
    for model in models.filter(|model| model.tls != TlsVariant::None) {
        if let Entry::Vacant(entry) = configs.entry(model.certificate as u8) {
            entry.insert(tls::config(model.certificate)?);
        }
    }
    Ok(configs)
}

/// A running sink. Dropping it stops it too, without a report.
pub struct SinkHandle {
    addrs: Vec<SocketAddr>,
    dns_addr: Option<SocketAddr>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<Measured>>>,
}

impl SinkHandle {
    /// The first address it listens on, with the port it was given.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }
    /// Where it answers DNS queries.
    pub fn dns_addr(&self) -> Option<SocketAddr> {
        self.dns_addr
    }
    /// All addresses it listens on.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
    pub fn counters(&self) -> SinkCounters {
        self.shared.counters()
    }
    /// How long no message has come; none before the first.
    pub fn quiet_for(&self) -> Option<Duration> {
        self.shared.quiet_for()
    }
    /// What has arrived of the run with this identity.
    pub fn arrived(&self, run: u32) -> Arrived {
        self.shared.ledger().arrived(run)
    }
    /// The account of the run with this identity.
    pub fn run_report(&self, run: u32) -> Option<RunReport> {
        self.shared.ledger().run_report(run)
    }
    /// Leaves messages sent before this time (in microseconds since 1970) out of latencies.
    pub fn measure_from(&self, wall_us: u64) {
        self.shared.ledger().measure_from(wall_us);
    }
    /// False when a thread has ended by itself, which is a failure that [`SinkHandle::stop`] names.
    pub fn is_running(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }
    /// Stops taking mail, closes what is open, and reports.
    pub fn stop(mut self) -> anyhow::Result<SinkReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Measured::default();
        for thread in self.threads.drain(..) {
            let one = thread.join().map_err(|_| anyhow::anyhow!("a sink thread panicked"))??;
            (all.strain, all.worst) = (all.strain.or(one.strain), all.worst.or(one.worst));
        }
        let SinkCounters {
            messages,
            unique,
            duplicates,
            corrupt,
            foreign,
            refused,
            from_future,
            bytes,
            connections,
            cpu,
            ..
        } = self.shared.counters();
        let (latency, runs) = {
            let ledger = self.shared.ledger();
            (ledger.latency().percentiles(), ledger.runs())
        };
        let first_us = self.shared.first_us.load(Ordering::Relaxed);
        let seconds = (self.shared.last_us.load(Ordering::Relaxed) - first_us) as f64 / 1e6;
        let mut report = SinkReport {
            listening: self.addrs.iter().map(SocketAddr::to_string).collect(),
            messages,
            unique,
            duplicates,
            corrupt,
            foreign,
            refused,
            connections,
            bytes,
            seconds,
            rate: messages.saturating_sub(1) as f64 / seconds.max(1e-6),
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages.max(1) as f64,
            busy_share: all.strain.busy_share,
            worst_busy_share: all.worst.busy_share,
            starved_share: all.strain.starved_share,
            worst_starved_share: all.worst.starved_share,
            latency,
            from_future,
            runs,
            warnings: Vec::new(),
        };
        report.warnings = report.doubts();
        Ok(report)
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs a sink until `--messages` or `--quiet-exit` says so or `progress` asks to stop.
/// `listening` is told the addresses once connections are taken.
pub fn run_sink(
    args: &SinkArgs,
    progress: &dyn Progress,
    listening: impl FnOnce(&[SocketAddr]),
) -> anyhow::Result<SinkReport> {
    let sink = Sink::start(args)?;
    listening(sink.addrs());
    loop {
        std::thread::sleep(limits::SINK_SLEEP);
        let counters = sink.counters();
        progress.update(&Snapshot {
            elapsed: sink.shared.started.elapsed(),
            messages: counters.messages,
            total: args.messages,
            lasts: None,
            bytes: counters.bytes,
            troubled: counters.duplicates + counters.corrupt,
            connections: counters.open,
            cpu: counters.cpu,
        });
        let is_complete = args.messages.is_some_and(|wanted| counters.unique >= wanted);
        let is_quiet = args.quiet_exit.zip(sink.quiet_for()).is_some_and(|(most, quiet)| quiet >= most);
        if is_complete || is_quiet || progress.stopped() || !sink.is_running() {
            return sink.stop();
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted connections inherit it: replies never wait for an acknowledgement.
    sockopt::set_tcp_nodelay(&socket, true)?;
    net::bind(&socket, &addr)?;
    net::listen(&socket, limits::LISTEN_BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
