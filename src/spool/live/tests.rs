//! The table of live messages against a map, and what its states come to.
//!
//! Owns: the histories tried. Promises: they are functions of a seed, which a failure prints. Must not: look
//! at the layout of the tables.
use std::collections::BTreeMap;

use super::super::End;
use super::*;
use crate::clock::Rng;

fn new(id: u64, generation: u32, recipients: u32) -> NewLive<'static> {
    let place = Place { generation: Generation(generation), offset: 4096 };
    NewLive { id: MessageId(id), place, frame_bytes: 100, fragments: &[], recipients, flags: 0 }
}

#[test]
fn a_retired_slot_is_nobodys() {
    let mut table = LiveTable::default();
    let (one, two) = (table.insert(&new(1, 1, 3)), table.insert(&new(2, 1, 1)));
    table.retire(one);
    table.remove(one);
    table.remove(two);
    assert_eq!((table.get(one), table.len(), table.count_in(Generation(1))), (None, 0, 0));
    assert_eq!(table.insert(&new(3, 1, 1)), two, "a slot that was not retired is used again");
    assert_ne!(table.insert(&new(4, 1, 1)), one);
}

#[test]
fn a_random_history_agrees_with_a_map() {
    let seed = 11;
    let mut rng = Rng::new(seed);
    let mut table = LiveTable::default();
    let mut model: BTreeMap<u64, (Slot, u32)> = BTreeMap::new();
    for id in 1..4_000u64 {
        let generation = (id / 100) as u32;
        let slot = table.insert(&new(id << 12, generation, 1 + rng.below(3) as u32));
        model.insert(id << 12, (slot, generation));
        while rng.below(100) < 48 && !model.is_empty() {
            let nth = rng.below(model.len() as u64) as usize;
            let (&id, &(slot, _)) = model.iter().nth(nth).expect("in range");
            if rng.below(4) == 0 {
                let place = Place { generation: Generation(1_000), offset: 0 };
                table.relocate(slot, place, 50, &[]);
                model.insert(id, (slot, 1_000));
            } else {
                table.remove(slot);
                model.remove(&id);
            }
        }
    }
    assert_eq!(table.len(), model.len(), "seed {seed}");
    for packed in [false, true] {
        if packed {
            table.pack();
        }
        agrees(&mut table, &model, seed);
    }
}

/// What the table finds is what the model has.
fn agrees(table: &mut LiveTable, model: &BTreeMap<u64, (Slot, u32)>, seed: u64) {
    for id in (1..4_000u64).map(|id| id << 12) {
        assert_eq!(table.find(MessageId(id)), model.get(&id).map(|m| m.0), "seed {seed}, id {id}");
    }
    for generation in (0..40).chain([1_000]) {
        let mut wanted: Vec<_> = model.values().filter(|m| m.1 == generation).map(|m| m.0).collect();
        let mut got: Vec<_> = table.iter_in(Generation(generation)).collect();
        got.sort_unstable();
        got.dedup();
        assert_eq!(table.count_in(Generation(generation)) as usize, got.len());
        wanted.sort_unstable();
        assert_eq!(got, wanted, "seed {seed}, generation {generation}");
    }
}

#[test]
fn states_absorb_and_count_down() {
    let mut table = LiveTable::default();
    let (one, three) = (table.insert(&new(1, 1, 1)), table.insert(&new(2, 1, 3)));
    let pending =
        RecipientState::Pending { tries: Tries::new(4, true), next: WallTime::from_secs(1_800_000_000) };
    for slot in [one, three] {
        assert!(!table.apply(slot, 0, pending));
        assert_eq!(table.state(slot, 0), Some(pending));
    }
    assert!(table.apply(one, 0, RecipientState::Done(End::Delivered)));
    assert!(table.apply(one, 0, pending), "terminal states absorb");
    assert!(!table.apply(three, 0, RecipientState::Done(End::Delivered)));
    assert!(!table.apply(three, 0, RecipientState::Done(End::Delivered)));
    assert!(!table.apply(three, 9, RecipientState::Done(End::Removed)), "no such recipient");
    assert!(!table.apply(three, 2, RecipientState::Done(End::Delivered)));
    assert!(table.apply(three, 1, RecipientState::Done(End::Failed)));
    let ends = [(one, 0), (three, 0), (three, 1)].map(|(slot, r)| table.state(slot, r));
    let wanted = [End::Delivered, End::Delivered, End::Failed];
    assert_eq!(ends, wanted.map(|end| Some(RecipientState::Done(end))));
    assert_eq!(table.get(three).map(|m| (m.recipients, m.pending)), Some((3, 0)));
}
