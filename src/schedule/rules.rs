//! What a peer's refusal means beyond its code: patterns and what follows from them.
//!
//! Owns: [`Rule`], [`RuleSet`] and the shipped rules, made from what large receivers document and what
//! common servers say. Promises: the first rule that fits decides; a rule of the operator comes before
//! the shipped ones; matching costs nothing for mail that is accepted. Must not: act: [`Reaction::Bounce`]
//! is for whoever keeps the message, a [`Verdict`] for the scheduler.
use std::time::Duration;

use crate::mail::reply::Reply;

/// What the scheduler is to learn from a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it concerns the message alone.
    #[default]
    Nothing,
    /// Too many connections at a time.
    FewerConnections,
    /// Too many messages in a time.
    Slower,
    /// The receiver is in trouble, or has had enough of us.
    BackOff,
    /// Nothing more for so long.
    Suspend(Duration),
}

/// What a rule orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// To the scheduler.
    Tell(Verdict),
    /// The recipient is refused for good, whatever the code says.
    Bounce,
}

/// A pattern and what follows. All parts given must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Reply codes, from and to.
    pub codes: (u16, u16),
    /// Enhanced status code as text, `*` for any part: `4.7.*`. Empty: any or none.
    pub enhanced: Box<str>,
    /// Found in the text in this order, `*` between the parts, case ignored. Empty: any text.
    pub text: Box<str>,
    pub reaction: Reaction,
}

impl Rule {
    fn fits(&self, reply: &Reply) -> bool {
        (self.codes.0..=self.codes.1).contains(&reply.code)
            && (self.enhanced.is_empty() || enhanced_fits(&self.enhanced, reply))
            && text_fits(&self.text, &reply.text)
    }
}

fn enhanced_fits(pattern: &str, reply: &Reply) -> bool {
    let Some(code) = reply.enhanced else { return false };
    let mut parts = pattern.split('.');
    [u16::from(code.class), code.subject, code.detail]
        .into_iter()
        .all(|part| parts.next().is_some_and(|p| p == "*" || p.parse() == Ok(part)))
}

/// Whether the parts of `pattern` (between `*`) stand in `text` one after the other, case ignored.
fn text_fits(pattern: &str, text: &str) -> bool {
    let mut rest = text.as_bytes();
    pattern.split('*').filter(|part| !part.is_empty()).all(|part| {
        let part = part.as_bytes();
        match rest.windows(part.len()).position(|window| window.eq_ignore_ascii_case(part)) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        }
    })
}

/// Rules in the order they are tried.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

impl RuleSet {
    /// The operator's rules, then those shipped.
    pub fn new(own: Vec<Rule>) -> RuleSet {
        let shipped = SHIPPED.iter().map(|(codes, enhanced, text, reaction)| Rule {
            codes: *codes,
            enhanced: (*enhanced).into(),
            text: (*text).into(),
            reaction: *reaction,
        });
        RuleSet { rules: own.into_iter().chain(shipped).collect() }
    }

    /// What follows from a refusal. A 421 that no rule knows means: back off.
    pub fn judge(&self, reply: &Reply) -> Reaction {
        if reply.is_success() {
            return Reaction::Tell(Verdict::Nothing);
        }
        match self.rules.iter().find(|rule| rule.fits(reply)) {
            Some(rule) => rule.reaction,
            None if reply.code == 421 => Reaction::Tell(Verdict::BackOff),
            None => Reaction::Tell(Verdict::Nothing),
        }
    }
}

const TEMPORARY: (u16, u16) = (400, 499);
const ANY: (u16, u16) = (400, 599);
const NOTHING: Reaction = Reaction::Tell(Verdict::Nothing);
const FEWER: Reaction = Reaction::Tell(Verdict::FewerConnections);
const SLOWER: Reaction = Reaction::Tell(Verdict::Slower);
const BACK_OFF: Reaction = Reaction::Tell(Verdict::BackOff);
const fn suspend(minutes: u64) -> Reaction {
    Reaction::Tell(Verdict::Suspend(Duration::from_secs(60 * minutes)))
}

/// (codes, enhanced code, text, reaction). Where a rule is of one receiver, the code it publishes is
/// named behind it.
type Shipped = ((u16, u16), &'static str, &'static str, Reaction);

static SHIPPED: &[Shipped] = &[
    // The message or its recipient alone.
    (TEMPORARY, "", "greylist", NOTHING),
    (TEMPORARY, "", "graylist", NOTHING),
    (TEMPORARY, "", "grey-list", NOTHING),
    (TEMPORARY, "", "mailbox*full", NOTHING),
    (TEMPORARY, "", "over quota", NOTHING),
    (TEMPORARY, "", "user*receiving mail*rate", NOTHING), // Gmail, 4.2.1: of one mailbox
    (TEMPORARY, "4.2.*", "", NOTHING),
    // Connections.
    (ANY, "", "too many connections", FEWER),
    (ANY, "", "too many concurrent", FEWER),
    (ANY, "", "too many simultaneous", FEWER),
    (ANY, "", "too many*sessions", FEWER),
    (ANY, "", "connection limit", FEWER),
    (ANY, "", "concurrent connections", FEWER),
    (ANY, "", "number of connections", FEWER),
    (ANY, "", "max connections", FEWER),
    (TEMPORARY, "", "RP-002", FEWER), // Outlook.com
    // Rates.
    (TEMPORARY, "", "rate limit", SLOWER),
    (TEMPORARY, "", "rate-limit", SLOWER),
    (TEMPORARY, "", "ratelimit", SLOWER),
    (TEMPORARY, "", "unusual rate", SLOWER), // Gmail, 4.7.28
    (TEMPORARY, "", "rate*exceed", SLOWER),
    (TEMPORARY, "", "exceed*rate", SLOWER),
    (TEMPORARY, "", "exceed*limit", SLOWER),
    (TEMPORARY, "", "limit*exceed", SLOWER),
    (TEMPORARY, "", "too many messages", SLOWER),
    (TEMPORARY, "", "too many emails", SLOWER),
    (TEMPORARY, "", "too much mail", SLOWER),
    (TEMPORARY, "", "too fast", SLOWER),
    (TEMPORARY, "", "throttl", SLOWER),
    (TEMPORARY, "", "slow down", SLOWER),
    (TEMPORARY, "", "deferring connection", SLOWER),
    (TEMPORARY, "4.7.28", "", SLOWER),  // Gmail
    (TEMPORARY, "4.7.650", "", SLOWER), // Outlook.com
    (TEMPORARY, "4.7.500", "", SLOWER), // Exchange Online: server busy
    (TEMPORARY, "", "RP-001", SLOWER),  // Outlook.com
    (TEMPORARY, "", "RP-003", SLOWER),  // Outlook.com
    (TEMPORARY, "", "[TSS04]", SLOWER), // Yahoo: temporarily deferred
    // Standing: nothing gained by asking again soon.
    (ANY, "", "[TSS05]", suspend(240)), // Yahoo: deferred for long
    (ANY, "", "[TSS11]", suspend(240)), // Yahoo
    (ANY, "", "permanently deferred", suspend(240)), // Yahoo
    (ANY, "", "(S3140)", suspend(60)),  // Outlook.com: part of the network is on its block list
    (ANY, "", "(S3150)", suspend(60)),  // Outlook.com
    (ANY, "", "IP*temporarily blocked", suspend(30)),
    (ANY, "", "temporarily blacklisted", suspend(30)),
    // Trouble.
    (TEMPORARY, "4.3.1", "", BACK_OFF), // mail system full
    (TEMPORARY, "4.3.2", "", BACK_OFF), // not accepting messages
    (TEMPORARY, "", "try again later, closing connection", BACK_OFF), // Gmail
    (TEMPORARY, "", "insufficient system resources", BACK_OFF),
    (TEMPORARY, "", "server*busy", BACK_OFF),
    (TEMPORARY, "", "system*overload", BACK_OFF),
    (TEMPORARY, "", "too busy", BACK_OFF),
    (TEMPORARY, "", "did not answer in time", BACK_OFF), // our own words for a time-out
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_rules_know_what_receivers_say() {
        let table = [
            ("421 4.7.0 Too many connections from your host", FEWER),
            ("421 4.3.2 mx1 too many concurrent SMTP connections; please try again later.", FEWER),
            ("421 RP-002 (SNT004) Unfortunately, some messages weren't sent", FEWER),
            ("421 4.7.28 Our system has detected an unusual rate of unsolicited mail", SLOWER),
            ("450 4.2.1 The user you are trying to contact is receiving mail at a rate that", NOTHING),
            ("451 4.7.1 Greylisting in action, please come back later", NOTHING),
            ("452 4.2.2 Mailbox full", NOTHING),
            ("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred", SLOWER),
            ("553 5.7.1 [TSS11] All messages from 192.0.2.1 will be deferred", suspend(240)),
            (
                "550 5.7.1 messages weren't sent: part of their network is on our block list (S3140)",
                suspend(60),
            ),
            ("451 4.7.500 Server busy. Please try again later", SLOWER),
            ("452 4.3.1 Insufficient system resources", BACK_OFF),
            ("421 4.4.2 timeout exceeded", BACK_OFF),
            ("450 4.4.1 mx.example did not answer in time", BACK_OFF),
            ("450 4.1.8 sender address rejected: domain not found", NOTHING),
            ("550 5.1.1 no such user", NOTHING),
            ("250 2.0.0 rate limit exceeded, but taken", NOTHING),
        ];
        let rules = RuleSet::new(Vec::new());
        for (text, expected) in table {
            assert_eq!(rules.judge(&reply(text)), expected, "{text}");
        }
    }

    fn reply(text: &str) -> Reply {
        let (code, rest) = text.split_at(3);
        let mut words = rest.trim().splitn(2, ' ');
        let digits: Vec<u16> =
            words.next().unwrap_or_default().split('.').filter_map(|d| d.parse().ok()).collect();
        match digits[..] {
            [class, subject, detail] => Reply::local(
                code.parse().unwrap(),
                (class as u8, subject, detail),
                words.next().unwrap_or(""),
            ),
            _ => Reply { enhanced: None, ..Reply::local(code.parse().unwrap(), (0, 0, 0), rest) },
        }
    }

    #[test]
    fn an_operators_rule_comes_first_and_can_bounce() {
        let own = Rule {
            codes: (450, 450),
            enhanced: "4.1.*".into(),
            text: "no such*here".into(),
            reaction: Reaction::Bounce,
        };
        let rules = RuleSet::new(vec![own]);
        let table = [
            ("450 4.1.1 No such person HERE", Reaction::Bounce),
            ("450 4.2.1 no such person here", NOTHING),
            ("451 4.1.1 no such person here", NOTHING),
            ("450 4.1.1 here no such person", NOTHING),
        ];
        for (text, expected) in table {
            assert_eq!(rules.judge(&reply(text)), expected, "{text}");
        }
    }
}
