//! What an operator allows and orders for a destination, as values.
//!
//! Owns: [`Rate`], [`Limits`], [`Policy`] and the table of them, [`Policies`]. Promises: a table is
//! never changed, only replaced whole ([`super::Event::Policies`]); the policy of a name is a function
//! of the name, and after its MX hosts are known, of both. Must not: read configuration (the caller
//! resolves it) or count anything.
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::sources::{SourceSet, Sources};
use crate::mail::address::Domain;

/// `count` in any half-open window of `per`, of which up to `burst` may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
    /// From 1 to `count`. See [`Rate::new`].
    pub burst: u32,
}

impl Rate {
    /// A rate with the burst that suits it: what `limits::RATE_BURST` of time brings, at least one. A
    /// `count` of 0 is taken for 1.
    pub fn new(count: u32, per: Duration) -> Rate {
        let count = count.max(1);
        let share = crate::limits::RATE_BURST.as_micros() as f64 / per.as_micros().max(1) as f64;
        let burst = (f64::from(count) * share) as u32 + 1;
        Rate { count, per, burst: burst.min(count) }
    }

    /// The same rate with another burst.
    pub fn with_burst(self, burst: u32) -> Rate {
        Rate { burst: burst.clamp(1, self.count), ..self }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/m", self.count),
            3600 => write!(f, "{}/h", self.count),
            86_400 => write!(f, "{}/d", self.count),
            _ => write!(f, "{}/{:?}", self.count, self.per),
        }
    }
}

/// What may happen at a time and in a time. The default allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, each counted from before it is opened until its close is confirmed;
    /// `u32::MAX`: any number. 0 is taken for 1.
    pub connections: u32,
    /// New connections.
    pub connection_rate: Option<Rate>,
    /// Messages, each counted when MAIL is sent.
    pub message_rate: Option<Rate>,
}

impl Limits {
    /// No limit at all.
    pub const NONE: Limits = Limits { connections: u32::MAX, connection_rate: None, message_rate: None };

    /// Whether anything is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::NONE
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::NONE
    }
}

/// Everything ordered for one destination (domain).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Of the domain alone, on top of those of its site, provider, source, stream and of the server.
    pub limits: Limits,
    pub messages_per_connection: u32,
    /// Recipients in one transaction; a message for more is sent in several.
    pub recipients_per_message: u16,
    /// Delays after the first, second, … failed attempt; the last repeats.
    pub retry_schedule: Vec<Duration>,
    pub max_age: Duration,
    /// The sender is told once that the mail is late, when it is this old.
    pub delay_warning: Option<Duration>,
    /// Whether concurrency and rate follow what the receiver answers.
    pub adaptive: bool,
}

/// What is ordered for all sites of a provider together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderPolicy {
    /// For people.
    pub name: Box<str>,
    pub limits: Limits,
}

impl Default for ProviderPolicy {
    fn default() -> ProviderPolicy {
        ProviderPolicy { name: "".into(), limits: Limits::NONE }
    }
}

/// What is ordered for a stream, wherever its mail goes. One with limits has connections of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPolicy {
    /// For people.
    pub name: Box<str>,
    /// Entries it sends in its turn, while others wait for theirs. 0 is taken for 1.
    pub weight: u16,
    pub limits: Limits,
}

impl Default for StreamPolicy {
    fn default() -> StreamPolicy {
        StreamPolicy { name: "".into(), weight: 1, limits: Limits::NONE }
    }
}

/// In place of a stream's number: all streams without limits.
pub(super) const COMMON: u16 = u16::MAX;

/// The place of a policy in [`Policies::list`].
pub type PolicyId = u16;

/// Finds the policy of a domain by its name alone.
pub type ByName = Arc<dyn Fn(&Domain) -> PolicyId + Send + Sync>;

/// All policies and shared limits in force. Cheap to clone behind an [`Arc`].
#[derive(Clone)]
pub struct Policies {
    /// Never empty; the first is for whoever has no other.
    pub list: Vec<Policy>,
    pub by_name: ByName,
    /// Limits of a site (a set of MX hosts, whatever domains share it): the first for a site of no
    /// known provider, the n-th for one of provider n (from 1).
    pub sites: Vec<Limits>,
    /// Of each provider, by its number; the first is not used.
    pub providers: Vec<ProviderPolicy>,
    pub sources: Sources,
    /// Of each stream, by its number; a stream beyond the end is like [`StreamPolicy::default`].
    pub streams: Vec<StreamPolicy>,
    /// Limits of the whole server.
    pub server: Limits,
}

impl Policies {
    /// The weight of a stream, at least 1.
    pub(super) fn weight(&self, stream: super::StreamId) -> u16 {
        self.streams.get(usize::from(stream.number())).map_or(1, |stream| stream.weight.max(1))
    }

    /// The stream of a lane for such mail: its own where it has limits, else [`COMMON`].
    pub(super) fn lane_of(&self, stream: super::StreamId) -> u16 {
        let limited = |policy: &&StreamPolicy| !policy.limits.is_none();
        let own = self.streams.get(usize::from(stream.number())).filter(limited);
        own.map_or(COMMON, |_| stream.number())
    }

    /// One policy for every domain, and no shared limits.
    pub fn one(policy: Policy) -> Policies {
        Policies {
            list: vec![policy],
            by_name: Arc::new(|_| 0),
            sites: vec![Limits::NONE],
            providers: vec![ProviderPolicy::default()],
            sources: Sources::default(),
            streams: Vec::new(),
            server: Limits::NONE,
        }
    }

    /// Whether connections to such hosts are in any limit that destinations share.
    pub fn shares(
        &self,
        hosts: Option<u64>,
        provider: u16,
        sources: Option<SourceSet>,
        stream: Option<u16>,
    ) -> bool {
        !super::pool::keys(self, (hosts, provider), sources, stream.unwrap_or(COMMON)).is_empty()
    }

    /// The policy of that id, or the first.
    pub fn get(&self, id: PolicyId) -> &Policy {
        self.list.get(usize::from(id)).unwrap_or(&self.list[0])
    }

    /// The policy of a name whose MX hosts are not known.
    pub fn of(&self, domain: &Domain) -> PolicyId {
        let id = (self.by_name)(domain);
        if usize::from(id) < self.list.len() { id } else { 0 }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("list", &self.list)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_suits_its_rate() {
        let second = Duration::from_secs(1);
        let table = [(1, second, 1), (99, second, 1), (100, second, 2), (1000, second, 11), (0, second, 1)];
        for (count, per, burst) in table {
            assert_eq!(Rate::new(count, per).burst, burst, "{count}");
        }
        assert_eq!(Rate::new(5000, second * 3600).burst, 1);
        assert_eq!(Rate::new(10, second).with_burst(99).burst, 10);
    }

    #[test]
    fn rates_are_shown_as_they_are_written() {
        for (per, text) in [(1, "7/s"), (60, "7/m"), (3600, "7/h"), (86_400, "7/d"), (5, "7/5s")] {
            assert_eq!(Rate::new(7, Duration::from_secs(per)).to_string(), text);
        }
    }
}
