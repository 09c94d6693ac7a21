//! The comparison of what a source was told with what a sink received.
//!
//! Owns: [`reconcile`] and its [`Verdict`]. Promises: a verdict is clean only when every
//! acknowledged delivery arrived, exactly once and undamaged, and nothing arrived that was not sent.
//! Must not: run anything; it works on reports, which may come from other processes.
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::report::{LoadReport, SinkReport};
use crate::slots::Ranges;
use crate::stamp;

/// What the comparison of a run with its arrivals says. Deliveries are pairs of message and
/// recipient; with one recipient per message they are messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Deliveries the server took responsibility for.
    pub acknowledged: u64,
    /// Deliveries that arrived, counted once each.
    pub arrived: u64,
    /// Acknowledged deliveries that did not arrive.
    pub missing: u64,
    /// What ended the wait for them before its time, if anything: then they may arrive yet.
    #[serde(default)]
    pub wait_ended_by: Option<String>,
    pub missing_examples: Vec<String>,
    /// Arrivals beyond the first of a delivery.
    pub duplicates: u64,
    pub duplicate_examples: Vec<String>,
    /// Messages that arrived damaged.
    pub corrupt: u64,
    pub corrupt_examples: Vec<String>,
    /// Deliveries that arrived although they were refused or never sent in full.
    pub unexpected: u64,
    pub unexpected_examples: Vec<String>,
}

impl Verdict {
    /// Every acknowledged delivery arrived once and undamaged, and nothing else did.
    pub fn is_exactly_once(&self) -> bool {
        self.missing == 0 && self.duplicates == 0 && self.corrupt == 0 && self.unexpected == 0
    }
}

impl std::error::Error for Verdict {}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_exactly_once() {
            return write!(f, "all {} acknowledged deliveries arrived exactly once", self.acknowledged);
        }
        write!(f, "of {} acknowledged deliveries {} arrived:", self.acknowledged, self.arrived)?;
        let missing = if self.wait_ended_by.is_some() { "not arrived yet" } else { "missing" };
        for (what, count, examples) in [
            (missing, self.missing, &self.missing_examples),
            ("duplicates", self.duplicates, &self.duplicate_examples),
            ("corrupt", self.corrupt, &self.corrupt_examples),
            ("unexpected", self.unexpected, &self.unexpected_examples),
        ] {
            if count > 0 {
                write!(
                    f,
                    " {count} {what} ({}{})",
                    examples.join(", "),
                    if (examples.len() as u64) < count { ", …" } else { "" }
                )?;
            }
        }
        self.wait_ended_by.iter().try_for_each(|reason| write!(f, "; the wait for them ended when {reason}"))
    }
}

/// Compares a run with what a sink has seen of it.
pub fn reconcile(load: &LoadReport, sink: &SinkReport) -> Verdict {
    let nothing = crate::report::RunReport::default();
    let run = sink.runs.iter().find(|run| run.run == load.run).unwrap_or(&nothing);
    let missing = load.acknowledged.without(&run.arrived);
    let unexpected = run.arrived.without(&load.acknowledged).without(&load.unresolved);
    let examples =
        |slots: &Ranges| slots.iter().take(limits::EXAMPLES).map(|slot| name(load, slot)).collect();
    Verdict {
        acknowledged: load.acknowledged.len(),
        arrived: run.arrived.len(),
        missing: missing.len(),
        wait_ended_by: None,
        missing_examples: examples(&missing),
        duplicates: run.duplicates,
        duplicate_examples: run.duplicate_examples.clone(),
        corrupt: run.corrupt,
        corrupt_examples: run.corrupt_examples.clone(),
        unexpected: unexpected.len(),
        unexpected_examples: examples(&unexpected),
    }
}

/// [`reconcile`] as a result: the verdict is the error unless it is clean.
pub fn verify_exactly_once(load: &LoadReport, sink: &SinkReport) -> Result<Verdict, Box<Verdict>> {
    let verdict = reconcile(load, sink);
    if verdict.is_exactly_once() { Ok(verdict) } else { Err(Box::new(verdict)) }
}

fn name(load: &LoadReport, slot: u64) -> String {
    let recipients = u64::from(load.recipients_per_message.max(1));
    let run = u32::from_str_radix(&load.run, 16).unwrap_or_default();
    let mut text = Vec::new();
    stamp::push_delivery(run, slot / recipients, (slot % recipients) as u32, recipients as u32, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::RunReport;

    fn load(acknowledged: &[(u64, u64)], unresolved: &[(u64, u64)]) -> LoadReport {
        LoadReport {
            run: "0000000a".into(),
            recipients_per_message: 2,
            acknowledged: Ranges(acknowledged.to_vec()),
            unresolved: Ranges(unresolved.to_vec()),
            ..LoadReport::default()
        }
    }

    fn sink(run: RunReport) -> SinkReport {
        SinkReport { runs: vec![RunReport::default(), run], ..SinkReport::default() }
    }

    fn arrived(arrived: &[(u64, u64)]) -> RunReport {
        RunReport { run: "0000000a".into(), arrived: Ranges(arrived.to_vec()), ..RunReport::default() }
    }

    #[test]
    fn clean_runs() {
        for (load, arrived) in [
            (load(&[(0, 9)], &[]), arrived(&[(0, 9)])),
            // What is unresolved may arrive or not.
            (load(&[(0, 9)], &[(10, 11)]), arrived(&[(0, 10)])),
        ] {
            assert!(verify_exactly_once(&load, &sink(arrived)).is_ok());
        }
    }

    #[test]
    fn every_fault_is_named() {
        let verdict =
            verify_exactly_once(&load(&[(0, 9)], &[]), &sink(arrived(&[(0, 4), (6, 10)]))).unwrap_err();
        assert_eq!(
            (verdict.missing, verdict.unexpected, verdict.acknowledged, verdict.arrived),
            (1, 1, 10, 10)
        );
        assert_eq!(verdict.missing_examples, ["0000000a-000000000002/1"]);
        assert_eq!(verdict.unexpected_examples, ["0000000a-000000000005/0"]);
        for fault in [
            RunReport { duplicates: 1, ..arrived(&[(0, 9)]) },
            RunReport { corrupt: 1, ..arrived(&[(0, 9)]) },
        ] {
            assert!(verify_exactly_once(&load(&[(0, 9)], &[]), &sink(fault)).is_err());
        }
        let verdict = reconcile(&load(&[(0, 99)], &[]), &SinkReport::default());
        assert_eq!((verdict.missing, verdict.missing_examples.len()), (100, limits::EXAMPLES));
        assert!(verdict.to_string().contains("100 missing"), "{verdict}");
    }
}
