//! What the disk damages: it costs what is damaged, and it is reported.
use super::crash::recover_all;
use super::disk::Disk;
use super::world::{BLOCK, Memory, World, config};
use crate::mail::id::MessageId;
use crate::spool::envelope::MUST_UNDERSTAND;
use crate::spool::format::{FRAME_HEADER_BYTES, GROUP_HEADER_BYTES, GroupHeader, put};
use crate::spool::group::frames;
use crate::spool::record::{EnvelopeSource, NewCommit};
use crate::spool::segments::Class;
use crate::spool::*;

/// A quiet log with some live messages in groups of several frames, and its disk.
fn settled() -> (World, Disk) {
    let mut world = World::new(9);
    world.quiesce();
    for _ in 0..6 {
        for _ in 0..4 {
            world.accept();
        }
        world.quiesce();
    }
    let disk = world.disk.clone();
    (world, disk)
}

fn recovered(disk: &Disk) -> (Vec<MessageId>, Vec<Finding>) {
    let (_, messages, findings) = recover_all(&config(), &mut disk.clone(), Reading::Whole);
    (messages.iter().map(|m| m.id).collect(), findings)
}

/// A group on the disk: file, header, and the ids, offsets and lengths of its frames.
type Group = (FileIndex, GroupHeader, Vec<(MessageId, usize, usize)>);

fn groups(disk: &Disk) -> Vec<Group> {
    let mut found = Vec::new();
    for (file, bytes) in &disk.files {
        for offset in (0..bytes.len()).step_by(BLOCK as usize) {
            let Ok(header) = GroupHeader::decode(&bytes[offset..], offset as u32, &config()) else {
                continue;
            };
            let key = checksum::Key::derive(config().identity, config().log, header.generation);
            let list = frames(&bytes[offset..], &header, key)
                .flatten()
                .map(|f| (MessageId(f.id), f.offset as usize, f.bytes() as usize))
                .collect();
            found.push((*file, header, list));
        }
    }
    found
}

#[test]
fn a_damaged_frame_costs_itself() {
    let (_, disk) = settled();
    let (all, _) = recovered(&disk);
    let list = groups(&disk);
    let newest = list.iter().map(|g| g.1.seq).max().expect("there are groups");
    let mut tried = 0;
    for (file, header, frames) in list.iter().filter(|g| g.1.seq < newest) {
        for &(id, offset, bytes) in frames {
            for at in [0, 8, 13, FRAME_HEADER_BYTES, bytes - 1] {
                let mut damaged = disk.clone();
                damaged.files.get_mut(file).expect("listed")[offset + at] ^= 0x10;
                let (left, findings) = recovered(&damaged);
                let wanted: Vec<_> = all.iter().copied().filter(|i| *i != id).collect();
                assert_eq!(left, wanted, "byte {at} of the frame at {offset}");
                let durable = list.iter().any(|g| g.1.durable_below > header.seq);
                let reported = matches!(
                    &findings[..],
                    [Finding::Damaged { file: f, offset: o, damage: Damage::Frame(raw) }]
                        if f == file && *o as usize == offset && raw.len() >= bytes
                );
                assert!(reported || (!durable && findings.is_empty()), "{findings:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 50);
}

#[test]
fn a_damaged_group_header_costs_its_group() {
    let (_, disk) = settled();
    let (all, _) = recovered(&disk);
    for (file, header, frames) in groups(&disk) {
        let mut damaged = disk.clone();
        damaged.files.get_mut(&file).expect("listed")[header.offset as usize + 30] ^= 1;
        let (left, findings) = recovered(&damaged);
        let wanted: Vec<_> =
            all.iter().copied().filter(|id| frames.iter().all(|(lost, ..)| lost != id)).collect();
        assert_eq!(left, wanted);
        let durable = groups(&damaged).iter().any(|g| g.1.durable_below > header.seq);
        let gone = Spot { file, offset: header.offset };
        match &findings[..] {
            [] => assert!(!durable),
            [Finding::Missing { from, below, after, before }] => {
                assert!(durable && *from == header.seq && below.0 == from.0 + 1);
                // Where it stood is one of the two places that are told, or between them.
                assert!(after.is_some() || before.is_some());
                assert!(after.is_none_or(|at| at == gone || at.file != file), "{after:?} for {gone:?}");
                assert!(before.is_none_or(|at| at > gone || at.file != file), "{before:?} for {gone:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lost_segment_header_loses_nothing() {
    for seed in 0..6 {
        let mut world = World::new(seed);
        for _ in 0..1_500 {
            world.step();
        }
        world.quiesce();
        let (all, findings) = recovered(&world.disk);
        assert_eq!(findings, []);
        for file in world.disk.files.keys() {
            let mut damaged = world.disk.clone();
            damaged.files.get_mut(file).expect("listed")[..BLOCK as usize].fill(0x55);
            let (left, findings) = recovered(&damaged);
            assert_eq!(left, all, "seed {seed}, {file:?}");
            assert!(
                findings.iter().all(|f| matches!(f, Finding::HeaderLost { .. })),
                "seed {seed}: {findings:?}"
            );
        }
    }
}

/// Where a sealed segment has its seal, and where its index is.
fn seals(disk: &Disk) -> Vec<(FileIndex, seal::Seal)> {
    let found = disk.files.iter().filter_map(|(file, bytes)| {
        let at = bytes.len() - BLOCK as usize;
        let (header, _) = format::SegmentHeader::decode(bytes, config().identity, config().log).ok()?;
        Some((*file, seal::Seal::decode(&bytes[at..], at as u32, header.generation, &config())?))
    });
    found.collect()
}

fn recovered_by_index(disk: &Disk) -> (Vec<MessageId>, Vec<Finding>) {
    let (_, messages, findings) = recover_all(&config(), &mut disk.clone(), Reading::Indexed);
    (messages.iter().map(|m| m.id).collect(), findings)
}

#[test]
fn neither_seal_nor_index_is_needed() {
    let (_, disk) = settled();
    let (all, _) = recovered(&disk);
    let sealed = seals(&disk);
    assert!(sealed.len() > 1, "{sealed:?}");
    for (file, seal) in sealed {
        let bytes = disk.files[&file].len();
        for at in [0, 8, 12, 30, 66, 72, 90] {
            let mut damaged = disk.clone();
            damaged.files.get_mut(&file).expect("listed")[bytes - BLOCK as usize + at] ^= 2;
            assert_eq!(recovered_by_index(&damaged), (all.clone(), Vec::new()), "byte {at} of the seal");
        }
        let (generation, offset) = (seal.generation, seal.index_offset);
        let lost = vec![Finding::IndexLost { file, generation, offset }];
        for at in (0..seal.index_bytes).step_by(37) {
            let mut damaged = disk.clone();
            damaged.files.get_mut(&file).expect("listed")[(seal.index_offset + at) as usize] ^= 2;
            assert_eq!(recovered_by_index(&damaged), (all.clone(), lost.clone()), "byte {at} of the index");
            assert_eq!(recovered(&damaged), (all.clone(), lost.clone()), "byte {at} of the index");
        }
    }
}

#[test]
fn an_orderly_stop_leaves_nothing_to_be_read_from_end_to_end() {
    let (mut world, _) = settled();
    world.log.seal_open();
    world.quiesce();
    let disk = world.disk.clone();
    let used = world.log.stats().segments as usize;
    assert_eq!(seals(&disk).len(), used, "the open one as well");
    assert_eq!(recovered_by_index(&disk), recovered(&disk));
    // A log that was sealed goes on in its next segment.
    let before = world.messages.values().filter(|m| m.accepted).count();
    world.accept();
    world.quiesce();
    assert_eq!(world.messages.values().filter(|m| m.accepted).count(), before + 1);
    let disk = world.disk.clone();
    world.restart(disk);
    world.deliver_everything();
}

/// A sealed segment is not read, and what is damaged in it is found by whoever reads it.
#[test]
fn an_index_stands_for_its_segment() {
    let (world, disk) = settled();
    let (all, _) = recovered(&disk);
    for (file, seal) in seals(&disk) {
        let mut damaged = disk.clone();
        let bytes = damaged.files.get_mut(&file).expect("listed");
        bytes[BLOCK as usize..seal.index_offset as usize].fill(0x5A);
        assert_eq!(recovered_by_index(&damaged), (all.clone(), Vec::new()));
        let (left, findings) = recovered(&damaged);
        assert!(left.len() < all.len() && !findings.is_empty(), "{findings:?}");
        let (log, _, _) = recover_all(&config(), &mut damaged.clone(), Reading::Indexed);
        let lost = log.live().iter().find(|m| m.place.generation == seal.generation).expect("it is sealed");
        let plan = log.read_plan(lost.slot, &world.config).expect("live");
        let read: Vec<&[u8]> = plan
            .extents
            .iter()
            .map(|e| &damaged.files[&e.file][e.offset as usize..(e.offset + e.bytes) as usize])
            .collect();
        assert_eq!(
            decode_message(&plan, &read, config().identity),
            Err(ReadError::Damaged("the commit record"))
        );
    }
}

#[test]
fn a_missing_segment_is_noticed() {
    let (_, disk) = settled();
    let list = groups(&disk);
    let file = list[0].0;
    let mut damaged = disk.clone();
    damaged.files.remove(&file);
    let (_, findings) = recovered(&damaged);
    let seqs = || list.iter().filter(|g| g.0 == file).map(|g| g.1.seq.0);
    let (first, last) = (seqs().min().expect("some"), seqs().max().expect("some"));
    let (from, below) = (GroupSeq(first), GroupSeq(last + 1));
    let next = list.iter().find(|g| g.1.seq == below).expect("it is not the last");
    let before = Some(Spot { file: next.0, offset: next.1.offset });
    assert_eq!(findings, [Finding::Missing { from, below, after: None, before }]);
}

#[test]
fn other_versions_and_other_spools_are_refused() {
    let (_, disk) = settled();
    let (file, header, _) = groups(&disk).remove(0);
    let refusal = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut damaged = disk.clone();
        edit(damaged.files.get_mut(&file).expect("listed"));
        recover(&config(), &mut damaged, Reading::Whole).map(|_| ()).expect_err("refused").to_string()
    };
    // A header that a later release wrote says so with its checksum, whatever stands behind it.
    let key = checksum::Key::derive(config().identity, config().log, header.generation);
    let later = refusal(&|bytes| {
        put(bytes, 8, &2u16.to_le_bytes());
        let sum = key.sum(checksum::Domain::Segment, 0, &bytes[..88]);
        put(bytes, 88, &sum.to_le_bytes());
    });
    assert!(later.contains("format version 2"), "{later}");
    // One that nothing vouches for is believed where no group is ours.
    let unvouched = refusal(&|bytes| {
        bytes[BLOCK as usize..].fill(0);
        (bytes[8], bytes[40]) = (2, bytes[40] ^ 1);
    });
    assert!(unvouched.contains("format version 2"), "{unvouched}");
    let other = LogConfig { identity: SpoolIdentity { id: 9, secret: 9 }, ..config() };
    for stranger in [other, LogConfig { log: 4, ..config() }] {
        let refused = recover(&stranger, &mut disk.clone(), Reading::Whole).map(|_| ()).expect_err("refused");
        assert!(refused.to_string().contains("another spool"), "{refused}");
    }
    let mut damaged = disk.clone();
    let bytes = damaged.files.get_mut(&file).expect("listed");
    let at = header.offset as usize;
    put(bytes, at + 8, &7u16.to_le_bytes());
    let sum = key.sum(checksum::Domain::Group, header.offset, &bytes[at..at + 88]);
    put(bytes, at + 88, &sum.to_le_bytes());
    let error =
        recover(&config(), &mut damaged, Reading::Whole).map(|_| ()).expect_err("refused").to_string();
    assert!(error.contains("format version 7"), "{error}");
}

#[test]
fn a_group_planted_in_a_body_is_a_body() {
    let (mut world, disk) = settled();
    let (file, header, _) = groups(&disk).remove(0);
    let start = header.offset as usize;
    let planted = disk.files[&file][start..start + header.total_bytes as usize].to_vec();
    let lead = BLOCK as usize - FRAGMENT_HEADROOM;
    let mut buffer = Memory(vec![0; 8192]);
    buffer.0[FRAGMENT_HEADROOM + lead..][..planted.len()].copy_from_slice(&planted);
    let id = world.log.next_id(WallTime(1_800_000_000_000_000));
    let bytes = (lead + planted.len()) as u32;
    let fragment =
        world.log.append_fragment(id, 0, buffer, bytes).map_err(|(r, _)| r).expect("there is room");
    world.quiesce();
    let (all, findings) = recovered(&world.disk);
    assert_eq!(findings, []);
    // Without its header, the search for the next group runs through the body.
    let torn = groups(&world.disk).into_iter().find(|g| g.1.seq == fragment.group).expect("written");
    let mut damaged = world.disk.clone();
    damaged.files.get_mut(&torn.0).expect("listed")[torn.1.offset as usize..][..GROUP_HEADER_BYTES].fill(0);
    assert_eq!(recovered(&damaged), (all, Vec::new()));
}

#[test]
fn a_damaged_fragment_is_reported_with_its_message() {
    let (mut world, _) = settled();
    let id = world.log.next_id(WallTime(1_800_000_000_000_000));
    let mut buffer = Memory(vec![0; 4096]);
    buffer.0[FRAGMENT_HEADROOM..][..1000].fill(b'x');
    let fragment = world.log.append_fragment(id, 0, buffer, 1000).map_err(|(r, _)| r).expect("there is room");
    let envelope = world.messages.values().next().expect("some").envelope.clone();
    let message = NewMessage {
        id,
        envelope: &envelope,
        fragments: &[fragment],
        parts: &[b"end"],
        reports: None,
        kept: false,
    };
    world.log.append_message(&message).expect("there is room");
    world.quiesce();
    // A later group says that both are durable.
    world.accept();
    world.quiesce();
    let place = groups(&world.disk).into_iter().find(|g| g.1.seq == fragment.group).expect("written");
    world.disk.files.get_mut(&place.0).expect("listed")[fragment.place.offset as usize + 500] ^= 1;
    let (left, findings) = recovered(&world.disk);
    assert!(!left.contains(&id));
    let kinds: Vec<_> = findings
        .iter()
        .map(|f| match f {
            Finding::Damaged { damage: Damage::Frame(_), .. } => "frame",
            Finding::Damaged { damage: Damage::Fragment(of), .. } if *of == id => "message",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["frame", "message"]);
    assert_eq!(groups(&world.disk).iter().filter(|g| g.1.seq == fragment.group).count(), 1);
}

#[test]
fn an_unknown_field_holds_the_message_and_survives_a_copy() {
    let (mut world, _) = settled();
    let some = world.messages.values().next().expect("some").envelope.clone();
    let mut fields = vec![0; envelope::encoded_bytes(&some, None)];
    envelope::encode(&some, None, &mut fields);
    fields.extend((99 | MUST_UNDERSTAND).to_le_bytes());
    fields.extend([3, 0, 0, 0, 1, 2, 3]);
    let id = world.log.next_id(WallTime(1_800_000_000_000_000));
    let commit = NewCommit {
        recipients: some.recipients.len() as u32,
        fragments: &[],
        envelope: EnvelopeSource::Copied(&fields),
        states: &[],
        parts: &[b"body"],
    };
    world.log.write_commit(id, &commit, Class::Mail).map(|_| ()).expect("there is room");
    world.quiesce();
    let hold = Hold::UnknownField(99);
    let disk = world.disk.clone();
    let (log, messages, findings) = recover_all(&config(), &mut disk.clone(), Reading::Whole);
    assert!(messages.iter().all(|m| m.id != id), "held mail is not offered");
    assert_eq!(findings, [Finding::Held { id, hold }]);
    let mut log: Log<Memory> = Log::new(config(), log);
    let slot = log.live().find(id).expect("held mail stays");
    assert!(log.live().get(slot).expect("found").held);
    let plan = log.pin(slot).expect("live");
    let extent = &plan.extents[0];
    let bytes = &disk.files[&extent.file][extent.offset as usize..(extent.offset + extent.bytes) as usize];
    let message = decode_message(&plan, &[bytes], config().identity).expect("whole");
    assert_eq!((message.hold, &message.envelope, &message.fields), (Some(hold), &some, &fields));
    // What was damaged, moved or swapped does not pass for it.
    let mut damaged = bytes.to_vec();
    damaged[(log.live().get(slot).expect("found").place.offset - extent.offset) as usize + 30] ^= 1;
    let wrong = decode_message(&plan, &[&damaged], config().identity);
    assert_eq!(wrong, Err(ReadError::Damaged("the commit record")));
}

#[test]
fn copy_forward_of_a_damaged_message_ends_it_loudly() {
    let (mut world, _) = settled();
    let (id, slot) = world.messages.iter().map(|(id, m)| (*id, m.slot)).next().expect("some");
    world.log.live.set(slot, live::COPYING, true);
    world.log.expect_copy(slot, id);
    world.log.on_copy_read(slot, Err(ReadError::Damaged("a fragment")));
    let mut quarantined = Vec::new();
    world.log.take_quarantined(&mut quarantined);
    assert_eq!(quarantined, [id]);
    world.quiesce();
    assert!(world.log.live().find(id).is_none());
    assert!(!recovered(&world.disk).0.contains(&id));
    assert_eq!(world.log.stats().quarantined, 1);
}

/// A flipped bit is the smallest damage there is: it keeps nobody from his mail.
#[test]
fn any_flipped_bit_of_a_header_block_loses_nothing() {
    let mut world = World::new(2);
    for _ in 0..300 {
        world.step();
    }
    world.quiesce();
    let (all, findings) = recovered_by_index(&world.disk);
    assert!(!all.is_empty() && findings.is_empty());
    for file in world.disk.files.keys() {
        // Behind the fields there is nothing that is looked at.
        for bit in (0..96 * 8).chain((96 * 8..BLOCK as usize * 8).step_by(61)) {
            let mut damaged = world.disk.clone();
            damaged.files.get_mut(file).expect("listed")[bit / 8] ^= 1 << (bit % 8);
            let (left, findings) = recovered_by_index(&damaged);
            assert_eq!(left, all, "bit {bit} of {file:?}");
            assert!(
                matches!(findings[..], [] | [Finding::HeaderLost { .. }]),
                "bit {bit} of {file:?}: {findings:?}"
            );
        }
    }
}
