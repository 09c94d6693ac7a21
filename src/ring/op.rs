//! One operation on the ring, from submission to completion.
//!
//! Owns: the way every operation of this crate goes through tokio-uring (its one-shot submission), the
//! count of operations the kernel still holds, cancellation, and the wait with a deadline. Promises: what
//! an operation points into (buffer, descriptor, address) lives until the kernel has let go of it, also
//! when its future is dropped; after [`quiesce`] nothing is left in the kernel. Must not: know what an
//! operation means.
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::deadline::{TICK, Timer, TimerKey, timer};

/// `IORING_RECVSEND_POLL_FIRST` (Linux 5.19): wait for data before the first attempt to receive.
pub(super) const POLL_FIRST: u16 = 1;
/// `IORING_ASYNC_CANCEL_OP` (Linux 6.6): cancel only operations with the opcode in `len`.
const CANCEL_OP: u32 = 1 << 5;

thread_local! {
    /// Operations submitted on this thread whose resources the kernel may still use.
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
    /// Set while the runtime of this thread ends: nothing new is submitted.
    static ENDING: Cell<bool> = const { Cell::new(false) };
    /// Waits for `IN_FLIGHT` to become zero.
    static QUIET: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// Cleared once the kernel has refused [`CANCEL_OP`].
static CANCEL_OP_KNOWN: AtomicBool = AtomicBool::new(true);

/// Counts one operation for as long as its resources exist.
struct Counted;

impl Counted {
    fn enter() -> Counted {
        IN_FLIGHT.set(IN_FLIGHT.get() + 1);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // The thread's storage may be gone when a future outlives its thread's runtime.
        let _ = IN_FLIGHT.try_with(|count| {
            count.set(count.get() - 1);
            if count.get() == 0
                && let Some(waker) = QUIET.take()
            {
                waker.wake();
            }
        });
    }
}

/// What the kernel may point into; the driver keeps it until the completion.
struct Held<D> {
    data: D,
    _count: Counted,
}

/// Turns a completion into a result and gives the resources back.
struct GiveBack<D>(PhantomData<D>);

impl<D> OneshotOutputTransform for GiveBack<D> {
    type Output = (io::Result<u32>, D);
    type StoredData = Held<D>;

    fn transform_oneshot_output(self, held: Held<D>, entry: cqueue::Entry) -> Self::Output {
        let result = u32::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        (result, held.data)
    }
}

/// A submitted operation: a future of its result and its resources.
///
/// Dropping it leaves the operation running and its resources with the driver until it completes.
pub(super) struct Op<D: Unpin + 'static>(Stage<D>);

enum Stage<D: Unpin + 'static> {
    InFlight(InFlightOneshot<Held<D>, GiveBack<D>>),
    /// The runtime ends: never submitted.
    Refused(Option<D>),
}

impl<D: Unpin + 'static> Op<D> {
    /// Puts `entry` on the submission queue; it reaches the kernel when the thread parks.
    ///
    /// # Safety
    ///
    /// Everything `entry` points to, and its descriptor, must be owned by `data` (or live for ever) at an
    /// address that does not change when `data` moves, and must not be touched through other handles in a
    /// way that conflicts with the operation. The operation must complete exactly once.
    pub(super) unsafe fn submit(data: D, entry: squeue::Entry) -> Op<D> {
        if ENDING.get() {
            return Op(Stage::Refused(Some(data)));
        }
        let held = Held { data, _count: Counted::enter() };
        Op(Stage::InFlight(UnsubmittedOneshot::new(held, GiveBack(PhantomData), entry).submit()))
    }
}

impl<D: Unpin + 'static> Future for Op<D> {
    type Output = (io::Result<u32>, D);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Stage::InFlight(op) => Pin::new(op).poll(cx),
            Stage::Refused(data) => {
                let data = data.take().expect("a finished operation is not polled again");
                Poll::Ready((Err(Errno::CANCELED.into()), data))
            }
        }
    }
}

/// Sets the `ioprio` field of an entry, which carries flags for some opcodes.
pub(super) fn with_ioprio(mut entry: squeue::Entry, value: u16) -> squeue::Entry {
    // SAFETY: `Entry` is `repr(C)` around the 64-byte submission entry of the kernel's interface, whose
    // bytes 2..4 are `ioprio`; the entry is owned here and every bit pattern of the field is valid.
    unsafe { (&raw mut entry).byte_add(2).cast::<u16>().write(value) };
    entry
}

/// Asks the kernel to cancel all operations of kind `code` on `fd` (on older kernels: all operations).
fn cancel(fd: RawFd, code: u8) -> Op<()> {
    let mut entry = opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd)).all()).build();
    if CANCEL_OP_KNOWN.load(Ordering::Relaxed) {
        // SAFETY: as in `with_ioprio`; bytes 24..28 are `len` and 28..32 the cancel flags.
        unsafe {
            let base = &raw mut entry;
            base.byte_add(24).cast::<u32>().write(u32::from(code));
            let flags = base.byte_add(28).cast::<u32>();
            flags.write(flags.read() | CANCEL_OP);
        }
    }
    // SAFETY: the entry points to nothing. The caller holds the descriptor open until the cancelled
    // operation has completed, which is after this one has been looked at.
    unsafe { Op::submit((), entry) }
}

/// An operation with a deadline: at the deadline it is cancelled, and its completion awaited.
///
/// Gives the result, the resources, and whether it was stopped. A stopped operation may have completed all
/// the same, in full or in part, and then tells so, so that no byte is lost; otherwise it is `TimedOut`.
pub(super) struct Timed<'a, D: Unpin + 'static> {
    op: Op<D>,
    fd: RawFd,
    code: u8,
    wait: Duration,
    timer: Option<Timer>,
    /// Where the timer's key is shown, for those who want to end the wait early.
    shown: Option<&'a Cell<Option<TimerKey>>>,
    /// The deadline has passed (or somebody fired the timer early).
    stopped: bool,
    cancelling: Option<Op<()>>,
}

impl<'a, D: Unpin + 'static> Timed<'a, D> {
    /// `fd` and `code` are the descriptor and opcode that `op` was built with.
    pub(super) fn new(op: Op<D>, fd: RawFd, code: u8, wait: Duration) -> Timed<'a, D> {
        Timed { op, fd, code, wait, timer: None, shown: None, stopped: false, cancelling: None }
    }

    /// Shows the key of the timer in `place` while the operation waits.
    pub(super) fn show(mut self, place: &'a Cell<Option<TimerKey>>) -> Timed<'a, D> {
        self.shown = Some(place);
        self
    }

    fn finish(&mut self, result: io::Result<u32>) -> io::Result<u32> {
        if let Some(place) = self.shown {
            place.set(None);
        }
        match result {
            Err(e) if self.stopped && e.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            other => other,
        }
    }
}

impl<D: Unpin + 'static> Future for Timed<'_, D> {
    type Output = (io::Result<u32>, D, bool);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready((result, data)) = Pin::new(&mut this.op).poll(cx) {
            return Poll::Ready((this.finish(result), data, this.stopped));
        }
        if let Some(op) = &mut this.cancelling
            && let Poll::Ready((result, ())) = Pin::new(op).poll(cx)
        {
            this.cancelling = None;
            if result.is_err_and(|e| e.raw_os_error() == Some(Errno::INVAL.raw_os_error())) {
                CANCEL_OP_KNOWN.store(false, Ordering::Relaxed);
            }
        }
        match &this.timer {
            None => {
                let timer = timer(this.wait, cx.waker());
                if let Some(place) = this.shown {
                    place.set(Some(timer.key()));
                }
                this.timer = Some(timer);
            }
            Some(timer) if timer.fired() => {
                this.stopped = true;
                // The kernel does not find an operation that is just being moved between its lists, so
                // the request is repeated until the operation has completed.
                if this.cancelling.is_none() {
                    let mut op = cancel(this.fd, this.code);
                    let first = Pin::new(&mut op).poll(cx);
                    this.cancelling = first.is_pending().then_some(op);
                }
                this.timer = Some(super::deadline::timer(TICK, cx.waker()));
                if let Some(place) = this.shown {
                    place.set(None);
                }
            }
            Some(timer) => timer.watch(cx.waker()),
        }
        Poll::Pending
    }
}

impl<D: Unpin + 'static> Drop for Timed<'_, D> {
    fn drop(&mut self) {
        if let Some(place) = self.shown {
            place.set(None);
        }
    }
}

/// Cancels an operation when it is dropped before its end: for operations that may be abandoned.
pub(super) struct CancelOnDrop {
    pub(super) fd: RawFd,
    pub(super) code: u8,
    pub(super) done: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        // While a panic unwinds the runtime may be gone.
        if !self.done && !std::thread::panicking() {
            drop(cancel(self.fd, self.code));
        }
    }
}

/// Makes this thread ready for a new runtime.
pub(super) fn begin() {
    assert_eq!(IN_FLIGHT.get(), 0, "one runtime per thread at a time");
    ENDING.set(false);
}

/// Cancels what is in flight on this thread and waits until the kernel has let go of every buffer. The
/// tasks of the runtime must have been dropped: an operation that has completed counts until its future
/// has seen it.
///
/// From here on nothing new is submitted. Without this the driver, when it is dropped, would free the
/// buffers of abandoned operations before it cancels them.
pub(super) async fn quiesce() {
    while IN_FLIGHT.get() > 0 {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        ENDING.set(false);
        // SAFETY: the entry points to nothing.
        let cancelled = unsafe { Op::submit((), entry) };
        ENDING.set(true);
        let _ = cancelled.await;
        // An operation that was just being moved between lists is not found: look again.
        let _ = tokio::time::timeout(
            TICK,
            poll_fn(|cx| {
                if IN_FLIGHT.get() == 0 {
                    return Poll::Ready(());
                }
                QUIET.set(Some(cx.waker().clone()));
                Poll::Pending
            }),
        )
        .await;
    }
    ENDING.set(true);
}

/// Operations of this thread that the kernel still holds.
pub fn operations_in_flight() -> usize {
    IN_FLIGHT.get()
}

/// Whether the runtime of this thread ends and refuses new operations.
pub(super) fn is_ending() -> bool {
    ENDING.get()
}

/// Returns when all tasks have had a turn and what they submitted is with the kernel, which takes the
/// queue in order.
#[cfg(test)]
pub(super) async fn settled() {
    super::yield_turn().await;
    // SAFETY: the entry points to nothing.
    let (result, ()) = unsafe { Op::submit((), opcode::Nop::new().build()) }.await;
    result.expect("nothing always works");
}
