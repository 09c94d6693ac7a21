//! Destination → plan: which hosts, in which order, on which port (RFC 5321 §5, RFC 7505). Pure.
//!
//! CONTRACT (to be kept by whoever fills this in; split into files: table.rs, plan.rs)
use std::net::{IpAddr, SocketAddr};

use crate::clock::Rng;
use crate::mail::address::Domain;

/// Parsed `--route PATTERN=TARGET` options, first match of the most specific pattern wins
/// (exact, then longest `*.suffix`, then `*`).
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    _private: (),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// No rule: MX of the destination itself.
    Mx(Domain),
    /// A fixed address.
    Fixed(SocketAddr),
    /// A host name and port: its A/AAAA, no MX.
    Host(Domain, u16),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("route {rule:?}: {why}")]
pub struct RouteError {
    pub rule: String,
    pub why: String,
}

impl RouteTable {
    pub fn parse(rules: &[String]) -> Result<RouteTable, RouteError> {
        let _ = rules;
        unimplemented!()
    }
    pub fn lookup(&self, destination: &Domain) -> Route {
        let _ = destination;
        unimplemented!()
    }
}

/// What DNS said of a domain (built by `resolve`'s caller from its answer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    pub preference: u16,
    pub name: Domain,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name for TLS and for reports; the address in brackets for a fixed address.
    pub name: Box<str>,
    pub address: SocketAddr,
}

#[derive(Clone, Debug)]
pub struct PlanRules<'a> {
    pub port: u16,
    pub allow_private: bool,
    /// Our own names: an MX list is cut at the first host that is us (RFC 5321 §5.1), equal preference included.
    pub own_names: &'a [Domain],
    /// Our own listening addresses.
    pub own_addresses: &'a [IpAddr],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Try in this order; at most MX_HOSTS_TRIED hosts and ADDRESSES_PER_HOST addresses each.
    Targets(Vec<Target>),
    /// Cannot be delivered, ever: best MX is ourselves (5.4.6), …
    Refused { enhanced: (u8, u16, u16), text: &'static str },
    /// Only private/loopback/own addresses, or no usable address now: temporary unless said otherwise.
    Nowhere { text: &'static str },
}

/// Orders hosts by preference, shuffles equals, drops forbidden addresses, cuts at ourselves.
pub fn plan(hosts: &[MxHost], rules: &PlanRules<'_>, rng: &mut Rng) -> Plan {
    let _ = (hosts, rules, rng);
    unimplemented!()
}
