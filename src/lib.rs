//! ringpost, a mail transfer agent.
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
