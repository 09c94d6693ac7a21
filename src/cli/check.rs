//! `ringpost check`: the effective configuration, and what is wrong with it.
//!
//! Owns: its output. Promises: the TOML on standard output can be used as `--config` file; the exit
//! code is 1 when `serve` would refuse. Must not: change anything.
use std::process::ExitCode;

use super::output;
use super::settings::SettingArgs;
use crate::config::inspect;
use crate::worker::inspect_doors;

#[derive(clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    settings: SettingArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints settings with their origin on standard output, problems and warnings on standard error.
pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let (effective, mut problems) = args.settings.load()?;
    let mut warnings = Vec::new();
    match effective.config() {
        Ok(config) => {
            problems.extend(inspect(&config));
            problems.extend(inspect_doors(&config));
            warnings = config.warnings();
        }
        Err(found) => problems.extend(found),
    }
    let problems: Vec<String> = problems.into_iter().map(|problem| problem.0).collect();
    if args.json {
        output::json(&serde_json::json!({
            "settings": effective.to_json(),
            "problems": problems,
            "warnings": warnings,
        }))?;
    } else {
        output::text(&effective.to_toml())?;
        warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        problems.iter().for_each(|problem| eprintln!("error: {problem}"));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
