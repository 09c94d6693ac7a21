//! Histories that go round a small log, cut after every step, with every combination of what was in flight.
use super::crash::Cut;
use super::disk::{SECTOR, Unsynced};
use super::world::World;
use crate::spool::{FileIndex, GroupSeq};

/// Histories; `RINGPOST_EXHAUSTIVE_HISTORIES` asks for more.
const HISTORIES: u64 = 5;
const STEPS: usize = 160;
/// Combinations up to which things are left in flight: at more, something is answered first.
const COMBINATIONS: usize = 64;

/// Something in flight.
enum Pending<'a> {
    Write(GroupSeq, &'a Unsynced),
    Prepare { file: FileIndex, new: bool, header: &'a [u8] },
    Seal { index: &'a Unsynced, seal: &'a Unsynced },
    Delete(FileIndex, &'a [u8]),
}

impl Pending<'_> {
    /// What a power cut can make of it.
    fn fates(&self) -> usize {
        match self {
            // Nothing, all, the first sector, all but that.
            Pending::Write(_, write) => {
                if write.bytes.len() > SECTOR {
                    4
                } else {
                    2
                }
            }
            // The file as it was, or with its header; no file, a part, one without a header, all of it.
            Pending::Prepare { new, .. } => {
                if *new {
                    4
                } else {
                    2
                }
            }
            // Nothing, a part of the index, the index, both.
            Pending::Seal { index, .. } => {
                if index.bytes.len() > SECTOR {
                    4
                } else {
                    3
                }
            }
            Pending::Delete(..) => 2,
        }
    }

    fn befall(&self, fate: usize, cut: &mut Cut, segment_bytes: usize) {
        let disk = &mut cut.disk;
        match self {
            Pending::Write(..) if fate == 0 => {}
            Pending::Write(seq, write) => {
                cut.landed.insert(*seq);
                match fate {
                    1 => disk.write(write),
                    2 => disk.tear(write, |sector| sector == 0),
                    _ => disk.tear(write, |sector| sector > 0),
                }
            }
            Pending::Prepare { .. } if fate == 0 => {}
            Pending::Prepare { file, new, header } => {
                if *new {
                    let bytes = if fate == 2 { segment_bytes / 2 } else { segment_bytes };
                    disk.files.insert(*file, vec![0; bytes]);
                }
                if fate == 1 {
                    disk.write(&Unsynced { file: *file, offset: 0, bytes: header.to_vec() });
                }
            }
            Pending::Seal { .. } if fate == 0 => {}
            Pending::Seal { index, .. } if fate == 3 => disk.tear(index, |sector| sector == 0),
            Pending::Seal { index, seal } => {
                disk.write(index);
                if fate == 1 {
                    disk.write(seal);
                }
            }
            Pending::Delete(..) if fate == 0 => {}
            Pending::Delete(file, bytes) => drop(disk.files.insert(*file, bytes.to_vec())),
        }
    }
}

impl World {
    fn in_flight(&self) -> Vec<Pending<'_>> {
        let writes = self.writes.iter().map(|(seq, write, _)| Pending::Write(*seq, write));
        let prepares = self.prepares.iter().map(|(file, new, _, header)| Pending::Prepare {
            file: *file,
            new: *new,
            header,
        });
        let seals = self.seals.iter().map(|(_, index, seal)| Pending::Seal { index, seal });
        let deletes = self.deleted.iter().map(|(file, bytes)| Pending::Delete(*file, bytes));
        writes.chain(prepares).chain(seals).chain(deletes).collect()
    }

    fn combinations(&self) -> usize {
        self.in_flight().iter().map(Pending::fates).product()
    }

    /// Cuts the power here, in every way there is.
    fn cut_in_every_way(&self) {
        let pending = self.in_flight();
        for combination in 0..self.combinations() {
            let mut cut = Cut::from(&self.disk);
            let mut rest = combination;
            for one in &pending {
                one.befall(rest % one.fates(), &mut cut, self.config.segment_bytes as usize);
                rest /= one.fates();
            }
            // Reading every record besides takes as long again.
            if combination % 4 == 0 { drop(self.check(cut)) } else { drop(self.check_indexed(&cut)) }
        }
        // Every subset of the sectors of one write.
        if let Some((seq, write, _)) = self.writes.first() {
            for subset in 0..1usize << (write.bytes.len() / SECTOR) {
                let mut cut = Cut::from(&self.disk);
                cut.disk.tear(write, |sector| subset >> sector & 1 == 1);
                cut.landed.insert(*seq);
                self.check_indexed(&cut);
            }
        }
    }
}

#[test]
fn a_cut_at_any_point_with_any_of_what_is_in_flight() {
    let asked = std::env::var("RINGPOST_EXHAUSTIVE_HISTORIES").ok().and_then(|n| n.parse().ok());
    let (mut cuts, mut reused, mut deleted) = (0, 0, 0);
    for seed in 100..100 + asked.unwrap_or(HISTORIES) {
        println!("seed {seed}");
        let mut world = World::small(seed, None);
        world.crowd = 6;
        // Two segments, so that mail can be taken.
        world.quiesce();
        for _ in 0..STEPS {
            world.step();
            while world.combinations() > COMBINATIONS {
                world.answer_something();
            }
            cuts += world.combinations();
            deleted += usize::from(!world.deleted.is_empty());
            world.cut_in_every_way();
        }
        reused += world.reused;
    }
    println!("{cuts} cuts, {reused} segments used again, {deleted} with a delete in flight");
    assert!(reused > 0 && deleted > 0, "the histories must go round the log");
}
