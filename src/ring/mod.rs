//! The ring layer: files, sockets, time and threads, on io_uring.
//!
//! Owns: everything that touches tokio-uring, raw opcodes, descriptors and memory the kernel writes to,
//! and with it the only `unsafe` of the crate. Promises: what the kernel holds stays valid until it lets
//! go, whatever becomes of the futures; every wait has a deadline; the data path neither blocks nor
//! copies. Must not: know anything of mail.
//!
//! From the bottom up: `op` takes one operation through the kernel; `deadline` ends waits;
//! `buffer` and `file` are the way to the disk, `arena` holds what waits in memory, `tcp` and `listen` to the network; `mailbox` and `helper`
//! connect threads; `runtime` runs it all on one thread; `check` says at start-up what is missing, and
//! `cpu` what is used.

mod arena;
mod buffer;
mod check;
mod cpu;
mod deadline;
mod file;
mod helper;
mod listen;
mod mailbox;
mod op;
mod runtime;
mod tcp;

pub use arena::{Arena, Block, collect_heap};
pub use buffer::{ALIGN, AlignedBuf, BufferPool, Piece};
pub use check::{CheckError, Checked, Wanted, start_up_checks};
pub use cpu::{available_cpus, pin, process_cpu_micros, resident_bytes, thread_cpu_micros};
pub use deadline::{EXACT_BELOW, TICK, Timer, now, sleep, timer};
pub use file::{
    DirectFile, FileBytes, FileLock, OpenFile, READ_BYTES, Sync, Unprepared, drop_cached, is_medium_error,
    prepare_segment, sync_directory, sync_file_system,
};
pub use helper::blocking;
pub use listen::{LISTEN_BACKLOG, Listener};
pub use mailbox::{Mailbox, MailboxSender, mailbox};
pub use op::operations_in_flight;
pub use runtime::{RING_ENTRIES, RuntimeConfig, Task, run, spawn, yield_turn};
pub use tcp::{MAX_PIECES, Posted, Stream};

/// Runs a test on a small ring of its own.
#[cfg(test)]
fn test_run<F: Future>(main: F) -> F::Output {
    run(&RuntimeConfig { cpu: None, entries: 64 }, main).expect("a ring can be made")
}
