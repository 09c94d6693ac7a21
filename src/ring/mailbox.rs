//! Mailboxes: bounded queues between threads that cost a wake-up only where somebody sleeps.
//!
//! Owns: the queue and its wake-up. Promises: a send never blocks and never grows the queue; a value sent
//! is received although the receiver was just going to sleep; the receiver learns that all senders are
//! gone. Must not: be the only bound of anything: who sends must hold a credit or be ready to be refused.
//!
//! # Why no wake-up is lost
//!
//! The receiver finds the queue empty, leaves its waker, sets `sleeping`, passes a sequentially consistent
//! fence, and looks into the queue once more before it waits. The sender puts the value into the queue,
//! passes a fence of the same kind, and then reads `sleeping`. The two fences are totally ordered: either
//! the sender's comes second, and it sees `sleeping`; or the receiver's comes second, and its second look
//! sees the value. Whoever swaps `sleeping` to false wakes, so a burst wakes once.
//!
//! The waker writes the event descriptor of the receiving thread's driver, which is what gets a parked
//! thread out of the kernel: any runtime of tokio can receive, and an awake receiver costs the sender one
//! load.
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam_channel::{Receiver, Sender, TryRecvError};

/// A queue for at most `depth` values (at least one).
pub fn mailbox<T: Send>(depth: usize) -> (MailboxSender<T>, Mailbox<T>) {
    let (tx, rx) = crossbeam_channel::bounded(depth.max(1));
    let bell = Arc::new(Bell { sleeping: AtomicBool::new(false), waker: Mutex::new(None) });
    (MailboxSender { tx, bell: RingOnDrop(bell.clone()) }, Mailbox { rx, bell })
}

#[derive(Debug)]
struct Bell {
    sleeping: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// Wakes the receiver if it sleeps.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The receiver is going to sleep: whoever comes from now on wakes it.
    fn set(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.sleeping.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    fn unset(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

/// Rings when a sender goes: the last one ends the receiver's wait. Declared behind the sender's end of
/// the queue, because fields are dropped in order.
#[derive(Debug)]
struct RingOnDrop(Arc<Bell>);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The sending end; any thread may have one.
#[derive(Debug)]
pub struct MailboxSender<T> {
    tx: Sender<T>,
    bell: RingOnDrop,
}

impl<T> Clone for MailboxSender<T> {
    fn clone(&self) -> MailboxSender<T> {
        MailboxSender { tx: self.tx.clone(), bell: RingOnDrop(self.bell.0.clone()) }
    }
}

impl<T> MailboxSender<T> {
    /// Sends without waiting; gives the value back when the mailbox is full or its receiver gone.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        self.tx.try_send(value).map_err(|e| e.into_inner())?;
        self.bell.0.ring();
        Ok(())
    }

    /// Values waiting.
    pub fn len(&self) -> usize {
        self.tx.len()
    }

    /// Whether no value waits.
    pub fn is_empty(&self) -> bool {
        self.tx.is_empty()
    }
}

/// The receiving end: one task.
#[derive(Debug)]
pub struct Mailbox<T> {
    rx: Receiver<T>,
    bell: Arc<Bell>,
}

impl<T> Mailbox<T> {
    /// The next value; `None` when all senders are gone and nothing waits. Dropping the future loses
    /// nothing.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`recv`](Mailbox::recv) for those who poll.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self.rx.try_recv() {
            Ok(value) => return Poll::Ready(Some(value)),
            Err(TryRecvError::Disconnected) => return Poll::Ready(None),
            Err(TryRecvError::Empty) => self.bell.set(cx.waker()),
        }
        match self.rx.try_recv() {
            Ok(value) => {
                self.bell.unset();
                Poll::Ready(Some(value))
            }
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
    }

    /// The next value, if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        self.rx.try_recv().ok()
    }

    /// Values waiting.
    pub fn len(&self) -> usize {
        self.rx.len()
    }

    /// Whether no value waits.
    pub fn is_empty(&self) -> bool {
        self.rx.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_run;
    use super::*;
    use crate::clock::Rng;

    /// Capacity 1, two senders that pause at random: a lost wake-up would hang the test.
    #[test]
    fn nothing_is_lost_between_threads_at_capacity_one() {
        const EACH: u64 = 20_000;
        for depth in [1, 2, 64] {
            let (tx, mut rx) = mailbox::<(u64, u64)>(depth);
            let senders: Vec<_> = (0..2)
                .map(|id| {
                    let tx = tx.clone();
                    std::thread::spawn(move || {
                        let mut rng = Rng::new(id);
                        for n in 0..EACH {
                            let mut value = (id, n);
                            while let Err(back) = tx.try_send(value) {
                                value = back;
                                std::thread::yield_now();
                            }
                            if rng.below(50) == 0 {
                                std::thread::sleep(std::time::Duration::from_micros(rng.below(60)));
                            }
                        }
                    })
                })
                .collect();
            drop(tx);
            let next = test_run(async move {
                let mut next = [0u64; 2];
                while let Some((id, n)) = rx.recv().await {
                    assert_eq!(next[id as usize], n, "in order for each sender");
                    next[id as usize] += 1;
                }
                next
            });
            assert_eq!(next, [EACH; 2]);
            for sender in senders {
                sender.join().expect("the sender ends well");
            }
        }
    }

    #[test]
    fn full_and_gone_are_refused() {
        let (tx, mut rx) = mailbox(2);
        assert_eq!(tx.try_send(1), Ok(()));
        assert_eq!(tx.try_send(2), Ok(()));
        assert_eq!(tx.try_send(3), Err(3));
        assert_eq!((tx.len(), rx.len()), (2, 2));
        assert_eq!(rx.try_recv(), Some(1));
        assert_eq!(tx.try_send(3), Ok(()));
        drop(rx);
        assert_eq!(tx.try_send(4), Err(4));
    }

    #[test]
    fn the_last_sender_ends_a_sleeping_receiver() {
        test_run(async {
            let (tx, mut rx) = mailbox::<u32>(1);
            let thread = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(10));
                drop(tx.clone());
                std::thread::sleep(std::time::Duration::from_millis(10));
                drop(tx);
            });
            assert_eq!(rx.recv().await, None);
            thread.join().expect("the sender ends well");
        });
    }

    #[test]
    fn an_ordinary_tokio_runtime_receives_as_well() {
        let (tx, mut rx) = mailbox(4);
        let thread = std::thread::spawn(move || {
            for n in 0..100u32 {
                while tx.try_send(n).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let sum = runtime.block_on(async {
            let mut sum = 0;
            while let Some(n) = rx.recv().await {
                sum += n;
            }
            sum
        });
        thread.join().expect("the sender ends well");
        assert_eq!(sum, 4950);
    }
}
