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
/// Longest ENVID, encoded (RFC 3461 §4.4).
pub const ENVID_BYTES: usize = 100;
/// Longest ORCPT, encoded (RFC 3461 §4.2).
pub const ORIGINAL_RECIPIENT_BYTES: usize = 500;
/// Longest line of message data, CRLF included, that is taken (RFC 5321 §4.5.3.1.6 asks for 1000;
/// real mail exceeds it and every large receiver takes more).
pub const TEXT_LINE_BYTES: usize = 64 * 1024;
/// Recipients in one transaction by default. RFC 5321 §4.5.3.1.8 demands at least 100.
pub const DEFAULT_MAX_RECIPIENTS: usize = 1000;
/// Bytes of recipients in one transaction, each counted with [`RECIPIENT_OVERHEAD_BYTES`]: an envelope
/// and the states of its recipients must fit one commit buffer, again and again when copied forward.
pub const RECIPIENTS_BYTES: usize = 160 * 1024;
/// What a recipient takes in a record beyond its address.
pub const RECIPIENT_OVERHEAD_BYTES: usize = 48;
/// Recipients that [`RECIPIENTS_BYTES`] has room for whatever their addresses and ORCPT are: what EHLO promises
/// at most (RFC 9422 §4.2).
pub const RECIPIENTS_KEPT: usize = 200;
const _: () = assert!(
    RECIPIENTS_KEPT * (PATH_BYTES + ORIGINAL_RECIPIENT_BYTES + RECIPIENT_OVERHEAD_BYTES) <= RECIPIENTS_BYTES
);
/// Commands that move no mail (NOOP, RSET, VRFY, HELP, …), and messages that are refused, between two accepted
/// messages before the session is closed: a client that only talks costs a connection slot.
pub const IDLE_COMMANDS: u32 = 500;
/// A chunk of a message (BDAT) smaller than this counts among [`IDLE_COMMANDS`]: taking a command out from
/// between two chunks moves what follows it, which pays only for chunks of some size.
pub const SMALL_CHUNK_BYTES: u64 = 512;
/// Erroneous commands in one session before it is closed with 421.
pub const BAD_COMMANDS: u32 = 20;
/// Largest message by default (`--max-message-size`).
pub const DEFAULT_MAX_MESSAGE_BYTES: u64 = 50 * 1024 * 1024;
/// Largest `--max-message-size`: the list of its fragments and all that is said of its recipients must fit one
/// commit record, also when it is copied forward.
pub const MAX_MESSAGE_BYTES: u64 = 256 * 1024 * 1024;
/// Largest `--max-recipients`: a recipient's number within its message has 16 bits.
pub const MAX_RECIPIENTS: usize = u16::MAX as usize;
/// Recipients refused since the last accepted message before the session ends: as many as a list can have
/// whose client sends it all at once and would send the rest again.
pub const REFUSED_RECIPIENTS: u32 = MAX_RECIPIENTS as u32;
/// Bytes of a command line that are read and dropped so that the client gets to read the refusal: no
/// mistake is longer.
pub const DROPPED_LINE_BYTES: usize = 1024 * 1024;
/// Received headers in a message before it is taken for a loop (RFC 5321 §6.3 asks for ≥ 100).
pub const RECEIVED_HOPS: usize = 100;
/// Bytes of a refused message that are read and dropped so that the client gets to read the refusal;
/// past them the connection is closed: four times the default message size is more than a mistake.
pub const REFUSED_BODY_BYTES: u64 = 4 * DEFAULT_MAX_MESSAGE_BYTES;
/// Wait for a command of a client by default (`--command-wait`), from the reply before to its last byte
/// (RFC 5321 §4.5.3.2.7: at least 5 minutes).
pub const DEFAULT_COMMAND_WAIT: Duration = Duration::from_secs(300);
/// Wait for more message data by default (`--data-wait`; RFC 5321 §4.5.3.2.5: 3 minutes for a block).
pub const DEFAULT_DATA_WAIT: Duration = Duration::from_secs(180);
/// Largest `--command-wait` and `--data-wait`: a client silent for longer will not come back.
pub const MAX_CLIENT_WAIT: Duration = Duration::from_secs(3600);
/// Bytes per second that a message body must bring, but for one `--data-wait`: a modem of 1990 brings twice
/// as many, and who sends a byte a minute only means to hold a place.
pub const LEAST_BODY_BYTES_PER_SEC: u64 = 500;
/// Memory that a silent session may hold besides what its allocations are rounded up to, its socket and its
/// places in tables: a test holds the code to it, so that a hundred thousand of them fit in half a gigabyte.
pub const IDLE_SESSION_BYTES: usize = 2304;
/// Part of `--max-connections` in use from which on silent clients make room for others.
pub const CROWDED_PERCENT: usize = 90;
/// Silence that a client is allowed then: what is too short for a person is long for a program.
pub const CROWDED_WAIT: Duration = Duration::from_secs(20);
/// Wait until a client has taken our replies: one that does not read is not worth its slot.
pub const REPLY_WRITE_WAIT: Duration = Duration::from_secs(60);
/// Wait while saying goodbye: for the peer to take the last reply and close.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(5);
/// Wait after a failed accept (descriptors used up, as a rule) before the next.
pub const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);
/// Reply bytes kept for one session before its next command is read.
pub const REPLY_BYTES: usize = 64 * 1024;
/// Wait at start-up for a port that a killed predecessor has not given back yet.
pub const BIND_WAIT: Duration = Duration::from_secs(5);
/// Sessions per server by default (`--max-connections`). The descriptor limit lowers it.
pub const DEFAULT_MAX_CONNECTIONS: usize = 15_000;
/// Largest `--max-connections` and `--max-connections-per-ip`: more descriptors than a process gets.
pub const MAX_CONNECTIONS: usize = 1_000_000;
/// Sessions from one address by default (`--max-connections-per-ip`); loopback is exempt.
pub const DEFAULT_MAX_CONNECTIONS_PER_IP: usize = 1_000;
/// Wait for a client's whole TLS handshake: a round trip or two, and a client that needs longer holds a
/// connection slot for nothing.
pub const TLS_ACCEPT_WAIT: Duration = Duration::from_secs(30);
/// Ciphertext read at a time from a client that talks commands.
pub const TLS_IDLE_READ_BYTES: usize = 2 * 1024;
/// The same from one that sends much: a whole TLS record (RFC 8446 §5.2) and some.
pub const TLS_READ_BYTES: usize = 18 * 1024;
/// Longest PROXY header (version 2 with its extensions): real ones have some hundred bytes.
pub const PROXY_HEADER_BYTES: usize = 2048;
/// Wait for the PROXY header: the proxy sends it first of all.
pub const PROXY_HEADER_WAIT: Duration = Duration::from_secs(10);
/// Largest `--greet-pause`: clients wait 5 minutes for a greeting (RFC 5321 §4.5.3.2.1).
pub const MAX_GREET_PAUSE: Duration = Duration::from_secs(60);
/// A session that says nothing for this long gives its buffers back and waits without them.
pub const IDLE_BUFFER_WAIT: Duration = Duration::from_secs(2);
/// Buffer of a session before it has said more than fits there.
pub const FIRST_BUFFER_BYTES: usize = 1024;
/// Certificate files (`--tls-cert`), their keys and the client authorities are read up to this size.
pub const PEM_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Failed logins in one session before it is closed.
pub const FAILED_LOGINS_PER_SESSION: u32 = 3;
/// Wait before a failed login is answered: guessing must not be quick.
pub const FAILED_LOGIN_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait of a login for those of the same client that are being checked and might use up
/// [`FAILED_LOGINS_PER_IP`].
pub const LOGIN_TURN_WAIT: Duration = Duration::from_secs(10);
/// Wait before it looks again.
pub const LOGIN_RETRY_WAIT: Duration = Duration::from_millis(50);
/// Failed logins from one address (a /64 of IPv6) in [`FAILED_LOGIN_WINDOW`] before it may not try.
pub const FAILED_LOGINS_PER_IP: u32 = 20;
/// See [`FAILED_LOGINS_PER_IP`].
pub const FAILED_LOGIN_WINDOW: Duration = Duration::from_secs(600);
/// Threads that compute password hashes: enough for some hundred logins a second, and no more of the
/// machine than that.
pub const AUTH_THREADS: usize = 2;
/// Passwords waiting to be checked; past it the client is told to come later.
pub const AUTH_QUEUE: usize = 256;
/// Users in an `--auth-file`.
pub const AUTH_USERS: usize = 100_000;
/// Largest `--auth-file`: [`AUTH_USERS`] lines of ordinary length.
pub const AUTH_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// Longest user name.
pub const AUTH_NAME_BYTES: usize = 255;
/// Longest password.
pub const AUTH_PASSWORD_BYTES: usize = 1024;
/// Memory that the hash of one user may ask for, in KiB: two threads check at a time.
pub const AUTH_HASH_KIB: u32 = 256 * 1024;
/// Passes (argon2) or lanes (scrypt) that the hash of one user may ask for.
pub const AUTH_HASH_PASSES: u32 = 16;
/// Highest bcrypt cost that is taken: each step doubles the time, and this one takes about a second.
pub const AUTH_BCRYPT_COST: u32 = 14;
/// Most rounds of a SCRAM verifier that are taken: about a second.
pub const AUTH_SCRAM_ROUNDS: u32 = 2_000_000;
/// Addresses and users whose rates are remembered, each; past it those forgotten first are the ones
/// that have been quiet longest.
pub const REMEMBERED_RATES: usize = 65_536;
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
/// Wait for each step of a TLS handshake.
pub const TLS_HANDSHAKE_WAIT: Duration = Duration::from_secs(60);
/// Read buffer of an outbound connection: replies are short.
pub const LINK_BUFFER_BYTES: usize = 2048;
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

// ── Delivery scheduler ───────────────────────────────────────────────────────────────────────────

/// Ready entries that each connection still being opened is expected to serve: one message opens
/// one connection, a burst opens them by the dozen, and few are opened that find nothing left.
pub const ENTRIES_PER_OPENING: u32 = 4;
/// Messages a connection may carry before it must give its slot to a home or destination that has
/// mail and no connection at all. Opening one costs about as much as ten pipelined messages.
pub const CONNECTION_TURN: u32 = 16;
/// Longest name of a stream; what is longer is cut.
pub const STREAM_NAME_BYTES: usize = 64;
/// Streams told apart since the start; the mail of further ones shares a turn with mail that has none.
pub const STREAMS: usize = 16_384;
/// Sections about streams: one with limits may have connections of its own at every destination.
pub const STREAM_SECTIONS: usize = 1024;
/// Largest weight of a stream: a turn of a hundred messages is long enough.
pub const STREAM_WEIGHT: u16 = 100;
/// Reply rules of the operator: each refusal is held against all until one fits.
pub const REPLY_RULES: usize = 200;
/// Longest text of such a rule.
pub const RULE_TEXT_BYTES: usize = 512;
/// Recipients in one transaction by default (`--recipients-per-message`): what RFC 5321 §4.5.3.1.8 has
/// every server take.
pub const DEFAULT_RECIPIENTS_PER_MESSAGE: u16 = 100;
/// Urgent entries that go out in a row while others wait, before one of the others goes: what is urgent has
/// the connection nearly to itself, and still nobody waits for ever.
pub const URGENT_RUN: u32 = 16;
/// No new connection to a destination for this long after one failed while others work.
pub const CONNECT_FAILED_PAUSE: Duration = Duration::from_secs(10);
/// No new connection to a destination for this long after one could not even be tried.
pub const CONNECT_PUT_OFF_PAUSE: Duration = Duration::from_secs(1);
/// Entries the scheduler fails, defers, wakes or expires in answer to one event; the rest follows
/// with the timer, which it then asks for at once.
pub const SCHEDULE_BATCH: u32 = 256;
/// The same in answer to the timer: about a millisecond of work.
pub const SCHEDULE_TIMER_BATCH: u32 = 4096;
/// Entries that one shard lets expire or fail in a second: each is a bounce and a record to write, and
/// however many end together, accepting and delivering go on beside them.
pub const ENDINGS_PER_SECOND: u32 = 2000;
/// Of them at once.
pub const ENDINGS_BURST: u32 = 100;
/// How long before a limit that many share grants a message a connection for it is made; so much is waited for
/// at most with connections that have nothing to do, which must be less than `CONNECTION_IDLE`.
pub const POOL_LEAD: Duration = Duration::from_secs(2);
/// Source addresses that `why` names one by one.
pub const SOURCES_SHOWN: usize = 8;
/// Entries of which one shard says in a second that they are late: each may be a report. What finds no room
/// is told of at its next attempt.
pub const WARNINGS_PER_SECOND: u32 = 1000;
/// Deferred entries that one shard makes due in a second when an operator asks for a retry.
pub const FLUSHES_PER_SECOND: u32 = 50_000;
/// Ready entries that wait for a connection are looked over for expiry at most this often in the
/// time of `--max-age`, so that each costs a bounded number of looks and is late by 0.4 % at most.
pub const EXPIRY_SWEEPS: u32 = 256;
/// Deferred entries of one destination kept as a plain list, searched from end to end; with more,
/// the destination gets a timer wheel of its own: never more than 16 bytes for each of them.
pub const DEFERRED_LIST: u32 = 40;
/// Accepted messages for each step back up after a receiver has refused something: so many that the
/// refusal at the end of some steps is a small part of the attempts.
pub const ADAPT_STEP: u32 = 50;
/// Shortest time for such a step of a rate: receivers that count by the minute must be seen to refuse before
/// much more is tried.
pub const ADAPT_STEP_TIME: Duration = Duration::from_secs(5);
/// Steps spent at the level that was refused last, before more is tried.
pub const ADAPT_REST: u32 = 3;
/// Most of them, where the same level is refused again and again.
pub const ADAPT_REST_MOST: u32 = 24;
/// The steps that a receiver's refusal of one more connection doubles, this many times at most.
pub const ADAPT_DOUBLINGS: u32 = 6;
/// What is sent, of what was taken, after a receiver has refused for the rate.
pub const ADAPT_SHARE_PERCENT: u32 = 95;
/// The pause after a refusal for the rate; it doubles while every message is refused.
pub const ADAPT_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
pub const ADAPT_PAUSE_LONGEST: Duration = Duration::from_secs(300);
/// Refusals that come so soon after a cut belong to it.
pub const ADAPT_SALVO: Duration = Duration::from_secs(5);
/// A rate that has grown to this many times the last refused one is no limit any more.
pub const ADAPT_FORGET: u32 = 8;
/// The lowest rate that a receiver's refusals lead to: one message in this time.
pub const ADAPT_SLOWEST: Duration = Duration::from_secs(60);
/// How long what was learnt of a destination is kept while it has no mail.
pub const ADAPT_MEMORY: Duration = Duration::from_secs(3600);
/// What a destination has taken is known for about this long back.
pub const ADAPT_WINDOW: Duration = Duration::from_secs(120);
/// A rate's burst, where none is given, is what so much time brings: timers are a few milliseconds late,
/// and what they miss is made up for.
pub const RATE_BURST: Duration = Duration::from_millis(10);
/// Shortest time of a rate: below it the timers' lateness is most of it.
pub const MIN_RATE_PERIOD: Duration = Duration::from_secs(1);
/// Longest time of a rate.
pub const MAX_RATE_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// How much later than another a message may reach its peer after it was granted, without the peer
/// counting more than the rate allows.
pub const RATE_JITTER: Duration = Duration::from_millis(20);
/// Sections `[destination."…"]`: with every provider each has a policy of its own, and those are numbered
/// with 16 bits.
pub const DESTINATION_RULES: usize = 1_000;
/// Sections `[provider.NAME]`, the shipped ones included.
pub const PROVIDERS: usize = 60;
const _: () = assert!((DESTINATION_RULES + 1) * (PROVIDERS + 1) <= u16::MAX as usize);
/// Destinations whose provider is remembered: a few megabytes. Past it all are learnt again.
pub const PROVIDERS_KNOWN: usize = 100_000;
/// Entries allocated at once: growth is never a copy of the whole table. One short of a power of two, because
/// the allocator adds a few bytes for alignment and would else take its next size, a sixth more.
pub const ENTRY_CHUNK: usize = 4095;

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
/// Fragment buffers of one worker; a session that needs one more waits, which slows its sender.
pub const FRAGMENT_BUFFERS: usize = 256;
/// While fragment buffers are short, a session that has not brought [`COPY_BYTES`] in this time gives its own
/// back and gathers the next piece in ordinary memory: whoever holds half a pool has to send it faster than that.
pub const FRAGMENT_HOLD_WAIT: Duration = Duration::from_millis(100);
/// Longest wait for a fragment buffer: with what the ones in front may hold theirs for, hundreds are served
/// in it.
pub const FRAGMENT_BUFFER_WAIT: Duration = Duration::from_secs(30);
/// Fragments of one message that were written before they were full: with more a commit record could outgrow
/// its buffer.
pub const SHORT_FRAGMENTS: usize = 1024;
/// Body bytes in one fragment.
pub const FRAGMENT_BYTES: usize = 128 * 1024;
/// Size of a fragment buffer: the body, a block for the record headers, and a block so that the last read
/// of a fragment is not a small one.
pub const FRAGMENT_BUFFER_BYTES: usize = FRAGMENT_BYTES + 2 * BLOCK_BYTES;
/// Prepared segments kept ready beyond the open one.
pub const SPARE_SEGMENTS: usize = 2;
/// Segments per log that may hold next to nothing of use before reclaim copies that little: the log is a ring,
/// and the longer it is the fewer times a message that waits for days is copied. A gigabyte by default;
/// `--spool-limit` and a full disk have reclaim begin earlier.
pub const SLACK_SEGMENTS: u32 = 16;
/// Files a log keeps above what reclaim works towards, before it deletes any: those whose last survivors are
/// still being copied when the next is prepared. A new file is zeroed first, which writes all mail twice.
pub const SURPLUS_SEGMENTS: usize = 2;
/// Prepared segments per log that only outcomes, DSNs and copies may use.
pub const RESERVED_SEGMENTS: usize = 1;
/// Parts of the last segment a log has of which one must be free for deliveries to begin: the outcomes of those
/// under way find their place in it.
pub const LAST_SEGMENT_PARTS: u32 = 4;
/// Segments' worth of room at which a log takes no new transaction: what has begun is to find its place.
pub const SEGMENTS_FOR_BEGUN: u64 = 1;
/// Messages of one log being copied forward at a time: enough that small ones fill a group together, or
/// padding would take again what was gained.
pub const COPIES_IN_FLIGHT: usize = 64;
/// Bytes of messages being copied forward at which no further copy is begun (one may exceed it).
pub const COPY_FORWARD_BYTES: u64 = 1024 * 1024;
/// Payload of one outcome record; outcomes of a message with more recipients take several records.
pub const OUTCOME_RECORD_BYTES: usize = 32 * 1024;
/// What operators have decided of one message's recipients, as its copy carries it on: beside the longest
/// list of recipients, their states and this, a commit record still fits in a commit buffer.
pub const STANDING_BYTES: usize = 16 * 1024;
/// Ids in one abort record.
pub const ABORTS_PER_RECORD: usize = 1024;
/// Times an offline reader begins a log anew because a running server recycled a segment under it.
pub const OFFLINE_READ_TRIES: u32 = 5;
/// Files in `SPOOL/quarantine`, and their bytes: past either, damage is reported and not saved. One bad
/// block yields one file, so a disk that fills this has no more to tell.
pub const QUARANTINE_FILES: usize = 1000;
/// See [`QUARANTINE_FILES`].
pub const QUARANTINE_BYTES: u64 = 1024 * 1024 * 1024;
/// A sealed segment's index takes at most one part in so many of the segment: a larger one would save
/// recovery little. A log holds up to two in memory until they are written.
pub const INDEX_PART: usize = 4;
/// Bytes of an index written at a time, so that commits are not kept waiting by it.
pub const SEAL_WRITE_BYTES: usize = 256 * 1024;
/// Records of live messages allocated at once: growth is never a copy of the whole table. See
/// [`ENTRY_CHUNK`].
pub const LIVE_CHUNK: usize = 4095;
/// Bytes allocated at once for the states of messages with several recipients, for each number of them.
pub const STATES_CHUNK_BYTES: usize = 4096;
/// Messages handed to the scheduler by a starting worker before it looks after anything else.
pub const REQUEUE_BATCH: usize = 256;
/// Batches in the mailbox of another worker at which a starting worker waits before it queues more of what
/// it found: a backlog of millions must not stand there, and what was allocated for it is slow to go.
pub const REQUEUE_BACKLOG: usize = 8;
/// Bytes read from a segment at a time by recovery.
pub const RECOVERY_READ_BYTES: usize = 1024 * 1024;
/// Blocks of one log that recovery takes for damaged because the device does not give them back. So many bad
/// places are a device that is failing, or has been pulled: to go on without them would lose mail for
/// nothing, and each may take the device seconds.
pub const UNREADABLE_BLOCKS: usize = 256;
/// Logs in one spool: the log number has 12 bits in a message id.
pub const LOGS: usize = 4096;

/// Outcomes of one log that wait for it to take them; past it no delivery starts.
pub const UNRECORDED_OUTCOMES: usize = 10_000;
/// Wait before a log that could not get a segment tries again.
pub const SPOOL_RETRY_WAIT: Duration = Duration::from_secs(1);
/// Wait at start-up for the writes of a killed predecessor to end.
pub const ZOMBIE_WAIT: Duration = Duration::from_secs(60);
/// Body bytes being read back for delivery by one log at a time; more reads wait.
pub const BODY_LOAD_BYTES: u64 = 256 * 1024 * 1024;
/// Wait before a read that found its bound used up looks again.
pub const BODY_LOAD_WAIT: Duration = Duration::from_millis(10);

// ── Threads, queues, memory ──────────────────────────────────────────────────────────────────────

/// Worker threads: the worker number is a byte in queue entries.
pub const WORKERS: usize = 255;
/// Batches in a mailbox between two threads.
pub const MAILBOX_DEPTH: usize = 1024;
/// Wait for another worker to answer an operator's request.
pub const ROUND_TRIP_WAIT: Duration = Duration::from_secs(5);
/// Posts waiting for one other worker before new mail waits: some turns' worth.
pub const OUTBOX_POSTS: usize = 65_536;
/// Wait before a full mailbox is tried again.
pub const MAILBOX_RETRY_WAIT: Duration = Duration::from_millis(1);
/// DNS questions waiting for the DNS thread; past it the delivery is put off without an attempt.
pub const DNS_QUEUE: usize = 4096;
/// Lookups (an MX set with the addresses of its hosts, or one host) worked on at a time; past it
/// questions wait in the queue.
pub const DNS_LOOKUPS: usize = 512;
/// Questions on the network at a time, of all lookups. Each costs a UDP socket per server asked, so
/// this bounds the descriptors of the DNS thread; at 20 ms an answer it allows 12,000 a second.
pub const DNS_QUESTIONS: usize = 256;
/// Wait for the answer to one try of a question. A recursive server that needs longer has the
/// answer in its cache at the next try.
pub const DNS_TRY_WAIT: Duration = Duration::from_secs(3);
/// Tries of a question after the first.
pub const DNS_RETRIES: usize = 2;
/// Wait for a whole lookup, waiting for its turn included; past it the answer is "temporary".
pub const DNS_LOOKUP_WAIT: Duration = Duration::from_secs(30);
/// DNS servers used, in the order given: one that is dead or refuses is made up for by the others,
/// and more than a few only make a lookup that fails last longer.
pub const DNS_SERVERS: usize = 4;
/// Answers in the DNS cache, negative ones included: about 3,000 destinations with their hosts, at
/// about 1 KiB an answer.
pub const DNS_CACHE_ANSWERS: u64 = 32_768;
/// Longest time an answer is believed, whatever its TTL says: a mistaken week must not last one.
pub const DNS_POSITIVE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Longest time an absence is believed (RFC 2308 §5 finds one to three hours to work well; a domain
/// that comes back should get its mail soon).
pub const DNS_NEGATIVE_TTL: Duration = Duration::from_secs(3600);
/// Hosts of one MX set whose addresses are looked up, best preference first: twice what is tried,
/// because some have no address.
pub const MX_HOSTS_RESOLVED: usize = 2 * MX_HOSTS_TRIED;
/// Addresses kept of one host: more than are tried, because some are refused as private.
pub const ADDRESSES_RESOLVED: usize = 4 * ADDRESSES_PER_HOST;
/// Bytes that may wait inside one TLS connection to be sent: a commit buffer's worth of body and the
/// records around it. Past it the connection ends: its owner has not taken what it should.
pub const TLS_UNSENT_BYTES: usize = 512 * 1024;
/// Hosts whose TLS sessions are remembered for resumption, at most about 12 KiB each (tickets and
/// certificates); past it the oldest goes and its host costs a full handshake again.
pub const TLS_SESSION_HOSTS: usize = 2048;
/// Header bytes of the original that a bounce carries back; the rest is cut at a line's end.
pub const DSN_HEADER_BYTES: usize = 16 * 1024;
/// Recipients reported in one bounce; the caller makes another bounce of the rest.
pub const DSN_RECIPIENTS: usize = 100;
/// Largest message that a report returns whole where RET=FULL asks for it: it goes into the record of
/// the report, as much as any message puts there.
pub const DSN_FULL_BYTES: usize = COPY_BYTES;
/// Receive buffer of a session that talks commands.
pub const SESSION_BUFFER_BYTES: usize = 8 * 1024;
/// Part of `--memory-limit` in use from which bodies kept in memory are given back.
pub const MEMORY_TIGHT_PERCENT: u64 = 85;
/// How often a worker looks at the memory in use: between two looks a disk or network of 1 GB/s brings
/// a few hundred megabytes at most.
pub const MEMORY_CHECK_WAIT: Duration = Duration::from_millis(250);
/// How often a worker gives back what the allocator holds free: more often would have the kernel clear the
/// same pages again and again, and less often shows in the memory of a server that has become quiet.
pub const HEAP_COLLECT_WAIT: Duration = Duration::from_secs(1);
/// Looks in a row that must find the memory full, with nothing left to give back, before new mail is refused.
pub const MEMORY_FULL_LOOKS: u32 = 20;
/// Bytes of bodies a worker keeps in memory after commit, for delivery without reading the disk.
pub const BODY_CACHE_BYTES: usize = 256 * 1024 * 1024;
/// Address space of one worker for small bodies: what is kept for delivery and what is being received.
/// Past it they lie on the ordinary heap.
pub const BODY_ARENA_BYTES: usize = 2 * BODY_CACHE_BYTES;
/// Memory of one worker for small bodies that stays resident from the start: about 3,000 messages of
/// 4 KiB, the mail of some tenths of a second, so that memory does not wander with the moment's backlog.
pub const BODY_ARENA_FLOOR_BYTES: usize = 16 * 1024 * 1024;
/// Queued recipients in one shard (index width of the scheduler's tables).
pub const QUEUED_RECIPIENTS: usize = u32::MAX as usize - 1;
/// Events waiting for the event log's writer; past it events are counted as dropped, mail is not held.
pub const EVENT_QUEUE: usize = 65_536;
/// How often the main thread reports to systemd's watchdog and looks after the workers.
pub const WATCHDOG_PERIOD: Duration = Duration::from_secs(5);
/// How often a drain looks whether it is done.
pub const DRAIN_POLL: Duration = Duration::from_millis(20);
/// What workers may take beyond the grace for their last commit before the process leaves without them.
pub const DRAIN_OVERTIME: Duration = Duration::from_secs(10);
/// Bytes of event lines collected before they are written, while more events wait.
pub const EVENT_BATCH_BYTES: usize = 64 * 1024;
/// Smallest `--memory-limit` per worker: its commit buffers, a few large bodies and its tables.
pub const MIN_MEMORY_BYTES_PER_WORKER: u64 = 32 * 1024 * 1024;
/// Wait for workers that were told to stop at once, before the process leaves without them.
pub const STOP_WAIT: Duration = Duration::from_secs(5);
/// Grace of a drain by default (`--shutdown-grace`).
pub const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Spread of retry times around the schedule, so that mail deferred together does not return together.
pub const RETRY_JITTER_PERCENT: u8 = 10;
/// Age at which undelivered mail is returned by default (`--max-age`; RFC 5321 §4.5.4.1: 4–5 days).
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5 * 24 * 3600);
/// Age at which the sender of undelivered mail is told of it (`--delay-warning`): long enough for what most
/// greylisting and most outages take, within a working day.
pub const DEFAULT_DELAY_WARNING: Duration = Duration::from_secs(4 * 3600);
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

/// Times a reload is offered to a worker whose mailbox is full, `MAILBOX_RETRY_WAIT` apart.
pub const RELOAD_TRIES: u32 = 1_000;
/// Deliveries that an order has in hand at a time: what it takes from a queue, records, and waits to be
/// durable. A thousand fill a commit or two.
pub const ORDER_BATCH: usize = 1_024;
/// Messages looked at for an order before other work of the worker has its turn.
pub const SCANNED_PER_TURN: u32 = 64;
/// Orders carried out at a time.
pub const OPERATIONS_RUNNING: usize = 16;
/// Orders that can be asked about, those that have ended included.
pub const OPERATIONS_KEPT: usize = 100;
/// How long an answer about an order waits for its end before it tells how far it is.
pub const OPERATION_REPLY_WAIT: Duration = Duration::from_secs(1);
/// Destinations suspended at a time: each change writes all of them.
pub const SUSPENSIONS: usize = 10_000;
/// How often held mail is looked over for `--max-age`.
pub const PARKED_EXPIRY_WAIT: Duration = Duration::from_secs(30);
/// Bounces of messages that an operator fails, made in each `FAIL_WAIT` by each log: 200 in a second leave
/// most of a disk and of the connections to the mail that flows.
pub const FAILED_PER_TURN: usize = 20;
/// See `FAILED_PER_TURN`.
pub const FAIL_WAIT: Duration = Duration::from_millis(100);
/// Connections to the control plane at a time, the local socket and `--control` each.
pub const CONTROL_CONNECTIONS: usize = 64;
/// A control connection that neither sends nor takes bytes is closed after this.
pub const CONTROL_IDLE_WAIT: Duration = Duration::from_secs(60);
/// Wait for the workers' answer to a control request: past it the caller gets 504.
pub const CONTROL_REPLY_WAIT: Duration = Duration::from_secs(10);
/// Messages in one request with mail: what a batch saves is saved by then, and one worker takes it whole.
pub const INJECTION_MESSAGES: usize = 100;
/// Bytes of requests with mail at a time, and of one of them; less where the memory is small. A message of the
/// default size fits in base64.
pub const INJECTION_BYTES: usize = 128 * 1024 * 1024;
/// Requests with mail up to this size are read by the control thread itself, in less than a millisecond.
pub const INJECTION_AT_ONCE_BYTES: usize = 512 * 1024;
/// Time for a request with mail to come in.
pub const INJECTION_BODY_WAIT: Duration = Duration::from_secs(120);
/// Wait until mail is stored: past it the caller gets 504 and does not know. As long as a client of SMTP
/// waits at least would be too long for a connection that says nothing meanwhile.
pub const INJECTION_REPLY_WAIT: Duration = Duration::from_secs(50);
/// What an answer that nothing can be taken now says in Retry-After.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Most destinations or messages in one answer of the control plane.
pub const CONTROL_LIST: usize = 10_000;
/// Largest answer that a local command reads from the control socket.
pub const CONTROL_ANSWER_BYTES: u64 = 64 * 1024 * 1024;
/// Shortest token for `--control`: 16 characters of base64 are 96 bits, past guessing.
pub const CONTROL_TOKEN_LEAST: usize = 16;
/// Largest `--control-token-file`.
pub const CONTROL_TOKEN_BYTES: u64 = 4096;

const _: () = assert!(COPY_BYTES < COMMIT_BUFFER_BYTES / 2);
const _: () = assert!(RECIPIENTS_BYTES + COPY_BYTES + 4 * BLOCK_BYTES <= COMMIT_BUFFER_BYTES);
const _: () = assert!(FRAGMENT_BYTES + 64 * 1024 <= COMMIT_BUFFER_BYTES);
const _: () = assert!(COMMIT_BUFFER_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(DEFAULT_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
const _: () = assert!(COMMAND_LINE_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(PEER_REPLY_LINE_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(PEER_REPLY_LINE_BYTES <= PEER_REPLY_BYTES);
const _: () = assert!(PATH_BYTES < COMMAND_LINE_BYTES);
// PLAIN with the longest name (twice) and password, in base64, fits a command line.
const _: () = assert!((2 * AUTH_NAME_BYTES + AUTH_PASSWORD_BYTES + 2) * 4 / 3 + 16 < COMMAND_LINE_BYTES);
const _: () = assert!(PROXY_HEADER_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(FIRST_BUFFER_BYTES < SESSION_BUFFER_BYTES);
const _: () = assert!(AUTH_HASH_PASSES < 64);
const _: () = assert!(COMMIT_BUFFER_BYTES < TLS_UNSENT_BYTES);
// An MX question and then those for its hosts, each with all its tries, fit in a lookup's time.
const _: () = assert!(2 * (DNS_RETRIES as u64 + 1) * DNS_TRY_WAIT.as_secs() < DNS_LOOKUP_WAIT.as_secs());
const _: () = assert!(MIN_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES as u64));
const _: () =
    assert!(MIN_SEGMENT_BYTES <= DEFAULT_SEGMENT_BYTES && DEFAULT_SEGMENT_BYTES <= MAX_SEGMENT_BYTES);
const _: () = assert!(MAX_SEGMENT_BYTES <= u32::MAX as u64);
const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES <= MAX_MESSAGE_BYTES);
const _: () = assert!(DEFAULT_MAX_RECIPIENTS <= MAX_RECIPIENTS);
// The idle wait must not cut off a request that still waits for the workers.
const _: () = assert!(CONTROL_REPLY_WAIT.as_secs() < CONTROL_IDLE_WAIT.as_secs());
const _: () = assert!(INJECTION_REPLY_WAIT.as_secs() < CONTROL_IDLE_WAIT.as_secs());
const _: () = assert!(INJECTION_BYTES as u64 > 2 * DEFAULT_MAX_MESSAGE_BYTES);
