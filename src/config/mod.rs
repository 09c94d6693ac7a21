//! Flags + environment + TOML → one validated [`Config`].
//!
//! CONTRACT (to be kept by whoever fills this in; files: size.rs and duration.rs for the value grammars,
//! cidr.rs, file.rs for the TOML, serve.rs …). Precedence: flag > RINGPOST_… > file > default.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    Disk,
    Os,
    Memory,
}

/// A network, `ADDR/BITS`; a bare address is its own network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub addr: IpAddr,
    pub bits: u8,
}

/// `--source ADDR,EHLO-NAME`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub address: IpAddr,
    pub ehlo_name: String,
}

/// Everything `serve` needs, validated.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Vec<SocketAddr>,
    pub hostname: String,
    pub spool: PathBuf,
    pub workers: usize,
    pub durability: Durability,
    pub segment_bytes: u64,
    /// 0: as much as the disk has.
    pub spool_limit_bytes: u64,
    pub memory_limit_bytes: u64,
    pub relay_from: Vec<Cidr>,
    pub routes: crate::route::RouteTable,
    pub dns: Vec<SocketAddr>,
    pub mx_port: u16,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub destination_connections: u32,
    pub messages_per_connection: u32,
    pub retry_schedule: Vec<Duration>,
    pub max_age: Duration,
    pub sources: Vec<Source>,
    pub user: Option<String>,
    pub allow_private_mx: bool,
    pub control: Option<SocketAddr>,
    pub control_token_file: Option<PathBuf>,
    pub event_log: Option<PathBuf>,
    pub shutdown_grace: Duration,
}
