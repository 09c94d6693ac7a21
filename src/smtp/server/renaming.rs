//! XCLIENT in the session: a named peer says for whom it speaks.
//!
//! Owns: when it may be said, and the new beginning after it. Promises: only a peer that the driver named
//! is believed; what was said before is forgotten. Must not: decide what the new client may do: the
//! driver hands in a new [`Peer`].
use super::{Peer, ServerSession, State, Step};
use crate::smtp::command::CommandError;
use crate::smtp::xclient;

impl ServerSession {
    /// XCLIENT with its argument.
    pub(super) fn xclient(&mut self, argument: &[u8], out: &mut Vec<u8>) -> Option<Step> {
        if !self.peer.xclient {
            return self.bad(out, CommandError::NotImplemented.reply());
        }
        if self.transaction.is_some() {
            return self.bad(out, "503 5.5.1 XCLIENT comes before MAIL\r\n");
        }
        match xclient::parse(argument) {
            Some(said) => {
                self.state = State::Renamed;
                Some(Step::Xclient(said))
            }
            None => self.bad(out, "501 5.5.4 Attributes not understood\r\n"),
        }
    }

    /// Answers [`Step::Xclient`]: the session begins anew with another client, greeting included.
    pub fn set_peer(&mut self, peer: Peer, said: &xclient::Xclient, out: &mut Vec<u8>) {
        debug_assert!(matches!(self.state, State::Renamed));
        self.reset();
        self.login = None;
        // What the client before has done is held against it, and not against this one.
        (self.errors, self.bad_commands, self.failed_logins) = (0, 0, 0);
        (self.idle_commands, self.refused_recipients, self.dropped_bytes) = (0, 0, 0);
        self.peer = peer;
        self.helo.clear();
        self.esmtp = false;
        // A proxy that has heard the client's HELO may go on with MAIL.
        if let Some(helo) = &said.helo {
            self.helo.clone_from(helo);
            self.esmtp = said.esmtp.unwrap_or(true);
        }
        self.state = State::Commands;
        self.greet(out);
    }
}
