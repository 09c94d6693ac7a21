//! What can be set for a destination or a provider, key by key.
//!
//! Owns: [`Knobs`] and the table of its keys: name, grammar and text form of each, once. Promises: what
//! [`Knobs::lines`] shows, [`Knobs::set`] reads back. Must not: know which section is asked first.
use std::net::IpAddr;
use std::time::Duration;

use super::grammar::{self, Parsed, show_duration};
use crate::limits;
use crate::schedule::Rate;

/// What one section says. What it leaves out comes from the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knobs {
    pub connections: Option<u32>,
    pub connection_rate: Option<Rate>,
    pub message_rate: Option<Rate>,
    pub messages_per_connection: Option<u32>,
    pub recipients_per_message: Option<u16>,
    pub retry_schedule: Option<Vec<Duration>>,
    pub max_age: Option<Duration>,
    /// Zero: never.
    pub delay_warning: Option<Duration>,
    /// Local addresses to deliver from: some of `--source`.
    pub sources: Option<Vec<IpAddr>>,
    /// Whether connections and rate follow what the receiver answers.
    pub adaptive: Option<bool>,
}

/// Kinds of sections, the narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// About destinations by name.
    Destination,
    /// About destinations by their MX hosts, known only when DNS has answered: too late for what a message
    /// is cut into.
    Provider,
    /// About what many destinations share: a local address, a stream.
    Shared,
}

/// One key of a section.
pub struct Key {
    pub name: &'static str,
    /// The widest kind of section it may stand in.
    pub scope: Scope,
    set: fn(&mut Knobs, &str) -> Parsed<()>,
    show: fn(&Knobs) -> Option<String>,
}

fn count(text: &str, most: u64) -> Parsed<u64> {
    let number = grammar::number(text)?;
    if (1..=most).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{number} is out of range: write a number from 1 to {most}"))
    }
}

fn addresses(text: &str) -> Parsed<Vec<IpAddr>> {
    let one = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is not an address"));
    text.split(',').map(one).collect()
}

/// Every key, in the order in which they are shown.
pub static KEYS: [Key; 10] = [
    Key {
        name: "connections",
        scope: Scope::Shared,
        set: |knobs, text| {
            let most = (limits::OUTBOUND_CONNECTIONS_PER_WORKER * limits::WORKERS) as u64;
            knobs.connections = Some(count(text, most)? as u32);
            Ok(())
        },
        show: |knobs| knobs.connections.map(|n| n.to_string()),
    },
    Key {
        name: "connection-rate",
        scope: Scope::Shared,
        set: |knobs, text| grammar::rate(text).map(|rate| knobs.connection_rate = Some(rate)),
        show: |knobs| knobs.connection_rate.map(|rate| rate.to_string()),
    },
    Key {
        name: "message-rate",
        scope: Scope::Shared,
        set: |knobs, text| grammar::rate(text).map(|rate| knobs.message_rate = Some(rate)),
        show: |knobs| knobs.message_rate.map(|rate| rate.to_string()),
    },
    Key {
        name: "messages-per-connection",
        scope: Scope::Provider,
        set: |knobs, text| {
            knobs.messages_per_connection = Some(count(text, u32::MAX.into())? as u32);
            Ok(())
        },
        show: |knobs| knobs.messages_per_connection.map(|n| n.to_string()),
    },
    Key {
        name: "recipients-per-message",
        scope: Scope::Destination,
        set: |knobs, text| {
            knobs.recipients_per_message = Some(count(text, limits::MAX_RECIPIENTS as u64)? as u16);
            Ok(())
        },
        show: |knobs| knobs.recipients_per_message.map(|n| n.to_string()),
    },
    Key {
        name: "retry-schedule",
        scope: Scope::Provider,
        set: |knobs, text| grammar::schedule(text).map(|steps| knobs.retry_schedule = Some(steps)),
        show: |knobs| knobs.retry_schedule.as_ref().map(|steps| show_schedule(steps)),
    },
    Key {
        name: "max-age",
        scope: Scope::Provider,
        set: |knobs, text| {
            let age = grammar::duration(text)?;
            if !(Duration::from_secs(1)..=limits::MAX_AGE).contains(&age) {
                return Err(format!("is out of range: write 1s to {}", show_duration(limits::MAX_AGE)));
            }
            knobs.max_age = Some(age);
            Ok(())
        },
        show: |knobs| knobs.max_age.map(show_duration),
    },
    Key {
        name: "delay-warning",
        scope: Scope::Provider,
        set: |knobs, text| {
            let age = grammar::duration(text)?;
            if age > limits::MAX_AGE {
                return Err(format!("is out of range: write 0 to {}", show_duration(limits::MAX_AGE)));
            }
            knobs.delay_warning = Some(age);
            Ok(())
        },
        show: |knobs| knobs.delay_warning.map(show_duration),
    },
    Key {
        name: "source",
        scope: Scope::Provider,
        set: |knobs, text| addresses(text).map(|list| knobs.sources = Some(list)),
        show: |knobs| {
            let texts = knobs.sources.as_ref()?.iter().map(ToString::to_string);
            Some(texts.collect::<Vec<_>>().join(","))
        },
    },
    Key {
        name: "adaptive",
        scope: Scope::Provider,
        set: |knobs, text| grammar::switch(text).map(|on| knobs.adaptive = Some(on)),
        show: |knobs| knobs.adaptive.map(|on| on.to_string()),
    },
];

/// Steps as [`grammar::schedule`] reads them.
pub fn show_schedule(steps: &[Duration]) -> String {
    steps.iter().map(|step| show_duration(*step)).collect::<Vec<_>>().join(",")
}

impl Key {
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The key's value in `knobs`, as it is written.
    pub fn show(&self, knobs: &Knobs) -> Option<String> {
        (self.show)(knobs)
    }

    pub fn set(&self, knobs: &mut Knobs, text: &str) -> Parsed<()> {
        (self.set)(knobs, text)
    }
}

impl Knobs {
    /// What is set, as it is written.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        KEYS.iter().filter_map(|key| Some((key.name, key.show(self)?)))
    }

    /// What is set, as lines of a section.
    pub fn to_toml(&self) -> String {
        let line = |(key, value): (&str, String)| match value.parse::<u32>() {
            Ok(number) => format!("{key} = {number}\n"),
            Err(_) => format!("{key} = {}\n", toml::Value::String(value)),
        };
        self.lines().map(line).collect()
    }

    /// These, and what they leave out from `below`.
    pub fn over(self, below: &Knobs) -> Knobs {
        let below = below.clone();
        Knobs {
            connections: self.connections.or(below.connections),
            connection_rate: self.connection_rate.or(below.connection_rate),
            message_rate: self.message_rate.or(below.message_rate),
            messages_per_connection: self.messages_per_connection.or(below.messages_per_connection),
            recipients_per_message: self.recipients_per_message.or(below.recipients_per_message),
            retry_schedule: self.retry_schedule.or(below.retry_schedule),
            max_age: self.max_age.or(below.max_age),
            delay_warning: self.delay_warning.or(below.delay_warning),
            sources: self.sources.or(below.sources),
            adaptive: self.adaptive.or(below.adaptive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 10] = [
        ("connections", "20"),
        ("connection-rate", "10/s"),
        ("message-rate", "5000/h"),
        ("messages-per-connection", "1"),
        ("recipients-per-message", "65535"),
        ("retry-schedule", "1m,5m,2h"),
        ("max-age", "2d"),
        ("delay-warning", "90m"),
        ("source", "192.0.2.1,2001:db8::1"),
        ("adaptive", "false"),
    ];

    #[test]
    fn what_is_shown_reads_back() {
        let mut knobs = Knobs::default();
        for (name, text) in GOOD {
            Key::find(name).expect("a key").set(&mut knobs, text).expect(text);
        }
        let shown: Vec<_> = knobs.lines().collect();
        assert_eq!(shown, GOOD.map(|(name, text)| (name, text.to_owned())));
        assert_eq!(knobs.clone().over(&Knobs::default()), knobs);
        assert_eq!(Knobs::default().over(&knobs), knobs);
    }

    #[test]
    fn wrong_values_are_refused_and_change_nothing() {
        for (name, text) in [
            ("connections", "0"),
            ("connections", "many"),
            ("connections", "99999999999"),
            ("connection-rate", "10"),
            ("message-rate", "0/s"),
            ("messages-per-connection", "0"),
            ("recipients-per-message", "65536"),
            ("retry-schedule", ""),
            ("retry-schedule", "0s"),
            ("max-age", "0"),
            ("max-age", "1000d"),
            ("delay-warning", "1000d"),
            ("delay-warning", "soon"),
            ("source", ""),
            ("adaptive", "no"),
            ("source", "192.0.2.1;192.0.2.2"),
        ] {
            let mut knobs = Knobs::default();
            assert!(Key::find(name).expect("a key").set(&mut knobs, text).is_err(), "{name} {text}");
            assert_eq!(knobs, Knobs::default(), "{name} {text}");
        }
        assert!(Key::find("conections").is_none());
    }
}
