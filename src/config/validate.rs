//! Texts in force → [`Config`]: parsing, ranges, and the rules between settings.
//!
//! Owns: what is allowed. Promises: all problems of single values are reported together, then all of
//! the rules between them; each names the setting as it was given (flag, variable or file key) and
//! the remedy. Must not: look at the machine (`inspect`).
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::grammar::{self, Parsed, show_duration, show_size};
use super::{ClientLimits, Config, Durability, Effective, Entry, Origin, Problem, Source};
use crate::limits;
use crate::mail::address::Domain;
use crate::route::RouteTable;

impl Effective {
    /// The configuration, or everything that is wrong with the settings.
    pub fn config(&self) -> Result<Config, Vec<Problem>> {
        let mut reader = Reader { effective: self, problems: Vec::new() };
        let config = reader.config();
        if reader.problems.is_empty() {
            reader.relations(&config);
        }
        if reader.problems.is_empty() { Ok(config) } else { Err(reader.problems) }
    }
}

impl Config {
    /// What is allowed but rarely meant, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for network in self.relay_from.iter().filter(|network| network.bits == 0) {
            warnings.push(format!(
                "relay-from {}/0 lets every client send to any domain: an open relay, unless a firewall stands before it",
                network.addr
            ));
        }
        for (flag, networks) in [("proxy-from", &self.proxy_from), ("xclient-from", &self.xclient_from)] {
            if networks.iter().any(|network| network.bits == 0) {
                warnings.push(format!(
                    "{flag} has a /0: every client may say that it is another, --relay-from ones included"
                ));
            }
        }
        if self.durability == Durability::Memory {
            warnings.push("durability memory: accepted mail is lost when this process ends".into());
        }
        if !self.hostname.contains('.') {
            warnings.push(format!(
                "hostname {} has no domain: many receivers refuse such a greeting; set --hostname",
                self.hostname
            ));
        }
        if self.control_token_file.is_some() && self.control.is_none() {
            warnings.push("control-token-file has no effect without --control".into());
        }
        if self.control.is_some() && self.control_token_file.is_none() {
            warnings.push("control without control-token-file serves the health probes only".into());
        }
        let named = self.stream_header.is_some() || self.auth_file.is_some() || self.control.is_some();
        let ordered = !self.transactional_streams.is_empty() || !self.rules.streams().is_empty();
        if ordered && !named {
            warnings.push(
                "streams have no effect: nothing names one; give --stream-header, or users with --auth-file"
                    .into(),
            );
        }
        if self.stream_by_user && self.auth_file.is_none() {
            warnings.push("stream-by-user has no effect without --auth-file".into());
        }
        if self.max_message_bytes < 64 << 10 {
            warnings.push("max-message-size is below the 64 KiB that every server must take (RFC 5321 section 4.5.3.1.7)".into());
        }
        if self.max_recipients < 100 {
            warnings.push(
                "max-recipients is below the 100 that every server must take (RFC 5321 section 4.5.3.1.8)"
                    .into(),
            );
        }
        if self.delay_warning >= self.max_age && self.delay_warning != limits::DEFAULT_DELAY_WARNING {
            warnings.push("delay-warning has no effect: mail is returned at max-age before that".into());
        }
        for address in self.rules.limited_sources().filter(|address| !self.sends_from(*address)) {
            warnings.push(format!("[source.\"{address}\"] has no effect: --source does not name it"));
        }
        warnings.extend(self.rules.warnings(&self.knobs()));
        warnings
    }
}

impl Config {
    fn sends_from(&self, address: IpAddr) -> bool {
        self.sources.iter().any(|source| source.address == address)
    }

    /// Routes to addresses that none of the local ones they may leave from can reach.
    fn unreachable_routes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (pattern, target) in self.routes.addresses().filter(|_| !self.sources.is_empty()) {
            let domain = Domain::parse(pattern.as_bytes()).ok();
            let rule = domain.map_or(0, |domain| self.rules.rule_of(&domain));
            let allowed = self.rules.knobs(rule, 0).sources;
            let reaches = |source: &&Source| {
                source.address.is_ipv4() == target.is_ipv4()
                    && allowed.as_ref().is_none_or(|list| list.contains(&source.address))
            };
            if self.sources.iter().find(reaches).is_none() {
                let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
                found.push(format!(
                    "{pattern:?} goes to {target}, but no --source for it is {family}: add one"
                ));
            }
        }
        found
    }
}

/// Reads settings one by one and collects what is wrong. A value that is wrong yields a stand-in, so
/// that the rest is still looked at; the stand-in never leaves this file.
struct Reader<'a> {
    effective: &'a Effective,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        Config {
            listen: self.many("listen", grammar::socket),
            submission: self.many("submission", grammar::socket),
            submissions: self.many("submissions", grammar::socket),
            hostname: self.one("hostname", grammar::host_name).unwrap_or_default(),
            spool: self.path("spool").unwrap_or_default(),
            workers: self.count("workers", 1, limits::WORKERS as u64) as usize,
            durability: self.one("durability", grammar::durability).unwrap_or(Durability::Disk),
            segment_bytes: self.bytes("segment-size", limits::MIN_SEGMENT_BYTES, limits::MAX_SEGMENT_BYTES),
            spool_limit_bytes: self.bytes("spool-limit", 0, u64::MAX),
            memory_limit_bytes: self.bytes("memory-limit", limits::MIN_MEMORY_BYTES_PER_WORKER, u64::MAX),
            relay_from: self.many("relay-from", grammar::cidr),
            local_domains: self.many("local-domain", grammar::domain),
            postmaster: self.one("postmaster", grammar::address),
            tls_pairs: self.tls_pairs(),
            tls_client_ca: self.path("tls-client-ca"),
            auth_file: self.path("auth-file"),
            proxy_from: self.many("proxy-from", grammar::cidr),
            xclient_from: self.many("xclient-from", grammar::cidr),
            routes: self.routes(),
            dns: self.many("dns", grammar::name_server),
            mx_port: self.count("mx-port", 1, u16::MAX.into()) as u16,
            max_message_bytes: self.bytes("max-message-size", 1024, limits::MAX_MESSAGE_BYTES),
            max_recipients: self.count("max-recipients", 1, limits::MAX_RECIPIENTS as u64) as usize,
            client_limits: self.client_limits(),
            greet_pause: self.time("greet-pause", Duration::ZERO, limits::MAX_GREET_PAUSE),
            command_wait: self.time("command-wait", Duration::from_secs(1), limits::MAX_CLIENT_WAIT),
            data_wait: self.time("data-wait", Duration::from_secs(1), limits::MAX_CLIENT_WAIT),
            destination_connections: self.count(
                "destination-connections",
                1,
                limits::OUTBOUND_CONNECTIONS_PER_WORKER as u64,
            ) as u32,
            total_connections: self.one("total-connections", positive),
            total_rate: self.one("total-rate", grammar::rate),
            destination_rate: self.one("destination-rate", grammar::rate),
            messages_per_connection: self.count("messages-per-connection", 1, u32::MAX.into()) as u32,
            retry_schedule: self.one("retry-schedule", grammar::schedule).unwrap_or_default(),
            recipients_per_message: self.count("recipients-per-message", 1, limits::MAX_RECIPIENTS as u64)
                as u16,
            stream_by_user: self.one("stream-by-user", grammar::switch).unwrap_or_default(),
            stream_header: self.one("stream-header", grammar::field_name),
            transactional_streams: self.many("transactional-stream", grammar::text),
            max_age: self.time("max-age", Duration::from_secs(1), limits::MAX_AGE),
            delay_warning: self.time("delay-warning", Duration::ZERO, limits::MAX_AGE),
            rules: self.effective.rules.clone(),
            sources: self.many("source", grammar::source),
            user: self.one("user", grammar::text),
            allow_private_mx: self.one("allow-private-mx", grammar::switch).unwrap_or_default(),
            control: self.one("control", grammar::socket),
            control_token_file: self.path("control-token-file"),
            event_log: self.path("event-log"),
            shutdown_grace: self.time("shutdown-grace", Duration::ZERO, limits::MAX_SHUTDOWN_GRACE),
        }
    }

    /// The rules between settings.
    fn relations(&mut self, config: &Config) {
        if config.listen.is_empty() && config.submission.is_empty() && config.submissions.is_empty() {
            self.complain("listen", "needs at least one address, as in 127.0.0.1:2525");
        }
        self.door_relations(config);
        let block = limits::BLOCK_BYTES as u64;
        if !config.segment_bytes.is_multiple_of(block) {
            let below = show_size(config.segment_bytes / block * block);
            self.complain("segment-size", &format!("must be a multiple of 4KiB: write {below}"));
        }
        let least = limits::MIN_SEGMENTS_PER_WORKER * config.segment_bytes * config.workers as u64;
        if (1..least).contains(&config.spool_limit_bytes) {
            self.complain(
                "spool-limit",
                &format!(
                    "is too small: {} workers with segments of {} need {} ({} each); raise it, or lower --segment-size or --workers",
                    config.workers,
                    show_size(config.segment_bytes),
                    show_size(least),
                    limits::MIN_SEGMENTS_PER_WORKER,
                ),
            );
        } else if (1..2 * config.max_message_bytes).contains(&config.spool_limit_bytes) {
            self.complain(
                "spool-limit",
                "must hold two messages of --max-message-size: raise it, or lower that",
            );
        }
        let least = limits::MIN_MEMORY_BYTES_PER_WORKER * config.workers as u64;
        if (limits::MIN_MEMORY_BYTES_PER_WORKER..least).contains(&config.memory_limit_bytes) {
            let need = format!(
                "is too small: {} workers need {}; raise it, or lower --workers",
                config.workers,
                show_size(least)
            );
            self.complain("memory-limit", &need);
        }
        let addresses: Vec<_> = config.sources.iter().map(|source| source.address).collect();
        if let Some(twice) = repeated(&addresses, |_| true) {
            self.complain("source", &format!("names {twice} twice"));
        }
        for why in config.unreachable_routes() {
            self.complain("route", &why);
        }
        self.problems.extend(config.rules.contradictions(config));
        let _ = self.one("provider-defaults", grammar::switch);
        if let Some(control) = config.control
            && !control.ip().is_loopback()
            && config.control_token_file.is_none()
        {
            self.complain(
                "control",
                "is reachable from other machines: give --control-token-file, or use 127.0.0.1",
            );
        }
    }

    fn routes(&mut self) -> RouteTable {
        let rules = self.list("route").texts.clone();
        if rules.is_empty() {
            return RouteTable::default();
        }
        RouteTable::parse(&rules).unwrap_or_else(|error| {
            self.complain("route", &format!("{:?}: {}", error.rule, error.why));
            RouteTable::default()
        })
    }

    fn client_limits(&mut self) -> ClientLimits {
        let most = limits::MAX_CONNECTIONS as u64;
        ClientLimits {
            max_connections: self.count("max-connections", 1, most) as usize,
            max_connections_per_ip: self.count("max-connections-per-ip", 1, most) as usize,
            max_connections_per_network: self.count("max-connections-per-network", 1, most) as usize,
            connection_rate_per_ip: self.one("connection-rate-per-ip", grammar::rate_or_none).flatten(),
            connection_rate_per_network: self
                .one("connection-rate-per-network", grammar::rate_or_none)
                .flatten(),
            message_rate_per_ip: self.one("message-rate-per-ip", grammar::rate_or_none).flatten(),
            error_rate_per_ip: self.one("error-rate-per-ip", grammar::rate_or_none).flatten(),
            error_rate_per_network: self.one("error-rate-per-network", grammar::rate_or_none).flatten(),
        }
    }

    /// Certificates and keys belong together by their places in the two lists.
    fn tls_pairs(&mut self) -> Vec<(PathBuf, PathBuf)> {
        let certs = self.many("tls-cert", grammar::text);
        let keys = self.many("tls-key", grammar::text);
        if certs.len() != keys.len() {
            let short = if certs.len() < keys.len() { "tls-cert" } else { "tls-key" };
            let why = format!(
                "there are {} --tls-cert and {} --tls-key: give one of each for every certificate, in the same order",
                certs.len(),
                keys.len()
            );
            self.complain(short, &why);
        }
        certs.into_iter().zip(keys).map(|(cert, key)| (cert.into(), key.into())).collect()
    }

    /// The rules about logins and TLS.
    fn door_relations(&mut self, config: &Config) {
        for (flag, addresses) in [("submission", &config.submission), ("submissions", &config.submissions)] {
            if !addresses.is_empty() && config.tls_pairs.is_empty() {
                self.complain(flag, "needs TLS: give --tls-cert and --tls-key");
            }
            if !addresses.is_empty() && config.auth_file.is_none() {
                self.complain(flag, "needs users: give --auth-file");
            }
        }
        if config.auth_file.is_some() && config.tls_pairs.is_empty() {
            self.complain("auth-file", "is of no use without TLS: give --tls-cert and --tls-key");
        }
        if config.tls_client_ca.is_some() && config.tls_pairs.is_empty() {
            self.complain("tls-client-ca", "is of no use without TLS: give --tls-cert and --tls-key");
        }
        let all = [&config.listen[..], &config.submission, &config.submissions].concat();
        if let Some(twice) = repeated(&all, |addr| addr.port() != 0) {
            self.complain(
                "listen",
                &format!("{twice} is named twice, by --listen, --submission or --submissions"),
            );
        }
        if config.control.is_some_and(|control| all.contains(&control) && control.port() != 0) {
            self.complain("control", "is also an address for mail: give it a port of its own");
        }
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.one(name, grammar::text).map(PathBuf::from)
    }

    fn one<T>(&mut self, name: &str, parse: fn(&str) -> Parsed<T>) -> Option<T> {
        let text = self.effective.entry(name).texts.first()?;
        parse(text).map_err(|why| self.complain(name, &why)).ok()
    }

    /// The entry of a repeatable setting; one that is too long is complained of.
    fn list(&mut self, name: &str) -> &Entry {
        let entry = self.effective.entry(name);
        if entry.texts.len() > limits::SETTING_VALUES {
            self.complain(
                name,
                &format!("has {} values: at most {} are allowed", entry.texts.len(), limits::SETTING_VALUES),
            );
        }
        self.effective.entry(name)
    }

    fn many<T>(&mut self, name: &str, parse: fn(&str) -> Parsed<T>) -> Vec<T> {
        let texts = self.list(name).texts.clone();
        let mut values = Vec::with_capacity(texts.len());
        for text in &texts {
            match parse(text) {
                Ok(value) => values.push(value),
                Err(why) => self.complain(name, &why),
            }
        }
        values
    }

    fn count(&mut self, name: &str, least: u64, most: u64) -> u64 {
        self.ranged(name, grammar::number, |n| n.to_string(), least, most)
    }

    fn bytes(&mut self, name: &str, least: u64, most: u64) -> u64 {
        self.ranged(name, grammar::size, |&n| show_size(n), least, most)
    }

    fn time(&mut self, name: &str, least: Duration, most: Duration) -> Duration {
        self.ranged(name, grammar::duration, |&d| show_duration(d), least, most)
    }

    /// A value from `least` to `most`; `least` stands in for a wrong one.
    fn ranged<T: PartialOrd + Copy>(
        &mut self,
        name: &str,
        parse: fn(&str) -> Parsed<T>,
        show: fn(&T) -> String,
        least: T,
        most: T,
    ) -> T {
        match self.one(name, parse) {
            Some(value) if value < least => {
                self.complain(
                    name,
                    &format!("{} is too small: write {} or more", show(&value), show(&least)),
                );
                least
            }
            Some(value) if value > most => {
                self.complain(name, &format!("{} is too large: write {} or less", show(&value), show(&most)));
                least
            }
            Some(value) => value,
            None => least,
        }
    }

    fn complain(&mut self, name: &str, why: &str) {
        let entry = self.effective.entry(name);
        let named = match entry.origin {
            Origin::Flag => format!("--{name}"),
            Origin::Environment => entry.setting.variable(),
            Origin::File => format!("{}: {name}", self.effective.file.as_deref().unwrap_or("--config")),
            Origin::Default => format!("--{name} (not given; the default)"),
        };
        self.problems.push(Problem(format!("{named}: {why}")));
    }
}

/// A number from 1.
fn positive(text: &str) -> Parsed<u32> {
    let number = grammar::number(text)?;
    let fits = u32::try_from(number).ok().filter(|number| *number > 0);
    fits.ok_or_else(|| format!("{number} is out of range: write a number from 1"))
}

/// The first value that counts and stands in the list a second time.
fn repeated<T: PartialEq>(values: &[T], counts: fn(&T) -> bool) -> Option<&T> {
    values.iter().enumerate().find(|(i, value)| counts(value) && values[..*i].contains(value)).map(|(_, v)| v)
}
