//! Long random histories.
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
    let (mut copied, mut failures) = (0, 0);
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
    }
    assert!(copied > 100, "the histories must copy forward: {copied}");
    assert!(failures > 20, "the histories must see failed writes: {failures}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = || history(77, 1_500, true).disk;
    assert!(run() == run());
}
