//! A wake-up for one task of the same thread.
//!
//! Owns: [`Signal`]. Promises: a `raise` before or during `wait` ends that wait, so no wake-up is
//! lost; many raises make one wake-up. Must not: be waited on by two tasks at once.
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

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
    waiters: RefCell<Vec<Waker>>,
}

impl Broadcast {
    pub fn raise(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        for waker in self.waiters.take() {
            waker.wake();
        }
    }

    /// Ends at the first `raise` after this call.
    pub async fn wait(&self) {
        let seen = self.round.get();
        poll_fn(|cx| {
            if self.round.get() != seen {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
