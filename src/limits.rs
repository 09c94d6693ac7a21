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
/// Received headers in a message before it is taken for a loop (RFC 5321 §6.3 asks for ≥ 100).
pub const RECEIVED_HOPS: usize = 100;
/// Bytes of a refused message that are read and dropped so that the client gets to read the refusal;
/// past them the connection is closed: four times the default message size is more than a mistake.
pub const REFUSED_BODY_BYTES: u64 = 4 * DEFAULT_MAX_MESSAGE_BYTES;
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
/// Bytes in one line of a peer's reply before it is taken for garbage. RFC 5321 §4.5.3.1.5 says 512;
/// real servers write long URLs into theirs. A line must fit the buffer it is read into.
pub const PEER_REPLY_LINE_BYTES: usize = 4096;
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
/// Messages of one log being copied forward at a time: enough to hide the reads behind the writes.
pub const COPIES_IN_FLIGHT: usize = 4;
/// Bytes of messages being copied forward at which no further copy is begun (one may exceed it).
pub const COPY_FORWARD_BYTES: u64 = 1024 * 1024;
/// Payload of one outcome record; outcomes of a message with more recipients take several records.
pub const OUTCOME_RECORD_BYTES: usize = 32 * 1024;
/// Ids in one abort record.
pub const ABORTS_PER_RECORD: usize = 1024;
/// Bytes read from a segment at a time by recovery.
pub const RECOVERY_READ_BYTES: usize = 1024 * 1024;
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
/// Grace of a drain by default (`--shutdown-grace`).
pub const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Age at which undelivered mail is returned by default (`--max-age`; RFC 5321 §4.5.4.1: 4–5 days).
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5 * 24 * 3600);

const _: () = assert!(COPY_BYTES < COMMIT_BUFFER_BYTES / 2);
const _: () = assert!(FRAGMENT_BYTES + 64 * 1024 <= COMMIT_BUFFER_BYTES);
const _: () = assert!(COMMIT_BUFFER_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(DEFAULT_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
const _: () = assert!(COMMAND_LINE_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(PEER_REPLY_LINE_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(PEER_REPLY_LINE_BYTES <= PEER_REPLY_BYTES);
const _: () = assert!(PATH_BYTES < COMMAND_LINE_BYTES);
