//! AUTH in the session (RFC 4954).
//!
//! Owns: when AUTH may be said, the turns of an exchange, and every reply to it. Promises: nothing is
//! authenticated over a channel that others can read; a client that fails too often is sent away. Must
//! not: know a mechanism or a password: the driver answers with [`AuthAnswer`].
use super::access::Login;
use super::{ServerSession, State, Step, push};
use crate::limits;
use crate::smtp::command::CommandError;
use crate::smtp::sasl::{self, AuthSaid, Secret};

/// The driver's answer to [`Step::Auth`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthAnswer {
    /// `334`: the exchange goes on with this.
    Challenge(Vec<u8>),
    /// `235`: this is who it is.
    Success(Login),
    /// `535 5.7.8`: wrong name or password, and no word on which.
    Wrong,
    /// `501 5.5.2`: the client's words do not follow the mechanism.
    Malformed,
    /// `454 4.7.0`: it could not be found out now.
    Busy,
    /// `421 4.7.0` and close: too many failed from there.
    TooMany,
}

impl ServerSession {
    /// AUTH.
    pub(super) fn auth(
        &mut self,
        mechanism: &str,
        initial: Option<Secret>,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if self.config.access.mechanisms.is_empty() {
            return self.bad(out, CommandError::NotImplemented.reply());
        }
        if !self.secure {
            return self.bad(out, "538 5.7.11 Encryption required: say STARTTLS first\r\n");
        }
        if !self.esmtp || self.login.is_some() || self.transaction.is_some() {
            return self.bad(out, "503 5.5.1 AUTH comes once, after EHLO and before MAIL\r\n");
        }
        let known = self.mechanisms().find(|name| name.eq_ignore_ascii_case(mechanism));
        let Some(known) = known else {
            return self.bad(out, "504 5.5.4 Mechanism not known here\r\n");
        };
        self.state = State::Auth;
        Some(Step::Auth(AuthSaid::Begin(known, initial)))
    }

    /// A line of an exchange, without its CRLF.
    pub(super) fn auth_response(&mut self, line: &[u8], out: &mut Vec<u8>) -> Option<Step> {
        if line == b"*" {
            self.state = State::Commands;
            return self.bad(out, "501 5.7.0 Authentication cancelled\r\n").or(Some(Step::AuthEnds));
        }
        match sasl::decode(line) {
            Some(response) => Some(Step::Auth(AuthSaid::Response(response))),
            None => {
                self.state = State::Commands;
                self.bad(out, CommandError::Base64.reply()).or(Some(Step::AuthEnds))
            }
        }
    }

    /// Answers [`Step::Auth`]; comes before the next `step`.
    pub fn answer_auth(&mut self, answer: AuthAnswer, out: &mut Vec<u8>) {
        debug_assert!(matches!(self.state, State::Auth));
        self.state = State::Commands;
        match answer {
            AuthAnswer::Challenge(challenge) => {
                self.state = State::Auth;
                sasl::push_challenge(out, &challenge);
            }
            AuthAnswer::Success(login) => {
                self.login = Some(login);
                self.bad_commands = 0;
                push(out, &["235 2.7.0 Authentication successful\r\n"]);
            }
            AuthAnswer::Wrong => self.auth_failed(out, "535 5.7.8 Authentication credentials invalid\r\n"),
            AuthAnswer::Malformed => {
                self.auth_failed(out, "501 5.5.2 That is not how the mechanism goes\r\n");
            }
            AuthAnswer::Busy => {
                let _closes = self.idle(out, "454 4.7.0 Logins are slow now, try again later\r\n");
            }
            AuthAnswer::TooMany => self.close_for_logins(out),
        }
    }

    fn auth_failed(&mut self, out: &mut Vec<u8>, reply: &str) {
        self.failed_logins += 1;
        if self.failed_logins >= limits::FAILED_LOGINS_PER_SESSION {
            self.close_for_logins(out);
        } else {
            push(out, &[reply]);
        }
    }

    fn close_for_logins(&mut self, out: &mut Vec<u8>) {
        push(out, &["421 4.7.0 ", &self.config.hostname, " Too many failed logins\r\n"]);
        self.state = State::Closed;
    }

    /// Who the client has proved to be.
    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }
}
