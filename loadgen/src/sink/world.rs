//! The receivers of one sink: which of them a domain or an address belongs to, and their state.
//!
//! Owns: [`World`], [`Receiver`] and the decisions about connections, senders and recipients.
//! Promises: every table is bounded, whatever clients do; the same address exists or not for the
//! whole run. Must not: touch sockets or read clocks.
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Rng;
use crate::limits;
use crate::pick::Pick;
use crate::sink::model::{Described, Model};

/// What is remembered about one client address.
struct Client {
    connections: u32,
    tokens: f64,
    filled_us: u64,
}

#[derive(Default)]
struct State {
    clients: HashMap<IpAddr, Client>,
    /// When each triplet was first seen.
    greylist: HashMap<u64, u64>,
    chance: u64,
}

/// One receiver with its hosts and what it remembers.
pub struct Receiver {
    pub name: String,
    pub model: Model,
    pub hosts: Vec<Ipv4Addr>,
    state: Mutex<State>,
}

/// All receivers of a sink.
pub struct World {
    pub receivers: Vec<Receiver>,
    named: HashMap<String, usize>,
    /// Generated domains `d0.test` and so on, and how they are shared out.
    generated: u32,
    shares: Option<Pick>,
}

impl World {
    /// The receivers of `described`, at addresses from `first` on, and `generated` domains among them.
    pub fn new(described: Vec<Described>, generated: u32, first: Ipv4Addr) -> anyhow::Result<World> {
        let hosts: u64 = described.iter().map(|receiver| u64::from(receiver.hosts)).sum();
        ensure!(
            hosts <= u64::from(limits::HOSTS),
            "the receivers have {hosts} hosts, more than {}",
            limits::HOSTS
        );
        let weights: Vec<f64> = match described.iter().all(|receiver| receiver.share == 0.0) {
            true => vec![1.0; described.len()],
            false => described.iter().map(|receiver| receiver.share).collect(),
        };
        let mut named = HashMap::new();
        let mut next = u32::from(first);
        let mut receivers = Vec::new();
        for (index, described) in described.into_iter().enumerate() {
            for domain in &described.domains {
                let other = named.insert(domain.to_ascii_lowercase(), index);
                ensure!(
                    other.is_none_or(|other| other == index),
                    "{domain} is a domain of two receivers: of {} too",
                    described.name
                );
            }
            let last = next.checked_add(described.hosts);
            let last = last.with_context(|| format!("{hosts} hosts from {first} on leave IPv4"))?;
            let hosts = (next..last).map(Ipv4Addr::from).collect();
            next = last;
            receivers.push(Receiver {
                name: described.name,
                model: described.model,
                hosts,
                state: Mutex::default(),
            });
        }
        let last = Ipv4Addr::from(next.saturating_sub(1));
        ensure!(
            first.is_loopback() && last.is_loopback(),
            "the hosts {first} to {last} are not all loopback"
        );
        let shares = (generated > 0).then(|| Pick::new(&weights));
        Ok(World { receivers, named, generated, shares })
    }
    /// The receiver of `domain` (in lower case), and the domain's number among those it serves.
    pub fn find(&self, domain: &[u8]) -> Option<(&Receiver, u32)> {
        let domain = std::str::from_utf8(domain).ok()?;
        if let Some(&index) = self.named.get(domain) {
            return Some((&self.receivers[index], 0));
        }
        let digits = domain.strip_prefix('d')?.strip_suffix(".test")?;
        let number: u32 = digits.parse().ok().filter(|&number| number < self.generated)?;
        // `d007.test` is another name than `d7.test`.
        if digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        let index = self.shares.as_ref()?.at(Rng::new(u64::from(number)).next_u64());
        Some((&self.receivers[index], number))
    }
    /// The addresses of the mail exchangers of `domain`, the first to be tried first, with their names.
    pub fn exchangers(&self, domain: &[u8]) -> Option<Vec<(String, Ipv4Addr)>> {
        let (receiver, number) = self.find(domain)?;
        let count = receiver.hosts.len();
        let host = |step: usize| {
            let index = (number as usize + step) % count;
            (receiver.host_name(index), receiver.hosts[index])
        };
        Some((0..count.min(limits::EXCHANGERS)).map(host).collect())
    }
    /// Whether there are names below `name` (in lower case): then it exists too, with nothing to it
    /// (RFC 8020).
    pub fn has_below(&self, name: &[u8]) -> bool {
        let is_below = |child: &[u8]| child.strip_suffix(name).is_some_and(|rest| rest.ends_with(b"."));
        let hosts = |receiver: &Receiver| is_below(receiver.host_name(0).as_bytes());
        name.is_empty()
            || (name == b"test" && self.generated > 0)
            || self.named.keys().any(|domain| is_below(domain.as_bytes()))
            || self.receivers.iter().any(hosts)
    }
    /// The address of a host by its name (in lower case).
    pub fn host(&self, name: &[u8]) -> Option<Ipv4Addr> {
        let name = std::str::from_utf8(name).ok()?.strip_suffix(limits::HOSTS_BELOW)?;
        let (host, receiver) = name.split_once('.')?;
        let index: usize = host.strip_prefix("mx")?.parse().ok()?;
        let receiver = self.receivers.iter().find(|r| r.name.eq_ignore_ascii_case(receiver))?;
        receiver.hosts.get(index).copied()
    }
}

impl Receiver {
    pub fn host_name(&self, index: usize) -> String {
        format!("mx{index}.{}{}", self.name.to_ascii_lowercase(), limits::HOSTS_BELOW)
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// A client connects: a reply if it has too many connections. Each call must be answered by one of
    /// [`Receiver::leave`], refused or not.
    pub fn enter(&self, client: IpAddr) -> Option<Arc<str>> {
        let model = &self.model;
        let mut state = self.state();
        let known = state.client(client, model)?;
        known.connections += 1;
        let is_over = model.connections_per_client > 0 && known.connections > model.connections_per_client;
        is_over.then(|| model.too_many_connections.clone())
    }
    /// A client's connection has ended.
    pub fn leave(&self, client: IpAddr) {
        if let Some(client) = self.state().clients.get_mut(&client) {
            client.connections = client.connections.saturating_sub(1);
        }
    }
    /// A message begins, the `begun`th of its connection: a reply if it is not wanted now.
    pub fn mail(&self, client: IpAddr, begun: u32, now_us: u64) -> Option<Arc<str>> {
        let model = &self.model;
        let every = model.outage_every.us();
        if every > 0 && now_us % every >= every - model.outage_for.us() {
            return Some(model.outage.clone());
        }
        if model.messages_per_connection > 0 && begun > model.messages_per_connection {
            return Some(model.too_many_messages.clone());
        }
        if model.messages_per_second > 0.0 {
            let mut state = self.state();
            let client = state.client(client, model)?;
            let seconds = now_us.saturating_sub(client.filled_us) as f64 / 1e6;
            client.tokens = (client.tokens + seconds * model.messages_per_second).min(f64::from(model.burst));
            client.filled_us = now_us;
            if client.tokens < 1.0 {
                return Some(model.rate_limited.clone());
            }
            client.tokens -= 1.0;
        }
        None
    }
    /// A recipient, the `count`th of its message: a reply if it is not taken.
    pub fn rcpt(
        &self,
        client: IpAddr,
        sender: u64,
        address: &[u8],
        count: u32,
        now_us: u64,
    ) -> Option<Arc<str>> {
        let model = &self.model;
        let is_named = |unknown: &String| {
            let address = address.get(..if unknown.ends_with('@') { unknown.len() } else { address.len() });
            address.is_some_and(|address| address.eq_ignore_ascii_case(unknown.as_bytes()))
        };
        if is_below(xxh3_64(address), model.unknown_share) || model.unknown_addresses.iter().any(is_named) {
            return Some(model.unknown.clone());
        }
        if model.recipients_per_message > 0 && count > model.recipients_per_message {
            return Some(model.too_many_recipients.clone());
        }
        if model.greylist.us() == 0 && model.tempfail_share == 0.0 {
            return None;
        }
        let mut state = self.state();
        if model.greylist.us() > 0 {
            let network = match client {
                IpAddr::V4(client) => u64::from(u32::from(client) >> 8),
                IpAddr::V6(client) => (u128::from(client) >> 64) as u64,
            };
            let triplet = xxh3_64(address) ^ sender.rotate_left(21) ^ Rng::new(network).next_u64();
            if state.greylist.len() >= limits::TRIPLETS {
                state.greylist.clear();
            }
            let first_us = *state.greylist.entry(triplet).or_insert(now_us);
            if now_us - first_us < model.greylist.us() {
                return Some(model.greylisted.clone());
            }
        }
        state.is_chance(model.tempfail_share).then(|| model.tempfail.clone())
    }
    /// A message has ended: whether its connection is cut.
    pub fn drops(&self) -> bool {
        self.model.drop_share > 0.0 && self.state().is_chance(self.model.drop_share)
    }
}

impl State {
    /// What is known of a client; nothing, and so no limit, once there are too many to remember.
    fn client(&mut self, client: IpAddr, model: &Model) -> Option<&mut Client> {
        if self.clients.len() >= limits::CLIENTS && !self.clients.contains_key(&client) {
            return None;
        }
        let fresh = || Client { connections: 0, tokens: f64::from(model.burst), filled_us: 0 };
        Some(self.clients.entry(client).or_insert_with(fresh))
    }
    fn is_chance(&mut self, share: f64) -> bool {
        self.chance += 1;
        share > 0.0 && is_below(Rng::new(self.chance).next_u64(), share)
    }
}

fn is_below(random: u64, share: f64) -> bool {
    share > 0.0 && (random >> 11) as f64 / (1u64 << 53) as f64 <= share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::model::Span;
    use std::time::Duration;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

    fn world(change: impl Fn(&mut Model), hosts: u32, generated: u32) -> World {
        let mut model = Model::default();
        change(&mut model);
        let described = |name: &str, share| Described {
            name: name.into(),
            domains: vec![format!("{name}.test")],
            share,
            hosts,
            model: model.clone(),
        };
        let both = vec![described("big", 3.0), described("small", 1.0)];
        World::new(both, generated, Ipv4Addr::new(127, 1, 0, 1)).unwrap()
    }

    #[test]
    fn domains_have_receivers_and_hosts() {
        let world = world(|_| (), 3, 1000);
        assert_eq!(world.find(b"small.test").unwrap().0.name, "small");
        let count =
            (0..1000).filter(|n| world.find(format!("d{n}.test").as_bytes()).unwrap().0.name == "big");
        let count = count.count();
        assert!((690..810).contains(&count), "{count}");
        for stranger in ["d1000.test", "d07.test", "d.test", "other.test", "d1.test.x"] {
            assert!(world.find(stranger.as_bytes()).is_none(), "{stranger}");
        }
        let exchangers = world.exchangers(b"small.test").unwrap();
        assert_eq!(exchangers[0], ("mx0.small.hosts.test".into(), Ipv4Addr::new(127, 1, 0, 4)));
        for (name, address) in exchangers {
            assert_eq!(world.host(name.as_bytes()), Some(address));
        }
        assert_eq!(world.host(b"mx3.small.hosts.test"), None);
    }

    #[test]
    fn a_world_that_makes_no_sense_is_refused() {
        let described = |name: &str, hosts| Described {
            name: name.into(),
            domains: vec!["One.test".into()],
            share: 1.0,
            hosts,
            model: Model::default(),
        };
        for (all, want) in [
            (vec![described("a", 1), described("b", 1)], "two receivers"),
            (vec![described("a", u32::MAX), described("b", 2)], "more than"),
        ] {
            let error = World::new(all, 0, Ipv4Addr::new(127, 1, 0, 1)).err().unwrap();
            assert!(error.to_string().contains(want), "{error}");
        }
        let last = World::new(vec![described("a", 3)], 0, Ipv4Addr::new(255, 255, 255, 254));
        assert!(last.err().unwrap().to_string().contains("leave IPv4"));
    }

    #[test]
    fn connections_are_capped_per_client() {
        let world = world(|model| model.connections_per_client = 2, 1, 0);
        let receiver = &world.receivers[0];
        assert_eq!([receiver.enter(CLIENT), receiver.enter(CLIENT)], [None, None]);
        assert!(receiver.enter(CLIENT).unwrap().starts_with("421"));
        assert_eq!(receiver.enter("127.0.0.8".parse().unwrap()), None);
        receiver.leave(CLIENT);
        receiver.leave(CLIENT);
        assert_eq!(receiver.enter(CLIENT), None);
    }

    #[test]
    fn rates_are_buckets() {
        let world = world(|model| (model.messages_per_second, model.burst) = (2.0, 3), 1, 0);
        let receiver = &world.receivers[0];
        let taken = |now_us| (0..10).filter(|_| receiver.mail(CLIENT, 1, now_us).is_none()).count();
        assert_eq!([taken(0), taken(1_000_000), taken(1_400_000), taken(60_000_000)], [3, 2, 0, 3]);
    }

    #[test]
    fn outages_end_connections_end_and_addresses_stay_unknown() {
        let world = world(
            |model| {
                (model.outage_every, model.outage_for) =
                    (Span(Duration::from_secs(10)), Span(Duration::from_secs(2)));
                (model.messages_per_connection, model.unknown_share) = (5, 0.25);
                model.unknown_addresses = vec!["Bob@".into(), "eve@big.test".into()];
            },
            1,
            0,
        );
        let receiver = &world.receivers[0];
        let mail = |begun, sec: u64| receiver.mail(CLIENT, begun, sec * 1_000_000).is_none();
        assert_eq!(
            [mail(1, 7), mail(1, 8), mail(1, 10), mail(5, 1), mail(6, 1)],
            [true, false, true, true, false]
        );
        let takes = |address: &str| receiver.rcpt(CLIENT, 0, address.as_bytes(), 1, 0).is_none();
        let known: Vec<bool> = (0..400).map(|n| takes(&format!("r{n}@big.test"))).collect();
        let count = known.iter().filter(|&&is_known| is_known).count();
        assert!((260..340).contains(&count), "{count}");
        assert_eq!(known, (0..400).map(|n| takes(&format!("r{n}@big.test"))).collect::<Vec<_>>());
        assert!(!takes("bob@big.test") && !takes("eve@big.test"));
    }

    #[test]
    fn greylisting_takes_the_second_attempt() {
        let world = world(|model| model.greylist = Span(Duration::from_secs(60)), 1, 0);
        let receiver = &world.receivers[0];
        let takes =
            |sender, sec: u64| receiver.rcpt(CLIENT, sender, b"a@big.test", 1, sec * 1_000_000).is_none();
        assert_eq!(
            [takes(1, 0), takes(1, 59), takes(1, 60), takes(2, 60), takes(2, 120)],
            [false, false, true, false, true]
        );
    }
}
