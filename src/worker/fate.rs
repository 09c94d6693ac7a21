//! How groups end, and who waits to know.
//!
//! Owns: [`Fates`], one entry per group that is not decided, and [`Watch`], the wait for one. Promises: a
//! watch taken in the turn of the append learns the fate of its group, whenever it asks; entries are used
//! again, so that a commit allocates nothing. Must not: decide anything (the log does).
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::limits;
use crate::spool::GroupSeq;

#[derive(Default)]
struct Fate {
    durable: Cell<Option<bool>>,
    waiters: RefCell<Vec<Waker>>,
}

#[derive(Default)]
pub struct Fates {
    /// Rising.
    open: RefCell<VecDeque<(GroupSeq, Rc<Fate>)>>,
    /// Decided ones, to be used again when nobody looks at them any more.
    spare: RefCell<VecDeque<Rc<Fate>>>,
}

impl Fates {
    /// Something was appended to this group, the newest.
    pub fn open(&self, group: GroupSeq) {
        let mut open = self.open.borrow_mut();
        if open.back().is_none_or(|(last, _)| *last < group) {
            let spare = self.spare.borrow_mut().pop_front_if(|fate| Rc::strong_count(fate) == 1);
            let fate = spare.unwrap_or_default();
            fate.durable.set(None);
            open.push_back((group, fate));
        }
    }

    /// The fate of a group. Ask in the turn of the append; the answer may be awaited any time later.
    pub fn watch(&self, group: GroupSeq) -> Watch {
        let open = self.open.borrow();
        let at = open.binary_search_by_key(&group, |(seq, _)| *seq);
        Watch(at.ok().map(|at| open[at].1.clone()))
    }

    /// Tells those who wait.
    pub fn decide(&self, group: GroupSeq, durable: bool) {
        let mut open = self.open.borrow_mut();
        let Ok(at) = open.binary_search_by_key(&group, |(seq, _)| *seq) else { return };
        let Some((_, fate)) = open.remove(at) else { return };
        fate.durable.set(Some(durable));
        // Waking runs nobody: the list is not in use.
        fate.waiters.borrow_mut().drain(..).for_each(Waker::wake);
        let mut spare = self.spare.borrow_mut();
        if spare.len() < 2 * limits::COMMIT_BUFFERS {
            spare.push_back(fate);
        }
    }

    /// Whether every group is decided.
    pub fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }
}

/// See [`Fates::watch`].
pub struct Watch(Option<Rc<Fate>>);

impl Watch {
    /// Of what was durable before it was asked for.
    pub fn of_durable() -> Watch {
        Watch(Some(Rc::new(Fate { durable: Cell::new(Some(true)), ..Fate::default() })))
    }
    /// True if the group became durable.
    pub async fn wait(&self) -> bool {
        let Some(fate) = &self.0 else { return false };
        std::future::poll_fn(|cx| match fate.durable.get() {
            Some(durable) => Poll::Ready(durable),
            None => {
                fate.waiters.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn answer(watch: impl Future<Output = bool>) -> Option<bool> {
        match pin!(watch).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(durable) => Some(durable),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_watch_learns_its_own_groups_fate_also_when_entries_are_used_again() {
        let fates = Fates::default();
        let mut kept = Vec::new();
        for round in 0..200u64 {
            let group = GroupSeq(round);
            fates.open(group);
            fates.open(group);
            let watch = fates.watch(group);
            if round % 3 == 0 {
                assert_eq!(answer(fates.watch(group).wait()), None);
            }
            fates.decide(group, round % 2 == 0);
            fates.decide(group, round % 2 != 0);
            // Some ask at once, some much later.
            if round % 5 == 0 {
                kept.push((watch, round % 2 == 0));
            } else {
                assert_eq!(answer(watch.wait()), Some(round % 2 == 0));
            }
        }
        for (watch, durable) in kept {
            assert_eq!(answer(watch.wait()), Some(durable));
        }
        assert!(fates.is_empty() && fates.spare.borrow().len() <= 2 * limits::COMMIT_BUFFERS);
        assert_eq!(answer(fates.watch(GroupSeq(7)).wait()), Some(false), "an unknown group is not durable");
        assert_eq!(answer(Watch::of_durable().wait()), Some(true));
    }
}
