//! The DNS thread: hickory-resolver, its cache, and the joining of equal questions.
//!
//! CONTRACT (to be kept by whoever fills this in; split into files: thread.rs, lookup.rs)
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mail::address::Domain;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// MX with the addresses of its hosts; implicit MX where there is none (RFC 5321 §5.1).
    Mail(Domain),
    /// A/AAAA of one host.
    Host(Domain),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedHost {
    pub preference: u16,
    pub name: Domain,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Hosts(Vec<ResolvedHost>),
    /// `MX 0 .` (RFC 7505): 556 5.1.10.
    NullMx,
    /// NXDOMAIN, or no MX/A/AAAA at all: permanent, 5.1.2.
    NoSuchDomain,
    /// SERVFAIL, REFUSED, time-out, …: temporary, 4.4.3. The text names the cause.
    Temporary(String),
}

/// How to start the thread.
#[derive(Clone, Debug, Default)]
pub struct ResolveConfig {
    /// `--dns`; empty: the system's resolv.conf.
    pub servers: Vec<SocketAddr>,
}

/// Called on the DNS thread with the answer; must not block.
pub type Reply = Box<dyn FnOnce(Arc<Answer>) + Send>;

/// The queue to the DNS thread. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    _private: (),
}

/// The bounded queue is full (`limits::DNS_QUEUE`): put the delivery off, count no attempt.
#[derive(Debug)]
pub struct Busy;

impl Resolver {
    pub fn start(config: ResolveConfig) -> anyhow::Result<Resolver> {
        let _ = config;
        unimplemented!()
    }
    pub fn ask(&self, query: Query, reply: Reply) -> Result<(), Busy> {
        let _ = (query, reply);
        unimplemented!()
    }
}
