//! `ringpost sink`: the measuring receiver.
//!
//! Owns: nothing; the sink is the load tools' own. Must not: share code between sink and server.
use std::process::ExitCode;

use ringpost_loadgen::{SinkArgs, sink_command};

/// Receives until told to stop, then reports.
pub fn run(args: &SinkArgs) -> anyhow::Result<ExitCode> {
    sink_command(args)
}
