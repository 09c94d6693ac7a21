//! The runtime of one worker thread: tokio-uring, with the ring flags that measurement favours.
//!
//! Owns: starting and ending a runtime, spawning tasks on it, and the notion of a turn. Promises: when
//! [`run`] returns, every task is dropped and the kernel holds no buffer any more. Must not: be used from
//! more than one thread: tasks, streams and files stay on the thread that made them.
//!
//! # Turns
//!
//! A worker's life is a sequence of turns: the thread parks, which submits everything that was queued with
//! one system call; completions arrive and make their tasks ready; the ready tasks run in the order in
//! which they became ready; the thread parks again. Two consequences for those who write tasks:
//!
//! - A task woken by another runs behind all tasks that were ready already. A writer that commits what all
//!   sessions of a turn have produced therefore only has to be woken by the first of them
//!   (`tokio::sync::Notify`); [`yield_turn`] once more lets those run that were woken meanwhile.
//! - Nothing is submitted while tasks keep the thread from parking. A loop around [`yield_turn`] (or
//!   tokio's `yield_now`) that waits for an operation waits for ever.
//!
//! Wake-ups from other threads (`tokio::sync::oneshot`, [`mailbox`](super::mailbox())) reach a parked
//! worker: it parks in tokio's own driver, whose event descriptor a foreign wake writes to, and which
//! watches the ring's descriptor beside it.
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use slab::Slab;
use tokio::task::{AbortHandle, JoinHandle};

use super::{buffer, cpu, deadline, op};

/// Entries of the submission queue: operations queued between two parks without a system call. A full
/// queue costs a submission in the middle of a turn, nothing more.
pub const RING_ENTRIES: u32 = 1024;
/// Completion entries per submission entry. Completions beyond are kept by the kernel in a slow list.
const COMPLETIONS_PER_ENTRY: u32 = 8;

/// How a worker's runtime is made.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// The CPU to pin the thread to.
    pub cpu: Option<usize>,
    /// Entries of the submission queue.
    pub entries: u32,
}

impl Default for RuntimeConfig {
    fn default() -> RuntimeConfig {
        RuntimeConfig { cpu: None, entries: RING_ENTRIES }
    }
}

thread_local! {
    /// The tasks alive on this thread, so that they can be dropped before the ring is.
    static TASKS: RefCell<Slab<AbortHandle>> = const { RefCell::new(Slab::new()) };
}

/// Runs `main` on this thread until it ends; tasks still alive then are dropped, operations still in
/// flight are cancelled and awaited.
///
/// Errors: the CPU cannot be had, or the ring cannot be made (see [`start_up_checks`](super::start_up_checks)
/// for the usual reasons).
pub fn run<F: Future>(config: &RuntimeConfig, main: F) -> io::Result<F::Output> {
    if let Some(cpu) = config.cpu {
        cpu::pin(cpu)?;
    }
    // COOP_TASKRUN: completions wait for the thread's next system call instead of interrupting it.
    // SINGLE_ISSUER: one thread submits, which saves the kernel locking. DEFER_TASKRUN would hang: the
    // driver of tokio-uring never enters the kernel to fetch completions.
    let mut uring = tokio_uring::uring_builder();
    uring
        .setup_coop_taskrun()
        .setup_single_issuer()
        .setup_cqsize(config.entries.next_power_of_two().saturating_mul(COMPLETIONS_PER_ENTRY))
        .setup_clamp();
    let runtime =
        tokio_uring::Runtime::new(tokio_uring::builder().entries(config.entries).uring_builder(&uring))?;
    op::begin();
    buffer::ring_begins();
    deadline::reset();
    let output = runtime.block_on(async {
        let output = main.await;
        end_tasks().await;
        op::quiesce().await;
        output
    });
    drop(runtime);
    buffer::ring_ended();
    deadline::reset();
    Ok(output)
}

/// Aborts every task and waits until all are dropped.
async fn end_tasks() {
    loop {
        let tasks: Vec<AbortHandle> =
            TASKS.with_borrow(|tasks| tasks.iter().map(|(_, task)| task.clone()).collect());
        if tasks.is_empty() {
            return;
        }
        for task in tasks {
            task.abort();
        }
        yield_turn().await;
    }
}

/// A spawned task. Dropping this handle lets the task run on.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Drops the task's future at its next turn. A read or write in flight there shuts its connection down
    /// (see [`Stream`](super::Stream)).
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until the task has ended or was aborted. A panic of the task is passed on.
    pub async fn join(self) {
        if let Err(e) = self.0.await
            && e.is_panic()
        {
            std::panic::resume_unwind(e.into_panic());
        }
    }
}

/// Runs `task` on this worker beside the caller.
pub fn spawn<F: Future<Output = ()> + 'static>(task: F) -> Task {
    let handle = tokio_uring::spawn(listed(task));
    TASKS.with_borrow_mut(|tasks| tasks.insert(handle.abort_handle()));
    Task(handle)
}

/// A task that goes off the list with its future. Its place is made here and not in its first turn: it must go
/// also when that never comes.
fn listed<F: Future<Output = ()>>(task: F) -> Listed<F> {
    Listed { task, _place: Place(TASKS.with_borrow_mut(|tasks| tasks.vacant_key())) }
}

/// A task on the list. An `async` block that awaits what it has captured would have room for it twice.
struct Listed<F> {
    task: F,
    _place: Place,
}

impl<F: Future<Output = ()>> Future for Listed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `task` is pinned with `self`: nothing moves it out, `Listed` has no `Drop` of its own, and it
        // is `Unpin` only where `task` is.
        unsafe { self.map_unchecked_mut(|listed| &mut listed.task) }.poll(cx)
    }
}

/// Takes a task off the list when its future ends or is dropped.
struct Place(usize);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = TASKS.try_with(|tasks| tasks.borrow_mut().try_remove(self.0));
    }
}

/// Goes behind every task that is ready now: resumes when each of them has run once. Costs no system call
/// and does not wait for the kernel.
pub async fn yield_turn() {
    YieldTurn(false).await
}

struct YieldTurn(bool);

impl Future for YieldTurn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::super::{sleep, test_run};
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    #[test]
    fn a_task_has_room_for_its_future_once() {
        let task = async {
            let large = [1_u8; 1000];
            yield_turn().await;
            assert_eq!(large.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 1000);
        };
        let alone = size_of_val(&task);
        assert!(alone >= 1000);
        assert!(size_of_val(&listed(task)) <= alone + 16);
    }

    #[test]
    fn a_writer_woken_by_the_first_session_runs_after_all_of_the_turn() {
        test_run(async {
            let notify = Rc::new(tokio::sync::Notify::new());
            let count = Rc::new(Cell::new(0));
            let seen = Rc::new(Cell::new(0));
            let gate = Rc::new(tokio::sync::Notify::new());
            let writer = spawn({
                let (notify, count, seen) = (notify.clone(), count.clone(), seen.clone());
                async move {
                    notify.notified().await;
                    seen.set(count.get());
                }
            });
            for _ in 0..10 {
                let (notify, count, gate) = (notify.clone(), count.clone(), gate.clone());
                spawn(async move {
                    gate.notified().await;
                    count.set(count.get() + 1);
                    notify.notify_one();
                });
            }
            yield_turn().await;
            gate.notify_waiters();
            writer.join().await;
            assert_eq!(seen.get(), 10);
        });
    }

    #[test]
    fn yield_turn_lets_ready_tasks_run_first() {
        test_run(async {
            let ran = Rc::new(Cell::new(0));
            for _ in 0..5 {
                let ran = ran.clone();
                spawn(async move { ran.set(ran.get() + 1) });
            }
            let seen = Rc::new(Cell::new(0));
            let (r, s) = (ran.clone(), seen.clone());
            let task = spawn(async move {
                let r2 = r.clone();
                spawn(async move { r2.set(r2.get() + 1) });
                yield_turn().await;
                s.set(r.get());
            });
            task.join().await;
            assert_eq!(seen.get(), 6);
        });
    }

    #[test]
    fn tasks_that_outlive_main_are_dropped_before_run_returns() {
        struct Flag(Rc<Cell<u32>>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = Rc::new(Cell::new(0));
        for round in 1..=3 {
            let flag = Flag(dropped.clone());
            test_run(async move {
                spawn(async move {
                    let _flag = flag;
                    loop {
                        sleep(Duration::from_secs(100)).await;
                    }
                });
                yield_turn().await;
            });
            assert_eq!(dropped.get(), round);
        }
    }

    #[test]
    fn a_task_aborted_before_its_first_turn_is_gone() {
        test_run(async {
            let task = spawn(async { unreachable!("never polled") });
            task.abort();
            task.join().await;
            TASKS.with_borrow(|tasks| assert!(tasks.is_empty()));
        });
    }

    #[test]
    fn a_wake_from_another_thread_reaches_a_parked_worker() {
        test_run(async {
            for _ in 0..20 {
                let (tx, rx) = tokio::sync::oneshot::channel();
                let thread = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    tx.send(7).expect("the receiver waits");
                });
                assert_eq!(rx.await, Ok(7));
                thread.join().expect("the sender ends");
            }
        });
    }
}
