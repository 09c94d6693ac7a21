//! Mail that an operator returns to its senders, at a pace.
//!
//! Owns: [`Failing`], the queue of it, and the task that works it off. Promises: at most
//! `limits::FAILED_PER_TURN` bounces are made in each `limits::FAIL_WAIT`, so that a campaign that is
//! failed does not crowd out the mail that flows; what waits here is marked in the log, and is here again
//! after a restart. Must not: decide who fails.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::Worker;
use super::home::Home;
use super::outcome;
use super::report::Ended;
use super::signal::Signal;
use crate::limits;
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::ring;
use crate::spool::{Mark, RecipientState, Slot};

struct Waiting {
    slot: Slot,
    id: MessageId,
    recipients: Box<[u16]>,
}

/// See the module.
#[derive(Default)]
pub struct Failing {
    queue: RefCell<VecDeque<Waiting>>,
    raised: Signal,
}

impl Home {
    /// Returns these recipients' mail when its turn comes. They are marked in the log.
    pub fn fail_later(&self, slot: Slot, id: MessageId, recipients: Vec<u16>) {
        self.to_fail.queue.borrow_mut().push_back(Waiting { slot, id, recipients: recipients.into() });
        self.to_fail.raised.raise();
    }

    /// Messages that wait to be returned.
    pub fn to_be_failed(&self) -> usize {
        self.to_fail.queue.borrow().len()
    }
}

/// The task that returns them.
pub async fn run(worker: Rc<Worker>, home: Rc<Home>) {
    loop {
        for _ in 0..limits::FAILED_PER_TURN {
            let next = home.to_fail.queue.borrow_mut().pop_front();
            let Some(Waiting { slot, id, recipients }) = next else { break };
            fail(&worker, &home, slot, id, &recipients);
        }
        if home.to_be_failed() == 0 {
            home.to_fail.raised.wait().await;
        }
        ring::sleep(limits::FAIL_WAIT).await;
    }
}

fn fail(worker: &Rc<Worker>, home: &Rc<Home>, slot: Slot, id: MessageId, recipients: &[u16]) {
    if home.log().live().get(slot).is_none_or(|m| m.id != id) {
        return;
    }
    let refused = recipients.iter().filter_map(|&recipient| {
        let log = home.log();
        let RecipientState::Pending { .. } = log.live().state(slot, recipient)? else { return None };
        let standing = log.live().standing(slot, recipient).filter(|s| s.mark == Mark::Failing)?;
        let text = format!("returned by an operator: {}", standing.reason);
        Some(Ended { recipient, reply: Reply::local(554, (5, 7, 0), &text), host: None })
    });
    let refused: Vec<_> = refused.collect();
    outcome::fail_recipients(worker, home, slot, refused, false);
}
