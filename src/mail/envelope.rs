//! The envelope: who sent a message, to whom, and what the client said about it (RFC 5321 §2.3.1).
//!
//! Owns: [`Envelope`] and [`Recipient`]. Promises: recipients of one destination stand next to each
//! other once [`Envelope::group_by_destination`] has run, so that a destination's part of a message
//! is a range. Must not: know how it is written to disk (`spool::envelope`).
use std::net::IpAddr;
use std::ops::Range;

use super::address::{Address, Domain, ReversePath};
use crate::clock::WallTime;

/// What the client declared the body to be (RFC 6152, RFC 3030).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyKind {
    #[default]
    SevenBit,
    EightBit,
    Binary,
}

/// How the stored body bytes stand in relation to the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyForm {
    /// As DATA carries it: leading dots doubled, last line ends in CRLF, the terminating dot not
    /// stored.
    #[default]
    DotStuffed,
    /// As BDAT carries it: every byte as it is.
    Raw,
}

/// What of a message a report of failure returns (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    Full,
    Headers,
}

/// Of what a sender wants to be told about a recipient (RFC 3461 §4.1). None of it is NEVER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    pub success: bool,
    pub failure: bool,
    pub delay: bool,
}

impl Notify {
    /// Nothing at all.
    pub const NEVER: Notify = Notify { success: false, failure: false, delay: false };

    /// As one number: 1 success, 2 failure, 4 delay.
    pub fn bits(self) -> u8 {
        u8::from(self.success) | u8::from(self.failure) << 1 | u8::from(self.delay) << 2
    }

    /// The reverse of [`Notify::bits`]; none for bits that mean nothing.
    pub fn from_bits(bits: u8) -> Option<Notify> {
        let is = |bit: u8| bits & bit != 0;
        (bits < 8).then(|| Notify { success: is(1), failure: is(2), delay: is(4) })
    }
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    pub address: Address,
    /// NOTIFY=; none where the client did not say.
    pub notify: Option<Notify>,
    /// ORCPT= (RFC 3461 §4.2) in its encoded form, printable ASCII: `rfc822;a+2Bb@example.org`.
    pub original: Option<Box<str>>,
}

impl Recipient {
    /// A recipient about whom the client said nothing but the address.
    pub fn new(address: Address) -> Recipient {
        Recipient { address, notify: None, original: None }
    }

    /// Whether the sender is to be told that the message reached a host that will not tell.
    pub fn wants_success(&self) -> bool {
        self.notify.is_some_and(|n| n.success)
    }

    /// Whether the sender is to be told of a failure: unless other things were asked for.
    pub fn wants_failure(&self) -> bool {
        self.notify.is_none_or(|n| n.failure)
    }

    /// Whether the sender may be told of a delay: unless other things were asked for.
    pub fn wants_delay(&self) -> bool {
        self.notify.is_none_or(|n| n.delay)
    }
}

/// All that is known of a message but its content. The default is a message from the null path to
/// nobody, about which nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    pub reverse_path: ReversePath,
    pub recipients: Vec<Recipient>,
    pub body_kind: BodyKind,
    pub body_form: BodyForm,
    /// When the message was accepted; `--max-age` counts from here.
    pub received_at: WallTime,
    /// The client's address; none for mail made here (DSNs).
    pub client: Option<IpAddr>,
    /// The user who had logged in, as the file of users writes the name.
    pub user: Option<Box<str>>,
    /// RET= (RFC 3461 §4.3).
    pub ret: Option<Return>,
    /// ENVID= (RFC 3461 §4.4) in its encoded form, printable ASCII.
    pub envid: Option<Box<str>>,
    /// SMTPUTF8 (RFC 6531 §3.4): addresses or header may hold UTF-8.
    pub smtp_utf8: bool,
    /// REQUIRETLS (RFC 8689): never over a connection whose TLS is not verified.
    pub require_tls: bool,
    /// The stream (tenant, campaign) it belongs to, as its sender names it.
    pub stream: Option<Box<str>>,
    /// Transactional: goes before what is not.
    pub urgent: bool,
}

impl Envelope {
    /// Sorts recipients by domain, then by text, and drops exact repeats of an address; of those the
    /// first one's wishes count.
    pub fn group_by_destination(&mut self) {
        self.recipients.sort_by(|a, b| {
            (a.address.domain(), a.address.as_str()).cmp(&(b.address.domain(), b.address.as_str()))
        });
        self.recipients.dedup_by(|b, a| a.address == b.address);
    }
    /// The parts that are delivered one by one: recipients that share a domain, `most(domain)` of them (at
    /// least one) at most. A part's number is its place here.
    pub fn parts(&self, most: impl Fn(&Domain) -> usize) -> impl Iterator<Item = (&Domain, Range<usize>)> {
        self.destinations().flat_map(move |(domain, range)| {
            let (most, end) = (most(domain).max(1), range.end);
            range.step_by(most).map(move |start| (domain, start..end.min(start + most)))
        })
    }
    /// The ranges of recipients that share a domain, in order. Needs
    /// [`Envelope::group_by_destination`] to have run.
    pub fn destinations(&self) -> impl Iterator<Item = (&Domain, Range<usize>)> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = self.recipients.get(start)?;
            let domain = first.address.domain();
            let len = self.recipients[start..].iter().take_while(|r| r.address.domain() == domain).count();
            let range = start..start + len;
            start += len;
            Some((domain, range))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_of_one_destination_stand_together() {
        let recipients = ["b@y.test", "a@x.test", "A@x.test", "c@Y.test", "a@X.test", "\"a\"@x.test"];
        let address = |text: &str| Recipient::new(Address::parse(text.as_bytes()).unwrap());
        let mut envelope = Envelope { recipients: recipients.map(address).into(), ..Envelope::default() };
        envelope.group_by_destination();
        // Local parts that differ in case or quotes are different mailboxes for all we know.
        let grouped: Vec<&str> = envelope.recipients.iter().map(|r| r.address.as_str()).collect();
        assert_eq!(grouped, ["\"a\"@x.test", "A@x.test", "a@x.test", "b@y.test", "c@y.test"]);
        let destinations: Vec<_> = envelope.destinations().map(|(d, range)| (d.as_str(), range)).collect();
        assert_eq!(destinations, [("x.test", 0..3), ("y.test", 3..5)]);
    }
    #[test]
    fn notify_as_bits() {
        for bits in 0..8 {
            assert_eq!(Notify::from_bits(bits).map(Notify::bits), Some(bits));
        }
        assert_eq!((Notify::from_bits(8), Notify::NEVER.bits()), (None, 0));
    }

    #[test]
    fn what_is_reported_without_being_asked_for() {
        let mut recipient = Recipient::new(Address::parse(b"a@b").unwrap());
        let wants = |r: &Recipient| (r.wants_success(), r.wants_failure(), r.wants_delay());
        assert_eq!(wants(&recipient), (false, true, true));
        recipient.notify = Some(Notify { success: true, ..Notify::NEVER });
        assert_eq!(wants(&recipient), (true, false, false));
        recipient.notify = Some(Notify::NEVER);
        assert_eq!(wants(&recipient), (false, false, false));
    }

    #[test]
    fn a_destination_with_many_recipients_has_several_parts() {
        let addresses = (0..7).map(|n| format!("u{n}@x.test")).chain(["a@y.test".to_owned()]);
        let recipients = addresses.map(|a| Recipient::new(Address::parse(a.as_bytes()).unwrap())).collect();
        let envelope = Envelope { recipients, ..Envelope::default() };
        let ranges =
            |most: usize| -> Vec<Range<usize>> { envelope.parts(|_| most).map(|(_, r)| r).collect() };
        assert_eq!(ranges(3), [0..3, 3..6, 6..7, 7..8]);
        assert_eq!(ranges(100), [0..7, 7..8]);
        assert_eq!(ranges(0).len(), 8);
    }
}
