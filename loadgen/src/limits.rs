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
/// Ids named in a report for each thing that went wrong.
pub const EXAMPLES: usize = 20;
/// Characters of a server's reply that a report quotes.
pub const QUOTED_REPLY_BYTES: usize = 200;
/// Wait before a connection that failed is tried again.
pub const RECONNECT_WAIT: Duration = Duration::from_millis(100);
/// Connections in a row that brought no message through before a run that does not tolerate errors
/// ends.
pub const FRUITLESS_CONNECTIONS: u64 = 100;
/// Longest sleep of a source thread: how late it notices a stop or a reply that is overdue.
pub const SOURCE_SLEEP: Duration = Duration::from_millis(100);
/// Longest sleep of a sink thread: how late it notices a stop.
pub const SINK_SLEEP: Duration = Duration::from_millis(50);
/// How often published counters and the progress display are renewed.
pub const PUBLISH_EVERY: Duration = Duration::from_millis(100);
