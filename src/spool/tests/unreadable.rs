//! Sectors that the device does not give back: they cost what stood in them, and nobody waits for them.
use std::collections::BTreeSet;

use super::crash::recover_all;
use super::disk::{Disk, SECTOR};
use super::world::{BLOCK, Memory, World, config};
use crate::limits;
use crate::mail::id::MessageId;
use crate::spool::format::GroupHeader;
use crate::spool::*;

/// A log after some history, with nothing in flight, some of its segments sealed.
fn settled(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.step();
    }
    world.quiesce();
    assert!(world.sealed > 0, "seed {seed}");
    world
}

fn ids(disk: &Disk, reading: Reading) -> (BTreeSet<MessageId>, Vec<Finding>) {
    let (_, messages, findings) = recover_all(&config(), &mut disk.clone(), reading);
    (messages.iter().map(|m| m.id).collect(), findings)
}

/// Messages with a record in this block, and those of its group where its header lies there.
fn in_block(world: &World, disk: &Disk, file: FileIndex, block: usize) -> BTreeSet<MessageId> {
    let (bytes, at) = (&disk.files[&file], block * BLOCK as usize);
    let mut lost = BTreeSet::new();
    let group = GroupHeader::decode(&bytes[at..], at as u32, &config()).ok();
    let end = group.map_or(at + BLOCK as usize, |group| at + group.total_bytes as usize);
    for id in world.log.live().iter().map(|m| m.id) {
        let plan = ReadPlan::of(&world.log, id);
        let touched = plan
            .iter()
            .any(|e| e.file == file && (e.offset as usize) < end && at < (e.offset + e.bytes) as usize);
        if touched {
            lost.insert(id);
        }
    }
    lost
}

impl ReadPlan {
    fn of(log: &Log<Memory>, id: MessageId) -> Vec<Extent> {
        let slot = log.live().find(id).expect("it is live");
        ReadPlan::new(slot, &log.live, &log.segments, &log.config).expect("it is live").extents
    }
}

#[test]
fn any_one_bad_sector_costs_what_stood_in_it() {
    let (mut tried, mut lost_some) = (0, 0);
    for seed in [3, 4] {
        let world = settled(seed);
        let (all, findings) = ids(&world.disk, Reading::Indexed);
        assert_eq!(findings, []);
        for (file, bytes) in &world.disk.files {
            for sector in 0..bytes.len() / SECTOR {
                let mut disk = world.disk.clone();
                disk.bad.insert((*file, sector));
                let may_go = in_block(&world, &world.disk, *file, sector);
                for reading in [Reading::Indexed, Reading::Whole] {
                    let (left, findings) = ids(&disk, reading);
                    let gone: BTreeSet<_> = all.difference(&left).copied().collect();
                    assert!(gone.is_subset(&may_go), "seed {seed}, sector {sector} of {file:?}: {gone:?}");
                    let said = findings.iter().any(|f| {
                        matches!(f, Finding::Unreadable { file: f, offset, bytes }
                            if f == file && *offset as usize == sector * SECTOR && *bytes == BLOCK)
                    });
                    assert!(said || (gone.is_empty() && reading == Reading::Indexed), "{findings:?}");
                    lost_some += u32::from(!gone.is_empty());
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 200 && lost_some > 20, "{lost_some} of {tried}");
}

/// A bad sector in a header, a seal or an index says nothing that the groups do not say.
#[test]
fn a_bad_sector_outside_of_groups_loses_nothing() {
    let world = settled(5);
    let (all, _) = ids(&world.disk, Reading::Indexed);
    for (file, bytes) in &world.disk.files {
        let mut sectors = vec![0];
        let at = bytes.len() - BLOCK as usize;
        let header = format::SegmentHeader::decode(bytes, config().identity, config().log);
        let seal = header.ok().and_then(|(header, _)| {
            seal::Seal::decode(&bytes[at..], at as u32, header.generation, &config())
        });
        if let Some(seal) = seal {
            sectors.extend(seal.index_offset as usize / SECTOR..bytes.len() / SECTOR);
        }
        for sector in sectors {
            let mut disk = world.disk.clone();
            disk.bad.insert((*file, sector));
            let (left, findings) = ids(&disk, Reading::Indexed);
            assert_eq!(left, all, "sector {sector} of {file:?}");
            let told = findings.iter().any(|f| matches!(f, Finding::Unreadable { .. }));
            let lost =
                findings.iter().any(|f| matches!(f, Finding::Damaged { .. } | Finding::Missing { .. }));
            assert!(told && !lost, "sector {sector} of {file:?}: {findings:?}");
        }
    }
}

#[test]
fn neighbouring_bad_blocks_are_one_finding_and_their_file_is_made_anew() {
    let mut world = World::new(1);
    world.quiesce();
    let mut disk = world.disk.clone();
    let (&file, _) = disk.files.iter().next().expect("segments are prepared");
    for sector in [0, 1, 2, 9] {
        disk.bad.insert((file, sector));
    }
    let (log, _, findings) = recover_all(&config(), &mut disk.clone(), Reading::Whole);
    let unreadable = |offset, bytes| Finding::Unreadable { file, offset, bytes };
    assert_eq!(findings, [unreadable(0, 3 * BLOCK), unreadable(9 * BLOCK, BLOCK)]);
    let mut log: Log<Memory> = Log::new(config(), log);
    let mut prepared = None;
    while let Some(intent) = log.next_intent() {
        if let Intent::Prepare { file, new, .. } = intent {
            prepared = Some((file, new));
        }
    }
    assert!(prepared.is_some_and(|(other, new)| other != file || new), "{prepared:?}");
}

/// A disk that gives nothing back has not lost one record, it has lost its cable.
#[test]
fn a_failing_device_stops_the_start_and_is_named() {
    let world = settled(6);
    let refused = |disk: &Disk| recover(&config(), &mut disk.clone(), Reading::Indexed).expect_err("refused");
    let mut one = world.disk.clone();
    let (&file, bytes) = one.files.iter().next().expect("there are segments");
    one.bad.extend((0..bytes.len() / SECTOR).map(|sector| (file, sector)));
    let error = refused(&one);
    assert!(matches!(error, RecoveryError::Lost(lost) if lost == file), "{error}");
    let mut all = world.disk.clone();
    for (file, bytes) in &world.disk.files {
        // One block of each is still there.
        all.bad.extend((0..bytes.len() / SECTOR).filter(|s| *s != 7).map(|sector| (*file, sector)));
    }
    assert!(all.bad.len() > limits::UNREADABLE_BLOCKS);
    let error = refused(&all);
    assert!(matches!(error, RecoveryError::Failing { .. }), "{error}");
}
