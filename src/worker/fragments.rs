//! The fragment buffers of a worker, and who gets the next one.
//!
//! Owns: the pool, the queue of those who wait for a buffer, and how many the clients of each network hold.
//! Promises: those who wait are served in the order in which they came, but for a network that holds half of
//! the pool, which goes last; nobody waits for longer than `limits::FRAGMENT_BUFFER_WAIT`. That buffers come
//! back is up to those who hold them: [`Fragments::is_short`] says when one that is not being filled must go.
//! Must not: know what is in a buffer.
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use super::gate::network;
use super::signal::Signal;
use crate::clock::Tick;
use crate::limits;
use crate::ring::{self, AlignedBuf, BufferPool};

pub struct Fragments {
    pool: BufferPool,
    count: usize,
    /// Buffers that sessions hold, by the network of their client.
    held: RefCell<HashMap<IpAddr, usize>>,
    queue: RefCell<VecDeque<Rc<Waiter>>>,
    /// Raised when somebody begins to wait.
    called: Signal,
}

/// One who waits for a buffer.
struct Waiter {
    network: IpAddr,
    since: Tick,
    lent: Cell<Option<(AlignedBuf, Holder)>>,
    /// Raised when it has a buffer, or will get none.
    served: Signal,
}

/// Counts a buffer as held while it lives.
pub struct Holder {
    of: Rc<Fragments>,
    network: IpAddr,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut held = self.of.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.network);
            }
        }
    }
}

impl Fragments {
    pub fn new(count: usize) -> Rc<Fragments> {
        Rc::new(Fragments {
            pool: BufferPool::new(count, limits::FRAGMENT_BUFFER_BYTES, false),
            count,
            held: RefCell::default(),
            queue: RefCell::default(),
            called: Signal::default(),
        })
    }

    /// A buffer for a body of this client; none if it would have to be waited for too long.
    pub async fn take(self: &Rc<Self>, client: IpAddr) -> Option<(AlignedBuf, Holder)> {
        let network = network(client);
        if self.queue.borrow().is_empty()
            && let Some(buffer) = self.pool.take()
        {
            return Some(self.lend(buffer, network));
        }
        let waiter = self.enqueue(network, ring::now());
        waiter.served.wait().await;
        waiter.lent.take()
    }

    fn enqueue(&self, network: IpAddr, now: Tick) -> Rc<Waiter> {
        let (lent, served) = (Cell::new(None), Signal::default());
        let waiter = Rc::new(Waiter { network, since: now, lent, served });
        self.queue.borrow_mut().push_back(waiter.clone());
        self.called.raise();
        waiter
    }

    /// Whether others wait for buffers, or soon will.
    pub fn is_short(&self) -> bool {
        !self.queue.borrow().is_empty() || self.pool.free() * 4 < self.count
    }

    /// The task that serves those who wait.
    pub async fn run(self: Rc<Self>) {
        loop {
            if self.queue.borrow().is_empty() {
                self.called.wait().await;
            }
            ring::sleep(limits::BODY_LOAD_WAIT).await;
            self.serve(ring::now());
        }
    }

    /// Gives out what is free, and sends away who has waited too long.
    fn serve(self: &Rc<Self>, now: Tick) {
        let queue = &mut *self.queue.borrow_mut();
        while queue.front().is_some_and(|first| now.since(first.since) >= limits::FRAGMENT_BUFFER_WAIT) {
            queue.pop_front().expect("it was there").served.raise();
        }
        let most = self.count / 2;
        for even_those_with_many in [false, true] {
            queue.retain(|waiter| {
                let held = self.held.borrow().get(&waiter.network).copied().unwrap_or(0);
                if held >= most && !even_those_with_many {
                    return true;
                }
                let Some(buffer) = self.pool.take() else { return true };
                waiter.lent.set(Some(self.lend(buffer, waiter.network)));
                waiter.served.raise();
                false
            });
        }
    }

    fn lend(self: &Rc<Self>, buffer: AlignedBuf, network: IpAddr) -> (AlignedBuf, Holder) {
        *self.held.borrow_mut().entry(network).or_insert(0) += 1;
        (buffer, Holder { of: self.clone(), network })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(last: u8) -> IpAddr {
        network([192, 0, last, 1].into())
    }

    /// Which of the waiters have been given a buffer since the last look; those are kept in `got`.
    fn given(waiters: &[Rc<Waiter>], got: &mut Vec<(AlignedBuf, Holder)>) -> Vec<usize> {
        let mut which = Vec::new();
        for (at, waiter) in waiters.iter().enumerate() {
            if let Some(lent) = waiter.lent.take() {
                got.push(lent);
                which.push(at);
            }
        }
        which
    }

    #[test]
    fn first_come_first_served_but_for_who_holds_half() {
        let fragments = Fragments::new(4);
        let now = Tick(1_000_000);
        let waiters: Vec<_> = [1, 1, 1, 2, 1, 3].map(|n| fragments.enqueue(net(n), now)).into();
        let mut got = Vec::new();
        fragments.serve(now);
        assert_eq!(
            given(&waiters, &mut got),
            [0, 1, 3, 5],
            "the third of a network comes after others' first"
        );
        assert!(fragments.is_short());
        // One comes back, of another network: nobody else waits, so who holds much is served as well.
        got.remove(3);
        fragments.serve(now);
        assert_eq!(given(&waiters, &mut got), [2]);
        got.clear();
        fragments.serve(now);
        assert_eq!(given(&waiters, &mut got), [4]);
        got.clear();
        assert!(!fragments.is_short() && fragments.held.borrow().is_empty());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let fragments = Fragments::new(1);
        let wait = limits::FRAGMENT_BUFFER_WAIT;
        let held = fragments.lend(fragments.pool.take().expect("one"), net(1));
        let early = fragments.enqueue(net(2), Tick(0));
        let late = fragments.enqueue(net(2), Tick(1));
        fragments.serve(Tick(0).saturating_add(wait));
        assert_eq!(fragments.queue.borrow().len(), 1, "the first was sent away");
        assert!(early.lent.take().is_none());
        drop(held);
        fragments.serve(Tick(0).saturating_add(wait));
        assert!(late.lent.take().is_some());
    }
}
