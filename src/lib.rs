//! ringpost, a mail transfer agent: mail in by SMTP, safe on disk before it is acknowledged, out to the
//! hosts that want it.
//!
//! The tour, in the order the mail flows. Each module's header says what it owns, what it promises and
//! what it must not do; reading the headers is reading the design.
//!
//! - [`limits`], [`clock`], [`mail`] are the leaves: every bound, time as a value, and what a message
//!   *is* (address, envelope, id, trace headers, bounce).
//! - [`smtp`] turns bytes into events and back, for both sides of a session. It has no sockets.
//! - [`spool`] turns messages into records of a segmented log and back, and decides what to write, when
//!   to reuse a segment and what survived a crash. It has no files.
//! - [`schedule`] decides which message goes next, where, and when. It has no clock.
//! - [`route`] turns a destination into a list of hosts; [`resolve`] asks the DNS on a thread of its own.
//! - [`tls`] is bytes to bytes, between socket and session; [`auth`] knows who may log in.
//! - [`ring`] is the edge: io_uring, files, sockets, deadlines, mailboxes between threads, and the only
//!   `unsafe` of the crate.
//! - [`worker`] ties them together: one thread per core, each with its ring, its log and its shard of
//!   the scheduler.
//! - [`control`] and [`events`] tell the world: the API and metrics, and one record per thing that
//!   happened.
//! - [`config`] is what all of it may be told; [`cli`] are the commands.
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod events;
pub mod limits;
pub mod mail;
pub mod resolve;
pub mod ring;
pub mod route;
pub mod schedule;
pub mod smtp;
pub mod spool;
pub mod tls;
pub mod worker;
