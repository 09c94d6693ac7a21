//! The DNS thread: hickory-resolver, its cache, and the joining of equal questions.
//!
//! Owns: the bounded queue to one thread, what is asked there ([`Query`]) and what comes back
//! ([`Answer`]). Promises: every question that was taken gets exactly one reply, within
//! `limits::DNS_LOOKUP_WAIT` of the start of its lookup; an answer tells "not there" from "not known
//! now", because the first returns mail and the second must not. Must not: order, filter or judge
//! hosts (`route` does), or guess: no search list is ever applied to a mail domain.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::mpsc;

use crate::limits;
use crate::mail::address::Domain;
use crate::mail::reply;

mod lookup;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod testserver;
mod thread;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// MX with the addresses of its hosts; implicit MX where there is none (RFC 5321 §5.1).
    Mail(Domain),
    /// A/AAAA of one host.
    Host(Domain),
}

/// A host and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedHost {
    /// Of its MX record; 0 for an implicit MX and a lone host.
    pub preference: u16,
    pub name: Domain,
    /// Families alternate, IPv6 first, so that a few of them are some of both (RFC 8305 §4). Empty:
    /// they could not be found out now.
    pub addresses: Vec<IpAddr>,
}

/// What DNS said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Sorted by preference, at most `limits::MX_HOSTS_RESOLVED`; at least one has an address.
    Hosts(Vec<ResolvedHost>),
    /// `MX 0 .` (RFC 7505): 556 5.1.10.
    NullMx,
    /// NXDOMAIN, or no MX/A/AAAA at all: permanent, 5.1.2.
    NoSuchDomain,
    /// There are MX hosts, but DNS says of each that it has no address: permanent, 5.4.4.
    NoUsableHost,
    /// SERVFAIL, REFUSED, time-out, …: temporary, 4.4.3. The text names the cause.
    Temporary(String),
}

impl Answer {
    /// The failure in the words of SMTP, for outcome, event and DSN; none where there are hosts.
    pub fn failure(&self) -> Option<reply::Reply> {
        let (code, enhanced, text) = match self {
            Answer::Hosts(_) => return None,
            Answer::NullMx => (556, (5, 1, 10), "the domain accepts no mail (null MX)"),
            Answer::NoSuchDomain => (550, (5, 1, 2), "the domain does not exist or has no mail host"),
            Answer::NoUsableHost => (550, (5, 4, 4), "none of the domain's mail hosts has an address"),
            Answer::Temporary(cause) => (450, (4, 4, 3), cause.as_str()),
        };
        Some(reply::Reply::local(code, enhanced, text))
    }
}

/// How to start the thread.
#[derive(Clone, Debug)]
pub struct ResolveConfig {
    /// `--dns`; empty: the system's resolv.conf and hosts file.
    pub servers: Vec<SocketAddr>,
    /// Wait for the answer to one try of a question.
    pub try_wait: Duration,
    /// Tries of a question after the first.
    pub retries: usize,
}

impl Default for ResolveConfig {
    fn default() -> ResolveConfig {
        ResolveConfig { servers: Vec::new(), try_wait: limits::DNS_TRY_WAIT, retries: limits::DNS_RETRIES }
    }
}

/// Called on the DNS thread with the answer; must not block.
pub type Reply = Box<dyn FnOnce(Arc<Answer>) + Send>;

/// The queue to the DNS thread. Cheap to clone. When the last clone is dropped the thread answers
/// what it has taken and ends.
#[derive(Clone)]
pub struct Resolver {
    queue: mpsc::Sender<thread::Asked>,
}

/// The bounded queue is full (`limits::DNS_QUEUE`): put the delivery off, count no attempt.
#[derive(Debug)]
pub struct Busy;

impl Resolver {
    /// Starts the thread. No server needs to be reachable yet.
    pub fn start(config: ResolveConfig) -> anyhow::Result<Resolver> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("cannot start the DNS thread's runtime")?;
        let lookups = Arc::new(lookups(&config)?);
        let (queue, asked) = mpsc::channel(limits::DNS_QUEUE);
        std::thread::Builder::new()
            .name("dns".into())
            .spawn(move || {
                let answer = move |query| {
                    let lookups = Arc::clone(&lookups);
                    async move { lookups.answer(&query).await }
                };
                runtime.block_on(thread::run(asked, answer));
            })
            .context("cannot start the DNS thread")?;
        Ok(Resolver { queue })
    }

    /// Asks; `reply` is called once. Never blocks.
    pub fn ask(&self, query: Query, reply: Reply) -> Result<(), Busy> {
        self.queue.try_send(thread::Asked { query, reply }).map_err(|_| Busy)
    }
}

/// The resolvers with every bound and wait set here, whatever resolv.conf says of them.
fn lookups(config: &ResolveConfig) -> anyhow::Result<lookup::Lookups> {
    let mut options = ResolverOpts::default();
    options.timeout = config.try_wait;
    options.attempts = config.retries;
    options.edns0 = true;
    options.cache_size = limits::DNS_CACHE_ANSWERS;
    options.positive_max_ttl = Some(limits::DNS_POSITIVE_TTL);
    options.negative_max_ttl = Some(limits::DNS_NEGATIVE_TTL);
    // Over TCP every question in flight may share one connection.
    options.max_active_requests = limits::DNS_QUESTIONS;
    let mut servers: Vec<_> = if config.servers.is_empty() {
        options.use_hosts_file = ResolveHosts::Always;
        system_servers()
    } else {
        options.use_hosts_file = ResolveHosts::Never;
        config.servers.iter().map(|&server| name_server(server)).collect()
    };
    servers.truncate(limits::DNS_SERVERS);
    let all = client(servers.clone(), options.clone())?;
    if servers.len() == 1 {
        return Ok(lookup::Lookups::new(all, Vec::new()));
    }
    options.cache_size /= servers.len() as u64;
    options.attempts = 0;
    let each = servers.into_iter().map(|server| client(vec![server], options.clone()));
    Ok(lookup::Lookups::new(all, each.collect::<Result<_, _>>()?))
}

fn client(servers: Vec<NameServerConfig>, options: ResolverOpts) -> anyhow::Result<TokioResolver> {
    let servers = ResolverConfig::from_name_servers(servers);
    TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .context("cannot set up the DNS resolver")
}

/// UDP first; TCP where an answer comes truncated (RFC 7766 §5).
fn name_server(server: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

/// The servers of resolv.conf; without any, the local machine's (resolv.conf(5)).
fn system_servers() -> Vec<NameServerConfig> {
    match read_system_conf() {
        Ok((system, _)) => system.name_servers,
        Err(error) => {
            tracing::warn!(%error, "no DNS server in /etc/resolv.conf: asking 127.0.0.1");
            vec![name_server(SocketAddr::from(([127, 0, 0, 1], 53)))]
        }
    }
}
