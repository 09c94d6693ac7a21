//! The highest rate that keeps a bound on latency.
//!
//! Owns: [`run_search`]: doubling until a rate fails, then halving the gap. Promises: every rate
//! tried is in the report with what was measured and whether the source could keep up; a trial is good
//! only when its rate was held, 99 % of its messages were done in time, and none was refused or lost; no
//! rate is given up, and none is the result, on the strength of one trial. Must not: measure by itself.
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::load::{LoadArgs, RateProfile, run_load};
use crate::progress::{Progress, Snapshot};
use crate::report::{LoadReport, Percentiles, in_words};
use crate::timeline::Point;

/// One trial of a rate. All of it is behind a warm-up, in which the connections were opened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trial {
    /// Messages per second asked for, and accepted.
    pub rate: f64,
    pub achieved_rate: f64,
    /// Messages that the percentiles are of.
    pub samples: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub late_share: f64,
    pub is_good: bool,
    /// Why it is not.
    pub reason: String,
    /// The source was the bottleneck, or had no processor: the server may do better.
    pub is_source_bound: bool,
    pub warnings: Vec<String>,
}

/// What a search has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchReport {
    pub target: String,
    pub workload: String,
    /// The bound on the 99th percentile.
    pub bound_us: u64,
    /// Messages a trial should have had (`--search-samples`).
    pub samples_wanted: u64,
    /// The highest rate that kept it in most of its trials, of which there were two or more; none where no
    /// rate did.
    pub best_rate: Option<f64>,
    pub trials: Vec<Trial>,
    /// The user ended it before it was over.
    pub is_interrupted: bool,
    /// Why the result may not be the server's.
    pub warnings: Vec<String>,
}

/// Tries rates from `--rate` on (100/s without it). Blocks; `progress` may end it between trials
/// and in them.
pub fn run_search(args: &LoadArgs, progress: &dyn Progress) -> anyhow::Result<SearchReport> {
    args.validate()?;
    let bound = args.search.unwrap_or(limits::SEARCH_BOUND);
    let start = args.rate.as_ref().map_or(limits::SEARCH_START_RATE, RateProfile::peak);
    let mut report = SearchReport {
        target: args.to.to_string(),
        workload: LoadArgs { rate: None, ..args.clone() }.workload(),
        bound_us: bound.as_micros() as u64,
        samples_wanted: u64::from(args.search_samples),
        ..SearchReport::default()
    };
    let mut steps = Steps::new(start);
    let tried = |rate: f64, report: &mut SearchReport| -> anyhow::Result<Option<bool>> {
        if report.trials.len() == limits::SEARCH_TRIALS {
            return Ok(None);
        }
        if !report.trials.is_empty() {
            rest(args.search_pause, progress);
        }
        let trial = attempt(args, rate, bound, &Trying { progress, number: report.trials.len() + 1, rate })?;
        if progress.stopped() {
            report.is_interrupted = true;
            return Ok(None);
        }
        let is_good = trial.is_good;
        report.trials.push(trial);
        Ok(Some(is_good))
    };
    while let Some(is_good) = tried(steps.next, &mut report)? {
        if !steps.learn(is_good) {
            break;
        }
    }
    // The result has been good by chance as easily as another was bad: most of its trials must be good.
    while !report.is_interrupted
        && let Some(rate) = candidate(&report.trials)
    {
        if standing(&report.trials, rate) == Some(true) {
            report.best_rate = Some(rate);
            break;
        }
        if tried(rate, &mut report)?.is_none() {
            break;
        }
    }
    report.warnings = report.doubts();
    Ok(report)
}

/// The highest rate with a good trial that most of its trials do not speak against.
fn candidate(trials: &[Trial]) -> Option<f64> {
    let rates = trials.iter().filter(|trial| trial.is_good).map(|trial| trial.rate);
    rates.filter(|&rate| standing(trials, rate) != Some(false)).reduce(f64::max)
}

/// Whether most of the trials of `rate` were good; none while that is open.
fn standing(trials: &[Trial], rate: f64) -> Option<bool> {
    let of_rate = || trials.iter().filter(|trial| trial.rate == rate);
    let (good, all) = (of_rate().filter(|trial| trial.is_good).count(), of_rate().count());
    (all >= 2 && good * 2 != all).then_some(good * 2 > all)
}

/// Lets the server work off what it has.
fn rest(pause: Duration, progress: &dyn Progress) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !progress.stopped() {
        std::thread::sleep(limits::PUBLISH_EVERY.min(until.saturating_duration_since(Instant::now())));
    }
}

/// The progress of one trial.
struct Trying<'a> {
    progress: &'a dyn Progress,
    number: usize,
    rate: f64,
}

impl Progress for Trying<'_> {
    fn update(&self, snapshot: &Snapshot) {
        self.progress.update(snapshot);
    }
    fn interval(&self, point: &Point) {
        self.progress.interval(point);
    }
    fn begun(&self, _: u64) {
        self.progress.phase(&format!("trial {}, {:.1}/s", self.number, self.rate));
    }
    fn stopped(&self) -> bool {
        self.progress.stopped()
    }
}

/// How long a rate is measured: as long as it takes to have enough messages, within bounds.
fn lasts(args: &LoadArgs, rate: f64) -> Duration {
    let enough = Duration::try_from_secs_f64(f64::from(args.search_samples) / rate).unwrap_or(Duration::MAX);
    args.search_trial.max(enough.min(limits::SEARCH_TRIAL))
}

fn attempt(args: &LoadArgs, rate: f64, bound: Duration, progress: &dyn Progress) -> anyhow::Result<Trial> {
    let warmup = if args.warmup.is_zero() { limits::SEARCH_WARMUP } else { args.warmup };
    let args = LoadArgs {
        search: None,
        rate: Some(RateProfile::fixed(rate)),
        messages: None,
        warmup,
        duration: Some(warmup + lasts(args, rate)),
        hdr: None,
        ..args.clone()
    };
    let load = run_load(&args, progress)?;
    let Percentiles { count: samples, p50_us, p99_us, .. } = load.latency.whole;
    let reason = fault(&load, bound).unwrap_or_default();
    Ok(Trial {
        rate,
        achieved_rate: load.rate,
        samples,
        p50_us,
        p99_us,
        late_share: load.late_share,
        is_good: reason.is_empty(),
        reason,
        is_source_bound: load.is_source_bound(),
        warnings: load.warnings,
    })
}

/// Why a rate counts as one that did not keep the bound.
fn fault(load: &LoadReport, bound: Duration) -> Option<String> {
    let failed = load.rejected + load.unknown + load.unsent;
    let p99_us = load.latency.whole.p99_us;
    match () {
        () if load.failure.is_some() => load.failure.clone(),
        () if load.latency.whole.count == 0 => Some("nothing was accepted".into()),
        () if failed > 0 => Some(format!("{failed} messages were refused or lost")),
        () if p99_us > bound.as_micros() as u64 => Some(format!("p99 {}", in_words(p99_us))),
        () if load.rate_held == Some(false) => {
            Some(format!("{:.1} % of the messages were begun late", load.late_share * 100.0))
        }
        () => None,
    }
}

/// What is known of the limit: it lies between `good` and `bad`.
struct Steps {
    good: f64,
    bad: f64,
    next: f64,
    /// `next` has failed once, which may be chance.
    is_doubtful: bool,
}

impl Steps {
    fn new(start: f64) -> Steps {
        Steps { good: 0.0, bad: f64::INFINITY, next: start, is_doubtful: false }
    }
    /// Takes note of the result at `next` and chooses another, or the same once more; false when the gap is
    /// small enough, or the rate too small to be one.
    fn learn(&mut self, is_good: bool) -> bool {
        self.is_doubtful = !is_good && !self.is_doubtful;
        if self.is_doubtful {
            return true;
        }
        if is_good {
            self.good = self.next;
        } else {
            self.bad = self.next;
        }
        self.next = match (self.good > 0.0, self.bad.is_finite()) {
            (true, false) => self.good * 2.0,
            (false, _) => self.bad / 4.0,
            (true, true) => (self.good * self.bad).sqrt(),
        };
        self.bad / self.good > 1.0 + limits::SEARCH_PRECISION && self.next >= 0.1
    }
}

impl SearchReport {
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.is_interrupted {
            doubts.push("interrupted: the search was not over".into());
        } else if self.trials.len() == limits::SEARCH_TRIALS && self.best_rate.is_none() {
            doubts.push(format!("{} trials were not enough", limits::SEARCH_TRIALS));
        }
        let best = self.best_rate.unwrap_or(0.0);
        let bound = |trial: &&Trial| trial.is_source_bound && (trial.rate >= best);
        if let Some(trial) = self.trials.iter().find(bound) {
            doubts.push(format!(
                "the source was the bottleneck at {:.0}/s: the limit that was found may be its own, not the server's",
                trial.rate
            ));
        }
        let few = self.trials.iter().filter(|trial| trial.samples < self.samples_wanted).count();
        if few > 0 {
            doubts.push(format!(
                "{few} of the trials had less than {} messages: their p99 is that of a few (--search-trial)",
                self.samples_wanted
            ));
        }
        doubts
    }
}

impl fmt::Display for SearchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>10} {:>10} {:>9} {:>10} {:>10}  p99 within {}?",
            "rate",
            "achieved",
            "messages",
            "p50",
            "p99",
            in_words(self.bound_us)
        )?;
        for trial in &self.trials {
            let verdict = if trial.is_good { "yes".into() } else { format!("no: {}", trial.reason) };
            let (p50, p99) = (in_words(trial.p50_us), in_words(trial.p99_us));
            let note = if trial.is_source_bound { "; the source was the bottleneck" } else { "" };
            writeln!(
                f,
                "{:>8.1}/s {:>8.1}/s {:>9} {p50:>10} {p99:>10}  {verdict}{note}",
                trial.rate, trial.achieved_rate, trial.samples
            )?;
        }
        match self.best_rate {
            Some(rate) => writeln!(f, "highest rate that keeps the bound: {rate:.0}/s")?,
            None => writeln!(f, "no rate that was tried keeps the bound")?,
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for `limit` where chance spoils the trials whose numbers `spoils` names.
    fn search(start: f64, limit: f64, spoils: impl Fn(usize) -> bool) -> (Steps, usize) {
        let mut steps = Steps::new(start);
        let mut trials = 1;
        while steps.learn(steps.next <= limit && !spoils(trials)) {
            trials += 1;
        }
        (steps, trials)
    }

    #[test]
    fn steps_close_in_on_the_limit() {
        for (start, limit) in [(100.0, 1.5), (100.0, 3217.0), (100.0, 250_000.0), (1e6, 40.0)] {
            // Without bad luck, and with some that never strikes twice in a row.
            for spoils in [|_| false, |trial: usize| trial.is_multiple_of(3)] {
                let (steps, trials) = search(start, limit, spoils);
                assert!(steps.good <= limit && limit < steps.bad, "{limit}");
                let gap = steps.bad / steps.good;
                assert!(gap < 1.0 + limits::SEARCH_PRECISION * 1.01, "{gap}");
                assert!(trials < limits::SEARCH_TRIALS, "{trials}");
            }
        }
    }

    #[test]
    fn the_result_has_most_of_its_trials_behind_it() {
        let trials = |list: &[(f64, bool)]| -> Vec<Trial> {
            list.iter().map(|&(rate, is_good)| Trial { rate, is_good, ..Trial::default() }).collect()
        };
        // Trials, the rate to look at, and what is known of it.
        for (list, rate, want) in [
            (&[][..], None, None),
            (&[(9.0, false)], None, None),
            (&[(1.0, true)], Some(1.0), None),
            (&[(1.0, true), (2.0, true)], Some(2.0), None),
            (&[(1.0, true), (2.0, false), (2.0, true)], Some(2.0), None),
            (&[(1.0, true), (2.0, false), (2.0, true), (2.0, true)], Some(2.0), Some(true)),
            (&[(1.0, true), (2.0, false), (2.0, true), (2.0, false)], Some(1.0), None),
            (&[(1.0, true), (1.0, true), (2.0, false)], Some(1.0), Some(true)),
        ] {
            let trials = trials(list);
            assert_eq!(candidate(&trials), rate, "{list:?}");
            assert_eq!(rate.and_then(|rate| standing(&trials, rate)), want, "{list:?}");
        }
    }

    #[test]
    fn a_trial_has_enough_messages() {
        let args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 1);
        for (rate, sec) in [(1e6, 5), (100.0, 5), (50.0, 10), (1.0, 60)] {
            assert_eq!(lasts(&args, rate).as_secs(), sec, "{rate}");
        }
    }

    #[test]
    fn the_result_says_when_it_is_the_source_s() {
        let trial = |rate, is_good, is_source_bound| Trial {
            rate,
            is_good,
            is_source_bound,
            samples: 500,
            ..Trial::default()
        };
        let of = |trials: Vec<Trial>| {
            let mut report = SearchReport { best_rate: Some(2.0), trials, ..SearchReport::default() };
            report.samples_wanted = 500;
            report.warnings = report.doubts();
            report
        };
        let bound = of(vec![trial(2.0, true, false), trial(4.0, false, true)]);
        assert!(bound.to_string().contains("warning: the source was the bottleneck at 4/s"), "{bound}");
        let free = of(vec![trial(1.0, true, true), trial(2.0, true, false), trial(4.0, false, false)]);
        assert!(free.warnings.is_empty(), "{free}");
        let few = of(vec![Trial { samples: 20, ..trial(2.0, true, false) }]);
        assert!(few.warnings[0].contains("less than 500"), "{few}");
    }
}
