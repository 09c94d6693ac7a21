//! The table of settings: name, kind, default and help of each, once.
//!
//! Owns: [`SETTINGS`], from which the flags and their help, the `RINGPOST_…` variables, the keys of
//! the TOML file and the output of `check` are all made. Promises: each name means the same in all
//! of them. Must not: parse values (`grammar`) or judge them (`validate`).

/// How often a setting is given and what its text is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One value.
    One,
    /// A list: a repeatable flag, words in the environment variable, an array in the file.
    Many,
    /// One value with commas in it; the file may write it as an array.
    Commas,
    /// On or off: a flag without a value, a boolean in the file.
    Switch,
}

/// What holds when nobody gave a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// These texts.
    Text(&'static [&'static str]),
    /// Nothing; what that means.
    Unset(&'static str),
    /// The host name of the system.
    SystemHostname,
    /// The cores this process may run on.
    SystemCores,
    /// Half the memory this process may use.
    HalfOfMemory,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Flag without its dashes, and key of the file.
    pub name: &'static str,
    /// What stands for the value in `--help`.
    pub value_name: &'static str,
    pub kind: Kind,
    pub default: Preset,
    pub help: &'static str,
}

impl Setting {
    /// The setting of that name.
    pub fn find(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|s| s.name == name)
    }

    /// The environment variable: `max-age` is `RINGPOST_MAX_AGE`.
    pub fn variable(&self) -> String {
        format!("RINGPOST_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    /// The default in words, for `--help`.
    pub fn default_in_words(&self) -> String {
        match self.default {
            Preset::Text(texts) => texts.join(" "),
            Preset::Unset(meaning) => meaning.to_owned(),
            Preset::SystemHostname => "the system's".to_owned(),
            Preset::SystemCores => "cores available".to_owned(),
            Preset::HalfOfMemory => "half of the memory available".to_owned(),
        }
    }
}

const fn one(name: &'static str, value_name: &'static str, default: Preset, help: &'static str) -> Setting {
    Setting { name, value_name, kind: Kind::One, default, help }
}

const fn many(name: &'static str, value_name: &'static str, default: Preset, help: &'static str) -> Setting {
    Setting { name, value_name, kind: Kind::Many, default, help }
}

use Preset::{HalfOfMemory, SystemCores, SystemHostname, Text, Unset};

/// Every setting of `serve`, in the order that `--help` and `check` show.
pub static SETTINGS: &[Setting] = &[
    many(
        "listen",
        "ADDR:PORT",
        Text(&["127.0.0.1:2525"]),
        "Address and port to receive SMTP on; port 0 takes a free one",
    ),
    many(
        "submission",
        "ADDR:PORT",
        Unset("off"),
        "Address and port to take mail from users on: STARTTLS, then a login; needs --tls-cert and --auth-file",
    ),
    many(
        "submissions",
        "ADDR:PORT",
        Unset("off"),
        "The same with TLS from the first byte (RFC 8314); 465 is the usual port",
    ),
    one("hostname", "NAME", SystemHostname, "Name of this server in the greeting, EHLO and Received"),
    one(
        "spool",
        "DIR",
        Text(&["./spool"]),
        "Directory that holds accepted mail; made if missing, for one server only",
    ),
    one("workers", "N", SystemCores, "Worker threads, each on its own core; may change between runs"),
    one(
        "durability",
        "disk|os|memory",
        Text(&["disk"]),
        "When a message is acknowledged: disk = it survives power loss; os = it survives this process, not power loss; memory = it survives nothing",
    ),
    one(
        "segment-size",
        "SIZE",
        Text(&["64MiB"]),
        "Size of one spool file; a multiple of 4KiB from 1MiB to 1GiB",
    ),
    one(
        "spool-limit",
        "SIZE",
        Text(&["0"]),
        "Most disk space the spool takes; new mail gets 452 beyond it; 0 = as much as the disk has",
    ),
    one(
        "memory-limit",
        "SIZE",
        HalfOfMemory,
        "Most memory the server plans for; beyond it bodies are read from disk again and new mail is slowed",
    ),
    many(
        "relay-from",
        "CIDR",
        Text(&["127.0.0.0/8", "::1/128"]),
        "Network whose clients may send to any domain",
    ),
    many(
        "local-domain",
        "DOMAIN",
        Unset("none"),
        "Domain whose mail is taken from everyone, to be delivered like any other: by --route or MX",
    ),
    one(
        "postmaster",
        "ADDRESS",
        Unset("postmaster at --hostname, for clients that may relay"),
        "Where mail for <Postmaster> without a domain goes, from whomever it comes",
    ),
    many(
        "tls-cert",
        "FILE",
        Unset("no TLS for clients"),
        "PEM file with a certificate and its chain, for STARTTLS and --submissions; several are chosen from by the name that the client asks for, the first is for all others; read again on SIGHUP",
    ),
    many(
        "tls-key",
        "FILE",
        Unset("none"),
        "PEM file with the private key of the --tls-cert in the same place",
    ),
    one(
        "tls-client-ca",
        "FILE",
        Unset("clients are not asked for certificates"),
        "PEM file with the authorities whose client certificates are believed; the name stands in Received and the log",
    ),
    one(
        "auth-file",
        "FILE",
        Unset("no logins"),
        "File of users, a line each: name:hash and options; `ringpost passwd hash` makes lines; read again on SIGHUP",
    ),
    many(
        "proxy-from",
        "CIDR",
        Unset("none"),
        "Network of proxies whose connections begin with a PROXY header",
    ),
    many(
        "xclient-from",
        "CIDR",
        Unset("none"),
        "Network of proxies that may say with XCLIENT for whom they speak",
    ),
    many(
        "route",
        "PATTERN=TARGET",
        Unset("none: MX"),
        "Where a domain's mail goes: example.com=10.0.0.1:25, *.example.com=mx:other.example, *=127.0.0.1:2526 (a smarthost for all); the most specific pattern wins",
    ),
    many("dns", "ADDR:PORT", Unset("the servers of resolv.conf"), "DNS server to ask; port 53 if left out"),
    one("mx-port", "PORT", Text(&["25"]), "Port to dial on the MX hosts of a domain"),
    one("max-message-size", "SIZE", Text(&["50MiB"]), "Largest message taken"),
    one("max-recipients", "N", Text(&["1000"]), "Most recipients of one message; more get 452"),
    one("max-connections", "N", Text(&["15000"]), "Most clients connected at a time; more get 421"),
    one(
        "max-connections-per-ip",
        "N",
        Text(&["1000"]),
        "Most clients connected from one address at a time; loopback is exempt",
    ),
    one(
        "max-connections-per-network",
        "N",
        Text(&["2000"]),
        "Most clients connected from one network (/24 of IPv4, /64 of IPv6) at a time; who may relay is exempt",
    ),
    one(
        "connection-rate-per-ip",
        "N/TIME|none",
        Text(&["1200/m"]),
        "Most connections from one address in a time; more get 421; who may relay is exempt",
    ),
    one(
        "connection-rate-per-network",
        "N/TIME|none",
        Text(&["6000/m"]),
        "The same for one network (/24 of IPv4, /64 of IPv6)",
    ),
    one(
        "message-rate-per-ip",
        "N/TIME|none",
        Text(&["none"]),
        "Most messages from one address in a time; more get 450; who may relay is exempt",
    ),
    one(
        "error-rate-per-ip",
        "N/TIME|none",
        Text(&["500/h"]),
        "Most errors (refused commands and recipients, failed handshakes) from one address in a time; past it connections get 421; who may relay is exempt",
    ),
    one(
        "error-rate-per-network",
        "N/TIME|none",
        Text(&["5000/h"]),
        "The same for one network (/24 of IPv4, /64 of IPv6)",
    ),
    one(
        "greet-pause",
        "TIME",
        Text(&["0s"]),
        "Wait before the greeting; a client that speaks first gets 421; who may relay is exempt",
    ),
    one(
        "command-wait",
        "TIME",
        Text(&["5m"]),
        "How long a client may take for a command; 20s when --max-connections is nearly reached",
    ),
    one(
        "data-wait",
        "TIME",
        Text(&["3m"]),
        "How long a client may be silent inside a message, which must bring 500 bytes/s on the whole",
    ),
    one("destination-connections", "N", Text(&["20"]), "Most connections to one destination at a time"),
    one(
        "destination-rate",
        "N/TIME",
        Unset("as fast as it takes them"),
        "Most messages sent to one destination in a time, as in 100/s or 5000/h",
    ),
    one(
        "total-connections",
        "N",
        Unset("no limit"),
        "Most connections to all destinations together at a time",
    ),
    one(
        "total-rate",
        "N/TIME",
        Unset("no limit"),
        "Most messages sent to all destinations together in a time",
    ),
    one(
        "messages-per-connection",
        "N",
        Text(&["1000"]),
        "Most messages sent over one connection before a new one is made",
    ),
    Setting {
        name: "retry-schedule",
        value_name: "TIME,TIME,…",
        kind: Kind::Commas,
        default: Text(&["1m,5m,15m,30m,1h,2h,4h"]),
        help: "Pauses after the first, second, … failed attempt; the last one repeats",
    },
    one(
        "recipients-per-message",
        "N",
        Text(&["100"]),
        "Most recipients of one transaction; a message for more in one domain is sent in several",
    ),
    one(
        "stream-header",
        "NAME",
        Unset("mail has no stream"),
        "Header field that names the stream (tenant, campaign) of a message of a client that may relay; streams share a destination by weight",
    ),
    Setting {
        name: "stream-by-user",
        value_name: "true|false",
        kind: Kind::Switch,
        default: Text(&["false"]),
        help: "Mail of a logged-in user is of the stream of that name, whatever its header says; stream= in the file of users names another one",
    },
    many(
        "transactional-stream",
        "NAME",
        Unset("none"),
        "Stream whose mail goes before that of the others, as password resets do before a campaign; [stream.NAME] sections of the file say the same, and give weights and limits",
    ),
    one("max-age", "TIME", Text(&["5d"]), "Age at which undelivered mail is returned to its sender"),
    one(
        "delay-warning",
        "TIME",
        Text(&["4h"]),
        "Age at which the sender of undelivered mail is told, once, that it is still being tried; 0 = never",
    ),
    Setting {
        name: "provider-defaults",
        value_name: "true|false",
        kind: Kind::Switch,
        default: Text(&["true"]),
        help: "Limits for large mailbox providers that come with this version; [provider.NAME] sections of the file replace them key by key",
    },
    many(
        "source",
        "ADDR,EHLO-NAME",
        Unset("the kernel's choice, with --hostname"),
        "Local address to deliver from, and the name to greet with there; several take turns; [source.\"ADDR\"] sections of the file give them limits",
    ),
    one("user", "NAME", Unset("stay who started it"), "User to become once the ports are open"),
    Setting {
        name: "allow-private-mx",
        value_name: "true|false",
        kind: Kind::Switch,
        default: Text(&["false"]),
        help: "Deliver to MX hosts at loopback and private addresses (tests, intranets)",
    },
    one(
        "control",
        "ADDR:PORT",
        Unset("off"),
        "Serve HTTP there: /healthz and /readyz to all, /metrics and /api/v1 (orders, and mail) with the token of --control-token-file",
    ),
    one(
        "control-token-file",
        "FILE",
        Unset("none: health probes only"),
        "File whose first line is the token for --control",
    ),
    one("event-log", "FILE", Unset("off"), "Append one JSON object per delivery event; - is standard output"),
    one(
        "shutdown-grace",
        "TIME",
        Text(&["10s"]),
        "On SIGTERM, how long deliveries under way may take to finish",
    ),
];
