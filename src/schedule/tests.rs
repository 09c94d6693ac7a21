//! What the scheduler answers, event by event.
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::limits;

#[path = "tests/shared.rs"]
mod shared_limits;
#[path = "tests/sources.rs"]
mod source_limits;
#[path = "tests/streams.rs"]
mod stream_limits;
#[path = "tests/limits.rs"]
mod throttled;

const START: u64 = 1_700_000_000;

fn domain(text: &str) -> Domain {
    Domain::parse(text.as_bytes()).expect("valid")
}

/// A shard with one policy for all, before it is made.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) homes: u8,
    pub(super) jitter_percent: u8,
    pub(super) policy: Policy,
    pub(super) window: usize,
    pub(super) connections_per_home: usize,
    pub(super) connection_idle: Duration,
}

impl Settings {
    pub(super) fn new() -> Settings {
        Settings {
            seed: 1,
            homes: 4,
            jitter_percent: 0,
            policy: Policy {
                limits: Limits { connections: 4, ..Limits::NONE },
                messages_per_connection: 100,
                recipients_per_message: 100,
                retry_schedule: vec![Duration::from_secs(60), Duration::from_secs(300)],
                max_age: Duration::from_secs(10_000),
                delay_warning: None,
                adaptive: false,
            },
            window: 2,
            connections_per_home: 100,
            connection_idle: Duration::from_secs(5),
        }
    }

    pub(super) fn shard(&self) -> Shard {
        Shard::new(ShardConfig {
            seed: self.seed,
            homes: self.homes,
            index: 0,
            shards: 1,
            jitter_percent: self.jitter_percent,
            policies: Arc::new(Policies::one(self.policy.clone())),
            window: self.window,
            connections_per_home: self.connections_per_home,
            connection_idle: self.connection_idle,
        })
    }
}

/// A shard with a clock, and shorthands for what a driver does.
struct Bench {
    shard: Shard,
    now: WallTime,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Settings)) -> Bench {
        let mut config = Settings::new();
        change(&mut config);
        Bench { shard: config.shard(), now: WallTime::from_secs(START) }
    }
    fn handle(&mut self, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.shard.handle(self.now, event, &mut actions);
        actions
    }
    fn enqueue_due(&mut self, name: &str, home: u8, slot: u32, due: u64) -> Vec<Action> {
        let (destination, received_at) = (&domain(name), self.now);
        let (entry, due) = (Entry { home, slot, part: 0 }, WallTime::from_secs(due));
        let stream = StreamId::default();
        self.handle(Event::Enqueue {
            destination,
            entry,
            stream,
            recipients: 1,
            attempts: 0,
            told: false,
            received_at,
            due,
        })
    }
    fn enqueue(&mut self, name: &str, home: u8, slot: u32) -> Vec<Action> {
        self.enqueue_due(name, home, slot, 0)
    }
    fn want(&mut self, conn: ConnId) -> Vec<Action> {
        self.handle(Event::Want { conn, room: 2 })
    }
    fn pass(&mut self, secs: u64) {
        self.now = WallTime(self.now.0 + secs * 1_000_000);
    }
    /// Lets time pass to `secs` after the start, with every timer on the way.
    fn until(&mut self, secs: u64) -> Vec<Action> {
        let end = WallTime::from_secs(START + secs);
        let mut actions = Vec::new();
        while let Some(at) = self.shard.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            actions.extend(self.handle(Event::Timer));
        }
        self.now = end;
        actions
    }
}

fn connects(actions: &[Action]) -> Vec<(u8, ConnId)> {
    let connect = |action: &Action| match action {
        Action::Connect { home, conn, .. } => Some((*home, *conn)),
        _ => None,
    };
    actions.iter().filter_map(connect).collect()
}

fn delivered(actions: &[Action]) -> Vec<u32> {
    let deliver = |action: &Action| match action {
        Action::Deliver { entry, .. } => Some(entry.slot),
        _ => None,
    };
    actions.iter().filter_map(deliver).collect()
}

fn closes(actions: &[Action]) -> Vec<ConnId> {
    let close = |action: &Action| match action {
        Action::Close { conn, .. } => Some(*conn),
        _ => None,
    };
    actions.iter().filter_map(close).collect()
}

fn entry(home: u8, slot: u32) -> Entry {
    Entry { home, slot, part: 0 }
}

#[test]
fn one_message_from_start_to_idle_close() {
    let mut bench = Bench::new(|_| ());
    let (_, conn) = connects(&bench.enqueue("a.test", 1, 7))[0];
    assert_eq!(bench.want(conn), [Action::Deliver { home: 1, conn, entry: entry(1, 7) }]);
    assert_eq!(bench.handle(Event::Finished { conn, entry: entry(1, 7), verdict: Verdict::Nothing }), []);
    assert_eq!(bench.want(conn), []);
    assert_eq!(bench.enqueue("a.test", 1, 8), [Action::Deliver { home: 1, conn, entry: entry(1, 8) }]);
    bench.handle(Event::Finished { conn, entry: entry(1, 8), verdict: Verdict::Nothing });
    assert_eq!(bench.until(4), []);
    assert_eq!(bench.until(5), [Action::Close { home: 1, conn }]);
    assert_eq!(bench.shard.stats().connections, 1);
    bench.handle(Event::Closed { conn });
    assert_eq!(bench.shard.stats(), ShardStats::default());
    assert_eq!(bench.shard.next_timer(), None);
}

#[test]
fn opens_as_many_connections_as_are_useful() {
    for (messages, limit, expected) in [(1, 20, 1), (4, 20, 1), (5, 20, 2), (64, 20, 16), (200, 20, 20)] {
        let mut bench = Bench::new(|config| config.policy.limits.connections = limit);
        let opened: usize = (0..messages).map(|slot| connects(&bench.enqueue("a.test", 0, slot)).len()).sum();
        assert_eq!(opened, expected, "{messages} messages, {limit} connections");
    }
}

#[test]
fn a_connection_gets_its_room_and_no_more() {
    for (room, window, expected) in [(0, 2, 0), (1, 2, 1), (2, 2, 2), (9, 2, 2), (9, 5, 5)] {
        let mut bench = Bench::new(|config| config.window = window);
        let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
        (1..9).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
        let got = delivered(&bench.handle(Event::Want { conn, room }));
        assert_eq!(got, (0..expected).collect::<Vec<_>>(), "room {room} window {window}");
        let more = bench.handle(Event::Want { conn, room });
        assert_eq!(delivered(&more).len() + got.len(), (2 * usize::from(room)).min(window));
    }
}

#[test]
fn closes_after_messages_per_connection() {
    let mut bench = Bench::new(|config| config.policy.messages_per_connection = 3);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    (1..8).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    assert_eq!(delivered(&bench.want(conn)), [0, 1]);
    bench.handle(Event::Finished { conn, entry: entry(0, 0), verdict: Verdict::Nothing });
    let last = bench.want(conn);
    assert_eq!((delivered(&last), closes(&last)), (vec![2], vec![conn]));
    assert_eq!(bench.want(conn), []);
}

#[test]
fn a_deferred_part_follows_the_schedule_and_expires_to_the_second() {
    let mut bench = Bench::new(|config| config.policy.max_age = Duration::from_secs(500));
    let (_, mut conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    bench.want(conn);
    for (attempts, next) in [(1, 60), (2, 360), (3, 500)] {
        let event =
            Event::Deferred { conn, entry: entry(0, 0), recipients_left: 1, verdict: Verdict::Nothing };
        let expected =
            Action::Deferred { entry: entry(0, 0), attempts, next: WallTime::from_secs(START + next) };
        assert_eq!(bench.handle(event), [expected]);
        bench.handle(Event::Closed { conn });
        assert_eq!(bench.until(next - 1), []);
        let woken = bench.until(next);
        if next == 500 {
            assert_eq!(woken, [Action::Expired { entry: entry(0, 0) }]);
        } else {
            conn = connects(&woken)[0].1;
            assert_eq!(delivered(&bench.want(conn)), [0]);
        }
    }
    assert_eq!(bench.shard.stats(), ShardStats::default());
}

#[test]
fn ready_mail_expires_behind_limits_and_at_hand_out() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    bench.pass(10);
    bench.enqueue("a.test", 0, 1);
    assert_eq!(bench.until(9_999), []);
    assert_eq!(bench.until(10_000), [Action::Expired { entry: entry(0, 0) }]);
    // At most one sweep in 10000/256 s: at 10039 s the second goes, though it was too old at 10010.
    assert_eq!(bench.until(10_038), []);
    assert_eq!(bench.until(10_039), [Action::Expired { entry: entry(0, 1) }]);

    bench.enqueue("a.test", 0, 2);
    bench.pass(10_000);
    assert_eq!(bench.want(conn), [Action::Expired { entry: entry(0, 2) }]);
    assert_eq!(bench.enqueue_due("a.test", 0, 3, 0), [Action::Deliver { home: 0, conn, entry: entry(0, 3) }]);
}

#[test]
fn recovered_mail_waits_until_it_is_due() {
    let mut bench = Bench::new(|_| ());
    assert_eq!(bench.enqueue_due("a.test", 0, 0, START + 100), []);
    let listed = &bench.shard.destinations(5)[0];
    assert_eq!((listed.deferred, listed.next), (1, Some(WallTime::from_secs(START + 100))));
    assert_eq!(bench.until(99), []);
    assert_eq!(connects(&bench.until(100)).len(), 1);
    bench.now = WallTime(0);
    let late = Event::Enqueue {
        destination: &domain("a.test"),
        entry: entry(0, 1),
        stream: StreamId::default(),
        recipients: 1,
        attempts: 9,
        told: true,
        received_at: WallTime::from_secs(1),
        due: WallTime::from_secs(START * 2),
    };
    assert_eq!(bench.handle(late), [Action::Expired { entry: entry(0, 1) }]);
}

#[test]
fn a_failed_destination_rests_defers_its_mail_and_is_probed() {
    let mut bench = Bench::new(|_| ());
    let mut opened = Vec::new();
    for slot in 0..16 {
        opened.extend(connects(&bench.enqueue("a.test", 0, slot)));
    }
    assert_eq!(opened.len(), 4);
    let actions =
        bench.handle(Event::ConnectFailed { conn: opened[0].1, permanent: false, verdict: Verdict::Nothing });
    let next = WallTime::from_secs(START + 60);
    let expected: Vec<Action> =
        (0..16).map(|slot| Action::Deferred { entry: entry(0, slot), attempts: 1, next }).collect();
    assert_eq!(actions, expected);
    assert_eq!(bench.shard.destinations(1)[0].backoff_until, Some(next));
    for (_, conn) in &opened[1..] {
        assert_eq!(
            bench.handle(Event::ConnectFailed { conn: *conn, permanent: false, verdict: Verdict::Nothing }),
            []
        );
    }
    assert_eq!(bench.enqueue("a.test", 0, 16), []);
    assert_eq!(bench.until(59), []);
    let probe = connects(&bench.until(60));
    assert_eq!(probe.len(), 1, "one connection probes");
    let again =
        bench.handle(Event::ConnectFailed { conn: probe[0].1, permanent: false, verdict: Verdict::Nothing });
    assert_eq!(again.len(), 17);
    assert_eq!(bench.until(359), []);
    let probe = connects(&bench.until(360))[0].1;
    assert_eq!(bench.shard.destinations(1)[0].connections, 1);
    let first = delivered(&bench.want(probe))[0];
    let recovered =
        bench.handle(Event::Finished { conn: probe, entry: entry(0, first), verdict: Verdict::Nothing });
    assert_eq!(connects(&recovered).len(), 3, "an outcome ends the probing");
}

#[test]
fn a_failure_beside_working_connections_only_pauses() {
    let mut bench = Bench::new(|_| ());
    let mut opened = Vec::new();
    for slot in 0..30 {
        opened.extend(connects(&bench.enqueue("a.test", 0, slot)));
    }
    bench.want(opened[0].1);
    assert_eq!(
        bench.handle(Event::ConnectFailed { conn: opened[1].1, permanent: false, verdict: Verdict::Nothing }),
        []
    );
    assert_eq!(bench.shard.destinations(1)[0].backoff_until, None);
    assert_eq!(bench.until(9), []);
    assert_eq!(connects(&bench.until(10)).len(), 1);
    assert_eq!(bench.handle(Event::ConnectPutOff { conn: opened[2].1 }), []);
    assert_eq!(connects(&bench.until(11)).len(), 1);
}

#[test]
fn a_peer_that_greets_and_hangs_up_is_not_dialled_without_end() {
    let mut bench = Bench::new(|_| ());
    let mut pending = connects(&bench.enqueue("a.test", 0, 0));
    let mut dials = 0;
    while let Some((_, conn)) = pending.pop() {
        dials += 1;
        for slot in delivered(&bench.want(conn)) {
            pending.extend(connects(&bench.handle(Event::Returned { conn, entry: entry(0, slot) })));
        }
        pending.extend(connects(&bench.handle(Event::Closed { conn })));
    }
    assert!(dials <= 2, "{dials}");
    assert!(bench.shard.destinations(1)[0].backoff_until.is_some());
}

#[test]
fn a_permanent_failure_fails_everything_in_batches() {
    let mut bench = Bench::new(|_| ());
    let many = limits::SCHEDULE_BATCH * 2 + 50;
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    (1..many).for_each(|slot| drop(bench.enqueue("a.test", (slot % 3) as u8, slot)));
    (many..2 * many).for_each(|slot| drop(bench.enqueue_due("a.test", 1, slot, START + 500)));
    let first = bench.handle(Event::ConnectFailed { conn, permanent: true, verdict: Verdict::Nothing });
    assert!(!first.is_empty() && first.len() <= limits::SCHEDULE_BATCH as usize);
    assert_eq!(bench.shard.next_timer(), Some(bench.now));
    let rest = bench.until(1);
    let failed = first.iter().chain(&rest).filter(|action| matches!(action, Action::Fail { .. })).count();
    assert_eq!(failed, 2 * many as usize);
    assert_eq!(bench.shard.stats().entries, 0);
}

#[test]
fn retry_makes_deferred_mail_due_without_a_stampede() {
    for name in [Some("a.test"), None] {
        let mut bench = Bench::new(|_| ());
        (0..1000).for_each(|slot| drop(bench.enqueue_due("a.test", 0, slot, START + 900)));
        bench.enqueue_due("b.test", 0, 5000, START + 900);
        let name = name.map(domain);
        let mut actions = bench.handle(Event::Retry { destination: name.as_ref() });
        actions.extend(bench.until(1));
        let b_too = usize::from(name.is_none());
        assert_eq!(connects(&actions).len(), 4 + b_too);
        assert_eq!(bench.shard.stats().ready, 1000 + b_too as u64);
    }
}

#[test]
fn retry_ends_a_backoff_with_one_probe() {
    let mut bench = Bench::new(|_| ());
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    (1..50).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    bench.handle(Event::ConnectFailed { conn, permanent: false, verdict: Verdict::Nothing });
    let a = domain("a.test");
    // Three more connections were being opened when the first failed: they hold their slots.
    assert_eq!(connects(&bench.handle(Event::Retry { destination: Some(&a) })).len(), 0);
    assert_eq!(bench.shard.stats().ready, 50);
}

#[test]
fn take_finds_an_entry_wherever_it_waits() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let a = domain("a.test");
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    bench.want(conn);
    (1..4).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    bench.enqueue("a.test", 1, 4);
    bench.enqueue_due("a.test", 0, 5, START + 60);
    for (home, slot, left) in [(0, 2, 3), (1, 4, 2), (0, 5, 1), (0, 77, 1), (0, 0, 1)] {
        let wanted = entry(home, slot);
        let before = bench.shard.stats();
        let actions = bench.handle(Event::Take { destination: &a, which: Take::These(&[wanted]), tag: 9 });
        let taken =
            actions.iter().any(|a| matches!(a, Action::Taken { entry, tag: 9, .. } if *entry == wanted));
        assert_eq!(taken, before.ready + before.deferred > left, "{home}/{slot}");
        let stats = bench.shard.stats();
        assert_eq!(stats.ready + stats.deferred, left, "after {home}/{slot}");
    }
    assert_eq!(bench.shard.stats().in_flight, 2, "what is in flight stays");
}

#[test]
fn take_gives_up_some_or_these_and_says_how_they_stood() {
    let waiting = |due: u64| Waiting {
        recipients: 1,
        attempts: 0,
        told: false,
        stream: StreamId::default(),
        received_at: WallTime::from_secs(START),
        due: WallTime::from_secs(due),
    };
    let taken = |actions: Vec<Action>| -> Vec<(u32, Waiting)> {
        let of = |action| match action {
            Action::Taken { entry, waiting, .. } => Some((entry.slot, waiting)),
            _ => None,
        };
        actions.into_iter().filter_map(of).collect()
    };
    let a = domain("a.test");
    let some = |ready, deferred, most| Take::Some { ready, deferred, stream: None, most };
    let of = |number, most| Take::Some { ready: true, deferred: true, stream: Some(number), most };
    let these = [2, 13, 77, 14].map(|slot| entry(0, slot));
    for (which, slots) in [
        (some(true, true, 99), vec![0, 1, 2, 10, 11, 12, 13, 14, 20, 21]),
        (some(true, true, 2), vec![0, 20]),
        (some(true, false, 9), vec![0, 1, 2, 20]),
        (some(false, true, 9), vec![10, 11, 12, 13, 14, 21]),
        (some(false, false, 9), vec![]),
        (of(0, 2), vec![0, 1]),
        (of(0, 9), vec![0, 1, 2, 10, 11, 12, 13, 14]),
        (of(7, 9), vec![20, 21]),
        (of(8, 9), vec![]),
        (Take::These(&these), vec![2, 13, 14]),
        (Take::These(&[]), vec![]),
    ] {
        let mut bench = Bench::new(|_| ());
        (0..3).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
        (10..15).for_each(|slot| drop(bench.enqueue_due("a.test", 0, slot, START + u64::from(slot))));
        bench.enqueue("b.test", 0, 77);
        for (slot, stream, due) in [(20, StreamId::urgent(7), START), (21, StreamId::new(7), START + 9)] {
            let (received_at, due) = (bench.now, WallTime::from_secs(due));
            let (destination, entry) = (&a, entry(0, slot));
            bench.handle(Event::Enqueue {
                destination,
                entry,
                stream,
                recipients: 1,
                attempts: 0,
                told: false,
                received_at,
                due,
            });
        }
        let mut found = taken(bench.handle(Event::Take { destination: &a, which, tag: 0 }));
        found.sort_unstable_by_key(|t| t.0);
        assert_eq!(found.iter().map(|t| t.0).collect::<Vec<_>>(), slots, "{which:?}");
        for (slot, known) in &found {
            if (10..20).contains(slot) {
                assert_eq!(*known, waiting(START + u64::from(*slot)), "{which:?}");
            }
        }
        let left = bench.shard.stats();
        assert_eq!(left.ready + left.deferred, 11 - slots.len() as u64, "{which:?}");
        // What was left is delivered in its order.
        let rest = taken(bench.handle(Event::Take { destination: &a, which: some(true, false, 99), tag: 0 }));
        let rest: Vec<u32> = rest.into_iter().map(|t| t.0).filter(|slot| *slot < 20).collect();
        assert!(rest.is_sorted(), "{which:?}: {rest:?}");
    }
}

#[test]
fn a_home_without_a_connection_gets_a_slot_from_one_that_has_more() {
    let mut bench = Bench::new(|_| ());
    let mut opened = Vec::new();
    for slot in 0..100 {
        opened.extend(connects(&bench.enqueue("a.test", 0, slot)));
    }
    for (_, conn) in &opened {
        bench.want(*conn);
    }
    assert_eq!(bench.enqueue("a.test", 1, 200), []);
    let first = opened[2].1;
    assert_eq!(bench.want(first), [Action::Close { home: 0, conn: first }]);
    assert_eq!(closes(&bench.want(opened[0].1)), [], "one slot is enough");
    let granted = connects(&bench.handle(Event::Closed { conn: first }));
    assert_eq!(granted.iter().map(|(home, _)| *home).collect::<Vec<_>>(), [1]);
}

#[test]
fn homes_take_turns_on_a_single_slot() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let mut open = connects(&bench.enqueue("a.test", 0, 0));
    for slot in 1..400 {
        for home in 0..3 {
            open.extend(connects(&bench.enqueue("a.test", home, slot)));
        }
    }
    let mut turns = Vec::new();
    while turns.len() < 9 {
        let (home, conn) = open.pop().expect("there is mail");
        let mut carried = 0;
        loop {
            let actions = bench.handle(Event::Want { conn, room: 1 });
            if closes(&actions) == [conn] {
                break;
            }
            for slot in delivered(&actions) {
                carried += 1;
                bench.handle(Event::Finished { conn, entry: entry(home, slot), verdict: Verdict::Nothing });
            }
        }
        assert_eq!(carried, limits::CONNECTION_TURN);
        turns.push(home);
        open.extend(connects(&bench.handle(Event::Closed { conn })));
    }
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn idle_connections_make_room_for_other_homes_and_destinations() {
    // (what is full, where the second message goes)
    type Change = fn(&mut Settings);
    let destination_full: Change = |config| config.policy.limits.connections = 1;
    let home_full: Change = |config| config.connections_per_home = 1;
    let cases = [(destination_full, "a.test", 1), (home_full, "b.test", 0)];
    for (change, name, home) in cases {
        let mut bench = Bench::new(change);
        let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
        bench.want(conn);
        bench.handle(Event::Finished { conn, entry: entry(0, 0), verdict: Verdict::Nothing });
        bench.want(conn);
        assert_eq!(bench.enqueue(name, home, 1), [Action::Close { home: 0, conn }]);
        assert_eq!(connects(&bench.handle(Event::Closed { conn }))[0].0, home);
    }
}

#[test]
fn destinations_take_turns_on_a_home_that_is_full() {
    let mut bench = Bench::new(|config| config.connections_per_home = 2);
    let mut open = Vec::new();
    for slot in 0..1000 {
        open.extend(connects(&bench.enqueue("big.test", 0, slot)));
    }
    for (_, conn) in &open {
        bench.want(*conn);
    }
    for at in 0..3 {
        assert_eq!(bench.enqueue(&format!("small{at}.test"), 0, 2000 + at), []);
    }
    let conn = open[0].1;
    assert_eq!(bench.want(conn), [Action::Close { home: 0, conn }]);
    let next = bench.handle(Event::Closed { conn });
    let [Action::Connect { destination, .. }] = &next[..] else { panic!("{next:?}") };
    assert_eq!(destination.as_str(), "small0.test");
}

#[test]
fn returned_mail_is_first_again_and_counts_no_attempt() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    (1..6).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    bench.want(conn);
    bench.handle(Event::Finished { conn, entry: entry(0, 0), verdict: Verdict::Nothing });
    assert_eq!(delivered(&bench.want(conn)), [2]);
    bench.handle(Event::Returned { conn, entry: entry(0, 2) });
    let reopened = connects(&bench.handle(Event::Closed { conn }))[0].1;
    assert_eq!(delivered(&bench.want(reopened)), [1, 2]);
    let stale = Event::Finished { conn, entry: entry(0, 1), verdict: Verdict::Nothing };
    bench.handle(stale);
    assert_eq!(bench.shard.stats().in_flight, 2, "a connection that is gone changes nothing");
}

#[test]
fn shards_are_the_same_on_every_run() {
    // XXH3-64 of "a.test" and friends: a change here would move mail between shards.
    for (name, shards, shard) in SHARDS {
        assert_eq!(shard_of(&domain(name), shards), shard, "{name} of {shards}");
    }
    let spread: std::collections::BTreeSet<usize> =
        (0..200).map(|n| shard_of(&domain(&format!("d{n}.test")), 8)).collect();
    assert_eq!(spread.len(), 8);
}

const SHARDS: [(&str, usize, usize); 4] =
    [("example.com", 1, 0), ("example.com", 1000, 347), ("gmail.com", 1000, 365), ("[192.0.2.1]", 1000, 203)];
