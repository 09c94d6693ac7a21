//! Short histories, cut after every step, with every combination of what was in flight.
use super::world::World;

/// What a power cut makes of one write.
const FATES: usize = 4;

fn cut_everywhere(seed: u64, steps: usize) {
    for cut in 0..=steps {
        let mut world = World::new(seed);
        // Two segments, so that mail can be taken.
        world.quiesce();
        for _ in 0..cut {
            world.step();
        }
        world.turn();
        let open = world.writes.len().min(4);
        for combination in 0..FATES.pow(open as u32) {
            let mut disk = world.disk.clone();
            let mut rest = combination;
            for (_, write, _) in world.writes.iter().take(open) {
                match rest % FATES {
                    0 => {}
                    1 => disk.write(write),
                    2 => disk.tear(write, |sector| sector == 0),
                    _ => disk.tear(write, |sector| sector > 0),
                }
                rest /= FATES;
            }
            world.check(&disk);
        }
        // Every subset of the sectors of one write.
        if let Some((_, write, _)) = world.writes.first() {
            let sectors = write.bytes.len().div_ceil(super::disk::SECTOR).min(8);
            for subset in 0..1usize << sectors {
                let mut disk = world.disk.clone();
                disk.tear(write, |sector| subset >> (sector % 8) & 1 == 1);
                world.check(&disk);
            }
        }
    }
}

#[test]
fn a_cut_at_any_point_with_any_of_the_writes_in_flight() {
    for seed in 100..106 {
        println!("seed {seed}");
        cut_everywhere(seed, 45);
    }
}
