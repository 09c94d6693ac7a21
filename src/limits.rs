//! Every bound of the server in one place, each with its reason.
//!
//! Owns: the named constants that size buffers, queues, tables and waits. Promises: nothing in the
//! server grows past a constant that stands here (or a flag whose default stands here), and the
//! relations between bounds are checked when the crate is compiled. Must not: hold state or import
//! anything of the crate. `docs/LIMITS.md` lists the same bounds with what happens at each.
use std::time::Duration;

// ── SMTP, receiving side (RFC 5321 §4.5.3) ──────────────────────────────────────────────────────

/// Longest command line accepted, CRLF included. RFC 5321 §4.5.3.1.4 demands 512; extensions add to
/// it (RFC 5321 §4.1.1.11), and 4 KiB holds every one of them with room.
pub const COMMAND_LINE_BYTES: usize = 4096;
/// Longest local part (RFC 5321 §4.5.3.1.1).
pub const LOCAL_PART_BYTES: usize = 64;
/// Longest domain (RFC 5321 §4.5.3.1.2).
pub const DOMAIN_BYTES: usize = 255;
/// Longest path with its angle brackets (RFC 5321 §4.5.3.1.3).
pub const PATH_BYTES: usize = 256;
/// Longest line of message data, CRLF included, that is taken (RFC 5321 §4.5.3.1.6 asks for 1000;
/// real mail exceeds it and every large receiver takes more).
pub const TEXT_LINE_BYTES: usize = 64 * 1024;
/// Recipients in one transaction by default. RFC 5321 §4.5.3.1.8 demands at least 100.
pub const DEFAULT_MAX_RECIPIENTS: usize = 1000;
/// Commands that change nothing (NOOP, RSET, VRFY, HELP, …) in a row before the session is closed:
/// a client that only talks costs a connection slot.
pub const IDLE_COMMANDS: u32 = 500;
/// Erroneous commands in one session before it is closed with 421.
pub const BAD_COMMANDS: u32 = 20;
/// Largest message by default (`--max-message-size`).
pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 50 * 1024 * 1024;
/// Largest `--max-message-size`: what one message may take of a spool of ordinary segments.
pub const MAX_MESSAGE_BYTES: u64 = 1024 * 1024 * 1024;
/// Largest `--max-recipients`: a recipient's number within its message has 16 bits.
pub const MAX_RECIPIENTS: usize = u16::MAX as usize;
/// Received headers in a message before it is taken for a loop (RFC 5321 §6.3 asks for ≥ 100).
pub const RECEIVED_HOPS: usize = 100;
/// Wait for the next command of a client (RFC 5321 §4.5.3.2.7: at least 5 minutes).
pub const COMMAND_WAIT: Duration = Duration::from_secs(300);
/// Wait for more message data (RFC 5321 §4.5.3.2.5: 3 minutes for a block).
pub const DATA_BLOCK_WAIT: Duration = Duration::from_secs(180);
/// Wait until a client has taken our replies: one that does not read is not worth its slot.
pub const REPLY_WRITE_WAIT: Duration = Duration::from_secs(60);
/// Reply bytes kept for one session before its next command is read.
pub const REPLY_BYTES: usize = 64 * 1024;
/// Sessions per server by default (`--max-connections`). The descriptor limit lowers it.
pub const DEFAULT_MAX_CONNECTIONS: usize = 15_000;
/// Largest `--max-connections` and `--max-connections-per-ip`: more descriptors than a process gets.
pub const MAX_CONNECTIONS: usize = 1_000_000;
/// Sessions from one address by default (`--max-connections-per-ip`); loopback is exempt.
pub const DEFAULT_MAX_CONNECTIONS_PER_IP: usize = 1_000;
/// Foreign text (HELO names, replies, DNS names) kept in events, logs and DSNs is cut here.
pub const FOREIGN_TEXT_BYTES: usize = 512;

// ── SMTP, sending side (RFC 5321 §4.5.3.2) ──────────────────────────────────────────────────────

/// Wait for a TCP connection. No RFC figure; a host that takes longer is treated as down.
pub const CONNECT_WAIT: Duration = Duration::from_secs(30);
/// Wait for the 220 greeting (RFC 5321 §4.5.3.2.1).
pub const GREETING_WAIT: Duration = Duration::from_secs(300);
/// Wait for the replies to EHLO, MAIL and RCPT (RFC 5321 §4.5.3.2.2–3).
pub const COMMAND_REPLY_WAIT: Duration = Duration::from_secs(300);
/// Wait for 354 (RFC 5321 §4.5.3.2.4).
pub const DATA_START_WAIT: Duration = Duration::from_secs(120);
/// Wait until a block of data is taken by the peer (RFC 5321 §4.5.3.2.5).
pub const DATA_WRITE_WAIT: Duration = Duration::from_secs(180);
/// Wait for the reply to the final dot (RFC 5321 §4.5.3.2.6).
pub const DATA_END_WAIT: Duration = Duration::from_secs(600);
/// Wait for the reply to QUIT: the mail is done, a slow goodbye must not hold a slot.
pub const QUIT_WAIT: Duration = Duration::from_secs(5);
/// An outbound connection with no mail to send stays open this long for the next message.
pub const OUTBOUND_IDLE_WAIT: Duration = Duration::from_secs(5);
/// Lines in one reply of a peer before it is taken for garbage.
pub const PEER_REPLY_LINES: usize = 128;
/// Bytes in one reply of a peer before it is taken for garbage.
pub const PEER_REPLY_BYTES: usize = 16 * 1024;
/// Messages a connection may hold beyond the one being answered, so that MAIL of the next is
/// pipelined behind the body of the last.
pub const CONNECTION_WINDOW: usize = 2;
/// MX hosts tried for one delivery attempt (RFC 5321 §5.1: at least two).
pub const MX_HOSTS_TRIED: usize = 5;
/// Addresses tried for one MX host.
pub const ADDRESSES_PER_HOST: usize = 4;
/// Connections to one destination by default (`--destination-connections`): what the large
/// receivers accept from an unknown address.
pub const DEFAULT_DESTINATION_CONNECTIONS: u32 = 20;
/// Messages on one connection by default (`--messages-per-connection`).
pub const DEFAULT_MESSAGES_PER_CONNECTION: u32 = 1_000;
/// Outbound connections of one worker.
pub const OUTBOUND_CONNECTIONS_PER_WORKER: usize = 2_000;

// ── Spool ────────────────────────────────────────────────────────────────────────────────────────

/// Smallest block a group is padded to; raised to the file system's direct-I/O alignment.
pub const BLOCK_BYTES: usize = 4096;
/// Size of a segment by default (`--segment-size`): large enough that recycling is rare, small
/// enough that one long-lived message holds little back.
pub const DEFAULT_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Smallest `--segment-size`: below four commit buffers a segment is used up before its successor is
/// prepared.
pub const MIN_SEGMENT_BYTES: u64 = 4 * COMMIT_BUFFER_BYTES as u64;
/// Largest `--segment-size`: offsets in a segment have 32 bits, and one long-lived message must not
/// hold back more.
pub const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;
/// Segments per worker that `--spool-limit` must leave room for: the open one, the spares, the
/// reserve, the oldest, and one that its survivors are copied to.
pub const MIN_SEGMENTS_PER_WORKER: u64 = (3 + SPARE_SEGMENTS + RESERVED_SEGMENTS) as u64;
/// Size of one commit buffer: about 60 messages of 4 KiB, past which a longer group gains nothing.
pub const COMMIT_BUFFER_BYTES: usize = 256 * 1024;
/// Commits in flight per log. One fdatasync takes up to a scheduler tick on a busy machine; four or
/// more in flight hide it.
pub const COMMITS_IN_FLIGHT: usize = 6;
/// Commit buffers per log: those in flight and the one being filled.
pub const COMMIT_BUFFERS: usize = COMMITS_IN_FLIGHT + 1;
/// A message part of up to this many bytes is copied into the commit buffer; a larger one is
/// written from the buffer it was received in.
pub const COPY_BYTES: usize = 32 * 1024;
/// Body bytes in one fragment, and the size of the buffers large bodies are received in.
pub const FRAGMENT_BYTES: usize = 128 * 1024;
/// Prepared segments kept ready beyond the open one.
pub const SPARE_SEGMENTS: usize = 2;
/// Prepared segments per log that only outcomes, DSNs and copies may use.
pub const RESERVED_SEGMENTS: usize = 1;
/// Logs in one spool: the log number has 12 bits in a message id.
pub const LOGS: usize = 4096;

// ── Threads, queues, memory ──────────────────────────────────────────────────────────────────────

/// Worker threads: the worker number is a byte in queue entries.
pub const WORKERS: usize = 255;
/// Batches in a mailbox between two threads.
pub const MAILBOX_DEPTH: usize = 1024;
/// DNS questions waiting for the DNS thread; past it the delivery is put off without an attempt.
pub const DNS_QUEUE: usize = 4096;
/// Receive buffer of a session that talks commands.
pub const SESSION_BUFFER_BYTES: usize = 8 * 1024;
/// Bytes of bodies a worker keeps in memory after commit, for delivery without reading the disk.
pub const BODY_CACHE_BYTES: usize = 256 * 1024 * 1024;
/// Queued recipients in one shard (index width of the scheduler's tables).
pub const QUEUED_RECIPIENTS: usize = u32::MAX as usize - 1;
/// Events waiting for the event log's writer; past it events are counted as dropped, mail is not held.
pub const EVENT_QUEUE: usize = 65_536;
/// Smallest `--memory-limit` per worker: its commit buffers, a few large bodies and its tables.
pub const MIN_MEMORY_BYTES_PER_WORKER: u64 = 32 * 1024 * 1024;
/// Grace of a drain by default (`--shutdown-grace`).
pub const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Age at which undelivered mail is returned by default (`--max-age`; RFC 5321 §4.5.4.1: 4–5 days).
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5 * 24 * 3600);
/// Largest `--max-age`.
pub const MAX_AGE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Largest `--shutdown-grace`: a stop that takes longer is a hang.
pub const MAX_SHUTDOWN_GRACE: Duration = Duration::from_secs(3600);
/// Largest `--config` file.
pub const CONFIG_FILE_BYTES: u64 = 1024 * 1024;
/// Pauses in a `--retry-schedule`.
pub const RETRY_STEPS: usize = 32;
/// Values of one repeatable setting (`--route`, `--relay-from`, …): each is looked at for every
/// message or client, and a longer list belongs in DNS.
pub const SETTING_VALUES: usize = 10_000;

// ── Control ──────────────────────────────────────────────────────────────────────────────────────

/// Connections to the control plane at a time, the local socket and `--control` each.
pub const CONTROL_CONNECTIONS: usize = 64;
/// A control connection that neither sends nor takes bytes is closed after this.
pub const CONTROL_IDLE_WAIT: Duration = Duration::from_secs(60);
/// Wait for the workers' answer to a control request: past it the caller gets 504.
pub const CONTROL_REPLY_WAIT: Duration = Duration::from_secs(10);
/// Most destinations or messages in one answer of the control plane.
pub const CONTROL_LIST: usize = 10_000;
/// Largest answer that a local command reads from the control socket.
pub const CONTROL_ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// Shortest token for `--control`: 16 characters of base64 are 96 bits, past guessing.
pub const CONTROL_TOKEN_LEAST: usize = 16;
/// Largest `--control-token-file`.
pub const CONTROL_TOKEN_BYTES: u64 = 4096;

const _: () = assert!(COPY_BYTES < COMMIT_BUFFER_BYTES / 2);
const _: () = assert!(FRAGMENT_BYTES + 64 * 1024 <= COMMIT_BUFFER_BYTES);
const _: () = assert!(COMMIT_BUFFER_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(DEFAULT_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
const _: () = assert!(COMMAND_LINE_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(PATH_BYTES < COMMAND_LINE_BYTES);
const _: () = assert!(MIN_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
const _: () =
    assert!(MIN_SEGMENT_BYTES <= DEFAULT_SEGMENT_BYTES && DEFAULT_SEGMENT_BYTES <= MAX_SEGMENT_BYTES);
const _: () = assert!(MAX_SEGMENT_BYTES <= u32::MAX as u64);
const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES <= MAX_MESSAGE_BYTES);
const _: () = assert!(DEFAULT_MAX_RECIPIENTS <= MAX_RECIPIENTS);
// The idle wait must not cut off a request that still waits for the workers.
const _: () = assert!(CONTROL_REPLY_WAIT.as_secs() < CONTROL_IDLE_WAIT.as_secs());
