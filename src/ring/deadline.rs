//! Deadlines: one hashed timing wheel per worker.
//!
//! Owns: the wheel, [`sleep`], [`Timer`] and the monotonic clock of the worker. Promises: registering and
//! cancelling are O(1) and allocate nothing once the wheel has grown; a timer never fires early and at most
//! about one [`TICK`] late; a wheel without timers wakes nobody. Must not: be used for waits that have to
//! be exact (below [`EXACT_BELOW`], [`sleep`] uses the runtime's own timer).
//!
//! A server with ten thousand connections starts a wait per read and almost never sees one end, so the
//! wheel is made for cancelling: a slot is a doubly linked list through a slab, a bitmap tells which slots
//! are in use, and one task sleeps until the next slot in use. Waits longer than one round stay in their
//! slot and are looked at once per round.
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use slab::Slab;

use crate::clock::Tick;

/// Granularity of the wheel.
pub const TICK: Duration = Duration::from_millis(TICK_MS);
/// Shorter sleeps go to the runtime's own timer, which is exact to a millisecond.
pub const EXACT_BELOW: Duration = Duration::from_millis(100);

const TICK_MS: u64 = 50;
/// Slots of the wheel: one round is 51 seconds, which most waits of SMTP exceed a few times only.
const SLOTS: usize = 1024;
/// The coarse clock steps once per scheduler tick of the kernel: at most 10 ms (CONFIG_HZ=100).
const COARSE_STEP_MS: u64 = 10;
/// End of a list.
const NIL: u32 = u32::MAX;
/// No wake-up is planned.
const NEVER: u64 = u64::MAX;

const _: () = assert!(SLOTS.is_power_of_two() && SLOTS.is_multiple_of(64));

/// Monotonic time in microseconds, precise.
pub fn now() -> Tick {
    let t = clock_gettime(ClockId::Monotonic);
    Tick(t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1_000)
}

/// Monotonic milliseconds, up to [`COARSE_STEP_MS`] behind: a quarter of the price of the precise clock.
fn coarse_ms() -> u64 {
    let t = clock_gettime(ClockId::MonotonicCoarse);
    t.tv_sec as u64 * 1_000 + t.tv_nsec as u64 / 1_000_000
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Fired,
}

struct Entry {
    due: u64,
    previous: u32,
    next: u32,
    state: State,
    waker: Waker,
}

/// The pure part: lists and bitmap, time as an argument.
struct Wheel {
    heads: Box<[u32]>,
    used: [u64; SLOTS / 64],
    entries: Slab<Entry>,
    /// The first tick that has not been looked at yet.
    next_tick: u64,
}

impl Wheel {
    fn new() -> Wheel {
        Wheel {
            heads: vec![NIL; SLOTS].into_boxed_slice(),
            used: [0; SLOTS / 64],
            entries: Slab::new(),
            next_tick: 0,
        }
    }

    fn slot(due: u64) -> usize {
        due as usize & (SLOTS - 1)
    }

    fn insert(&mut self, due: u64, waker: Waker) -> u32 {
        // A tick that was looked at already would wait for a whole round.
        let due = due.max(self.next_tick);
        let slot = Self::slot(due);
        let next = self.heads[slot];
        let key =
            self.entries.insert(Entry { due, previous: NIL, next, state: State::Waiting, waker }) as u32;
        if next != NIL {
            self.entries[next as usize].previous = key;
        }
        self.heads[slot] = key;
        self.used[slot / 64] |= 1 << (slot % 64);
        key
    }

    fn unlink(&mut self, key: u32) {
        let Entry { due, previous, next, .. } = self.entries[key as usize];
        let slot = Self::slot(due);
        if previous == NIL {
            self.heads[slot] = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
        if self.heads[slot] == NIL {
            self.used[slot / 64] &= !(1 << (slot % 64));
        }
    }

    fn remove(&mut self, key: u32) {
        match self.entries.get(key as usize) {
            Some(entry) if entry.state == State::Waiting => self.unlink(key),
            Some(_) => {}
            None => return,
        }
        self.entries.remove(key as usize);
    }

    /// Fires one timer; gives the waker to wake outside of the borrow.
    fn fire(&mut self, key: u32) -> Option<Waker> {
        if self.entries.get(key as usize)?.state == State::Fired {
            return None;
        }
        self.unlink(key);
        let entry = &mut self.entries[key as usize];
        entry.state = State::Fired;
        Some(std::mem::replace(&mut entry.waker, Waker::noop().clone()))
    }

    /// Fires everything due at `now` and tells at which tick to look again.
    fn advance(&mut self, now: u64, fired: &mut Vec<Waker>) -> Option<u64> {
        let span = (now + 1).saturating_sub(self.next_tick).min(SLOTS as u64);
        for tick in (now + 1 - span)..=now {
            let mut key = self.heads[Self::slot(tick)];
            while key != NIL {
                let Entry { due, next, .. } = self.entries[key as usize];
                if due <= now {
                    fired.extend(self.fire(key));
                }
                key = next;
            }
        }
        self.next_tick = self.next_tick.max(now + 1);
        self.next_used()
    }

    /// The nearest tick, from `next_tick` on, whose slot holds anything.
    fn next_used(&self) -> Option<u64> {
        let start = Self::slot(self.next_tick);
        // One word more than there are: the first word is looked at from `start` on, and at last before it.
        for step in 0..=SLOTS / 64 {
            let word = (start / 64 + step) % (SLOTS / 64);
            let mask = match step {
                0 => u64::MAX << (start % 64),
                _ if step == SLOTS / 64 => !(u64::MAX << (start % 64)),
                _ => u64::MAX,
            };
            let bits = self.used[word] & mask;
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) & (SLOTS - 1);
                return Some(self.next_tick + ahead as u64);
            }
        }
        None
    }
}

/// The wheel of this thread and the task that turns it.
struct Local {
    wheel: Wheel,
    /// The tick the driving task sleeps until; [`NEVER`] when nothing is registered.
    planned: u64,
    driver: Option<Waker>,
    driven: bool,
}

impl Local {
    fn new() -> Local {
        Local { wheel: Wheel::new(), planned: NEVER, driver: None, driven: false }
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::new());
}

/// Forgets every timer of this thread. The runtime calls it before it starts and after it has ended.
pub(super) fn reset() {
    let old = LOCAL.replace(Local::new());
    drop(old);
}

/// The key of a registered timer, for [`fire_early`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimerKey(u32);

/// A registered timer; dropping it cancels.
#[must_use = "dropping a timer cancels it"]
#[derive(Debug)]
pub struct Timer(TimerKey);

impl Timer {
    /// Whether the time is up.
    pub fn fired(&self) -> bool {
        LOCAL.with_borrow(|local| {
            local.wheel.entries.get(self.0.0 as usize).is_none_or(|entry| entry.state == State::Fired)
        })
    }

    /// Whom to wake, should the task have changed since.
    pub fn watch(&self, waker: &Waker) {
        LOCAL.with_borrow_mut(|local| {
            if let Some(entry) = local.wheel.entries.get_mut(self.0.0 as usize)
                && entry.state == State::Waiting
                && !entry.waker.will_wake(waker)
            {
                entry.waker.clone_from(waker);
            }
        });
    }

    pub(super) fn key(&self) -> TimerKey {
        self.0
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The thread's storage may be gone when a future outlives its thread's runtime.
        let _ = LOCAL.try_with(|local| local.borrow_mut().wheel.remove(self.0.0));
    }
}

/// Fires a timer before its time.
pub(super) fn fire_early(key: TimerKey) {
    let waker = LOCAL.with_borrow_mut(|local| local.wheel.fire(key.0));
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes `waker` once, not before `wait` is over and at most about one [`TICK`] later. Only inside a
/// runtime of this module.
pub fn timer(wait: Duration, waker: &Waker) -> Timer {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
    let due = (coarse_ms() + COARSE_STEP_MS + wait_ms) / TICK_MS + 1;
    let (key, start, wake) = LOCAL.with_borrow_mut(|local| {
        let key = local.wheel.insert(due, waker.clone());
        let wake = if due < local.planned {
            local.planned = due;
            local.driver.take()
        } else {
            None
        };
        (key, !std::mem::replace(&mut local.driven, true), wake)
    });
    if start {
        tokio_uring::spawn(drive());
    }
    if let Some(wake) = wake {
        wake.wake();
    }
    Timer(TimerKey(key))
}

/// Turns the wheel of this thread for as long as its runtime lives.
async fn drive() {
    let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
    let mut fired = Vec::new();
    poll_fn(|cx| {
        loop {
            let now_us = now().0;
            let next = LOCAL.with_borrow_mut(|local| {
                let next = local.wheel.advance(now_us / 1_000 / TICK_MS, &mut fired);
                local.planned = next.unwrap_or(NEVER);
                local.driver = Some(cx.waker().clone());
                next
            });
            for waker in fired.drain(..) {
                waker.wake();
            }
            let Some(next) = next else { return Poll::Pending };
            let ahead = (next * TICK_MS * 1_000).saturating_sub(now_us);
            sleep.as_mut().reset((Instant::now() + Duration::from_micros(ahead)).into());
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Waits. From [`EXACT_BELOW`] on it may end one [`TICK`] late. Safe to drop.
pub async fn sleep(wait: Duration) {
    if wait < EXACT_BELOW {
        return tokio::time::sleep(wait).await;
    }
    Sleep { wait, timer: None }.await
}

struct Sleep {
    wait: Duration,
    timer: Option<Timer>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &self.timer {
            Some(timer) if timer.fired() => return Poll::Ready(()),
            Some(timer) => timer.watch(cx.waker()),
            None => self.timer = Some(timer(self.wait, cx.waker())),
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;
    use std::collections::BTreeMap;

    /// Against a sorted map: the same timers fire at the same ticks, whatever is cancelled in between.
    #[test]
    fn wheel_agrees_with_a_sorted_map() {
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = rng.below(1 << 30);
            wheel.advance(now, &mut Vec::new());
            for step in 0..2_000 {
                match rng.below(4) {
                    0 | 1 => {
                        let due = now + 1 + rng.below(SLOTS as u64 * 3);
                        let key = wheel.insert(due, Waker::noop().clone());
                        model.insert(key, due);
                    }
                    2 => {
                        if let Some(key) = model.keys().nth(rng.below(8) as usize).copied() {
                            model.remove(&key);
                            wheel.remove(key);
                        }
                    }
                    _ => {
                        let reach = if rng.below(20) == 0 { 3_000 } else { 40 };
                        now += rng.below(reach);
                        let mut fired = Vec::new();
                        let next = wheel.advance(now, &mut fired);
                        let due: Vec<u32> =
                            model.iter().filter(|(_, d)| **d <= now).map(|(k, _)| *k).collect();
                        assert_eq!(fired.len(), due.len(), "seed {seed} step {step}");
                        for key in due {
                            assert_eq!(wheel.entries[key as usize].state, State::Fired);
                            wheel.remove(key);
                            model.remove(&key);
                        }
                        let earliest = model.values().min().copied();
                        assert_eq!(next.is_some(), earliest.is_some(), "seed {seed} step {step}");
                        if let (Some(next), Some(earliest)) = (next, earliest) {
                            assert!(next > now && next <= earliest, "seed {seed} step {step}");
                        }
                    }
                }
            }
            for key in model.into_keys().collect::<Vec<_>>() {
                wheel.remove(key);
            }
            assert!(wheel.entries.is_empty() && wheel.used.iter().all(|w| *w == 0));
        }
    }

    #[test]
    fn sleepers_wake_in_order_and_not_early() {
        let order = super::super::test_run(async {
            let order = std::rc::Rc::new(RefCell::new(Vec::new()));
            let mut tasks = Vec::new();
            for wait in [350u64, 120, 20, 220] {
                let order = order.clone();
                tasks.push(super::super::spawn(async move {
                    let start = Instant::now();
                    sleep(Duration::from_millis(wait)).await;
                    assert!(start.elapsed() >= Duration::from_millis(wait));
                    order.borrow_mut().push(wait);
                }));
            }
            for task in tasks {
                task.join().await;
            }
            order.take()
        });
        assert_eq!(order, [20, 120, 220, 350]);
    }

    #[test]
    fn a_dropped_timer_is_gone_and_the_wheel_is_quiet() {
        super::super::test_run(async {
            drop(timer(Duration::from_secs(300), Waker::noop()));
            LOCAL.with_borrow(|local| assert!(local.wheel.entries.is_empty()));
            sleep(Duration::from_millis(150)).await;
            // The driver has looked since and has nothing left to wait for.
            sleep(Duration::from_millis(60)).await;
            LOCAL.with_borrow(|local| assert_eq!(local.planned, NEVER));
        });
    }
}
