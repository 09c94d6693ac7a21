//! Delivery status notifications (RFC 3464 in the multipart/report of RFC 6522).
//!
//! Owns: the text of a bounce. Promises: a message that every reader of RFC 3464 understands, with a
//! null reverse-path left to the caller's envelope, bounded in size whatever the original was. Must
//! not: decide whether a bounce is due (the worker does, by RFC 5321 §4.5.5 and §6.1).
