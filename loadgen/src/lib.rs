//! The load tools of ringpost: a source that sends mail, a sink that receives and accounts for it,
//! and the comparison of the two.
//!
//! In the order a message travels: `load` is the source ([`LoadArgs`], [`run_load`]); it sends what
//! `message` prepares, made recognisable by a `stamp`. `sink` is the receiver ([`SinkArgs`],
//! [`Sink`], [`run_sink`]). Both measure into a `report`; `check` compares the two ([`reconcile`]),
//! and `pair` runs them around a server ([`run_pair`]).
//! `command` is both of them as commands with output and signals. Nothing here is shared with the
//! server: a parser's mistake common to both ends would cancel itself out.
mod check;
pub mod clock;
mod command;
mod compare;
mod corpus;
pub mod cpu;
mod epoll;
mod html;
pub mod limits;
mod load;
mod message;
mod pair;
mod pick;
mod process;
mod progress;
mod report;
mod sink;
pub mod size;
mod slots;
pub mod stamp;
mod timeline;

use std::fs::File;
use std::path::Path;

use anyhow::Context;

pub use check::{Verdict, reconcile, verify_exactly_once};
pub use command::{load_command, sink_command};
pub use compare::{CompareArgs, Comparison, compare, read_reports};
pub use html::page;
pub use load::{
    LoadAction, LoadArgs, RateProfile, SearchReport, SizeMix, TlsMode, Trial, run_load, run_search,
};
pub use pair::run_pair;
pub use process::{ProcessReport, Sample};
pub use progress::{Console, Progress, Silent, Snapshot};
pub use report::{LoadReport, Percentiles, RunReport, SinkReport, Stages};
pub use sink::{Arrived, Sink, SinkArgs, SinkCounters, SinkHandle, run_sink};
pub use sink::{TlsVariant, shipped_models};
pub use slots::Ranges;
pub use timeline::Point;

/// Opens a log of delivery names for appending. Every write reaches the kernel at once, so that it
/// survives the death of any process.
fn open_log(path: &Path) -> anyhow::Result<File> {
    let log = File::options().create(true).append(true).open(path);
    log.with_context(|| format!("cannot write to {}", path.display()))
}
