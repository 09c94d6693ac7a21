//! What operators decide, in the model: it lasts once it was said to be durable.
use super::world::{Promised, Waiting, World};
use crate::spool::*;

/// Changes of one recipient, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    appended: Vec<u64>,
    /// How many of them are durable, counted to the last that is.
    durable: usize,
}

/// Every third change takes back what there was.
fn is_usual(change: u64) -> bool {
    change.is_multiple_of(3)
}

impl Changes {
    pub(super) fn durable(&mut self, change: Option<u64>) {
        let at = self.appended.iter().position(|&c| Some(c) == change);
        self.durable = self.durable.max(at.map_or(0, |at| at + 1));
    }

    /// After a restart what was found holds.
    pub(super) fn found(live: &LiveTable, slot: Slot, recipient: u16) -> Changes {
        let found = live.standing(slot, recipient).map_or(0, |s| s.reason.parse().expect("a number"));
        Changes { appended: vec![found], durable: 1 }
    }

    fn allow(&self, found: Option<u64>) -> bool {
        let last_durable = self.durable.checked_sub(1).map(|at| self.appended[at]);
        let possible = last_durable.into_iter().chain(self.appended[self.durable..].iter().copied());
        match found {
            None => self.durable == 0 || possible.clone().any(is_usual),
            Some(found) => possible.clone().any(|c| c == found && !is_usual(c)),
        }
    }
}

impl World {
    /// An operator changes the standing of one recipient.
    pub(super) fn change(&mut self) {
        let Some((id, recipient)) = self.pick_accepted() else { return };
        let now = self.time();
        let number = self.rng.below(1 << 40);
        let standing = Standing {
            mark: if is_usual(number) { Mark::None } else { Mark::Held },
            destination: None,
            at: WallTime(0),
            reason: number.to_string().into(),
        };
        let slot = self.messages[&id].slot;
        let Ok(seq) = self.log.append_change(slot, &[recipient], standing, now) else { return };
        let message = self.messages.get_mut(&id).expect("picked");
        message.standing[usize::from(recipient)].changes.appended.push(number);
        let change = Some(number);
        self.waiting.push(Waiting { seq: Some(seq), dsn: None, id, recipient, attempts: None, change });
    }
}

impl Promised {
    /// The standing that recovery found of each pending recipient is one that may be there.
    pub(super) fn check_changes(&self, live: &LiveTable, message: &RecoveredMessage) {
        for (recipient, standing) in self.standing.iter().enumerate() {
            if matches!(message.states[recipient], RecipientState::Done(_)) {
                continue;
            }
            let found = live.standing(message.slot, recipient as u16);
            let number = found.map(|s| s.reason.parse().expect("a number"));
            assert!(
                standing.changes.allow(number),
                "what an operator decided of {} {recipient} is not what is found: {number:?} {standing:?}",
                message.id
            );
        }
    }
}

#[test]
fn what_operators_decide_survives_cuts_failures_and_copies() {
    let mut held = 0;
    for seed in 500..515 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        world.quiesce();
        for _ in 0..400 {
            world.accept();
            world.change();
            world.trouble = world.rng.below(3) == 0;
            (0..4).for_each(|_| world.step());
            if world.rng.below(60) == 0 {
                let disk = world.cut_power();
                world.restart(disk);
            }
        }
        world.quiesce();
        let before: Vec<_> = standings(&world);
        held += before.len();
        let disk = world.disk.clone();
        world.restart(disk);
        assert_eq!(standings(&world), before, "seed {seed}: an orderly restart changes nothing");
        world.deliver_everything();
        assert_eq!(
            world.log.live().changed().count(),
            0,
            "seed {seed}: what has ended leaves nothing behind"
        );
    }
    assert!(held > 30, "the histories must hold something at their end: {held}");
}

/// Who has a standing, and its number.
fn standings(world: &World) -> Vec<(MessageId, u16, String)> {
    let live = world.log.live();
    let mut found: Vec<_> = live
        .iter()
        .flat_map(|m| (0..m.recipients as u16).map(move |r| (m, r)))
        .filter(|(m, r)| matches!(live.state(m.slot, *r), Some(RecipientState::Pending { .. })))
        .filter_map(|(m, r)| Some((m.id, r, live.standing(m.slot, r)?.reason.to_string())))
        .collect();
    found.sort();
    found
}

#[test]
fn a_message_takes_only_so_many_decisions() {
    let mut world = World::new(9);
    world.quiesce();
    world.accept();
    world.quiesce();
    let (id, recipient) = world.pick_accepted().expect("one message");
    let slot = world.messages[&id].slot;
    let standing =
        |bytes: usize| Standing { mark: Mark::Held, reason: "x".repeat(bytes).into(), ..Standing::default() };
    let mut change = |bytes| world.log.append_change(slot, &[recipient], standing(bytes), WallTime(1));
    assert!(matches!(change(crate::limits::STANDING_BYTES), Err(Refusal::NoRoom)));
    assert!(change(100).is_ok(), "what was refused has changed nothing");
}
