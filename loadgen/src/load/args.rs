//! The command line of the load source.
//!
//! Owns: [`LoadArgs`], its defaults and what it refuses. Promises: `LoadArgs::new` and the command
//! line agree on every default; a target that is not on loopback needs a word of its own. Must not:
//! run anything.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::builder::FalseyValueParser;

use crate::compare::CompareArgs;
use crate::limits;
use crate::load::mix::SizeMix;
use crate::load::rate::RateProfile;
use crate::load::tls::TlsMode;
use crate::size::{parse_duration, parse_size};

/// Size of a message by default.
const DEFAULT_SIZE: u64 = 4096;

/// What `ringpost load` does instead of sending.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum LoadAction {
    /// Show two sets of reports side by side, with confidence intervals
    Compare(CompareArgs),
}

/// Send generated mail to a server and measure how it is taken
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LoadArgs {
    /// What to do instead of sending
    #[command(subcommand)]
    pub action: Option<LoadAction>,
    /// Server to send to
    #[arg(long, value_name = "ADDR:PORT", env = "RINGPOST_LOAD_TO", default_value = "127.0.0.1:2525")]
    pub to: SocketAddr,
    /// How many messages to send
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_MESSAGES")]
    pub messages: Option<u64>,
    /// How long to send; with --messages whichever ends first
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Connections at the same time
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_CONNECTIONS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub connections: u32,
    /// Messages after which a connection is closed and opened anew; without it, none
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_MESSAGES_PER_CONNECTION",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub messages_per_connection: Option<u64>,
    /// Size of each message
    #[arg(long, value_name = "SIZE", env = "RINGPOST_LOAD_SIZE", default_value = "4KiB", value_parser = parse_size)]
    pub size: u64,
    /// Sizes after a distribution: uniform:1KiB-64KiB, lognormal:MEDIAN,SIGMA, or file:PATH with
    /// `SIZE [WEIGHT]` on each line
    #[arg(long, value_name = "DISTRIBUTION", env = "RINGPOST_LOAD_SIZES", conflicts_with = "size")]
    pub sizes: Option<SizeMix>,
    /// Send the messages of this maildir, directory, mbox or message file, chosen evenly, each with a
    /// stamp in front
    #[arg(long, value_name = "PATH", env = "RINGPOST_LOAD_CORPUS", conflicts_with_all = ["size", "sizes"])]
    pub corpus: Option<PathBuf>,
    /// Messages per second, at times fixed in advance: 500/s, a ramp 100..1000/s over the duration, or
    /// steps 100/s@10s,500/s@10s; without it, as fast as the server answers
    #[arg(long, value_name = "N/s", env = "RINGPOST_LOAD_RATE")]
    pub rate: Option<RateProfile>,
    /// Leave the first part of the run out of rates, latencies and CPU
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_WARMUP", default_value = "0s",
        value_parser = parse_duration)]
    pub warmup: Duration,
    /// Find the highest rate at which 99 % of the messages are done within this time, from --rate on
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_SEARCH", value_parser = parse_duration,
        conflicts_with_all = ["messages", "duration", "sink", "hdr", "report"])]
    pub search: Option<Duration>,
    /// How long each rate is tried with --search, at least, behind a warm-up of --warmup or a second
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_SEARCH_TRIAL", default_value = "5s",
        value_parser = parse_duration)]
    pub search_trial: Duration,
    /// Messages that a trial of --search has at least, as far as a minute is enough for them
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_SEARCH_SAMPLES", default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub search_samples: u32,
    /// Pause between the trials of --search, in which the server works off what it has
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_SEARCH_PAUSE", default_value = "1s",
        value_parser = parse_duration)]
    pub search_pause: Duration,
    /// Recipients of each message
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_RECIPIENTS_PER_MESSAGE", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::RECIPIENTS)))]
    pub recipients_per_message: u32,
    /// Sender of the messages; empty for the null reverse-path
    #[arg(long, value_name = "ADDRESS", env = "RINGPOST_LOAD_FROM", default_value = "load@example.test")]
    pub from: String,
    /// Domain of the recipients
    #[arg(long, value_name = "DOMAIN", env = "RINGPOST_LOAD_TO_DOMAIN", default_value = "example.test")]
    pub to_domain: String,
    /// Spread the recipients over this many domains, d0.test, d1.test and so on, instead
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_DOMAINS", conflicts_with = "to_domain",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub domains: Option<u32>,
    /// With --domains: the k-th domain gets mail in proportion to 1/k^EXPONENT
    #[arg(long, value_name = "EXPONENT", env = "RINGPOST_LOAD_ZIPF", requires = "domains")]
    pub zipf: Option<f64>,
    /// Domains of the recipients, from a file with `DOMAIN [WEIGHT]` on each line
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_DOMAIN_LIST",
        conflicts_with_all = ["to_domain", "domains"])]
    pub domain_list: Option<PathBuf>,
    /// Spread the recipients over this many mailboxes of each domain
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_MAILBOXES",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub mailboxes: Option<u32>,
    /// Send messages with BDAT where the server offers CHUNKING
    #[arg(long, env = "RINGPOST_LOAD_BDAT", value_parser = FalseyValueParser::new())]
    pub bdat: bool,
    /// Send over HTTP, as JSON: --to is then the address of the server's --control
    #[arg(long, env = "RINGPOST_LOAD_HTTP", value_parser = FalseyValueParser::new(),
        conflicts_with_all = ["corpus", "bdat", "tls", "auth", "no_pipelining"])]
    pub http: bool,
    /// Token for --http, in the first line of this file
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_TOKEN_FILE", requires = "http")]
    pub token_file: Option<PathBuf>,
    /// Encrypt the connections; any certificate will do
    #[arg(long, value_name = "WHEN", env = "RINGPOST_LOAD_TLS", value_enum, default_value_t = TlsMode::None)]
    pub tls: TlsMode,
    /// Authenticate with AUTH PLAIN or LOGIN
    #[arg(long, value_name = "USER:PASSWORD", env = "RINGPOST_LOAD_AUTH", hide_env_values = true)]
    pub auth: Option<String>,
    /// Connect from these addresses in turn
    #[arg(long, value_name = "ADDR,…", env = "RINGPOST_LOAD_SOURCE", value_delimiter = ',')]
    pub source: Vec<IpAddr>,
    /// Wait for the reply to each command
    #[arg(long, env = "RINGPOST_LOAD_NO_PIPELINING", value_parser = FalseyValueParser::new())]
    pub no_pipelining: bool,
    /// Print the report as JSON on standard output
    #[arg(long, env = "RINGPOST_LOAD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Seed of the text and, with --rate, of the arrival times; without it, a new one
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_SEED")]
    pub seed: Option<u64>,
    /// Threads that send
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_THREADS", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Receive at this address what the server delivers, wait for it, and report end to end latency and
    /// whether all of it arrived exactly once
    #[arg(long, value_name = "ADDR:PORT", env = "RINGPOST_LOAD_SINK")]
    pub sink: Option<SocketAddr>,
    /// With --sink: how long nothing may arrive before what is missing counts as not arrived yet
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_ARRIVAL_WAIT", default_value = "10s",
        value_parser = parse_duration)]
    pub arrival_wait: Duration,
    /// Append the name of each accepted delivery to this file as soon as it is acknowledged
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_ACK_LOG")]
    pub ack_log: Option<PathBuf>,
    /// Append the name of each delivery to this file whose message was refused when all of it was there
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_REFUSED_LOG")]
    pub refused_log: Option<PathBuf>,
    /// Go on when connections fail, until all is sent: connect again, count what is in doubt as unknown
    #[arg(long, env = "RINGPOST_LOAD_TOLERATE_ERRORS", value_parser = FalseyValueParser::new())]
    pub tolerate_errors: bool,
    /// Give a connection up when it has brought no reply for this long
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_REPLY_TIMEOUT", default_value = "60s",
        value_parser = parse_duration)]
    pub reply_timeout: Duration,
    /// Report CPU and memory of these processes and all their descendants
    #[arg(long, value_name = "PID,…", env = "RINGPOST_LOAD_MEASURE_PID", value_delimiter = ',')]
    pub measure_pid: Vec<u32>,
    /// Length of the intervals that reports show
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_INTERVAL", default_value = "1s",
        value_parser = parse_duration)]
    pub interval: Duration,
    /// Write the latencies of each interval to this file, as an HdrHistogram log
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_HDR")]
    pub hdr: Option<PathBuf>,
    /// Write a report with plots to this file: one page of HTML that needs nothing else
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_REPORT")]
    pub report: Option<PathBuf>,
    /// Send to an address that is not on the loopback interface
    #[arg(long, env = "RINGPOST_LOAD_I_OWN_THE_TARGET", value_parser = FalseyValueParser::new())]
    pub i_own_the_target: bool,
}

impl LoadArgs {
    /// The defaults, sending `messages` to `to`.
    pub fn new(to: SocketAddr, messages: u64) -> LoadArgs {
        LoadArgs {
            action: None,
            to,
            messages: Some(messages),
            duration: None,
            connections: 64,
            messages_per_connection: None,
            size: DEFAULT_SIZE,
            sizes: None,
            corpus: None,
            rate: None,
            warmup: Duration::ZERO,
            search: None,
            search_trial: Duration::from_secs(5),
            search_samples: 500,
            search_pause: Duration::from_secs(1),
            recipients_per_message: 1,
            from: "load@example.test".into(),
            to_domain: "example.test".into(),
            domains: None,
            zipf: None,
            domain_list: None,
            mailboxes: None,
            bdat: false,
            http: false,
            token_file: None,
            tls: TlsMode::None,
            auth: None,
            source: Vec::new(),
            no_pipelining: false,
            json: false,
            seed: None,
            threads: 1,
            sink: None,
            arrival_wait: Duration::from_secs(10),
            ack_log: None,
            refused_log: None,
            tolerate_errors: false,
            reply_timeout: Duration::from_secs(60),
            measure_pid: Vec::new(),
            interval: Duration::from_secs(1),
            hdr: None,
            report: None,
            i_own_the_target: false,
        }
    }
    /// How long new messages are begun: `--duration`, or as long as the steps of `--rate` say.
    pub fn lasts(&self) -> Option<Duration> {
        self.duration.or_else(|| self.rate.as_ref()?.lasts())
    }
    /// What is sent, in words.
    pub fn workload(&self) -> String {
        let content = match (&self.corpus, &self.sizes) {
            (Some(path), _) => format!("messages of {}", path.display()),
            (None, Some(mix)) => format!("messages of {mix}"),
            (None, None) => format!("messages of {} bytes", self.size),
        };
        let pace = match &self.rate {
            Some(rate) => format!("at {rate}"),
            None => "as fast as answered".into(),
        };
        let number = |number: Option<u64>, what: &str| {
            (number.is_some(), format!("{} {what}", number.unwrap_or_default()))
        };
        let mut text = format!("{content}, {pace}, {} connections", self.connections);
        for (is_so, what) in [
            (self.recipients_per_message > 1, format!("{} recipients each", self.recipients_per_message)),
            number(self.messages_per_connection, "messages per connection"),
            number(self.domains.map(u64::from), "domains"),
            (self.zipf.is_some(), format!("Zipf {}", self.zipf.unwrap_or_default())),
            self.domain_list
                .as_ref()
                .map_or((false, String::new()), |path| (true, format!("domains of {}", path.display()))),
            number(self.mailboxes.map(u64::from), "mailboxes in each domain"),
            (!self.source.is_empty(), format!("from {} addresses", self.source.len())),
            (self.threads > 1, format!("{} threads", self.threads)),
            (!self.warmup.is_zero(), format!("{} s of warm-up", self.warmup.as_secs_f64())),
            (self.no_pipelining, "no pipelining".into()),
            (self.bdat, "BDAT".into()),
            (self.http, "HTTP".into()),
            (self.tls == TlsMode::Starttls, "STARTTLS".into()),
            (self.tls == TlsMode::Implicit, "implicit TLS".into()),
            (self.auth.is_some(), "AUTH".into()),
        ] {
            if is_so {
                text += ", ";
                text += &what;
            }
        }
        text
    }
    /// What the user may not have thought of. A server on loopback still delivers to where its mail goes.
    pub fn cautions(&self) -> Vec<String> {
        let is_reserved = |domain: &str| {
            let last = domain.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            ["test", "example", "invalid", "localhost", "internal"].contains(&last.as_str())
                || domain.starts_with('[')
                || ["example.com", "example.net", "example.org"].iter().any(|name| domain.ends_with(name))
        };
        let mut cautions = Vec::new();
        if self.domains.is_none() && self.domain_list.is_none() && !is_reserved(&self.to_domain) {
            cautions.push(format!(
                "{} may be a domain of somebody: a server without a route of its own for it delivers there",
                self.to_domain
            ));
        }
        if let Some(path) = &self.domain_list {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let names = text.lines().filter_map(|line| line.split_whitespace().next());
            if let Some(name) = names.filter(|name| !name.starts_with('#')).find(|name| !is_reserved(name)) {
                cautions.push(format!(
                    "{} names domains that may be somebody's, {name} for one: a server without a route of its \
                     own for them delivers there",
                    path.display()
                ));
            }
        }
        cautions
    }
    /// Fails with an explanation where the arguments make no run.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.messages.is_none() && self.lasts().is_none() && self.search.is_none() {
            bail!("say how much to send: --messages N or --duration TIME");
        }
        let is_loopback = self.to.ip().to_canonical().is_loopback();
        if !is_loopback && !self.i_own_the_target {
            bail!(
                "{} is not on the loopback interface; load on a server that is not yours is an attack. \
                 If it is yours, say so: --i-own-the-target",
                self.to
            );
        }
        for text in [&self.from, &self.to_domain] {
            let is_plain = text.bytes().all(|c| c.is_ascii_graphic() && c != b'<' && c != b'>');
            ensure!(is_plain, "'{text}' has characters that do not belong in an address");
        }
        // Neither has an escape in JSON here.
        ensure!(
            !(self.http && [&self.from, &self.to_domain].iter().any(|t| t.contains(['"', '\\']))),
            "--http takes no addresses with quotes or backslashes"
        );
        if self.rate.as_ref().is_some_and(RateProfile::needs_duration) {
            ensure!(self.duration.is_some(), "this --rate changes over the run: say --duration TIME too");
        }
        ensure!(self.search.is_none_or(|bound| !bound.is_zero()), "--search 0ms: nothing is done in no time");
        if let (Some(_), Some(rate)) = (self.search, &self.rate) {
            ensure!(rate.is_fixed(), "--search begins at one rate: write --rate 100/s, not {rate}");
        }
        if let Some(exponent) = self.zipf {
            ensure!((0.0..=10.0).contains(&exponent), "--zipf is between 0 and 10");
        }
        ensure!(
            self.domains.is_none_or(|n| n <= limits::DOMAINS),
            "--domains is at most {}",
            limits::DOMAINS
        );
        ensure!(
            self.lasts().is_none_or(|lasts| self.warmup < lasts),
            "--warmup is shorter than the run, of which it is the first part"
        );
        ensure!(self.interval >= limits::PUBLISH_EVERY, "--interval is at least {:?}", limits::PUBLISH_EVERY);
        let slots = self.messages.unwrap_or(0).saturating_mul(u64::from(self.recipients_per_message));
        ensure!(slots <= limits::SLOTS, "a run has at most {} deliveries", limits::SLOTS);
        Ok(())
    }
}
