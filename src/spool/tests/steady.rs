//! A log that has grown to its size goes round in the files it has.
use super::world::World;
use crate::clock::WallTime;
use crate::mail::reply::Reply;
use crate::spool::*;

/// Messages that wait at a time, while others pass.
const WAITING: usize = 8;

fn deliver(world: &mut World, slot: Slot) {
    let reply = Reply::local(250, (2, 0, 0), "taken");
    let appended = world.log.append_outcomes(slot, &[(0, Outcome::Delivered(reply))], WallTime(1));
    assert!(matches!(appended, Ok(Some(_))), "{appended:?}");
}

/// A new file is zeroed first: a log that deleted and made one each time round would write everything twice.
#[test]
fn a_log_with_waiting_mail_makes_no_file_once_it_has_its_size() {
    let mut world = World::new(1);
    world.quiesce();
    let mut waiting = std::collections::VecDeque::new();
    let mut before = (0, 0);
    for nth in 0..1_500 {
        let known = world.messages.len();
        world.accept_for(1);
        assert_eq!(world.messages.len(), known + 1, "there is room");
        world.quiesce();
        let slot = world.messages.values().next_back().expect("one was accepted").slot;
        if nth % 20 == 0 {
            waiting.push_back(slot);
        } else {
            deliver(&mut world, slot);
        }
        if waiting.len() > WAITING {
            let slot = waiting.pop_front().expect("there are some");
            deliver(&mut world, slot);
        }
        world.quiesce();
        if nth == 500 {
            before = (world.made, world.reused);
        }
    }
    assert!(world.log.stats().copies > 50, "survivors are copied: {}", world.log.stats().copies);
    assert!(world.reused > before.1 + 100, "it goes round: {} segments used again", world.reused);
    assert_eq!(world.made, before.0, "files made");
}
