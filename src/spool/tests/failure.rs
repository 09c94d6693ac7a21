//! What a failed write means for the log that had it, and for its neighbours.
use super::world::World;
use crate::spool::*;

/// A quiet log with two messages in flight.
fn busy(seed: u64) -> World {
    let mut world = World::new(seed);
    world.quiesce();
    while world.messages.values().filter(|m| !m.accepted).count() < 2 {
        world.accept();
    }
    world.turn();
    assert!(!world.writes.is_empty());
    world
}

#[test]
fn an_unwritable_log_starts_no_deliveries_until_it_has_a_new_segment() {
    for seed in 0..20 {
        let mut world = busy(seed);
        assert!(world.log.takes_outcomes());
        world.answer(0, false);
        assert!(!world.log.takes_outcomes(), "seed {seed}");
        assert_eq!(world.log.admits(1), Err(Refusal::Unwritable), "seed {seed}");
        // No segment can be prepared either: the disk is gone.
        world.trouble = true;
        for _ in 0..10 {
            world.refuse_prepares();
            world.log.retry_prepare();
            world.turn();
            assert!(!world.log.takes_outcomes(), "seed {seed}");
        }
        world.quiesce();
        assert!(world.log.takes_outcomes(), "seed {seed}: by itself, when the disk is back");
        world.check(&world.disk);
    }
}

/// The kernel tells one writer only of a sync that was lost, so the edge tells the other logs.
#[test]
fn one_failed_write_distrusts_what_other_logs_have_in_flight() {
    for seed in 0..20 {
        let (mut one, mut other) = (busy(seed), busy(seed + 1000));
        one.answer(0, false);
        other.log.fail_all_in_flight();
        other.turn();
        // Their own answers still say that all is well.
        while !other.writes.is_empty() {
            other.answer(0, true);
        }
        let in_flight = |world: &World| world.messages.values().filter(|m| !m.accepted).count();
        assert!(in_flight(&other) >= 2, "seed {seed}: nothing in flight is acknowledged");
        for mut world in [one, other] {
            world.quiesce();
            world.check(&world.disk);
            let before = world.messages.values().filter(|m| m.accepted).count();
            world.accept();
            world.quiesce();
            assert!(
                world.messages.values().filter(|m| m.accepted).count() > before,
                "seed {seed}: it goes on"
            );
            let disk = world.disk.clone();
            world.restart(disk);
        }
    }
}

/// Mail stops while there is still room for what has begun, and comes back by itself.
#[test]
fn new_mail_is_refused_before_the_room_is_used_up() {
    let mut world = World::new(5);
    world.quiesce();
    assert!(world.log.room_for_mail().is_ok_and(|bytes| bytes > 0));
    let mut begun = 0;
    while world.log.room_for_mail().is_ok() {
        world.accept();
        world.quiesce();
        begun += 1;
        assert!(begun < 10_000, "it must fill up");
    }
    assert_eq!(world.log.room_for_mail(), Err(Refusal::NoRoom));
    let accepted = |world: &World| world.messages.values().filter(|m| m.accepted).count();
    let before = accepted(&world);
    for _ in 0..3 {
        world.accept();
        world.quiesce();
    }
    assert_eq!(accepted(&world), before + 3, "what has begun is still taken");
    world.deliver_everything();
    world.quiesce();
    assert!(world.log.room_for_mail().is_ok_and(|bytes| bytes > 0), "without a restart");
}

/// A log on a full disk keeps its reserve for what ends messages, however often they are tried in vain.
#[test]
fn deferrals_do_not_use_up_the_reserve() {
    for seed in 0..10 {
        let mut world = World::new(seed);
        world.quiesce();
        world.full = true;
        let mut before = usize::MAX;
        while before != world.messages.len() {
            before = world.messages.len();
            world.accept();
            world.quiesce();
        }
        assert!(world.messages.len() > 3, "seed {seed}: the log takes mail until it is full");
        for _ in 0..60 * world.messages.len() {
            let (id, recipient) = world.pick_accepted().expect("all are waiting");
            world.defer(id, recipient);
            world.quiesce();
        }
        assert!(world.log.stats().prepared_segments >= 1, "seed {seed}: the reserve is left");
        assert!(world.log.takes_outcomes(), "seed {seed}");
        let disk = world.disk.clone();
        world.restart(disk);
        world.quiesce();
        assert!(world.log.takes_outcomes(), "seed {seed}: the reserve is there for the next run");
        world.deliver_everything();
        assert_eq!(world.log.stats().live_messages, 0, "seed {seed}");
    }
}
