//! What a message *is*: addresses, envelope, identity, trace headers, delivery status notifications.
//!
//! Owns: the types that every other layer speaks in. Promises: a value of these types is valid (an
//! [`address::Address`] has passed the grammar; a domain is normalised). Must not: do I/O, ask for
//! the time, or import anything but `limits` and `clock`.
pub mod address;
pub mod dsn;
pub mod envelope;
pub mod header;
pub mod id;
pub mod lines;
pub mod mailboxes;
pub mod reply;
pub mod senders;
pub mod short;
pub mod submission;
pub mod text;
pub mod trace;
pub mod xtext;
