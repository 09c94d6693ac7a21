//! Which clients are let in, over all workers.
//!
//! Owns: the limits on connections in all, per address and per network (`--max-connections…`), and the
//! rates of connections, messages, errors and failed logins. Promises: a place that was given
//! is given back when its guard is dropped; what a client has done is held against all the addresses that one
//! customer has (a /64 of IPv6); memory is held for addresses that are connected, and for a
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
    network_errors: Limiter<IpAddr>,
    /// Logins that are being checked.
    pending_logins: HashMap<IpAddr, usize>,
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
    /// The reply line, which begins with our own name (RFC 5321 §4.3.1).
    pub fn reply(self, hostname: &str) -> String {
        let why = match self {
            Refused::Crowded => "Too many connections",
            Refused::Hasty => "Too many connections in a short time",
            Refused::Errors => "Too many errors from there",
        };
        format!("421 4.7.0 {hostname} {why}, try again later\r\n")
    }
}

/// Whether a password may be checked.
pub enum Login {
    May(LoginUnderWay),
    /// Too many failures from there would come together if those that are being checked fail: ask again.
    Wait,
    /// Too many have failed from there.
    No,
}

/// A password that is being checked, until this is dropped.
pub struct LoginUnderWay {
    gate: Arc<Gate>,
    from: IpAddr,
}

impl Drop for LoginUnderWay {
    fn drop(&mut self) {
        leave(&mut self.gate.known().pending_logins, &self.from);
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

/// The unit that messages, errors and failed logins are counted for: an IPv4 address, a /64 of IPv6.
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
        self.known().messages.allows(&customer(from.to_canonical()), rate, now)
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
        let (each, all) = (self.limits.error_rate_per_ip, self.limits.error_rate_per_network);
        if count == 0 || (each.is_none() && all.is_none()) {
            return;
        }
        let (from, mut known) = (from.to_canonical(), self.known());
        if let Some(rate) = each {
            known.errors.charge(&customer(from), rate, count, now);
        }
        if let Some(rate) = all {
            known.network_errors.charge(&network(from), rate, count, now);
        }
    }

    /// Whether a client from there may try to log in.
    pub fn may_log_in(&self, from: IpAddr, now: Tick) -> bool {
        self.known().failed_logins.has_room(&customer(from.to_canonical()), failed_logins(), now)
    }

    /// Asks for the check of one more password; those under way count as if they failed.
    pub fn begin_login(self: &Arc<Gate>, from: IpAddr, now: Tick) -> Login {
        let (from, mut known) = (customer(from.to_canonical()), self.known());
        if !known.failed_logins.has_room(&from, failed_logins(), now) {
            return Login::No;
        }
        let pending = known.pending_logins.get(&from).copied().unwrap_or(0) as u32;
        if !known.failed_logins.has_room_for(&from, failed_logins(), pending + 1, now) {
            return Login::Wait;
        }
        *known.pending_logins.entry(from).or_insert(0) += 1;
        drop(known);
        Login::May(LoginUnderWay { gate: self.clone(), from })
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
            let erred = |limiter: &Limiter<IpAddr>, rate: Option<Rate>, key: &IpAddr| {
                rate.is_some_and(|rate| !limiter.has_room(key, rate, now))
            };
            if erred(&known.errors, limits.error_rate_per_ip, &customer(from))
                || erred(&known.network_errors, limits.error_rate_per_network, &network)
            {
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
            error_rate_per_network: None,
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
    fn errors_are_held_against_a_customer_and_a_network() {
        let rate = |count| Some(Rate::new(count, Duration::from_secs(60)));
        let gate =
            gate(ClientLimits { error_rate_per_ip: rate(2), error_rate_per_network: rate(4), ..wide() });
        // One of the many addresses of a /64 is as good as another.
        gate.erred(ip("2001:db8::1"), 2, Tick(0));
        assert_eq!(admit(&gate, "2001:db8::2", 0).err(), Some(Refused::Errors));
        assert!(admit(&gate, "2001:db8:0:1::1", 0).is_ok());
        // Of a /24 only if there are many.
        gate.erred(ip("192.0.2.1"), 2, Tick(0));
        assert!(admit(&gate, "192.0.2.1", 0).is_err() && admit(&gate, "192.0.2.2", 0).is_ok());
        gate.erred(ip("192.0.2.3"), 2, Tick(0));
        assert_eq!(admit(&gate, "192.0.2.2", 0).err(), Some(Refused::Errors));
        assert!(admit(&gate, "192.0.3.2", 0).is_ok());
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
    fn logins_under_way_count_as_failed() {
        let gate = gate(wide());
        let from = ip("192.0.2.1");
        gate.login_failed(from, Tick(0));
        let mut pending = Vec::new();
        while let Login::May(login) = gate.begin_login(from, Tick(0)) {
            pending.push(login);
        }
        assert_eq!(pending.len() as u32, limits::FAILED_LOGINS_PER_IP - 1);
        assert!(matches!(gate.begin_login(from, Tick(0)), Login::Wait), "they may all be right");
        pending.pop();
        assert!(matches!(gate.begin_login(from, Tick(0)), Login::May(_)));
        pending.drain(..).for_each(|_| gate.login_failed(from, Tick(0)));
        gate.login_failed(from, Tick(0));
        assert!(matches!(gate.begin_login(from, Tick(0)), Login::No));
        assert!(gate.known().pending_logins.is_empty());
    }

    #[test]
    fn messages_of_users_and_addresses() {
        let rate = Rate::new(3, Duration::from_secs(3));
        let gate = gate(ClientLimits { message_rate_per_ip: Some(rate), ..wide() });
        for addresses in [["192.0.2.1"; 3], ["2001:db8::1", "2001:db8::2", "2001:db8::3"]] {
            let came = addresses.iter().cycle().take(9).filter(|from| gate.may_mail(ip(from), Tick(0)));
            assert_eq!(came.count(), 3);
        }
        assert!(gate.may_submit("A", rate, Tick(0)));
        gate.submitted("a", rate, 2, Tick(0));
        assert!(!gate.may_submit("a", rate, Tick(0)) && gate.may_submit("b", rate, Tick(0)));
    }
}
