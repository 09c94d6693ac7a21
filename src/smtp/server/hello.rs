//! HELO and EHLO (RFC 5321 §4.1.1.1).
//!
//! Owns: what the server says it can do. Promises: a keyword stands there only if what it offers works,
//! in this state of this session, to the end. Must not: carry out what is offered.
use std::io::Write;

use super::{ServerSession, push};
use crate::limits;
use crate::mail::text;

impl ServerSession {
    /// REQUIRETLS has no meaning for a message that came in the clear (RFC 8689 §4.1).
    pub(super) fn offers_require_tls(&self) -> bool {
        self.config.require_tls && self.is_secure()
    }

    /// HELO or EHLO, which also ends a transaction (RFC 5321 §4.1.4).
    pub(super) fn hello(&mut self, name: &str, esmtp: bool, replies: &mut Vec<u8>) {
        self.reset();
        self.helo = text::printable(&name.as_bytes()[..name.len().min(limits::DOMAIN_BYTES)]);
        self.esmtp = esmtp;
        let hostname = &self.config.hostname;
        if esmtp {
            push(replies, &["250-", hostname, "\r\n250-PIPELINING\r\n"]);
            let size = self.config.max_message_bytes;
            write!(replies, "250-SIZE {size}\r\n").expect("writing to memory does not fail");
            push(replies, &["250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n"]);
            push(replies, &["250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n"]);
            if self.offers_require_tls() {
                push(replies, &["250-REQUIRETLS\r\n"]);
            }
            // What is told is kept, however long the addresses are.
            let most = self.config.max_recipients.min(limits::RECIPIENTS_KEPT);
            write!(replies, "250-LIMITS RCPTMAX={most}\r\n").expect("writing to memory does not fail");
            self.offer(replies);
            push(replies, &["250 HELP\r\n"]);
        } else {
            push(replies, &["250 ", hostname, "\r\n"]);
        }
    }
}
