//! `ringpost serve`: the server.
//!
//! Owns: the way from flags to a running server, and the log on standard error (`RINGPOST_LOG`).
//! Promises: what is wrong with the configuration is said, all of it, before anything is touched.
//! Must not: know how the server works.
use std::process::ExitCode;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::settings::SettingArgs;
use crate::config::{Config, Problem, inspect};
use crate::worker::inspect_doors;

#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingArgs,
    /// Drain when the process that started this one ends
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

/// Runs the server until a signal ends it.
pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    if args.end_with_parent {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    }
    start_log()?;
    let settings = args.settings;
    let (effective, mut problems) = settings.clone().load()?;
    let config = match effective.config() {
        Ok(config) => {
            problems.extend(inspect(&config));
            problems.extend(inspect_doors(&config));
            Some(config)
        }
        Err(found) => {
            problems.extend(found);
            None
        }
    };
    match config {
        Some(config) if problems.is_empty() => {
            config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            crate::worker::serve(config, &move || reread(&settings))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            problems.iter().for_each(|problem| eprintln!("ringpost: {problem}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The configuration as it would be if the server were started now.
fn reread(settings: &SettingArgs) -> Result<Config, Vec<Problem>> {
    let loaded = settings.clone().load().map_err(|error| vec![Problem(format!("{error:#}"))]);
    let (effective, problems) = loaded?;
    match effective.config() {
        Ok(config) if problems.is_empty() => Ok(config),
        Ok(_) => Err(problems),
        Err(found) => Err(problems.into_iter().chain(found).collect()),
    }
}

fn start_log() -> anyhow::Result<()> {
    let filter = match std::env::var("RINGPOST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text)
            .context("RINGPOST_LOG is not a log filter: write a level (error, warn, info, debug, trace)")?,
        _ => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    Ok(())
}
