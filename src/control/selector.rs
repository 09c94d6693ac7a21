//! Which messages a command is about: the one grammar of all queue commands.
//!
//! Owns: [`Selector`] and its form in a query. Promises: a message is selected if it fits everything that
//! is said; saying nothing selects nothing, unless `all` is said. Must not: look at messages.
use std::fmt;

use serde::Deserialize;

use super::view::State;
use crate::clock::WallTime;
use crate::config::grammar;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;
use crate::mail::text::printable;

/// A selector as a query writes it. Names are those of the command line with underscores.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    pub id: Option<String>,
    pub domain: Option<String>,
    pub sender: Option<String>,
    pub recipient: Option<String>,
    pub stream: Option<String>,
    pub older_than: Option<String>,
    pub state: Option<String>,
    pub all: Option<bool>,
    // What goes with it.
    pub limit: Option<usize>,
    pub reason: Option<String>,
    pub dry_run: Option<bool>,
    pub to: Option<String>,
}

/// Which messages: those that fit everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub id: Option<MessageId>,
    /// Recipients who wait for this destination.
    pub domain: Option<Domain>,
    /// Exactly this reverse-path; empty: the null one.
    pub sender: Option<String>,
    /// Exactly this recipient.
    pub recipient: Option<String>,
    pub stream: Option<String>,
    /// In this state.
    pub state: Option<State>,
    /// Received before this time.
    pub received_before: Option<WallTime>,
}

impl Selector {
    /// Reads a query. `least`: it must select something by name, or say `all`.
    pub fn read(query: &Query, now: WallTime, least: bool) -> Result<Selector, String> {
        let before = |age: &String| -> Result<WallTime, String> {
            let age = grammar::duration(age).map_err(|why| format!("older_than: {why}"))?;
            Ok(WallTime(now.0.saturating_sub(age.as_micros() as u64)))
        };
        let id = |text: &String| text.parse().map_err(|why| format!("id: {why}"));
        let domain = |text: &String| Domain::parse(text.as_bytes()).map_err(|why| format!("domain: {why}"));
        let state = |text: &String| text.parse().map_err(|why| format!("state: {why}"));
        let selector = Selector {
            id: query.id.as_ref().map(id).transpose()?,
            domain: query.domain.as_ref().map(domain).transpose()?,
            sender: query.sender.as_ref().map(|text| address(text)),
            recipient: query.recipient.as_ref().map(|text| address(text)),
            stream: query.stream.clone(),
            state: query.state.as_ref().map(state).transpose()?,
            received_before: query.older_than.as_ref().map(before).transpose()?,
        };
        let all = query.all.unwrap_or_default();
        match (selector == Selector::default(), all) {
            (true, false) if least => {
                Err("say which messages: id, domain, sender, recipient, stream, older_than, state, or all"
                    .into())
            }
            (false, true) => Err("all goes with no other selector".into()),
            _ => Ok(selector),
        }
    }

    /// Whether the envelope must be looked at to tell.
    pub fn needs_envelope(&self) -> bool {
        self.sender.is_some() || self.recipient.is_some()
    }
}

/// An address as envelopes hold it: the domain in lower case.
fn address(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => text.to_owned(),
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut part = |name: &str, text: Option<String>| {
            if let Some(text) = text {
                parts.push(format!("{name} {}", printable(text.as_bytes())));
            }
        };
        part("id", self.id.map(|id| id.to_string()));
        part("domain", self.domain.as_ref().map(ToString::to_string));
        part("sender", self.sender.as_ref().map(|s| format!("<{s}>")));
        part("recipient", self.recipient.as_ref().map(|r| format!("<{r}>")));
        part("stream", self.stream.clone());
        part("state", self.state.map(|s| s.as_str().to_owned()));
        part("received before", self.received_before.map(|t| super::Timestamp(t).to_string()));
        f.write_str(&if parts.is_empty() { "all".to_owned() } else { parts.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime(1_700_000_000_000_000);

    fn query(pairs: &[(&str, &str)]) -> Query {
        let mut query = Query::default();
        for (name, value) in pairs {
            let value = (*value).to_owned();
            match *name {
                "id" => query.id = Some(value),
                "domain" => query.domain = Some(value),
                "sender" => query.sender = Some(value),
                "recipient" => query.recipient = Some(value),
                "stream" => query.stream = Some(value),
                "older_than" => query.older_than = Some(value),
                "state" => query.state = Some(value),
                _ => query.all = Some(true),
            }
        }
        query
    }

    #[test]
    fn selectors() {
        for (pairs, shown, envelope) in [
            (&[("id", "0000000000001")][..], "id 0000000000001", false),
            (&[("domain", "Example.COM")], "domain example.com", false),
            (&[("domain", "[192.0.2.1]"), ("state", "held")], "domain [192.0.2.1], state held", false),
            (&[("sender", "")], "sender <>", true),
            (&[("sender", "Some.One@EXAMPLE.com")], "sender <Some.One@example.com>", true),
            (&[("recipient", "a@b.example"), ("stream", "x")], "recipient <a@b.example>, stream x", true),
            (&[("older_than", "1h")], "received before 2023-11-14T21:13:20Z", false),
            (&[("all", "")], "all", false),
        ] {
            let selector = Selector::read(&query(pairs), NOW, true).expect(shown);
            assert_eq!((selector.to_string().as_str(), selector.needs_envelope()), (shown, envelope));
        }
    }

    #[test]
    fn what_selects_nothing_or_makes_no_sense_is_refused() {
        for (pairs, part) in [
            (&[][..], "say which messages"),
            (&[("id", "x")], "id: a message id is"),
            (&[("domain", "a..b")], "domain: "),
            (&[("state", "lost")], "state: write one of ready"),
            (&[("older_than", "5")], "older_than: "),
            (&[("all", ""), ("domain", "a.example")], "all goes with no other"),
        ] {
            let error = Selector::read(&query(pairs), NOW, true).expect_err(part);
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(Selector::read(&query(&[]), NOW, false), Ok(Selector::default()), "a list may be of all");
    }
}
