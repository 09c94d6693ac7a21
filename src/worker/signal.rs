//! Wake-ups between tasks of the same thread.
//!
//! Owns: [`Signal`], for one task, and [`Broadcast`], for any number. Promises: a `raise` before or during
//! a signal's `wait` ends that wait, so no wake-up is lost; many raises make one wake-up; a broadcast holds
//! on to nobody who has stopped waiting. Must not: be waited on by two tasks at once, if it is a signal.
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use slab::Slab;

#[derive(Default)]
pub struct Signal {
    raised: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    pub fn raise(&self) {
        self.raised.set(true);
        if let Some(waker) = self.waiter.borrow_mut().take() {
            waker.wake();
        }
    }

    pub async fn wait(&self) {
        poll_fn(|cx| {
            if self.raised.replace(false) {
                return Poll::Ready(());
            }
            let mut waiter = self.waiter.borrow_mut();
            if !waiter.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waiter = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// A wake-up for every task that waits at that moment.
#[derive(Default)]
pub struct Broadcast {
    round: Cell<u64>,
    waiters: RefCell<Slab<Waker>>,
}

impl Broadcast {
    pub fn raise(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        // Waking runs nobody: the list is not in use.
        self.waiters.borrow_mut().drain().for_each(Waker::wake);
    }

    /// Ends at the first `raise` after this call.
    pub fn wait(&self) -> Waiting<'_> {
        Waiting { broadcast: self, round: self.round.get(), key: None }
    }
}

/// See [`Broadcast::wait`]. A wait that is given up leaves nothing behind: a waker that stayed would keep the
/// memory of its task.
pub struct Waiting<'a> {
    broadcast: &'a Broadcast,
    round: u64,
    key: Option<usize>,
}

impl Waiting<'_> {
    fn is_over(&self) -> bool {
        self.broadcast.round.get() != self.round
    }
}

impl Future for Waiting<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        let broadcast = self.broadcast;
        let mut waiters = broadcast.waiters.borrow_mut();
        match self.key {
            Some(key) => waiters[key].clone_from(cx.waker()),
            None => {
                let key = waiters.insert(cx.waker().clone());
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // A raise has emptied the list, and the key may be somebody else's.
        if let Some(key) = self.key.filter(|_| !self.is_over()) {
            self.broadcast.waiters.borrow_mut().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(waiting: &mut Waiting<'_>) -> bool {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_broadcast_wakes_all_who_wait_and_forgets_those_who_do_not() {
        let broadcast = Broadcast::default();
        let (mut first, mut second) = (broadcast.wait(), broadcast.wait());
        assert!(!poll(&mut first) && !poll(&mut second) && !poll(&mut second));
        assert_eq!(broadcast.waiters.borrow().len(), 2);
        drop(first);
        for _ in 0..100 {
            assert!(!poll(&mut broadcast.wait()));
        }
        assert_eq!(broadcast.waiters.borrow().len(), 1, "waits given up leave nothing");
        broadcast.raise();
        let mut third = broadcast.wait();
        assert!(!poll(&mut third));
        assert!(poll(&mut second));
        drop(second);
        assert_eq!(broadcast.waiters.borrow().len(), 1, "an old wait does not take a new one's place");
        broadcast.raise();
        assert!(poll(&mut third));
    }
}
