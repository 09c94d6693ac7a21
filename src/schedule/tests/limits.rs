//! Rates, suspensions, warnings, ends at a rate, urgent mail, and what receivers teach.
use super::*;

#[test]
fn a_rate_holds_back_until_its_time_and_homes_take_turns() {
    let rate = Rate::new(10, Duration::from_secs(1));
    let mut bench = Bench::new(|config| config.policy.limits.message_rate = Some(rate));
    let mut conns = Vec::new();
    for slot in 0..40 {
        conns.extend(connects(&bench.enqueue("a.test", slot as u8 % 2, slot)));
    }
    let first = delivered(&bench.want(conns[0].1));
    assert_eq!(first, [0], "one message, because a second would exceed the burst");
    assert!(delivered(&bench.want(conns[1].1)).is_empty());
    assert!(bench.shard.is_throttled(0));
    let gates = bench.shard.explain(&domain("a.test")).expect("it has mail").gates;
    let rate_gate = gates.iter().find(|g| g.kind == GateKind::MessageRate).expect("the rate holds it");
    assert_eq!(rate_gate.detail, "10/s");
    assert!(rate_gate.until.is_some_and(|until| until > bench.now));

    let (end, mut times, mut by_home) = (bench.now.0 + 3_000_000, Vec::new(), [0u32; 2]);
    bench.handle(Event::Finished { conn: conns[0].1, entry: entry(0, 0), verdict: Verdict::Nothing });
    bench.want(conns[0].1);
    while let Some(at) = bench.shard.next_timer().filter(|at| at.0 <= end) {
        bench.now = bench.now.max(at);
        let actions = bench.handle(Event::Timer);
        for action in actions {
            if let Action::Deliver { home, conn, entry } = action {
                times.push(bench.now.0);
                by_home[usize::from(home)] += 1;
                bench.handle(Event::Finished { conn, entry, verdict: Verdict::Nothing });
                bench.want(conn);
            }
        }
    }
    assert!((28..=30).contains(&times.len()), "{} in three seconds", times.len());
    assert!(by_home[0].abs_diff(by_home[1]) <= 1, "{by_home:?}");
    assert!(times.windows(11).all(|w| w[10] - w[0] >= 1_000_000), "never more than ten in a second");
}

#[test]
fn new_connections_come_at_their_rate() {
    let rate = Rate::new(2, Duration::from_secs(60));
    let mut bench = Bench::new(|config| config.policy.limits.connection_rate = Some(rate));
    let opened: usize = (0..40).map(|slot| connects(&bench.enqueue("a.test", 0, slot)).len()).sum();
    assert_eq!(opened, 1);
    assert_eq!(connects(&bench.until(29)).len(), 0);
    assert_eq!(connects(&bench.until(31)).len(), 1);
    assert_eq!(connects(&bench.until(59)).len(), 0);
    let gates = bench.shard.explain(&domain("a.test")).expect("it has mail").gates;
    assert!(gates.iter().any(|g| g.kind == GateKind::ConnectionRate), "{gates:?}");
    assert_eq!(connects(&bench.until(61)).len(), 1);
}

#[test]
fn a_suspended_destination_gets_nothing_until_it_is_resumed() {
    let name = domain("a.test");
    for until in [None, Some(START + 100)] {
        let mut bench = Bench::new(|_| ());
        let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
        bench.want(conn);
        bench.enqueue("a.test", 0, 1);
        let until = until.map(WallTime::from_secs);
        let suspend = Event::Suspend { destination: &name, until };
        assert_eq!(bench.handle(suspend), [], "what is on its way is let go");
        bench.handle(Event::Finished { conn, entry: entry(0, 0), verdict: Verdict::Nothing });
        assert_eq!(bench.want(conn), [Action::Close { home: 0, conn }]);
        assert_eq!(bench.handle(Event::Closed { conn }), []);
        assert_eq!(bench.enqueue("a.test", 0, 2), []);
        assert_eq!(bench.until(99), []);
        let gate = bench.shard.explain(&name).expect("it has mail").gates[0].clone();
        assert_eq!((gate.kind, gate.until), (GateKind::Suspended, until));
        assert_eq!(gate.since, Some(WallTime::from_secs(START)));
        let resumed = match until {
            None => bench.handle(Event::Resume { destination: &name }),
            Some(_) => bench.until(101),
        };
        assert_eq!(connects(&resumed).len(), 1);
    }
    let mut bench = Bench::new(|_| ());
    bench.handle(Event::Suspend { destination: &name, until: None });
    bench.until(100);
    assert_eq!(bench.enqueue("a.test", 0, 0), [], "kept while there was no mail");
    assert_eq!(connects(&bench.handle(Event::Resume { destination: &name })).len(), 1);
}

#[test]
fn suspended_mail_expires_in_time() {
    let name = domain("a.test");
    let mut bench = Bench::new(|config| config.policy.max_age = Duration::from_secs(500));
    bench.handle(Event::Suspend { destination: &name, until: None });
    bench.enqueue("a.test", 0, 0);
    assert_eq!(bench.until(499), []);
    assert_eq!(bench.until(502), [Action::Expired { entry: entry(0, 0) }]);
}

#[test]
fn new_policies_are_in_force_at_once() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    for slot in 0..40 {
        bench.enqueue("a.test", 0, slot);
    }
    let mut policy = Settings::new().policy;
    policy.limits.connections = 3;
    let opened = bench.handle(Event::Policies(Arc::new(Policies::one(policy))));
    assert_eq!(connects(&opened).len(), 2);
}

#[test]
fn what_is_learnt_of_a_destination_changes_its_policy_alone() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let known = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let of = |connections| {
        let mut policy = Settings::new().policy;
        policy.limits.connections = connections;
        policy
    };
    let learnt = known.clone();
    let by_name: ByName = Arc::new(move |name| {
        u16::from(name.as_str() == "a.test" && learnt.load(std::sync::atomic::Ordering::Relaxed))
    });
    let policies = Policies { list: vec![of(1), of(3)], by_name, ..Policies::one(of(1)) };
    bench.handle(Event::Policies(Arc::new(policies)));
    for slot in 0..40 {
        bench.enqueue("a.test", 0, slot);
        bench.enqueue("b.test", 0, 100 + slot);
    }
    known.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connects(&bench.handle(Event::Learnt { destination: &domain("b.test") })).len(), 0);
    assert_eq!(connects(&bench.handle(Event::Learnt { destination: &domain("a.test") })).len(), 2);
    assert_eq!(bench.handle(Event::Learnt { destination: &domain("unknown.test") }), []);
}

#[test]
fn an_entry_is_explained_wherever_it_is() {
    let mut bench = Bench::new(|config| config.policy.limits.connections = 1);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    for slot in 1..5 {
        bench.enqueue("a.test", 0, slot);
    }
    bench.want(conn);
    bench.enqueue_due("a.test", 0, 9, START + 50);
    let name = domain("a.test");
    let kinds = |slot| -> Vec<GateKind> {
        bench.shard.explain_entry(&name, entry(0, slot)).iter().map(|gate| gate.kind).collect()
    };
    assert_eq!(kinds(0), [GateKind::InFlight]);
    assert_eq!(kinds(4), [GateKind::Connections, GateKind::Turn]);
    assert_eq!(kinds(9), [GateKind::Retry]);
    assert_eq!(kinds(7), []);
    let turn = bench.shard.explain_entry(&name, entry(0, 4)).pop().expect("two gates");
    assert_eq!(turn.detail, "2 of its stream before it, of 3 ready");
}

#[test]
fn mail_that_expires_together_ends_at_its_rate() {
    let mut bench = Bench::new(|config| config.policy.max_age = Duration::from_secs(100));
    bench.handle(Event::Suspend { destination: &domain("a.test"), until: None });
    let many = limits::ENDINGS_PER_SECOND * 3;
    (0..many).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    assert_eq!(bench.until(99).len() as u32, 0);
    let mut each_second = Vec::new();
    for second in 100..=105 {
        each_second.push(bench.until(second).len() as u32);
    }
    assert_eq!(each_second.iter().sum::<u32>(), many, "{each_second:?}");
    assert!(each_second.iter().all(|count| *count <= limits::ENDINGS_PER_SECOND * 2), "{each_second:?}");
    assert_eq!(bench.shard.stats(), ShardStats { destinations: 1, ..ShardStats::default() });
}

#[test]
fn a_sender_is_told_once_that_mail_is_late() {
    let warning = Some(Duration::from_secs(500));
    let told =
        |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Delayed { .. })).count();
    // Tried again and again; and never tried, because the destination is suspended.
    for suspended in [false, true] {
        let mut bench = Bench::new(|config| config.policy.delay_warning = warning);
        if suspended {
            bench.handle(Event::Suspend { destination: &domain("a.test"), until: None });
        }
        bench.enqueue("a.test", 0, 0);
        let mut count = 0;
        for second in 1..3000 {
            let mut actions = bench.until(second);
            if second == 1 && !suspended {
                let conn = bench.shard.connections.id(0);
                actions.extend(bench.want(conn));
                actions.extend(bench.handle(Event::Deferred {
                    conn,
                    entry: entry(0, 0),
                    recipients_left: 1,
                    verdict: Verdict::Nothing,
                }));
            }
            let open = connects(&actions);
            for (_, conn) in open {
                actions.extend(bench.handle(Event::ConnectFailed {
                    conn,
                    permanent: false,
                    verdict: Verdict::Nothing,
                }));
            }
            count += told(&actions);
            assert!(count == 0 || second >= 500);
        }
        assert_eq!(count, 1, "suspended {suspended}");
    }
    // Late when it comes back from the log: told of then if it was not told of before.
    for (known, count) in [(true, 0), (false, 1)] {
        let mut bench = Bench::new(|config| config.policy.delay_warning = warning);
        bench.pass(3000);
        let mut back = bench.handle(Event::Enqueue {
            destination: &domain("a.test"),
            entry: entry(0, 0),
            stream: StreamId::default(),
            recipients: 1,
            attempts: 2,
            told: known,
            received_at: WallTime::from_secs(START),
            due: bench.now,
        });
        back.extend(bench.until(3100));
        assert_eq!(told(&back), count, "known {known}");
    }
}

#[test]
fn what_expires_is_not_said_to_be_late() {
    let mut bench = Bench::new(|config| {
        config.policy.delay_warning = Some(Duration::from_secs(500));
        config.policy.max_age = Duration::from_secs(600);
    });
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    bench.want(conn);
    bench.pass(600);
    let (entry, verdict) = (entry(0, 0), Verdict::Nothing);
    let actions = bench.handle(Event::Deferred { conn, entry, recipients_left: 1, verdict });
    assert_eq!(actions, [Action::Expired { entry }]);
}

#[test]
fn warnings_come_at_their_rate_and_none_is_lost() {
    let mut bench = Bench::new(|config| {
        config.policy.delay_warning = Some(Duration::from_secs(100));
        config.policy.max_age = Duration::from_secs(25_600);
    });
    bench.handle(Event::Suspend { destination: &domain("a.test"), until: None });
    let many = 5 * limits::WARNINGS_PER_SECOND;
    (0..many).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    let (mut all, mut told) = (0, std::collections::HashSet::new());
    for second in 1..20_000 {
        let actions = bench.until(second);
        let late = |action: &Action| match action {
            Action::Delayed { entry, until } => Some((*entry, *until)),
            _ => None,
        };
        let now: Vec<_> = actions.iter().filter_map(late).collect();
        assert!(now.len() as u32 <= 2 * limits::WARNINGS_PER_SECOND, "{} at {second}", now.len());
        all += now.len() as u32;
        assert!(now.iter().all(|(_, until)| *until == WallTime::from_secs(START + 25_600)));
        told.extend(now.into_iter().map(|(entry, _)| entry));
    }
    assert_eq!((all, told.len() as u32), (many, many));
}

#[test]
fn urgent_mail_takes_the_next_slot_that_comes_free() {
    let mut bench = Bench::new(|config| config.connections_per_home = 1);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    (1..100).for_each(|slot| drop(bench.enqueue("a.test", 0, slot)));
    (0..50).for_each(|n| drop(bench.enqueue(&format!("bulk{n}.test"), 0, 1000 + n)));
    let event = |slot| (entry(0, slot), StreamId::urgent(1));
    let (urgent, stream) = event(5000);
    let name = domain("urgent.test");
    let (received_at, due) = (bench.now, bench.now);
    bench.handle(Event::Enqueue {
        destination: &name,
        entry: urgent,
        stream,
        recipients: 1,
        attempts: 0,
        told: false,
        received_at,
        due,
    });
    bench.handle(Event::Want { conn, room: 1 });
    let next = bench.handle(Event::Closed { conn });
    let [Action::Connect { destination, .. }] = &next[..] else { panic!("{next:?}") };
    assert_eq!(*destination, name);
}

#[test]
fn a_receiver_that_says_too_many_connections_gets_what_it_takes() {
    let mut bench = Bench::new(|config| {
        config.policy.adaptive = true;
        config.policy.limits.connections = 8;
    });
    let mut conns = Vec::new();
    for slot in 0..400 {
        conns.extend(connects(&bench.enqueue("a.test", 0, slot)));
    }
    assert_eq!(conns.len(), 8);
    let mut held: Vec<(ConnId, u32)> = Vec::new();
    for (_, conn) in &conns[..3] {
        held.extend(
            delivered(&bench.handle(Event::Want { conn: *conn, room: 1 })).iter().map(|s| (*conn, *s)),
        );
    }
    let mut adapted = Vec::new();
    for (_, conn) in &conns[3..] {
        let verdict = Verdict::FewerConnections;
        let actions = bench.handle(Event::ConnectFailed { conn: *conn, permanent: false, verdict });
        assert_eq!(connects(&actions), []);
        adapted.extend(actions);
    }
    let change = Adaptation::Limits { connections: 3, per_hour: None };
    assert_eq!(adapted, [Action::Adapted { destination: domain("a.test"), change }], "one cut for all");
    let mut opened = 0;
    for _ in 0..limits::ADAPT_STEP {
        let (conn, slot) = held.remove(0);
        let mut actions =
            bench.handle(Event::Finished { conn, entry: entry(0, slot), verdict: Verdict::Nothing });
        actions.extend(bench.handle(Event::Want { conn, room: 1 }));
        held.extend(delivered(&actions).iter().map(|s| (conn, *s)));
        opened += connects(&actions).len();
    }
    assert_eq!(opened, 1, "and then one more is tried");
    let gates = bench.shard.explain(&domain("a.test")).expect("it has mail").gates;
    assert!(gates.iter().any(|g| g.detail.contains("4 of 4") && g.detail.contains("8")), "{gates:?}");
}

#[test]
fn a_verdict_suspends_and_says_so() {
    let mut bench = Bench::new(|config| config.policy.adaptive = true);
    let (_, conn) = connects(&bench.enqueue("a.test", 0, 0))[0];
    bench.enqueue("a.test", 0, 1);
    bench.want(conn);
    let verdict = Verdict::Suspend(Duration::from_secs(60));
    let actions = bench.handle(Event::Finished { conn, entry: entry(0, 0), verdict });
    let until = WallTime::from_secs(START + 60);
    let change = Adaptation::Suspended { until };
    assert_eq!(actions, [Action::Adapted { destination: domain("a.test"), change }]);
    assert_eq!(bench.shard.explain(&domain("a.test")).expect("mail").gates[0].until, Some(until));
}

#[test]
fn what_is_due_now_does_not_wait_for_the_next_second() {
    let mut bench = Bench::new(|_| ());
    bench.now = WallTime(START * 1_000_000 + 300_000);
    let (received_at, due) = (WallTime(bench.now.0 - 200_000), WallTime(bench.now.0 - 200_000));
    let opened = bench.handle(Event::Enqueue {
        destination: &domain("a.test"),
        entry: entry(0, 0),
        stream: StreamId::default(),
        recipients: 1,
        attempts: 0,
        told: false,
        received_at,
        due,
    });
    assert_eq!(connects(&opened).len(), 1);
}
