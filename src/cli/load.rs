//! `ringpost load`: the load source.
//!
//! Owns: nothing; the source is the load tools' own. Must not: share code between source and server.
use std::process::ExitCode;

use ringpost_loadgen::{LoadArgs, load_command};

/// Sends, measures, reports.
pub fn run(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    load_command(args)
}
