//! SMTP as bytes ↔ events, both sides (RFC 5321 and the extensions of DESIGN 8). Sans-IO.
//!
//! Owns: lines, commands, replies, dot-stuffing, the server session and the client session.
//! Promises: the sequence of steps is the same however the input was split; memory is bounded; no
//! panic on any input. Must not: touch sockets, clocks, files, the spool or the scheduler.
pub mod client;
pub mod server;
