//! Who may do what on a listener: protection, identity, and whose mail is taken.
//!
//! Owns: [`Access`], what a listener offers and demands; [`Login`], what a client that has proved who it
//! is may do. Promises: nothing is offered that would be refused in the same state (RFC 3207 §4.2,
//! RFC 4954 §4). Must not: check a password, or know what TLS is: it is told that the channel is
//! protected.
use std::collections::HashSet;
use std::sync::Arc;

use super::{ServerSession, State, push};
use crate::mail::address::{Address, Domain, ReversePath};
use crate::mail::senders::Senders;
use crate::smtp::command::{CommandError, MailParameters};
use crate::smtp::xclient;

/// What a listener offers and demands.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// STARTTLS can be carried out.
    pub starttls: bool,
    /// SASL mechanisms (RFC 4422 §3.1) by their registered names, in the order in which they are offered;
    /// only on a protected channel.
    pub mechanisms: Vec<&'static str>,
    /// Message submission (RFC 6409): no mail before the channel is protected and the client known.
    pub submission: bool,
    /// Domains whose mail is taken from anyone.
    pub local_domains: HashSet<Domain>,
    /// Where mail for `<Postmaster>` without a domain goes (RFC 5321 §4.5.1).
    pub postmaster: Option<Address>,
}

/// A client that has proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: Box<str>,
    /// The reverse-paths it may use.
    pub senders: Arc<Senders>,
    /// Whether the driver wants to be asked before each of its messages.
    pub counted: bool,
}

impl Access {
    /// Whether everyone may send to this address. One whose local part has a way on in it (`b%far.test@local.test`,
    /// `far.test!b@local.test`, `"b@far.test"@local.test`) is not for strangers: the host behind this one may follow
    /// it, and trust whatever comes from here.
    pub(super) fn is_for_everyone(&self, address: &Address) -> bool {
        let names_a_way = address.local().contains(['%', '!', '@']);
        (self.local_domains.contains(address.domain()) && !names_a_way)
            || self.postmaster.as_ref() == Some(address)
    }
}

impl ServerSession {
    /// Appends what EHLO says of STARTTLS, AUTH and XCLIENT, as they stand now.
    pub(super) fn offer(&self, out: &mut Vec<u8>) {
        if self.offers_starttls() {
            push(out, &["250-STARTTLS\r\n"]);
        }
        if self.offers_auth() {
            push(out, &["250-AUTH"]);
            self.mechanisms().for_each(|mechanism| push(out, &[" ", mechanism]));
            push(out, &["\r\n"]);
        }
        if self.peer.xclient {
            push(out, &["250-XCLIENT ", xclient::ATTRIBUTES, "\r\n"]);
        }
    }

    /// The mechanisms that can be used on this channel: those with channel binding (`-PLUS`) need one.
    pub(super) fn mechanisms(&self) -> impl Iterator<Item = &'static str> + use<'_> {
        let usable = |name: &&'static str| self.bound || !name.ends_with("-PLUS");
        self.config.access.mechanisms.iter().copied().filter(usable)
    }

    /// Whether STARTTLS can be said now.
    pub(super) fn offers_starttls(&self) -> bool {
        self.config.access.starttls && !self.secure
    }

    /// Whether AUTH can be said now.
    pub(super) fn offers_auth(&self) -> bool {
        self.knows_auth() && self.login.is_none()
    }

    /// Whether AUTH means anything here.
    fn knows_auth(&self) -> bool {
        self.secure && !self.config.access.mechanisms.is_empty()
    }

    /// Why MAIL is not for this client now, if it is not.
    pub(super) fn refuse_sender(
        &self,
        path: &ReversePath,
        parameters: MailParameters,
    ) -> Option<&'static str> {
        if parameters.auth && !self.knows_auth() {
            return Some(CommandError::UnknownParameter.reply());
        }
        match &self.login {
            None if !self.config.access.submission => None,
            None if !self.secure => Some("530 5.7.0 Say STARTTLS first\r\n"),
            None => Some("530 5.7.0 Authentication required\r\n"),
            Some(login) if !login.senders.allows(path) => {
                Some("553 5.7.1 This login may not send as that address\r\n")
            }
            Some(_) => None,
        }
    }

    /// Whether the driver counts this client's messages.
    pub(super) fn is_counted(&self) -> bool {
        self.login.as_ref().map_or(self.peer.counted, |login| login.counted)
    }

    /// Answers [`Step::MayMail`](super::Step::MayMail): `250`, or `450 4.7.1` if it is too early.
    pub fn admit_mail(&mut self, may: bool, out: &mut Vec<u8>) {
        debug_assert!(matches!(self.state, State::Asked));
        self.state = State::Commands;
        if may {
            push(out, &["250 2.1.0 Ok\r\n"]);
        } else {
            self.reset();
            // A client that does not heed it ends here, and does not go on asking for ever.
            let _closes = self.idle(out, "450 4.7.1 Too much mail in too short a time, try again later\r\n");
        }
    }

    /// Whether this is message submission by a client that is known (RFC 6409).
    pub fn is_submission(&self) -> bool {
        self.config.access.submission
    }
}
