//! Start and stop of the server.
//!
//! Owns: the order in which things come up (checks, listeners, spool, privileges, threads, recovery,
//! `ready`) and go down (drain, commit, join). Promises: whatever is wrong is said in one line with the
//! remedy before anything is touched; no mail is taken before recovery has ended; an orderly stop
//! leaves nothing unrecorded that could be recorded within `--shutdown-grace`. Must not: do work of the
//! running server.
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::doors::{Doors, Files, Service};
use super::gate::Gate;
use super::handle::Handle;
use super::home::HomeConfig;
use super::live::{self, Reread};
use super::post::{Batch, Post};
use super::spool_dir::SpoolDir;
use super::streams::Streams;
use super::suspensions::Suspensions;
use super::thread::{self, HomeSetup, Setup};
use super::time::Clock;
use super::{Shared, memory, policies, user};
use crate::auth::Checkers;
use crate::config::{Config, Durability, Problem};
use crate::control::{self, ControlConfig};
use crate::events::{self, EventSender};
use crate::limits;
use crate::mail::address::Domain;
use crate::resolve::{ResolveConfig, Resolver};
use crate::ring::{self, Listener, MailboxSender, OpenFile, Wanted, mailbox};
use crate::spool::{LogConfig, SpoolIdentity};
use crate::tls::ClientTls;

/// Runs the server until it is told to stop. `reread` makes the configuration anew, for SIGHUP.
pub fn serve(config: Config, reread: &Reread) -> anyhow::Result<()> {
    SpoolDir::make(&config.spool)?;
    let durable = config.durability == Durability::Disk;
    let locked_bytes = (config.workers * limits::COMMIT_BUFFERS * limits::COMMIT_BUFFER_BYTES) as u64;
    let checked = ring::start_up_checks(&config.spool, Wanted { durable, locked_bytes })?;
    let control_config = ControlConfig::new(&config)?;
    let listeners = bind(&config)?;
    // Keys may be for root alone.
    let files = Files::read(&config).map_err(doors_problem)?;
    if let Some(name) = &config.user {
        user::become_user(name, &config.spool)?;
    }
    let spool = SpoolDir::open(&config.spool)?;
    let suspensions = Arc::new(Suspensions::open(&config.spool)?);
    let homes = plan_homes(&spool, config.workers)?;
    let mut signals = Signals::new()?;
    let (events, events_thread) = match &config.event_log {
        Some(path) => {
            let (sender, thread) = events::start(path)?;
            (sender, Some(thread))
        }
        None => (EventSender::off(), None),
    };
    let doors = Doors::build(&config, &files, spool.identity).map_err(doors_problem)?;
    drop(files);
    let owners = homes.iter().map(|h| h.owner).collect();
    let shared = Arc::new(share(config, events, owners, doors, spool.identity)?);
    let open = OpenFile {
        sync: if durable { ring::Sync::Data } else { ring::Sync::None },
        direct: checked.direct_block.is_some(),
        write: true,
        lock: true,
    };
    let block_bytes = checked.direct_block.unwrap_or(0).max(limits::BLOCK_BYTES) as u32;
    let clock = Clock::start();
    let begin = Begin { open, block_bytes, clock, suspensions: suspensions.clone() };
    let mut started = start_workers(&shared, &spool, &homes, &begin, &listeners)?;

    let handle = Arc::new(Handle::new(shared.clone(), started.senders.clone(), suspensions));
    let control = control::start(control_config, handle.clone())?;
    started.wait_until_recovered()?;
    signals.take_stops()?;
    for (service, address) in &listeners.addresses {
        match service {
            Service::Smtp => eprintln!("listening on {address}"),
            Service::Submission => eprintln!("submission on {address}"),
            Service::Submissions => eprintln!("submissions on {address}"),
        }
    }
    if let Some(address) = control.address() {
        eprintln!("control on {address}");
    }
    eprintln!("durability {}", shared.config.durability.as_str());
    handle.set_ready(true);
    eprintln!("ready");
    let _ = sd_notify::notify(true, &[sd_notify::NotifyState::Ready]);

    signals.wait_for_stop(&started, &shared, reread)?;
    handle.set_ready(false);
    let _ = sd_notify::notify(true, &[sd_notify::NotifyState::Stopping]);
    started.join()?;
    control.stop();
    drop(handle);
    drop(shared);
    if let Some(thread) = events_thread {
        let _ = thread.join();
    }
    drop(spool);
    eprintln!("stopped");
    Ok(())
}

/// Listening sockets: each worker has one of its own per address.
struct Bound {
    addresses: Vec<(Service, SocketAddr)>,
    sockets: Vec<Vec<(Service, TcpListener)>>,
}

fn bind(config: &Config) -> anyhow::Result<Bound> {
    let mut bound =
        Bound { addresses: Vec::new(), sockets: (0..config.workers).map(|_| Vec::new()).collect() };
    for (service, flag, addresses) in [
        (Service::Smtp, "listen", &config.listen),
        (Service::Submission, "submission", &config.submission),
        (Service::Submissions, "submissions", &config.submissions),
    ] {
        for &wanted in addresses {
            let mut address = wanted;
            // SO_REUSEPORT would let a second server of the same user share the port silently.
            if address.port() != 0 && !comes_free(address) {
                bail!("--{flag} {address}: the port is in use; stop what uses it or choose another");
            }
            for sockets in &mut bound.sockets {
                let socket = Listener::bind(address).with_context(|| {
                    format!(
                        "--{flag} {wanted}: cannot listen there; below port 1024 root is needed (see --user)"
                    )
                })?;
                address = socket.local_addr()?;
                sockets.push((service, socket));
            }
            bound.addresses.push((service, address));
        }
    }
    Ok(bound)
}

/// Everything that is wrong with the files, as one error.
fn doors_problem(problems: Vec<Problem>) -> anyhow::Error {
    anyhow::anyhow!(problems.into_iter().map(|problem| problem.0).collect::<Vec<_>>().join("; "))
}

/// Reads certificates and users again (SIGHUP). What is wrong is said, and the old ones stay.
fn reload_doors(shared: &Shared) {
    let built =
        Files::read(&shared.config).and_then(|files| Doors::build(&shared.config, &files, shared.identity));
    match built {
        Ok(doors) => {
            shared.doors.store(Arc::new(doors));
            tracing::info!("certificates and users were read again");
        }
        Err(problems) => {
            for problem in problems {
                tracing::error!("{problem}; certificates and users stay what they were");
            }
        }
    }
}

/// Whether the port is free, or becomes so: the kernel takes a moment to close what a killed process had
/// in its rings.
fn comes_free(address: SocketAddr) -> bool {
    let in_use = |e: std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse;
    let deadline = Instant::now() + limits::BIND_WAIT;
    while TcpListener::bind(address).is_err_and(in_use) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(limits::DRAIN_POLL);
    }
    true
}

/// One log and the worker that serves it.
struct HomePlan {
    log: u16,
    owner: usize,
}

/// Every worker has the log of its own number; logs beyond the number of workers are served as well, for
/// what is still in them.
fn plan_homes(spool: &SpoolDir, workers: usize) -> anyhow::Result<Vec<HomePlan>> {
    let mut logs: Vec<u16> = (0..workers as u16).collect();
    logs.extend(spool.logs()?.into_iter().filter(|&log| usize::from(log) >= workers));
    if logs.len() > limits::WORKERS {
        bail!("the spool has {} logs, more than the {} that one process serves", logs.len(), limits::WORKERS);
    }
    Ok(logs.into_iter().map(|log| HomePlan { log, owner: usize::from(log) % workers }).collect())
}

fn share(
    config: Config,
    events: EventSender,
    home_owners: Vec<usize>,
    doors: Doors,
    identity: SpoolIdentity,
) -> anyhow::Result<Shared> {
    let resolver = Resolver::start(ResolveConfig { servers: config.dns.clone(), ..ResolveConfig::default() })
        .context("starting the DNS thread")?;
    let own_name = Domain::parse(config.hostname.as_bytes())
        .with_context(|| format!("--hostname {}", config.hostname))?;
    let providers = Arc::default();
    let streams = Streams::default();
    let policies = Arc::new(policies::policies(&config, &providers, &streams));
    Ok(Shared {
        doors: ArcSwap::from_pointee(doors),
        checkers: Checkers::start().context("starting the threads that check passwords")?,
        identity,
        resolver,
        tls: ClientTls::opportunistic(),
        events,
        gate: Gate::new(&config),
        own_names: vec![own_name],
        own_addresses: config.listen.iter().map(|a| a.ip()).filter(|ip| !ip.is_unspecified()).collect(),
        home_owners,
        streams,
        part_limit: policies::part_limit(&config),
        policies,
        providers,
        config,
    })
}

/// The running workers as the main thread sees them.
struct Started {
    threads: Vec<std::thread::JoinHandle<anyhow::Result<()>>>,
    senders: Vec<MailboxSender<Batch>>,
    recovered: crossbeam_channel::Receiver<anyhow::Result<()>>,
}

impl Started {
    fn wait_until_recovered(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.threads.len() {
            self.recovered.recv().context("a worker ended while it started")??;
        }
        Ok(())
    }

    fn tell_all(&self, post: impl Fn() -> Post) {
        for sender in &self.senders {
            let mut batch = vec![post()];
            let deadline = Instant::now() + limits::STOP_WAIT;
            // A worker that takes nothing for so long is gone or stuck; the caller finds out.
            while let Err(refused) = sender.try_send(batch) {
                if Instant::now() > deadline {
                    break;
                }
                batch = refused;
                std::thread::sleep(limits::MAILBOX_RETRY_WAIT);
            }
        }
    }

    fn join(self) -> anyhow::Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a worker thread panicked"))??;
        }
        Ok(())
    }
}

/// `RINGPOST_TEST_CHANNEL_DEPTH` is for tests: at 1 every hand-over between workers meets a full channel.
fn channel_depth() -> usize {
    let wanted = std::env::var("RINGPOST_TEST_CHANNEL_DEPTH").ok().and_then(|depth| depth.parse().ok());
    wanted.map_or(limits::MAILBOX_DEPTH, |depth: usize| depth.clamp(1, limits::MAILBOX_DEPTH))
}

/// What every worker begins with.
struct Begin {
    open: OpenFile,
    block_bytes: u32,
    clock: Clock,
    suspensions: Arc<Suspensions>,
}

fn clone_sockets(sockets: &[(Service, TcpListener)]) -> std::io::Result<Vec<(Service, TcpListener)>> {
    sockets.iter().map(|(service, socket)| Ok((*service, socket.try_clone()?))).collect()
}

fn start_workers(
    shared: &Arc<Shared>,
    spool: &SpoolDir,
    homes: &[HomePlan],
    begin: &Begin,
    bound: &Bound,
) -> anyhow::Result<Started> {
    let config = &shared.config;
    let (tell, recovered) = crossbeam_channel::bounded(config.workers);
    let (senders, mailboxes): (Vec<_>, Vec<_>) =
        (0..config.workers).map(|_| mailbox::<Batch>(channel_depth())).unzip();
    let cpus = ring::available_cpus();
    let max_segments = match config.spool_limit_bytes {
        0 => u32::MAX,
        limit => u32::try_from(limit / config.segment_bytes / homes.len() as u64).unwrap_or(u32::MAX),
    };
    let cache_bytes = (config.memory_limit_bytes / 2) as usize / homes.len();
    let read = Arc::new(Barrier::new(config.workers));
    let mut threads = Vec::new();
    for (index, mailbox) in mailboxes.into_iter().enumerate() {
        let own = homes.iter().enumerate().filter(|(_, plan)| plan.owner == index);
        let own = own.map(|(home, plan)| HomeSetup {
            config: HomeConfig {
                index: home as u8,
                part_limit: shared.part_limit.clone(),
                identity: spool.identity,
                dir: spool.log_path(plan.log),
                segment_bytes: config.segment_bytes,
                open: begin.open,
                cache_bytes: cache_bytes.min(limits::BODY_CACHE_BYTES),
                load_bytes: memory::share(
                    config.memory_limit_bytes,
                    4 * homes.len() as u64,
                    1,
                    limits::BODY_LOAD_BYTES,
                ),
            },
            log: LogConfig {
                identity: spool.identity,
                log: plan.log,
                segment_bytes: config.segment_bytes as u32,
                block_bytes: begin.block_bytes,
                max_segments,
                slack_segments: limits::SLACK_SEGMENTS,
                commits_in_flight: limits::COMMITS_IN_FLIGHT,
            },
        });
        let setup = Setup {
            index,
            shared: shared.clone(),
            clock: begin.clock,
            suspensions: begin.suspensions.clone(),
            homes: own.collect(),
            home_count: homes.len(),
            mailbox,
            senders: senders.clone(),
            sockets: clone_sockets(&bound.sockets[index])?,
            cpu: (config.workers <= cpus.len()).then(|| cpus[index]),
            read: read.clone(),
            tell: tell.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(move || thread::run(setup)).context("starting a worker thread")?);
    }
    Ok(Started { threads, senders, recovered })
}

/// The signals that a server obeys, and the runtime that hears them.
struct Signals {
    runtime: tokio::runtime::Runtime,
    hangup: Signal,
    /// SIGTERM and SIGINT; before the server is ready they end the process at once.
    stops: Option<(Signal, Signal)>,
}

impl Signals {
    /// From here on SIGHUP waits for the server to be ready.
    fn new() -> anyhow::Result<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let hangup = {
            let _inside = runtime.enter();
            signal(SignalKind::hangup())?
        };
        Ok(Signals { runtime, hangup, stops: None })
    }

    /// From here on SIGTERM and SIGINT drain.
    fn take_stops(&mut self) -> anyhow::Result<()> {
        let _inside = self.runtime.enter();
        self.stops = Some((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
        Ok(())
    }

    /// Waits for a signal to stop and sees the stop through: the first SIGTERM or SIGINT drains, a second
    /// one stops at once. SIGHUP reads certificates, users and the configuration again.
    fn wait_for_stop(self, started: &Started, shared: &Arc<Shared>, reread: &Reread) -> anyhow::Result<()> {
        let Signals { runtime, mut hangup, stops } = self;
        let (mut terminate, mut interrupt) = stops.expect("taken before the server was ready");
        runtime.block_on(async {
            let mut watchdog = tokio::time::interval(limits::WATCHDOG_PERIOD);
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => {
                        reload_doors(shared);
                        live::reload(shared, &started.senders, reread);
                    }
                    _ = watchdog.tick() => {
                        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                        if started.threads.iter().any(|t| t.is_finished()) {
                            bail!("a worker thread has ended by itself");
                        }
                    }
                }
            }
            eprintln!("stopping: finishing what is in flight (a second signal stops at once)");
            started.tell_all(|| Post::Drain);
            let all_ended = async {
                while !started.threads.iter().all(|t| t.is_finished()) {
                    tokio::time::sleep(limits::DRAIN_POLL).await;
                }
            };
            tokio::pin!(all_ended);
            tokio::select! {
                () = &mut all_ended => return Ok(()),
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                // The workers keep the grace themselves; this is for one that does not.
                () = tokio::time::sleep(shared.config.shutdown_grace + limits::DRAIN_OVERTIME) => {
                    bail!("the workers did not stop within --shutdown-grace; what is queued is safe in the spool");
                }
            }
            started.tell_all(|| Post::Stop);
            if tokio::time::timeout(limits::STOP_WAIT, all_ended).await.is_err() {
                bail!("a worker does not answer; what is queued is safe in the spool");
            }
            Ok(())
        })
    }
}
