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

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    pub address: Address,
}

impl Recipient {
    /// A recipient about whom the client said nothing but the address.
    pub fn new(address: Address) -> Recipient {
        Recipient { address }
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
    /// The stream (tenant, campaign) it belongs to, as its sender names it.
    pub stream: Option<Box<str>>,
    /// Transactional: goes before what is not.
    pub urgent: bool,
}

impl Envelope {
    /// Sorts recipients by domain, then by text, and drops exact repeats of an address.
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
