//! From what DNS said to the addresses to dial, in order (RFC 5321 §5.1).
//!
//! Owns: preference order, the shuffle among equals, which addresses must not be dialled, and the
//! loop rule. Promises: at most `limits::MX_HOSTS_TRIED` hosts and `limits::ADDRESSES_PER_HOST`
//! addresses of each, IPv6 and IPv4 taking turns; no address that lies in a private or special range
//! and none of our own, unless `allow_private`; never a host at or past our own preference. Must not:
//! ask DNS; a null MX (RFC 7505) never gets here, the resolver's answer says it apart.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::clock::Rng;
use crate::limits;
use crate::mail::address::Domain;

/// What DNS said of a domain's mail host (built by `resolve`'s caller from its answer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    pub preference: u16,
    pub name: Domain,
    pub addresses: Vec<IpAddr>,
}

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name for TLS and for reports; the address in brackets for a fixed address.
    pub name: Box<str>,
    pub address: SocketAddr,
}

impl Target {
    /// The target of a route that names an address: no rule applies, the operator or sender chose it.
    pub fn fixed(address: SocketAddr) -> Target {
        Target { name: format!("[{}]", address.ip()).into(), address }
    }
}

#[derive(Clone, Debug)]
pub struct PlanRules<'a> {
    /// The port dialled on every host.
    pub port: u16,
    /// Dial private, loopback and our own addresses too.
    pub allow_private: bool,
    /// Our own names: an MX list is cut at the first host that is us (RFC 5321 §5.1), equal preference included.
    pub own_names: &'a [Domain],
    /// Our own listening addresses.
    pub own_addresses: &'a [IpAddr],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Try in this order; at most MX_HOSTS_TRIED hosts and ADDRESSES_PER_HOST addresses each. Not empty.
    Targets(Vec<Target>),
    /// Cannot be delivered, ever: the best MX is ourselves (5.4.6).
    Refused { enhanced: (u8, u16, u16), text: &'static str },
    /// Only private/loopback/own addresses, or no usable address now: temporary unless said otherwise.
    Nowhere { text: &'static str },
}

/// Orders hosts by preference, shuffles equals, cuts at ourselves, drops forbidden addresses.
/// Hosts without any address left do not count towards the hosts tried. An address literal is
/// planned as one host with that name and address.
pub fn plan(hosts: &[MxHost], rules: &PlanRules<'_>, rng: &mut Rng) -> Plan {
    let own =
        hosts.iter().filter(|host| rules.own_names.contains(&host.name)).map(|host| host.preference).min();
    let mut ordered: Vec<(u16, u64, &MxHost)> = hosts
        .iter()
        .filter(|host| own.is_none_or(|own| host.preference < own))
        .map(|host| (host.preference, rng.next_u64(), host))
        .collect();
    if ordered.is_empty() {
        return match own {
            Some(_) => {
                Plan::Refused { enhanced: (5, 4, 6), text: "mail for this domain loops back to this host" }
            }
            None => Plan::Nowhere { text: "the domain has no mail host" },
        };
    }
    ordered.sort_unstable_by_key(|(preference, shuffle, _)| (*preference, *shuffle));
    let targets: Vec<Target> = ordered
        .iter()
        .map(|(_, _, host)| (host, usable(&host.addresses, rules, rng)))
        .filter(|(_, addresses)| !addresses.is_empty())
        .take(limits::MX_HOSTS_TRIED)
        .flat_map(|(host, addresses)| {
            addresses.into_iter().map(|ip| Target {
                name: host.name.as_str().into(),
                address: SocketAddr::new(ip, rules.port),
            })
        })
        .collect();
    if !targets.is_empty() {
        Plan::Targets(targets)
    } else if ordered.iter().any(|(_, _, host)| !host.addresses.is_empty()) {
        Plan::Nowhere { text: "the domain's mail hosts have only private, special or our own addresses" }
    } else {
        Plan::Nowhere { text: "the domain's mail hosts have no address" }
    }
}

/// A host's addresses that may be dialled, each family shuffled, IPv6 and IPv4 taking turns.
fn usable(addresses: &[IpAddr], rules: &PlanRules<'_>, rng: &mut Rng) -> Vec<IpAddr> {
    let allowed = |ip: &IpAddr| rules.allow_private || is_public(*ip) && !rules.own_addresses.contains(ip);
    let mut once: Vec<IpAddr> = addresses.iter().copied().filter(allowed).collect();
    once.sort_unstable();
    once.dedup();
    let mut shuffled: Vec<(u64, IpAddr)> = once.into_iter().map(|ip| (rng.next_u64(), ip)).collect();
    shuffled.sort_unstable();
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) =
        shuffled.into_iter().map(|(_, ip)| ip).partition(IpAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut turns = Vec::new();
    loop {
        let turn = [six.next(), four.next()];
        if turn == [None, None] {
            turns.truncate(limits::ADDRESSES_PER_HOST);
            return turns;
        }
        turns.extend(turn.into_iter().flatten());
    }
}

/// An address on the public internet to which a mail host may point (RFC 6890 and its registries).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let this_network = a == 0;
    let shared = a == 100 && b & 0b1100_0000 == 64; // RFC 6598, carrier-grade NAT
    let protocol = (a, b, c) == (192, 0, 0); // RFC 6890
    let benchmark = a == 198 && b & 0xfe == 18; // RFC 2544
    let reserved = a >= 240; // RFC 1112, broadcast included
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || this_network
        || shared
        || protocol
        || benchmark
        || reserved)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let first = ip.segments()[0];
    let site_local = first & 0xffc0 == 0xfec0; // RFC 3879
    // Those that carry an IPv4 address would lead around the rules for it.
    let mapped = ip.to_ipv4_mapped().is_some();
    let compatible = ip.segments()[..6] == [0; 6]; // RFC 4291 §2.5.5.1, with :: and ::1
    let translated = ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]; // RFC 6052
    let six_to_four = first == 0x2002; // RFC 3056
    !(ip.is_unique_local()
        || ip.is_unicast_link_local()
        || ip.is_multicast()
        || site_local
        || mapped
        || compatible
        || translated
        || six_to_four)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text.as_bytes()).expect("valid")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn host(preference: u16, name: &str, addresses: &[&str]) -> MxHost {
        MxHost { preference, name: domain(name), addresses: addresses.iter().map(|text| ip(text)).collect() }
    }

    const RULES: PlanRules<'static> =
        PlanRules { port: 25, allow_private: false, own_names: &[], own_addresses: &[] };

    /// `name address` of every target, in order.
    fn targets(hosts: &[MxHost], rules: &PlanRules<'_>, seed: u64) -> Vec<String> {
        match plan(hosts, rules, &mut Rng::new(seed)) {
            Plan::Targets(targets) => {
                targets.iter().map(|target| format!("{} {}", target.name, target.address)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn preference_orders_and_chance_shuffles_equals() {
        let hosts = [host(20, "c", &["8.0.0.3"]), host(10, "a", &["8.0.0.1"]), host(10, "b", &["8.0.0.2"])];
        let orders: std::collections::BTreeSet<Vec<String>> =
            (0..50).map(|seed| targets(&hosts, &RULES, seed)).collect();
        let expected = [
            ["a 8.0.0.1:25", "b 8.0.0.2:25", "c 8.0.0.3:25"].map(String::from).to_vec(),
            ["b 8.0.0.2:25", "a 8.0.0.1:25", "c 8.0.0.3:25"].map(String::from).to_vec(),
        ];
        assert_eq!(orders, expected.into());
    }

    #[test]
    fn families_take_turns_within_the_bounds() {
        let hosts: Vec<MxHost> = (0..9)
            .map(|at| {
                host(
                    at,
                    &format!("h{at}"),
                    &["8.0.0.1", "8.0.0.2", "8.0.0.3", "2a00::1", "2a00::2", "8.0.0.1"],
                )
            })
            .collect();
        for seed in 0..20 {
            let found = targets(&hosts, &RULES, seed);
            assert_eq!(found.len(), limits::MX_HOSTS_TRIED * limits::ADDRESSES_PER_HOST);
            for (at, target) in found.iter().enumerate() {
                assert_eq!(target.contains('['), at % 2 == 0, "{found:?}");
            }
        }
        let mixed = [host(1, "h", &["8.0.0.1", "8.0.0.1", "8.0.0.2", "2a00::1"])];
        for seed in 0..20 {
            assert_eq!(targets(&mixed, &RULES, seed).len(), 3, "an address is tried once");
        }
        let first_empty = [host(1, "x", &[]), host(2, "y", &["8.0.0.1"])];
        assert_eq!(targets(&first_empty, &RULES, 0), ["y 8.0.0.1:25"]);
    }

    #[test]
    fn addresses_that_must_not_be_dialled() {
        for (text, public) in [
            ("8.8.8.8", true),
            ("100.63.255.255", true),
            ("100.128.0.1", true),
            ("172.32.0.1", true),
            ("192.0.1.1", true),
            ("198.20.0.1", true),
            ("2a00:1450::1", true),
            ("2001:4860::1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("169.254.1.1", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.168.0.1", false),
            ("198.18.0.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::8.8.8.8", false),
            ("::ffff:8.8.8.8", false),
            ("::ffff:127.0.0.1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("fec0::1", false),
            ("fc00::1", false),
            ("fd12::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(ip(text)), public, "{text}");
            let hosts = [host(1, "h", &[text])];
            let planned = plan(&hosts, &RULES, &mut Rng::new(1));
            assert_eq!(matches!(planned, Plan::Targets(_)), public, "{text}");
            let private = PlanRules { allow_private: true, ..RULES };
            assert_eq!(targets(&hosts, &private, 1).len(), 1, "{text}");
        }
    }

    #[test]
    fn our_own_addresses_are_dropped() {
        let own = [ip("8.0.0.1")];
        let rules = PlanRules { own_addresses: &own, ..RULES };
        assert_eq!(targets(&[host(1, "h", &["8.0.0.1", "8.0.0.2"])], &rules, 1), ["h 8.0.0.2:25"]);
        let rules = PlanRules { allow_private: true, port: 2525, ..rules };
        assert_eq!(targets(&[host(1, "h", &["8.0.0.1"])], &rules, 1), ["h 8.0.0.1:2525"]);
    }

    #[test]
    fn the_list_is_cut_at_ourselves() {
        let own = [domain("me.test")];
        let rules = PlanRules { own_names: &own, ..RULES };
        let all = |preference, name: &str| host(preference, name, &["8.0.0.1"]);
        let hosts = [all(30, "later.test"), all(20, "me.test"), all(20, "equal.test"), all(10, "first.test")];
        assert_eq!(targets(&hosts, &rules, 1), ["first.test 8.0.0.1:25"]);
        let best = [all(20, "me.test"), all(20, "equal.test"), all(30, "later.test")];
        for allow_private in [false, true] {
            let rules = PlanRules { allow_private, ..rules.clone() };
            let planned = plan(&best, &rules, &mut Rng::new(1));
            assert!(matches!(planned, Plan::Refused { enhanced: (5, 4, 6), .. }), "{planned:?}");
        }
    }

    #[test]
    fn nowhere_to_go() {
        for hosts in [vec![], vec![host(1, "h", &[])], vec![host(1, "h", &["10.0.0.1"])]] {
            let planned = plan(&hosts, &RULES, &mut Rng::new(1));
            assert!(matches!(planned, Plan::Nowhere { .. }), "{hosts:?}: {planned:?}");
        }
    }

    #[test]
    fn a_fixed_address_is_named_in_brackets() {
        for (address, name) in [("1.2.3.4:25", "[1.2.3.4]"), ("[::1]:25", "[::1]")] {
            assert_eq!(&*Target::fixed(address.parse().expect("valid")).name, name);
        }
    }
}
