//! SIGINT and SIGTERM as a flag, for commands that must clean up.
//!
//! Owns: the handlers of such a command. Promises: the first signal sets the flag, a second one ends
//! the process at once. Must not: be used by `serve`, whose workers have their own.
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

/// Exit code of a command that a signal ended, as a shell reports it.
const INTERRUPTED: i32 = 130;

/// Starts listening for signals.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if flag.swap(true, Ordering::Relaxed) {
                    exit(INTERRUPTED);
                }
            }
        });
    })?;
    Ok(stop)
}
