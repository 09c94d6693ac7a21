//! STARTTLS in the session (RFC 3207), and what it means that the channel is protected.
//!
//! Owns: when STARTTLS may be said, and the state after it. Promises: whatever was said in the clear is
//! forgotten when the channel becomes protected (RFC 3207 §4.2); the driver throws away what was sent
//! behind the command. Must not: know TLS.
use super::{ServerSession, State, Step, push};
use crate::smtp::command::CommandError;

impl ServerSession {
    /// STARTTLS.
    pub(super) fn starttls(&mut self, out: &mut Vec<u8>) -> Option<Step> {
        if self.secure {
            return self.bad(out, "503 5.5.1 The channel is protected already\r\n");
        }
        if !self.config.access.starttls {
            return self.bad(out, CommandError::NotImplemented.reply());
        }
        if self.chunks.is_some() {
            return self.bad(out, "503 5.5.1 The message comes in chunks: go on with BDAT\r\n");
        }
        push(out, &["220 2.0.0 Ready to start TLS\r\n"]);
        self.state = State::Handshake;
        Some(Step::StartTls)
    }

    /// The handshake that [`Step::StartTls`] asked for has ended well: the session begins anew. Also
    /// called before the greeting where the connection began with a handshake (RFC 8314 §3). `bound`:
    /// the channel has something that a mechanism can bind to (RFC 5056).
    pub fn tls_started(&mut self, bound: bool) {
        debug_assert!(matches!(self.state, State::Handshake | State::Commands));
        self.reset();
        self.helo.clear();
        self.esmtp = false;
        self.login = None;
        self.idle_commands = 0;
        self.secure = true;
        self.bound = bound;
        self.state = State::Commands;
    }

    /// Whether others cannot read what is said.
    pub fn is_secure(&self) -> bool {
        self.secure
    }
}
