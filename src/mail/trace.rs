//! Trace headers (RFC 5321 §4.4, RFC 3848).
//!
//! Owns: the text of the Received header this server adds and the RFC 5322 date in it. Promises: no
//! foreign byte reaches a header unescaped. Must not: look at message content.
