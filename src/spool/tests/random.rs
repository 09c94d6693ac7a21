//! Long random histories.
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::world::World;

fn history(seed: u64, steps: u64, trouble: bool) -> World {
    println!("seed {seed}, trouble {trouble}");
    let mut world = World::new(seed);
    for step in 0..steps {
        world.trouble = trouble && step % 400 > 200;
        world.step();
        if world.rng.below(250) == 0 {
            let disk = world.cut_power();
            world.restart(disk);
        }
        if world.rng.below(50) == 0 {
            world.read_all();
        }
    }
    world
}

#[test]
fn what_was_accepted_survives_and_what_has_ended_stays_so() {
    let (mut copied, mut failures, mut sealed) = (0, 0, 0);
    for seed in 0..40 {
        let mut world = history(seed, 2_500, seed % 2 == 1);
        world.deliver_everything();
        let stats = world.log.stats();
        assert!(world.log.live().is_empty(), "seed {seed}: everything has ended: {stats:?}");
        assert!(stats.segments <= 2, "seed {seed}: dead segments are retired: {stats:?}");
        let disk = world.disk.clone();
        assert!(world.check(&disk).1.is_empty(), "seed {seed}");
        copied += world.copied + stats.copies;
        failures += world.failures;
        sealed += world.sealed;
    }
    assert!(copied > 100, "the histories must copy forward: {copied}");
    assert!(sealed > 100, "the histories must seal segments: {sealed}");
    assert!(failures > 20, "the histories must see failed writes: {failures}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = || history(77, 1_500, true).disk;
    assert!(run() == run());
}

/// The checkers can fail: a disk that says "durable" and forgets is caught.
#[test]
fn a_disk_that_lies_is_caught() {
    let (mut lies, mut caught) = (0, 0);
    for seed in 0..30 {
        let mut world = World::new(seed);
        world.quiesce();
        for _ in 0..200 {
            world.step();
        }
        if world.writes.is_empty() {
            world.accept();
            world.turn();
        }
        if world.writes.is_empty() {
            continue;
        }
        let (file, forgotten) = (world.writes[0].1.file, world.writes[0].1.clone());
        let before = world.disk.files[&file][forgotten.offset..][..forgotten.bytes.len()].to_vec();
        let accepted = |world: &World| world.messages.values().filter(|m| m.accepted).count();
        let known = accepted(&world);
        world.answer(0, true);
        if accepted(&world) == known {
            continue;
        }
        lies += 1;
        let mut disk = world.disk.clone();
        disk.write(&super::disk::Unsynced { bytes: before, ..forgotten });
        caught += u64::from(catch_unwind(AssertUnwindSafe(|| world.check(&disk))).is_err());
    }
    // A forgotten group may have held only what nobody relies on yet.
    assert!(lies > 5 && caught * 10 >= lies * 9, "{caught} of {lies}");
}
