//! Every bound of the load tools in one place, each with its reason.
//!
//! Owns: the constants that size buffers, tables and waits. Promises: nothing here grows past one of
//! them, whatever the peer sends. Must not: hold state.
use std::time::Duration;

/// What one read takes at the sink: a batch of commands, or a good part of a large body. One buffer
/// serves all connections of a thread.
pub const SINK_READ_BYTES: usize = 64 * 1024;
/// What one read takes at the source: replies only.
pub const SOURCE_READ_BYTES: usize = 16 * 1024;
/// Readiness events taken in one wait. More would only delay the first of them.
pub const EVENTS_PER_WAIT: usize = 256;
/// Longest command line the sink takes, and longest reply line the source takes.
pub const LINE_BYTES: usize = 4096;
/// Longest answer to a request over HTTP before the source takes the server for broken.
pub const ANSWER_BYTES: usize = 64 * 1024;
/// Lines in one reply before the source takes the server for broken.
pub const REPLY_LINES: u32 = 128;
/// Header bytes of one message searched for the stamp: trace headers stand before it.
pub const HEADER_BYTES: usize = 64 * 1024;
/// Recipients of one transaction, at the source (`--recipients-per-message`) and at the sink. The
/// stamp has five digits for it.
pub const RECIPIENTS: u32 = 10_000;
/// Reply bytes a client of the sink may leave unread before the sink stops reading from it.
pub const UNREAD_REPLY_BYTES: usize = 64 * 1024;
/// Connections accepted at one wake-up, so that one thread does not take all of them.
pub const ACCEPTS_PER_WAKE: usize = 32;
/// Connections waiting to be accepted.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Runs one sink tells apart; mail of further runs counts as foreign.
pub const RUNS: usize = 1024;
/// Highest delivery slot (message number times recipients) in one run's bitmap: 256 MiB of it.
pub const SLOTS: u64 = 1 << 31;
/// Largest message the source prepares: it is held once per thread.
pub const MESSAGE_BYTES: u64 = 1 << 30;
/// Sizes that stand for a distribution (`--sizes`): enough for its shape up to the 99th percentile.
pub const SIZE_CLASSES: u32 = 128;
/// Bytes of all prepared messages of one thread.
pub const STOCK_BYTES: u64 = 1 << 30;
/// Messages taken from a corpus.
pub const CORPUS_MESSAGES: usize = 10_000;
/// Domains of a list, or generated.
pub const DOMAINS: u32 = 10_000_000;
/// Steps and ramps of one rate.
pub const RATE_PIECES: usize = 256;
/// Ids named in a report for each thing that went wrong.
pub const EXAMPLES: usize = 20;
/// Characters of a server's reply that a report quotes.
pub const QUOTED_REPLY_BYTES: usize = 200;
/// Wait before a connection that failed is tried again.
pub const RECONNECT_WAIT: Duration = Duration::from_millis(100);
/// Connections in a row that brought no message through before a run that does not tolerate errors
/// ends.
pub const FRUITLESS_CONNECTIONS: u64 = 100;
/// Addresses all receivers of a sink listen on: each costs a listener.
pub const HOSTS: u32 = 8192;
/// What names of hosts end in.
pub const HOSTS_BELOW: &str = ".hosts.test";
/// Hosts of the one receiver that generated domains have where no models are given.
pub const PLAIN_HOSTS: u32 = 16;
/// Mail exchangers that DNS names for one domain.
pub const EXCHANGERS: usize = 2;
/// Client addresses that a receiver keeps count of.
pub const CLIENTS: usize = 65_536;
/// Triplets that a greylisting receiver remembers before it forgets all.
pub const TRIPLETS: usize = 4_000_000;
/// Longest DNS packet over UDP.
pub const DNS_BYTES: usize = 1232;
/// How long a DNS client may be silent on TCP.
pub const DNS_CLIENT_WAIT: Duration = Duration::from_secs(2);
/// Longest sleep of a source thread: how late it notices a stop or a reply that is overdue.
pub const SOURCE_SLEEP: Duration = Duration::from_millis(100);
/// How long a source with a sink of its own listens on when all has arrived: a duplicate comes behind the
/// first one, when a reply was lost or a retry was under way.
pub const DUPLICATE_WAIT: Duration = Duration::from_secs(1);
/// A stamp that lies so far ahead is one of another clock: below it, readings of one clock differ.
pub const CLOCK_STEP: Duration = Duration::from_millis(1);
/// Longest sleep of a sink thread: how late it notices a stop.
pub const SINK_SLEEP: Duration = Duration::from_millis(50);
/// A message begun later than this after its time was held up: scheduling alone does not do that.
pub const LATE: Duration = Duration::from_millis(10);
/// Share of late messages up to which a rate counts as held.
pub const LATE_SHARE: f64 = 0.01;
/// Stretch of time over which it is told how hard a thread was pressed: shorter ones are full by chance.
pub const STRAIN_STRETCH: Duration = Duration::from_secs(1);
/// Share of the time at which a thread of these tools counts as the bottleneck.
pub const BUSY_SHARE: f64 = 0.9;
/// Share of the time without a processor from which on that counts: below it no queue builds up.
pub const STARVED_SHARE: f64 = 0.1;
/// Bound on the 99th percentile, and first rate, that a search takes when it is told none.
pub const SEARCH_BOUND: Duration = Duration::from_millis(100);
pub const SEARCH_START_RATE: f64 = 100.0;
/// Gap between a good and a bad rate at which a search is over: below that, runs differ by chance.
pub const SEARCH_PRECISION: f64 = 0.05;
/// Trials of one search.
pub const SEARCH_TRIALS: usize = 60;
/// Longest trial, where a low rate takes long to make enough messages; `--search-trial` may be longer.
pub const SEARCH_TRIAL: Duration = Duration::from_secs(60);
/// Warm-up of a trial, in which the connections are opened, without `--warmup`.
pub const SEARCH_WARMUP: Duration = Duration::from_secs(1);
/// Intervals a report keeps: a day of seconds.
pub const INTERVALS: usize = 86_400;
/// Intervals that wait for the shares of slow threads.
pub const OPEN_INTERVALS: u64 = 2;
/// How often published counters and the progress display are renewed.
pub const PUBLISH_EVERY: Duration = Duration::from_millis(100);
