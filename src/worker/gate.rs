//! Which clients are let in, over all workers.
//!
//! Owns: the limits on connections in all, per address and per network (`--max-connections…`), and the
//! rates of connections, messages, errors and failed logins per address. Promises: a place that was given
//! is given back when its guard is dropped; memory is held for addresses that are connected, and for a
//! bounded number of others. Must not: be asked per command: it is shared between threads.
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::limiter::Limiter;
use crate::clock::Tick;
use crate::config::{ClientLimits, Config};
use crate::limits;
use crate::schedule::Rate;

pub struct Gate {
    limits: ClientLimits,
    total: AtomicUsize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    open: HashMap<IpAddr, usize>,
    open_networks: HashMap<IpAddr, usize>,
    connections: Limiter<IpAddr>,
    network_connections: Limiter<IpAddr>,
    messages: Limiter<IpAddr>,
    errors: Limiter<IpAddr>,
    failed_logins: Limiter<IpAddr>,
    users: Limiter<Box<str>>,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Crowded,
    Hasty,
    Errors,
}

impl Refused {
    /// The reply line.
    pub fn reply(self) -> &'static str {
        match self {
            Refused::Crowded => "421 4.7.0 Too many connections, try again later\r\n",
            Refused::Hasty => "421 4.7.0 Too many connections in a short time, try again later\r\n",
            Refused::Errors => "421 4.7.0 Too many errors from there, try again later\r\n",
        }
    }
}

/// A place in the gate, given back when dropped.
pub struct Place {
    gate: Arc<Gate>,
    /// Whom it was given to, once that is known and counts.
    from: Option<IpAddr>,
}

/// The block of addresses that one customer has, as a rule: a /24 of IPv4, a /64 of IPv6.
pub(super) fn network(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, 0].into()
        }
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// The unit that failed logins are counted for: an IPv4 address, a /64 of IPv6.
fn customer(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { of } else { network(of) }
}

fn leave<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Gate {
    pub fn new(config: &Config) -> Arc<Gate> {
        Arc::new(Gate { limits: config.client_limits, total: AtomicUsize::new(0), known: Mutex::default() })
    }

    /// Whether so many places are taken that those who only sit there should go.
    pub fn is_crowded(&self) -> bool {
        self.total.load(Relaxed) * 100 > self.limits.max_connections * limits::CROWDED_PERCENT
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no thread panics while it holds this lock")
    }

    /// A place for a connection whose client may not be known yet.
    pub fn enter(self: &Arc<Gate>) -> Option<Place> {
        if self.total.fetch_add(1, Relaxed) >= self.limits.max_connections {
            self.total.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Place { gate: self.clone(), from: None })
    }

    /// Whether this client's messages are counted.
    pub fn counts_messages(&self) -> bool {
        self.limits.message_rate_per_ip.is_some()
    }

    /// Whether a client may send one more message, by its address.
    pub fn may_mail(&self, from: IpAddr, now: Tick) -> bool {
        let Some(rate) = self.limits.message_rate_per_ip else { return true };
        self.known().messages.allows(&from.to_canonical(), rate, now)
    }

    /// Whether a user may send one more message; its recipients beyond the first are told later.
    pub fn may_submit(&self, user: &str, rate: Rate, now: Tick) -> bool {
        self.known().users.allows(&user.to_ascii_lowercase().into(), rate, now)
    }

    /// `count` more recipients of a user's message.
    pub fn submitted(&self, user: &str, rate: Rate, count: u32, now: Tick) {
        self.known().users.charge(&user.to_ascii_lowercase().into(), rate, count, now);
    }

    /// Errors that a session from there made.
    pub fn erred(&self, from: IpAddr, count: u32, now: Tick) {
        if let Some(rate) = self.limits.error_rate_per_ip
            && count > 0
        {
            self.known().errors.charge(&from.to_canonical(), rate, count, now);
        }
    }

    /// Whether a client from there may try to log in.
    pub fn may_log_in(&self, from: IpAddr, now: Tick) -> bool {
        self.known().failed_logins.has_room(&customer(from.to_canonical()), failed_logins(), now)
    }

    /// A login from there failed.
    pub fn login_failed(&self, from: IpAddr, now: Tick) {
        self.known().failed_logins.charge(&customer(from.to_canonical()), failed_logins(), 1, now);
    }
}

fn failed_logins() -> Rate {
    Rate::new(limits::FAILED_LOGINS_PER_IP, limits::FAILED_LOGIN_WINDOW)
}

impl Place {
    /// Lets `from` in, if the limits allow it. Loopback is exempt from all but the limit on the whole: it
    /// is us. `trusted` clients, who may relay, are exempt from rates and from what their neighbours do.
    pub fn admit(&mut self, from: IpAddr, trusted: bool, now: Tick) -> Result<(), Refused> {
        let from = from.to_canonical();
        if from.is_loopback() {
            return Ok(());
        }
        let limits = &self.gate.limits;
        let mut known = self.gate.known();
        let network = network(from);
        let open = |counts: &HashMap<IpAddr, usize>, key| counts.get(key).copied().unwrap_or(0);
        if open(&known.open, &from) >= limits.max_connections_per_ip {
            return Err(Refused::Crowded);
        }
        if !trusted {
            if open(&known.open_networks, &network) >= limits.max_connections_per_network {
                return Err(Refused::Crowded);
            }
            if limits.error_rate_per_ip.is_some_and(|rate| !known.errors.has_room(&from, rate, now)) {
                return Err(Refused::Errors);
            }
            let too_fast = |limiter: &mut Limiter<IpAddr>, rate: Option<Rate>, key: &IpAddr| {
                rate.is_some_and(|rate| !limiter.allows(key, rate, now))
            };
            if too_fast(&mut known.connections, limits.connection_rate_per_ip, &from)
                || too_fast(&mut known.network_connections, limits.connection_rate_per_network, &network)
            {
                return Err(Refused::Hasty);
            }
        }
        *known.open.entry(from).or_insert(0) += 1;
        *known.open_networks.entry(network).or_insert(0) += 1;
        drop(known);
        self.from = Some(from);
        Ok(())
    }

    /// Gives the place to another client: a proxy has said for whom it speaks.
    pub fn give_to(&mut self, from: IpAddr, trusted: bool, now: Tick) -> Result<(), Refused> {
        self.leave();
        self.admit(from, trusted, now)
    }

    fn leave(&mut self) {
        if let Some(from) = self.from.take() {
            let mut known = self.gate.known();
            leave(&mut known.open, &from);
            leave(&mut known.open_networks, &network(from));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.total.fetch_sub(1, Relaxed);
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(limits: ClientLimits) -> Arc<Gate> {
        Arc::new(Gate { limits, total: AtomicUsize::new(0), known: Mutex::default() })
    }

    fn wide() -> ClientLimits {
        ClientLimits {
            max_connections: 100,
            max_connections_per_ip: 100,
            max_connections_per_network: 100,
            connection_rate_per_ip: None,
            connection_rate_per_network: None,
            message_rate_per_ip: None,
            error_rate_per_ip: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn admit(gate: &Arc<Gate>, from: &str, secs: u64) -> Result<Place, Refused> {
        let mut place = gate.enter().ok_or(Refused::Crowded)?;
        place.admit(ip(from), false, Tick(secs * 1_000_000))?;
        Ok(place)
    }

    #[test]
    fn the_gate_counts_and_forgets() {
        let gate = gate(ClientLimits { max_connections: 3, max_connections_per_ip: 1, ..wide() });
        let first = admit(&gate, "192.0.2.1", 0).expect("the first");
        assert!(admit(&gate, "::ffff:192.0.2.1", 0).is_err(), "one per address");
        let _near =
            (admit(&gate, "127.0.0.1", 0).expect("loopback"), admit(&gate, "127.0.0.1", 0).expect("exempt"));
        assert!(gate.enter().is_none(), "three in all");
        assert!(gate.is_crowded());
        drop(first);
        assert!(!gate.is_crowded(), "two of three are not nine in ten");
        assert!(admit(&gate, "192.0.2.1", 0).is_ok());
        let known = gate.known();
        assert!(known.open.is_empty() && known.open_networks.is_empty());
    }

    #[test]
    fn neighbours_share_a_limit() {
        let gate = gate(ClientLimits { max_connections_per_network: 2, ..wide() });
        for (a, b, c, other) in [
            ("192.0.2.1", "192.0.2.2", "192.0.2.200", "192.0.3.1"),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8::2", "2001:db8:0:1::1"),
        ] {
            let _two = (admit(&gate, a, 0).expect("one"), admit(&gate, b, 0).expect("two"));
            assert_eq!(admit(&gate, c, 0).err(), Some(Refused::Crowded));
            assert!(admit(&gate, other, 0).is_ok());
            let mut trusted = gate.enter().expect("room");
            assert!(trusted.admit(ip(c), true, Tick(0)).is_ok());
        }
    }

    #[test]
    fn rates_of_connections_and_errors() {
        let two = Some(Rate::new(2, Duration::from_secs(60)));
        let gate = gate(ClientLimits { connection_rate_per_ip: two, error_rate_per_ip: two, ..wide() });
        let from = "192.0.2.1";
        assert!(admit(&gate, from, 0).is_ok() && admit(&gate, from, 0).is_ok());
        assert_eq!(admit(&gate, from, 0).err(), Some(Refused::Hasty));
        assert!(admit(&gate, "192.0.2.2", 0).is_ok() && admit(&gate, from, 30).is_ok());
        gate.erred(ip("192.0.2.9"), 3, Tick(0));
        assert_eq!(admit(&gate, "192.0.2.9", 59).err(), Some(Refused::Errors));
        assert!(admit(&gate, "192.0.2.9", 60).is_ok());
    }

    #[test]
    fn failed_logins_shut_the_door_for_a_while() {
        let gate = gate(wide());
        let (a, b) = (ip("2001:db8::1"), ip("2001:db8::2"));
        for _ in 0..limits::FAILED_LOGINS_PER_IP {
            assert!(gate.may_log_in(a, Tick(0)));
            gate.login_failed(b, Tick(0));
        }
        assert!(!gate.may_log_in(a, Tick(0)) && gate.may_log_in(ip("192.0.2.1"), Tick(0)));
        assert!(gate.may_log_in(a, Tick(limits::FAILED_LOGIN_WINDOW.as_micros() as u64)));
    }

    #[test]
    fn messages_of_users_and_addresses() {
        let rate = Rate::new(3, Duration::from_secs(3));
        let gate = gate(ClientLimits { message_rate_per_ip: Some(rate), ..wide() });
        let from = ip("192.0.2.1");
        assert_eq!((0..9).filter(|_| gate.may_mail(from, Tick(0))).count(), 3);
        assert!(gate.may_submit("A", rate, Tick(0)));
        gate.submitted("a", rate, 2, Tick(0));
        assert!(!gate.may_submit("a", rate, Tick(0)) && gate.may_submit("b", rate, Tick(0)));
    }
}
