//! SMTP as bytes ↔ events, both sides (RFC 5321; RFC 1870, 2034, 2920, 3207, 4954, 6152). Sans-IO.
//!
//! Owns: lines, commands, replies, message data on the wire, the server session and the client session.
//! Promises: the sequence of steps is the same however the input was split; memory is bounded; no
//! panic on any input. Must not: touch sockets, clocks, files, the spool or the scheduler.
pub mod body;
pub mod client;
pub mod command;
pub mod proxy;
pub mod reply;
pub mod sasl;
pub mod server;
pub mod xclient;
