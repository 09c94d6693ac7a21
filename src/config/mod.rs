//! Flags + environment + TOML → one validated [`Config`].
//!
//! Owns: every setting of the server (its name, default and help stand once, in `setting`),
//! the sections about destinations (`sections`, `rules`), the
//! grammars of their values, and the rules between them. Promises: precedence is flag over
//! environment over file over default, for lists too (a list given higher up replaces the one below
//! it whole); a [`Config`] that exists is valid; every complaint names what was given, where, and
//! what to write instead. Must not: know of clap (the command line arrives as names and texts), start
//! anything, or change anything on the machine.
mod document;
mod file;
mod gather;
pub mod grammar;
mod inspect;
mod knobs;
mod reply_rules;
mod rules;
mod sections;
mod setting;
mod streams;
mod system;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use gather::{Effective, Entry, Given, Origin};
pub use inspect::{inspect, read_token};
pub use knobs::Knobs;
pub use rules::{Line, Provider, Rules};
pub use setting::{Kind, Preset, SETTINGS, Setting};
pub use streams::StreamSection;
pub use system::System;

use crate::mail::address::{Address, Domain};
use crate::schedule::Rate;

/// When an accepted message is acknowledged with 250.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Written with data sync: it survives power loss.
    Disk,
    /// Written without sync: it survives the process, not power loss.
    Os,
    /// Held in memory only: it survives nothing.
    Memory,
}

impl Durability {
    /// The word used on the command line, in metrics and at start-up.
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Disk => "disk",
            Durability::Os => "os",
            Durability::Memory => "memory",
        }
    }
}

/// A network, `ADDR/BITS`; a bare address is its own network. No bit is set beyond `bits`, and an
/// IPv4 network is never written as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub addr: IpAddr,
    pub bits: u8,
}

impl Cidr {
    /// Whether `addr` lies in the network. An IPv4 address that arrives mapped into IPv6
    /// (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) counts as the IPv4 address it is.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let shift = |width: u32| width - u32::from(self.bits);
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(a)) => {
                (net.to_bits() ^ a.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(a)) => {
                (net.to_bits() ^ a.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// `--source ADDR,EHLO-NAME`: the local address of a delivery and the name it greets with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub address: IpAddr,
    pub ehlo_name: String,
}

/// What clients may take of the server, in all and each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub max_connections_per_network: usize,
    pub connection_rate_per_ip: Option<Rate>,
    pub connection_rate_per_network: Option<Rate>,
    pub message_rate_per_ip: Option<Rate>,
    pub error_rate_per_ip: Option<Rate>,
    pub error_rate_per_network: Option<Rate>,
}

/// Everything `serve` needs, validated.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Vec<SocketAddr>,
    pub submission: Vec<SocketAddr>,
    pub submissions: Vec<SocketAddr>,
    pub hostname: String,
    pub spool: PathBuf,
    pub workers: usize,
    pub durability: Durability,
    pub segment_bytes: u64,
    /// 0: as much as the disk has.
    pub spool_limit_bytes: u64,
    pub memory_limit_bytes: u64,
    pub relay_from: Vec<Cidr>,
    pub local_domains: Vec<Domain>,
    pub postmaster: Option<Address>,
    /// Certificate chains with their keys.
    pub tls_pairs: Vec<(PathBuf, PathBuf)>,
    pub tls_client_ca: Option<PathBuf>,
    pub auth_file: Option<PathBuf>,
    pub proxy_from: Vec<Cidr>,
    pub xclient_from: Vec<Cidr>,
    pub routes: crate::route::RouteTable,
    /// Empty: the servers of resolv.conf.
    pub dns: Vec<SocketAddr>,
    pub mx_port: u16,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub client_limits: ClientLimits,
    pub greet_pause: Duration,
    pub command_wait: Duration,
    pub data_wait: Duration,
    pub destination_connections: u32,
    /// Messages to one destination; none: no limit.
    pub destination_rate: Option<crate::schedule::Rate>,
    /// Connections to all destinations together; none: no limit.
    pub total_connections: Option<u32>,
    /// Messages to all destinations together; none: no limit.
    pub total_rate: Option<crate::schedule::Rate>,
    pub messages_per_connection: u32,
    pub retry_schedule: Vec<Duration>,
    pub recipients_per_message: u16,
    /// Mail of a user is of the stream of that name.
    pub stream_by_user: bool,
    /// Header field that names a message's stream.
    pub stream_header: Option<String>,
    /// Streams whose mail is urgent.
    pub transactional_streams: Vec<String>,
    pub max_age: Duration,
    /// Zero: senders are not told of delays.
    pub delay_warning: Duration,
    /// What the sections of the file say of destinations and providers.
    pub rules: Rules,
    /// Empty: the kernel picks the address, and the EHLO name is `hostname`.
    pub sources: Vec<Source>,
    pub user: Option<String>,
    pub allow_private_mx: bool,
    pub control: Option<SocketAddr>,
    pub control_token_file: Option<PathBuf>,
    /// `-` is standard output.
    pub event_log: Option<PathBuf>,
    pub shutdown_grace: Duration,
}

impl Config {
    /// The settings for all destinations, as the last section to be asked.
    pub fn knobs(&self) -> Knobs {
        Knobs {
            connections: Some(self.destination_connections),
            message_rate: self.destination_rate,
            messages_per_connection: Some(self.messages_per_connection),
            recipients_per_message: Some(self.recipients_per_message),
            retry_schedule: Some(self.retry_schedule.clone()),
            max_age: Some(self.max_age),
            delay_warning: Some(self.delay_warning),
            ..Knobs::default()
        }
    }
}

/// One thing that is wrong, with the remedy, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(pub String);

#[cfg(test)]
mod tests;
