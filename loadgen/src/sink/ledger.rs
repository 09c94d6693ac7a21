//! What has arrived, each delivery once.
//!
//! Owns: a bitmap per run of the load source, the counts, and how far mail was overtaken (in the sense
//! of RFC 4737 §3). Promises: memory is one bit per delivery slot and bounded, whatever stamps claim.
//! Must not: know connections.
use crate::limits;
use crate::report::{Latency, RunReport};
use crate::sink::content::Summary;
use crate::slots::SlotSet;
use crate::stamp::{self, Stamp};

/// Counts over all runs; as [`crate::report::SinkReport`] defines them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub messages: u64,
    pub unique: u64,
    pub duplicates: u64,
    pub corrupt: u64,
    pub foreign: u64,
    pub from_future: u64,
    pub bytes: u64,
}

/// What has arrived of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    pub unique: u64,
    pub duplicates: u64,
    pub corrupt: u64,
}

struct Run {
    id: u32,
    recipients: u32,
    arrived: SlotSet,
    /// End to end, of messages that brought something new.
    latency: Latency,
    /// Highest message number that has arrived.
    highest: u64,
    reordered: u64,
    overtaken_by_most: u64,
    duplicates: u64,
    duplicate_examples: Vec<String>,
    corrupt: u64,
    corrupt_examples: Vec<String>,
}

impl Run {
    /// Takes note of where in the order message `number` has arrived.
    fn place(&mut self, number: u64) {
        let behind = self.highest.saturating_sub(number);
        self.highest = self.highest.max(number);
        self.reordered += u64::from(behind > 0);
        self.overtaken_by_most = self.overtaken_by_most.max(behind);
    }
    fn report(&self) -> RunReport {
        RunReport {
            run: format!("{:08x}", self.id),
            recipients_per_message: self.recipients,
            arrived: self.arrived.ranges(),
            latency: self.latency.percentiles(),
            reordered: self.reordered,
            overtaken_by_most: self.overtaken_by_most,
            duplicates: self.duplicates,
            duplicate_examples: self.duplicate_examples.clone(),
            corrupt: self.corrupt,
            corrupt_examples: self.corrupt_examples.clone(),
        }
    }
}

/// The account of one sink.
#[derive(Default)]
pub struct Ledger {
    counts: Counts,
    runs: Vec<Run>,
    /// Messages sent before this time are in no latency.
    measured_from_us: u64,
}

impl Ledger {
    pub fn counts(&self) -> Counts {
        self.counts
    }
    /// Leaves messages sent before this time (in the stamps' microseconds) out of latencies.
    pub fn measure_from(&mut self, us: u64) {
        self.measured_from_us = us;
    }
    /// What has arrived of the run with this identity.
    pub fn arrived(&self, id: u32) -> Arrived {
        self.runs.iter().rfind(|run| run.id == id).map_or(Arrived::default(), |run| Arrived {
            unique: run.arrived.count(),
            duplicates: run.duplicates,
            corrupt: run.corrupt,
        })
    }
    /// The account of the run with this identity.
    pub fn run_report(&self, id: u32) -> Option<RunReport> {
        self.runs.iter().rfind(|run| run.id == id).map(Run::report)
    }
    /// Latencies of all runs.
    pub fn latency(&self) -> Latency {
        let mut all = Latency::default();
        self.runs.iter().for_each(|run| all.merge(&run.latency));
        all
    }
    /// Enters a message that is complete at `now_us`. With `log`, appends a line for each delivery.
    pub fn enter(
        &mut self,
        summary: &Summary,
        recipients: &[Option<u32>],
        now_us: u64,
        mut log: Option<&mut Vec<u8>>,
    ) {
        self.counts.messages += 1;
        self.counts.bytes += summary.bytes;
        let Some((stamp, run)) = summary.stamp.and_then(|stamp| Some((stamp, self.run(&stamp)?))) else {
            self.counts.foreign += 1;
            return;
        };
        let run = &mut self.runs[run];
        if !summary.is_intact {
            self.counts.corrupt += 1;
            run.corrupt += 1;
            note(&mut run.corrupt_examples, || delivery(&stamp, 0, 1));
        }
        self.counts.from_future += u64::from(stamp.sent_us > now_us + limits::CLOCK_STEP.as_micros() as u64);
        let mut is_news = false;
        for &recipient in recipients {
            // A server may rewrite the address of an only recipient; of several it must not.
            let recipient = if stamp.recipients == 1 { Some(0) } else { recipient };
            let Some(recipient) = recipient.filter(|&number| number < stamp.recipients) else {
                self.counts.foreign += 1;
                continue;
            };
            if let Some(log) = log.as_deref_mut() {
                stamp::push_delivery(stamp.run, stamp.number, recipient, stamp.recipients, log);
                log.extend_from_slice(if summary.is_intact { b"\n" } else { b" corrupt\n" });
            }
            if run.arrived.insert(stamp.number * u64::from(stamp.recipients) + u64::from(recipient)) {
                self.counts.unique += 1;
                run.place(stamp.number);
                is_news = true;
            } else {
                self.counts.duplicates += 1;
                run.duplicates += 1;
                note(&mut run.duplicate_examples, || delivery(&stamp, recipient, stamp.recipients));
            }
        }
        if is_news && stamp.sent_us >= self.measured_from_us {
            run.latency.record(now_us.saturating_sub(stamp.sent_us));
        }
    }
    /// The place of the stamp's run; none where it does not fit the bounds or its own run.
    fn run(&mut self, stamp: &Stamp) -> Option<usize> {
        let slots = stamp.number.saturating_add(1).saturating_mul(u64::from(stamp.recipients));
        if slots > limits::SLOTS {
            return None;
        }
        // Nearly always there is one run, or the latest is meant.
        if let Some(at) = self.runs.iter().rposition(|run| run.id == stamp.run) {
            return (self.runs[at].recipients == stamp.recipients).then_some(at);
        }
        if self.runs.len() == limits::RUNS {
            return None;
        }
        self.runs.push(Run {
            id: stamp.run,
            recipients: stamp.recipients,
            arrived: SlotSet::default(),
            latency: Latency::default(),
            highest: 0,
            reordered: 0,
            overtaken_by_most: 0,
            duplicates: 0,
            duplicate_examples: Vec::new(),
            corrupt: 0,
            corrupt_examples: Vec::new(),
        });
        Some(self.runs.len() - 1)
    }
    pub fn runs(&self) -> Vec<RunReport> {
        self.runs.iter().map(Run::report).collect()
    }
}

fn note(examples: &mut Vec<String>, example: impl FnOnce() -> String) {
    if examples.len() < limits::EXAMPLES {
        examples.push(example());
    }
}

fn delivery(stamp: &Stamp, recipient: u32, recipients: u32) -> String {
    let mut text = Vec::new();
    stamp::push_delivery(stamp.run, stamp.number, recipient, recipients, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(run: u32, number: u64, recipients: u32) -> Summary {
        let stamp = Stamp { run, number, sent_us: 0, checksum: 0, recipients };
        Summary { stamp: Some(stamp), is_intact: true, bytes: 10 }
    }

    #[test]
    fn each_delivery_counts_once() {
        let (mut ledger, mut log) = (Ledger::default(), Vec::new());
        ledger.enter(&summary(1, 4, 2), &[Some(0)], 0, Some(&mut log));
        ledger.enter(&summary(1, 4, 2), &[Some(1), Some(0)], 0, Some(&mut log));
        ledger.enter(&summary(2, 0, 1), &[None], 0, Some(&mut log));
        let counts = ledger.counts();
        assert_eq!((counts.messages, counts.unique, counts.duplicates, counts.foreign), (3, 3, 1, 0));
        let runs = ledger.runs();
        assert_eq!((runs[0].arrived.0.as_slice(), runs[0].duplicates), (&[(8, 9)][..], 1));
        assert_eq!(runs[0].duplicate_examples, ["00000001-000000000004/0"]);
        assert_eq!(runs[1].arrived.0, [(0, 0)]);
        let want = "00000001-000000000004/0\n00000001-000000000004/1\n00000001-000000000004/0\n00000002-000000000000\n";
        assert_eq!(String::from_utf8(log).unwrap(), want);
    }

    #[test]
    fn runs_have_their_own_account() {
        let at = |number, sent_us| Summary {
            stamp: Some(Stamp { sent_us, ..summary(7, number, 1).stamp.unwrap() }),
            ..summary(7, number, 1)
        };
        let mut ledger = Ledger::default();
        ledger.enter(&summary(3, 0, 1), &[None], 5_000_000, None);
        ledger.measure_from(1000);
        ledger.enter(&at(0, 999), &[None], 1500, None);
        ledger.enter(&at(1, 1000), &[None], 1500, None);
        // Again: a duplicate has no latency of its own.
        ledger.enter(&at(1, 1000), &[None], 900_000, None);
        ledger.enter(&at(2, 9_000_000), &[None], 1600, None);
        assert_eq!(ledger.arrived(7), Arrived { unique: 3, duplicates: 1, corrupt: 0 });
        assert_eq!(ledger.arrived(8), Arrived::default());
        let run = ledger.run_report(7).unwrap();
        assert_eq!((run.latency.count, run.latency.max_us, run.latency.min_us), (2, 500, 0));
        assert_eq!((ledger.latency().percentiles().count, ledger.counts().from_future), (3, 1));
    }

    #[test]
    fn order_is_accounted_for() {
        // Message numbers as they arrive, how many were overtaken, and how far at most.
        for (numbers, reordered, most) in [
            (&[0, 1, 2, 3, 4][..], 0, 0),
            (&[0, 2, 1, 3, 4], 1, 1),
            (&[4, 0, 1, 2, 3], 4, 4),
            // A duplicate that comes late says nothing about order.
            (&[0, 1, 2, 3, 0], 0, 0),
            (&[0, 5, 9, 7, 8, 10], 2, 2),
        ] {
            let mut ledger = Ledger::default();
            numbers.iter().for_each(|&number| ledger.enter(&summary(1, number, 1), &[None], 0, None));
            let run = &ledger.runs()[0];
            assert_eq!((run.reordered, run.overtaken_by_most), (reordered, most), "{numbers:?}");
        }
        // Recipients of one message have no order among them.
        let mut ledger = Ledger::default();
        ledger.enter(&summary(1, 0, 2), &[Some(1)], 0, None);
        ledger.enter(&summary(1, 0, 2), &[Some(0)], 0, None);
        assert_eq!(ledger.runs()[0].reordered, 0);
    }

    #[test]
    fn corrupt_and_foreign_mail() {
        let (mut ledger, mut log) = (Ledger::default(), Vec::new());
        ledger.enter(&Summary { is_intact: false, ..summary(1, 0, 1) }, &[Some(0)], 0, Some(&mut log));
        ledger.enter(&Summary { stamp: None, ..summary(1, 0, 1) }, &[Some(0)], 0, Some(&mut log));
        // Neither a stamp with an absurd number nor one at odds with its run costs memory.
        ledger.enter(&summary(1, limits::SLOTS, 1), &[Some(0)], 0, Some(&mut log));
        ledger.enter(&summary(1, 1, 7), &[Some(0)], 0, Some(&mut log));
        // A recipient the message does not have.
        ledger.enter(&summary(2, 1, 7), &[Some(7)], 0, Some(&mut log));
        let counts = ledger.counts();
        assert_eq!((counts.messages, counts.corrupt, counts.foreign, counts.unique), (5, 1, 4, 1));
        assert_eq!(ledger.runs()[0].corrupt_examples, ["00000001-000000000000"]);
        assert_eq!(log, b"00000001-000000000000 corrupt\n");
    }
}
