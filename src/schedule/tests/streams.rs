//! Limits of streams, counted at the send edge over two shards.
use super::shared_limits::Pair;
use super::*;

const LIMITED: u16 = 3;

/// A pair where the stream has these limits.
fn pair(limits: Limits, change: impl Fn(&mut Policies)) -> Pair {
    Pair::with(
        |_| None,
        |policies| {
            policies.streams = vec![StreamPolicy::default(); 5];
            let name = "tenant-a".into();
            policies.streams[usize::from(LIMITED)] = StreamPolicy { name, weight: 1, limits };
            change(policies);
        },
    )
}

/// Messages of the limited stream and of another, in turn, for so many destinations.
fn fill(pair: &mut Pair, messages: u32, destinations: usize) {
    for slot in 0..messages {
        let of = slot as usize / 2 % destinations;
        let stream = StreamId::new(if is_limited(slot) { LIMITED } else { 2 });
        pair.enqueue_of(of % 2, &format!("d{of}.test"), slot, stream);
    }
}

fn is_limited(slot: u32) -> bool {
    slot.is_multiple_of(2)
}

#[test]
fn a_stream_has_its_connections_wherever_its_mail_goes() {
    let mut pair = pair(Limits { connections: 2, ..Limits::NONE }, |_| {});
    fill(&mut pair, 1200, 6);
    let mut most = 0;
    for _ in 0..50_000 {
        pair.turn();
        pair.pass(10);
        let carries = |held: &&Vec<Entry>| held.iter().any(|entry| is_limited(entry.slot));
        most = most.max(pair.held().filter(carries).count());
        let mixed = |held: &Vec<Entry>| {
            held.iter().any(|e| is_limited(e.slot)) && held.iter().any(|e| !is_limited(e.slot))
        };
        assert!(!pair.held().any(mixed), "a stream with limits has connections of its own");
    }
    assert_eq!(pair.left(), 0, "everything is delivered");
    assert_eq!(most, 2, "all it may have, never more");
    for shard in &pair.shards {
        assert_eq!(shard.stats(), ShardStats::default());
        assert!(shard.contended.is_empty());
        assert_eq!(shard.pools.describe(PoolKey::Stream(LIMITED)), None, "nothing is held for ever");
    }
}

/// When the stream's messages were sent, and the others'.
fn times(pair: &Pair) -> [Vec<u64>; 2] {
    [true, false].map(|limited| {
        let own = pair.slots.iter().filter(|(_, slot)| is_limited(*slot) == limited);
        own.map(|(at, _)| *at).collect()
    })
}

#[test]
fn a_stream_has_its_rate_and_holds_nobody_else_up() {
    let rate = Rate::new(50, Duration::from_secs(1));
    let mut pair = pair(Limits { message_rate: Some(rate), ..Limits::NONE }, |_| {});
    fill(&mut pair, 2000, 4);
    for _ in 0..6000 {
        pair.turn();
        pair.pass(5);
    }
    assert_eq!(pair.left(), 0);
    let [own, others] = times(&pair);
    assert!(own.windows(51).all(|w| w[50] - w[0] >= 1_000_000), "never more than the rate");
    let span = (own[own.len() - 1] - own[0]) as f64 / 1e6;
    assert!(own.len() as f64 >= 0.95 * 50.0 * span, "{} in {span} s", own.len());
    assert!(others[others.len() - 1] - others[0] < 5_000_000, "the others do not wait for it");
}

/// A stream's grant comes from elsewhere, and the destination's rate may be gone by then.
#[test]
fn a_stream_with_a_rate_is_not_starved_where_its_destination_has_one_too() {
    let rate = Rate::new(20, Duration::from_secs(1));
    let mut pair = pair(Limits { message_rate: Some(rate), ..Limits::NONE }, |policies| {
        policies.list[0].limits.message_rate = Some(Rate::new(40, Duration::from_secs(1)));
    });
    // One destination, whose shard is not the one that counts the stream, and one whose is.
    for name in [0, 1] {
        for slot in 0..2000 {
            let stream = StreamId::new(if is_limited(slot) { LIMITED } else { 2 });
            pair.enqueue_of(name, &format!("d{name}.test"), slot + 2000 * name as u32, stream);
        }
    }
    for _ in 0..4000 {
        pair.turn();
        pair.pass(5);
    }
    let [own, others] = times(&pair);
    assert!(own.windows(21).all(|w| w[20] - w[0] >= 1_000_000), "the stream's rate holds");
    assert!(own.len() >= 19 * 19, "{} of the stream in 20 s at 20/s", own.len());
    assert!(
        own.len() + others.len() >= 76 * 19,
        "{} and {} in 20 s at 2 times 40/s",
        own.len(),
        others.len()
    );
}

#[test]
fn why_names_the_stream() {
    let mut pair = pair(Limits { connections: 1, ..Limits::NONE }, |_| {});
    fill(&mut pair, 60, 6);
    let gates = pair.shards[0].explain(&domain("d2.test")).expect("it has mail").gates;
    let gate = gates.iter().find(|gate| gate.kind == GateKind::SharedLimit).expect("it waits");
    assert!(
        gate.detail.starts_with("waits for a connection: stream tenant-a (connections 1"),
        "{}",
        gate.detail
    );
}

#[test]
fn limits_that_come_and_go_lose_nothing() {
    let mut pair = pair(Limits::NONE, |_| {});
    fill(&mut pair, 600, 6);
    for round in 0..40 {
        let mut policies = Policies::one(Settings::new().policy);
        let limits = Limits { connections: 1 + round % 3, ..Limits::NONE };
        policies.streams = vec![StreamPolicy::default(); 5];
        policies.streams[usize::from(LIMITED)].limits = if round % 2 == 0 { limits } else { Limits::NONE };
        let policies = Arc::new(policies);
        (0..2).for_each(|shard| pair.tell(shard, Event::Policies(policies.clone())));
        (0..5).for_each(|_| pair.turn());
        pair.pass(10);
        for slot in 0..12 {
            let of = slot as usize % 6;
            pair.enqueue_of(of % 2, &format!("d{of}.test"), 1000 + round * 12 + slot, StreamId::new(LIMITED));
        }
    }
    for _ in 0..20_000 {
        pair.turn();
        pair.pass(10);
    }
    assert_eq!(pair.left(), 0);
    assert_eq!(pair.slots.len(), 600 + 40 * 12);
    pair.pass(60_000);
    assert!(pair.shards.iter().all(|shard| shard.stats() == ShardStats::default()));
}
