//! Random histories: many short ones that go round a small log, and long ones.
use super::world::World;
use crate::spool::broken::Broken;

/// Short histories; `RINGPOST_HISTORIES` asks for more.
const HISTORIES: u64 = 2000;
const STEPS: u64 = 200;

/// A short history with some crashes. Every other one has a disk in trouble at times.
pub(super) fn history(seed: u64, broken: Option<Broken>) -> World {
    println!("seed {seed}, broken {broken:?}");
    let mut world = World::small(seed, broken);
    let trouble = seed % 2 == 1;
    // From a log with next to nothing in it to one that is full of mail that waits.
    world.crowd = [2, 5, 10, 20, usize::MAX][(seed / 2 % 5) as usize];
    world.write_fails_one_in = 10;
    world.quiesce();
    for step in 0..STEPS {
        world.trouble = trouble && step % 120 > 50;
        world.step();
        if world.rng.below(70) == 0 {
            let cut = world.cut_power();
            world.restart(cut);
        }
    }
    let cut = world.cut_power();
    world.restart(cut);
    world
}

/// What histories have come to.
#[derive(Debug, Default)]
struct Seen {
    copied: u64,
    failures: u64,
    sealed: u64,
    reused: u64,
}

impl Seen {
    fn add(&mut self, world: &World) {
        self.copied += world.copied + world.log.stats().copies;
        self.failures += world.failures;
        self.sealed += world.sealed;
        self.reused += world.reused;
    }
}

/// Everything ends, and nothing is left of it.
fn end(world: &mut World, seed: u64) {
    world.deliver_everything();
    let stats = world.log.stats();
    let unwritten = world.messages.values().filter(|m| m.kept && !m.accepted).count();
    assert_eq!(unwritten, 0, "seed {seed}: reports that were lost with their group and not written again");
    assert!(world.log.live().is_empty(), "seed {seed}: everything has ended: {stats:?}");
    assert!(stats.segments <= 2, "seed {seed}: dead segments are retired: {stats:?}");
    assert!(world.check(&world.disk).is_empty(), "seed {seed}");
}

#[test]
fn what_was_accepted_survives_and_what_has_ended_stays_so() {
    let asked = std::env::var("RINGPOST_HISTORIES").ok().and_then(|n| n.parse().ok());
    let histories: u64 = asked.unwrap_or(HISTORIES);
    let mut seen = Seen::default();
    for seed in 0..histories {
        let mut world = history(seed, None);
        end(&mut world, seed);
        seen.add(&world);
    }
    println!("{histories} histories: {seen:?}");
    let Seen { copied, failures, sealed, reused } = seen;
    assert!(copied > histories, "the histories must copy forward: {copied}");
    assert!(sealed > histories, "the histories must seal segments: {sealed}");
    assert!(reused > 4 * histories, "the histories must go round the log: {reused}");
    assert!(failures > histories / 4, "the histories must see failed writes: {failures}");
}

fn long_history(seed: u64, steps: u64, trouble: bool) -> World {
    println!("seed {seed}, trouble {trouble}");
    let mut world = World::new(seed);
    for step in 0..steps {
        world.trouble = trouble && step % 400 > 200;
        world.step();
        if world.rng.below(250) == 0 {
            let cut = world.cut_power();
            world.restart(cut);
        }
        if world.rng.below(50) == 0 {
            world.read_all();
        }
    }
    world
}

#[test]
fn long_histories_in_larger_segments() {
    for seed in 0..8 {
        let mut world = long_history(seed, 2_500, seed % 2 == 1);
        end(&mut world, seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = || long_history(77, 1_500, true).disk;
    assert!(run() == run());
}
