//! Rules broken on purpose: for each, the checker that must notice.
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::random::history;
use super::world::World;
use crate::spool::broken::Broken;
use crate::spool::live::COPYING;

/// Histories in which a broken rule must have been noticed.
const HISTORIES: u64 = 400;

/// The rules, each with what is said by the checker that is there for it.
const CANARIES: [(Broken, &str); 14] = [
    (Broken::AnswersEarly, "was accepted and is lost"),
    (Broken::RecyclesLive, "was accepted and is lost"),
    (Broken::RecyclesLive, "twice is the same, with a start between"),
    (Broken::ForgetsEarly, "was accepted and is lost"),
    (Broken::DeletesEarly, "a crash is not corruption"),
    (Broken::LeavesRefused, "was refused, durably, and is back"),
    (Broken::DropsOutcomes, "was delivered, durably, and is offered again"),
    (Broken::ClaimsDurable, "a crash is not corruption"),
    (Broken::SealsEarly, "an index is as good as its segment"),
    (Broken::CopiesOtherBody, "the body of"),
    (Broken::CopiesNoStates, "was delivered, durably, and is offered again"),
    (Broken::CopiesNoTries, "is in no legal state"),
    (Broken::CopiesNoStandings, "what an operator decided of"),
    (Broken::ReportsNobody, "which is still to be delivered"),
];

fn text(panic: &dyn Any) -> &str {
    panic.downcast_ref::<String>().map_or("", |text| text)
}

#[test]
fn every_checker_notices_the_rule_it_is_there_for() {
    for (broken, wanted) in CANARIES {
        let caught = (0..HISTORIES).find(|&seed| {
            let outcome = catch_unwind(AssertUnwindSafe(|| history(seed, Some(broken))));
            outcome.is_err_and(|panic| text(&*panic).contains(wanted))
        });
        assert!(caught.is_some(), "{broken:?} is not noticed by {wanted:?}");
        println!("{broken:?}: {wanted:?}, seed {caught:?}");
    }
}

/// A message is copied while the report on one of its recipients is in flight; the copy lands and the report
/// does not.
fn copied_beside_its_report(broken: Option<Broken>) {
    let mut world = World::small(1, broken);
    world.quiesce();
    world.accept_for(2);
    world.quiesce();
    let (id, _) = world.pick_accepted().expect("it was accepted");
    let slot = world.messages[&id].slot;
    world.bounce(id, 0);
    world.turn();
    world.log.live.set(slot, COPYING, true);
    world.log.expect_copy(slot, id);
    world.copies.push_back(slot);
    world.answer_copy();
    world.turn();
    // The report is first in line; whatever comes behind it lands.
    while world.writes.len() > 1 {
        world.answer(1, true);
    }
    world.check(&world.disk);
    world.quiesce();
    world.check(&world.disk);
}

#[test]
fn a_copy_says_nothing_that_a_report_in_flight_has_to_say() {
    copied_beside_its_report(None);
    let broken = AssertUnwindSafe(|| copied_beside_its_report(Some(Broken::CopiesReported)));
    let panic = catch_unwind(broken).expect_err("the copy has landed without the report");
    assert!(text(&*panic).contains("which is not there"), "{}", text(&*panic));
}
