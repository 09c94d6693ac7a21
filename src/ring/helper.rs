//! Helper threads for what the ring cannot do without blocking: preparing segments, syncing directories.
//!
//! Owns: [`blocking`] and the process's few helper threads. Promises: a worker never blocks; the queue of
//! work is bounded. Must not: be used per message.
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError, bounded};
use tokio::sync::oneshot;

/// Helper threads: a second one keeps a short job from waiting behind a segment being filled.
const HELPERS: usize = 2;
/// Jobs waiting for a helper. Each worker asks for a segment or two at a time.
const HELPER_QUEUE: usize = 256;
/// Pause before a job is offered again to a full queue.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

type Job = Box<dyn FnOnce() + Send>;

fn queue() -> &'static Sender<Job> {
    static QUEUE: OnceLock<Sender<Job>> = OnceLock::new();
    QUEUE.get_or_init(|| {
        let (tx, rx) = bounded::<Job>(HELPER_QUEUE);
        for n in 0..HELPERS {
            let rx = rx.clone();
            std::thread::Builder::new()
                .name(format!("helper-{n}"))
                .spawn(move || rx.iter().for_each(|job| job()))
                .expect("a process that cannot start its helper threads cannot work");
        }
        tx
    })
}

/// Runs `work` on a helper thread; the calling task waits, its worker does not. Dropping the future lets
/// the work go on. A panic of `work` is passed on. Works in any runtime of tokio with a timer.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = oneshot::channel();
    let mut job: Job = Box::new(move || {
        // Nobody waits any more where the future was dropped.
        let _ = tx.send(catch_unwind(AssertUnwindSafe(work)));
    });
    loop {
        match queue().try_send(job) {
            Ok(()) => break,
            Err(TrySendError::Full(back) | TrySendError::Disconnected(back)) => job = back,
        }
        tokio::time::sleep(FULL_QUEUE_PAUSE).await;
    }
    match rx.await.expect("a helper answers every job") {
        Ok(value) => value,
        Err(panic) => resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_run;
    use super::*;

    #[test]
    fn results_and_panics_come_back() {
        test_run(async {
            assert_eq!(blocking(|| 2 + 3).await, 5);
            for n in 0..50u32 {
                assert_eq!(blocking(move || n).await, n);
            }
        });
        let outcome = std::panic::catch_unwind(|| {
            test_run(async { blocking(|| std::panic::panic_any("helper")).await });
        });
        assert_eq!(outcome.expect_err("passed on").downcast_ref::<&str>(), Some(&"helper"));
    }
}
