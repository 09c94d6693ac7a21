//! The command line of the sink.
//!
//! Owns: [`SinkArgs`] and its defaults. Promises: `SinkArgs::new` and the command line agree on
//! every default. Must not: run anything.
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;

use crate::limits;
use crate::sink::model::TlsVariant;
use crate::size::parse_duration;

/// First address of receivers' hosts.
const FIRST_HOST: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);

/// Receive mail, account for each delivery and measure
#[derive(Clone, Debug, clap::Args)]
pub struct SinkArgs {
    /// Address to listen on; port 0 takes a free one. May be given more than once
    #[arg(
        long = "listen",
        value_name = "ADDR:PORT",
        env = "RINGPOST_SINK_LISTEN",
        value_delimiter = ',',
        default_value = "127.0.0.1:2526"
    )]
    pub listen: Vec<SocketAddr>,
    /// Threads that receive
    #[arg(long, value_name = "N", env = "RINGPOST_SINK_THREADS", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Print the report as JSON on standard output
    #[arg(long, env = "RINGPOST_SINK_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Stop after this many different deliveries
    #[arg(long, value_name = "N", env = "RINGPOST_SINK_MESSAGES")]
    pub messages: Option<u64>,
    /// Answer 550 to the recipients of every Nth message
    #[arg(long, value_name = "N", env = "RINGPOST_SINK_REJECT_EVERY")]
    pub reject_every: Option<NonZeroU64>,
    /// Answer 451 to the recipients of every Nth message
    #[arg(long, value_name = "N", env = "RINGPOST_SINK_TEMPFAIL_EVERY")]
    pub tempfail_every: Option<NonZeroU64>,
    /// Append the name of each delivery to this file before it is acknowledged
    #[arg(long, value_name = "FILE", env = "RINGPOST_SINK_SEEN_LOG")]
    pub seen_log: Option<PathBuf>,
    /// Stop when no mail has come for this long after the first
    #[arg(long, value_name = "TIME", env = "RINGPOST_SINK_QUIET_EXIT", value_parser = parse_duration)]
    pub quiet_exit: Option<Duration>,
    /// Behave like the receivers in this TOML file; --print-models shows all that it may say
    #[arg(long, value_name = "FILE", env = "RINGPOST_SINK_MODELS")]
    pub models: Option<PathBuf>,
    /// Print the shipped models of large providers, and every key a receiver may have, and end
    #[arg(long)]
    pub print_models: bool,
    /// Receive for so many generated domains, d0.test, d1.test and so on, shared out among the models
    #[arg(long, value_name = "N", env = "RINGPOST_SINK_DOMAINS",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::DOMAINS)))]
    pub domains: Option<u32>,
    /// First address of the receivers' hosts, on the port of --listen; the others follow it
    #[arg(long, value_name = "ADDR", env = "RINGPOST_SINK_HOSTS_FROM", default_value_t = FIRST_HOST)]
    pub hosts_from: Ipv4Addr,
    /// Answer DNS queries for the receivers' domains here, over UDP and TCP
    #[arg(long, value_name = "ADDR:PORT", env = "RINGPOST_SINK_DNS")]
    pub dns: Option<SocketAddr>,
    /// What to do about TLS, without --models
    #[arg(long, value_name = "VARIANT", env = "RINGPOST_SINK_TLS", value_enum,
        default_value_t = TlsVariant::None, conflicts_with = "models")]
    pub tls: TlsVariant,
    /// Offer CHUNKING, without --models
    #[arg(long, env = "RINGPOST_SINK_CHUNKING", conflicts_with = "models",
        value_parser = FalseyValueParser::new())]
    pub chunking: bool,
    /// Offer AUTH, and take any name and password, without --models
    #[arg(long, env = "RINGPOST_SINK_AUTH", conflicts_with = "models",
        value_parser = FalseyValueParser::new())]
    pub auth: bool,
}

impl SinkArgs {
    /// The defaults, listening on `listen`.
    pub fn new(listen: SocketAddr) -> SinkArgs {
        SinkArgs {
            listen: vec![listen],
            threads: 1,
            json: false,
            messages: None,
            reject_every: None,
            tempfail_every: None,
            seen_log: None,
            quiet_exit: None,
            models: None,
            print_models: false,
            domains: None,
            hosts_from: FIRST_HOST,
            dns: None,
            tls: TlsVariant::None,
            chunking: false,
            auth: false,
        }
    }
}
