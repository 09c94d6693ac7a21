//! The worker threads.
use crate::config::Config;

/// Runs the server until it is told to stop.
pub fn serve(_: Config) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
