//! Limits of local addresses, counted at the send edge over two shards.
use std::net::IpAddr;

use super::shared_limits::Pair;
use super::*;

fn address(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

fn set(addresses: &[u8]) -> SourceSet {
    SourceSet::of(&addresses.iter().map(|last| address(*last)).collect::<Vec<_>>())
}

/// A pair whose addresses have these limits; each list is a set.
fn pair(sets: fn(&Domain) -> Option<SourceSet>, limits: &[(u8, Limits)], lists: &[&[u8]]) -> Pair {
    Pair::with(sets, |policies| policies.sources = sources(limits, lists))
}

fn sources(limits: &[(u8, Limits)], lists: &[&[u8]]) -> Sources {
    let mut sources = Sources::default();
    limits.iter().for_each(|(last, limits)| sources.limit(address(*last), *limits));
    lists.iter().for_each(|list| sources.add(&list.iter().map(|last| address(*last)).collect::<Vec<_>>()));
    sources
}

fn connections(connections: u32) -> Limits {
    Limits { connections, ..Limits::NONE }
}

/// Messages for six destinations, three at each shard.
fn fill(pair: &mut Pair, messages: u32) {
    for slot in 0..messages {
        let of = slot as usize % 6;
        pair.enqueue(of % 2, &format!("d{of}.test"), slot);
    }
}

fn run(pair: &mut Pair, ms: u64, rounds: usize) {
    for _ in 0..rounds {
        pair.turn();
        pair.pass(ms);
        if pair.left() == 0 {
            return;
        }
    }
}

#[test]
fn each_address_has_its_connections_and_none_is_left_idle() {
    let limits = [(2, connections(1)), (3, connections(2)), (4, connections(3))];
    let mut pair = pair(|_| Some(set(&[2, 3, 4])), &limits, &[&[2, 3, 4]]);
    fill(&mut pair, 1200);
    run(&mut pair, 10, 100_000);
    assert_eq!(pair.left(), 0, "everything is delivered");
    for (last, limits) in limits {
        assert_eq!(pair.peak[&address(last)] as u32, limits.connections, "{last}: all are used, never more");
    }
    assert_eq!(pair.most, 6);
    pair.pass(60_000);
    for shard in &pair.shards {
        assert_eq!(shard.stats(), ShardStats::default());
        assert!(shard.contended.is_empty());
        for last in 2..5 {
            assert_eq!(
                shard.pools.describe(PoolKey::Source(address(last))),
                None,
                "nothing is held for ever"
            );
        }
    }
}

#[test]
fn addresses_take_turns() {
    let mut pair = pair(|_| Some(set(&[2, 3])), &[(2, connections(50)), (3, connections(50))], &[&[2, 3]]);
    fill(&mut pair, 600);
    run(&mut pair, 10, 10_000);
    let made = [2, 3].map(|last| pair.opened[&address(last)].len());
    assert!(made[0].abs_diff(made[1]) <= 1 && made[0] > 3, "{made:?}");
}

/// No more than the rate in any of its windows.
fn holds(times: &[u64], rate: Rate) -> bool {
    let (count, per) = (rate.count as usize, rate.per.as_micros() as u64);
    times.windows(count + 1).all(|w| w[count] - w[0] >= per)
}

#[test]
fn each_address_has_its_rates() {
    let rates = [(2, 20, 4), (3, 50, 2)].map(|(last, messages, new)| {
        let second = Duration::from_secs(1);
        (last, Rate::new(messages, second), Rate::new(new, second))
    });
    let limits = rates.map(|(last, messages, new)| {
        let rates = (Some(new), Some(messages));
        (last, Limits { connections: 4, connection_rate: rates.0, message_rate: rates.1 })
    });
    let mut pair = pair(|_| Some(set(&[2, 3])), &limits, &[&[2, 3]]);
    fill(&mut pair, 3000);
    for _ in 0..6000 {
        pair.turn();
        pair.pass(5);
    }
    for (last, messages, new) in rates {
        let sent = &pair.carried[&address(last)];
        assert!(holds(sent, messages), "{last}: messages");
        assert!(holds(&pair.opened[&address(last)], new), "{last}: connections");
        let late: Vec<u64> = sent.iter().copied().filter(|at| *at > sent[0] + 5_000_000).collect();
        let span = (late[late.len() - 1] - late[0]) as f64 / 1e6;
        let share = late.len() as f64 / (f64::from(messages.count) * span);
        assert!(share >= 0.95, "{last}: {share} of what it may");
    }
}

/// Those who may use one address alone wait for that; others do not wait behind them.
fn by_name(domain: &Domain) -> Option<SourceSet> {
    Some(if domain.as_str() < "d3" { set(&[2]) } else { set(&[2, 3]) })
}

#[test]
fn sets_that_share_an_address_share_it_and_hold_nobody_else_up() {
    let limits = [(2, connections(1)), (3, connections(1))];
    let mut pair = pair(by_name, &limits, &[&[2], &[2, 3]]);
    fill(&mut pair, 1200);
    while pair.left() > 600 {
        pair.turn();
        pair.pass(10);
    }
    let left_of = |pair: &Pair, all: std::ops::Range<usize>| -> u64 {
        let of = |of: usize| pair.shards[of % 2].explain(&domain(&format!("d{of}.test")));
        all.filter_map(of).map(|known| known.stats.ready).sum()
    };
    let left = [left_of(&pair, 0..3), left_of(&pair, 3..6)];
    assert!(left.iter().all(|left| (150..450).contains(left)), "both go on: {left:?} of 600 each are left");
    run(&mut pair, 10, 10_000);
    assert_eq!(pair.left(), 0);
    assert_eq!([2, 3].map(|last| pair.peak[&address(last)]), [1, 1]);
    let carried = [2, 3].map(|last| pair.carried[&address(last)].len());
    assert!(carried.iter().all(|carried| *carried > 550), "neither rests while somebody waits: {carried:?}");
}

#[test]
fn who_waits_for_an_address_is_told_which() {
    let mut pair = pair(|_| Some(set(&[2])), &[(2, connections(1))], &[&[2]]);
    fill(&mut pair, 60);
    let gates = pair.shards[0].explain(&domain("d2.test")).expect("it has mail").gates;
    let gate = gates.iter().find(|gate| gate.kind == GateKind::SharedLimit).expect("it waits");
    let wanted = "waits for a connection: any of source 127.0.0.2 (connections 1; 1 in use, 0 wait)";
    assert_eq!(gate.detail, wanted);
    let rate = Limits { message_rate: Some(Rate::new(5, Duration::from_secs(60))), ..Limits::NONE };
    let mut pair = Pair::with(|_| Some(set(&[2])), |p| p.sources = sources(&[(2, rate)], &[&[2]]));
    fill(&mut pair, 60);
    (0..10).for_each(|_| pair.turn());
    let gates =
        |of: usize| pair.shards[of % 2].explain(&domain(&format!("d{of}.test"))).expect("it has mail").gates;
    let wanted = "waits for a message: source 127.0.0.2 (message-rate 5/m";
    let says = |of: &usize| gates(*of).iter().any(|gate| gate.detail.starts_with(wanted));
    assert_eq!((0..6).filter(says).count(), 1, "one connection waits for what a minute brings");
    assert_eq!(pair.opened[&address(2)].len(), 1);
    pair.pass(11_000);
    assert!(pair.opened[&address(2)].len() <= 3, "none is made to be closed: {:?}", pair.opened);
}

#[test]
fn a_set_that_is_no_longer_configured_keeps_nobody_waiting() {
    let mut pair = pair(|_| Some(set(&[2])), &[(2, connections(1))], &[&[2]]);
    fill(&mut pair, 60);
    assert_eq!(pair.most, 1);
    pair.sets = |_| Some(set(&[3]));
    let mut policies = Policies::one(Settings::new().policy);
    policies.sources = sources(&[(3, connections(2))], &[&[3]]);
    let policies = Arc::new(policies);
    (0..2).for_each(|shard| pair.tell(shard, Event::Policies(policies.clone())));
    run(&mut pair, 10, 10_000);
    assert_eq!(pair.left(), 0);
    assert_eq!(pair.peak[&address(3)], 2);
    // A higher limit is used at once.
    let mut pair = super::source_limits::pair(|_| Some(set(&[2])), &[(2, connections(1))], &[&[2]]);
    fill(&mut pair, 600);
    let mut policies = Policies::one(Settings::new().policy);
    policies.sources = sources(&[(2, connections(3))], &[&[2]]);
    let policies = Arc::new(policies);
    (0..2).for_each(|shard| pair.tell(shard, Event::Policies(policies.clone())));
    assert_eq!(pair.peak[&address(2)], 3);
}
