//! Two sets of runs side by side: how much they differ, and how sure that is.
//!
//! Owns: [`compare`] over reports of the source, and its text. Promises: ratios are those of
//! geometric means, with the 95 % interval of Welch's t-test on logarithms, never narrower than what the
//! instrument tells apart; one run on a side gives a ratio without an interval, and says so; a run that is
//! left out of a figure is named. Must not: run anything.
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::report::{LoadReport, in_words};

/// Show two sets of reports side by side, with confidence intervals
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// Reports of the first side, as `--json` wrote them: one file or more, each with one report or more
    #[arg(value_name = "A.json[,A2.json…]", value_delimiter = ',', num_args = 1, required = true)]
    pub a: Vec<PathBuf>,
    /// Reports of the second side
    #[arg(value_name = "B.json[,B2.json…]", value_delimiter = ',', num_args = 1, required = true)]
    pub b: Vec<PathBuf>,
    /// Print the comparison as JSON
    #[arg(long)]
    pub json: bool,
}

/// Mean and spread of one figure over the runs of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    pub runs: usize,
    /// Geometric mean.
    pub mean: f64,
    pub least: f64,
    pub most: f64,
}

/// One figure on both sides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    /// Microseconds, where the figure is a time; a plain number otherwise.
    pub is_time: bool,
    pub a: Side,
    pub b: Side,
    /// B over A.
    pub ratio: f64,
    /// Where the ratio is with a confidence of 95 %; none from fewer than two runs on a side.
    pub interval: Option<(f64, f64)>,
}

/// Both sides in all figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub lines: Vec<Line>,
    /// What speaks against the comparison.
    pub warnings: Vec<String>,
}

/// Compares the runs of two sides.
pub fn compare(a: &[LoadReport], b: &[LoadReport]) -> Comparison {
    let (mut lines, mut warnings) = (Vec::new(), warnings(a, b));
    type Figure = fn(&LoadReport) -> Option<f64>;
    let figures: [(&str, bool, Figure); 14] = [
        ("messages/s", false, |r| Some(r.rate)),
        ("MB/s", false, |r| Some(r.bytes_per_second / 1e6)),
        ("whole p50", true, |r| Some(r.latency.whole.p50_us as f64)),
        ("whole p90", true, |r| Some(r.latency.whole.p90_us as f64)),
        ("whole p99", true, |r| Some(r.latency.whole.p99_us as f64)),
        ("whole p99.9", true, |r| Some(r.latency.whole.p999_us as f64)),
        ("whole max", true, |r| Some(r.latency.whole.max_us as f64)),
        ("data p50", true, |r| Some(r.latency.data.p50_us as f64)),
        ("data p99", true, |r| Some(r.latency.data.p99_us as f64)),
        ("connect p50", true, |r| Some(r.latency.connect.p50_us as f64)),
        ("end to end p50", true, |r| Some(r.latency.end_to_end.p50_us as f64)),
        ("end to end p99", true, |r| Some(r.latency.end_to_end.p99_us as f64)),
        ("server CPU per message", true, |r| Some(r.process.as_ref()?.cpu_us_per_message)),
        ("server memory (MiB)", false, |r| {
            Some(r.process.as_ref()?.peak_rss_bytes as f64 / f64::from(1 << 20))
        }),
    ];
    for (name, is_time, figure) in figures {
        let values = |side: &[LoadReport]| -> Vec<f64> {
            side.iter().filter_map(figure).filter(|value| *value > 0.0).collect()
        };
        let (of_a, of_b) = (values(a), values(b));
        if !of_a.is_empty() && !of_b.is_empty() {
            lines.push(line(name, is_time, &of_a, &of_b));
        }
        for (side, values, runs) in [("A", &of_a, a.len()), ("B", &of_b, b.len())] {
            let left_out = runs - values.len();
            // What neither side has was not measured.
            if left_out > 0 && of_a.len() + of_b.len() > 0 {
                warnings.push(format!(
                    "{name}: {left_out} of the {runs} runs of {side} have none, and are left out"
                ));
            }
        }
    }
    Comparison { lines, warnings }
}

/// What a figure is not told apart by, relative to itself: three digits are kept of times, in whole
/// microseconds; rates are no better than the time they are of.
fn resolution(is_time: bool, mean: f64) -> f64 {
    if is_time { 1e-3 + 1.0 / mean.max(1.0) } else { 1e-3 }
}

fn warnings(a: &[LoadReport], b: &[LoadReport]) -> Vec<String> {
    let mut warnings = Vec::new();
    let workload =
        |side: &[LoadReport]| side.first().map(|report| report.workload.clone()).unwrap_or_default();
    if a.iter().chain(b).any(|report| report.workload != workload(a)) {
        warnings.push(format!("the workloads differ: {} / {}", workload(a), workload(b)));
    }
    if a.len() < 2 || b.len() < 2 {
        warnings.push("one run on a side says nothing about chance: give several, taken in turns".into());
    }
    for (name, side) in [("A", a), ("B", b)] {
        let failed = side.iter().filter(|r| r.rejected + r.unknown > 0 || r.failure.is_some()).count();
        if failed > 0 {
            warnings.push(format!("{failed} of the runs of {name} had refused or lost messages"));
        }
        let mut doubts: Vec<&String> = side.iter().flat_map(|report| &report.warnings).collect();
        doubts.sort();
        doubts.dedup();
        warnings.extend(doubts.iter().map(|doubt| format!("{name}: {doubt}")));
    }
    warnings
}

fn line(name: &str, is_time: bool, a: &[f64], b: &[f64]) -> Line {
    let logs = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<f64>>();
    let (log_a, log_b) = (logs(a), logs(b));
    let difference = mean(&log_b) - mean(&log_a);
    let side = |values: &[f64], logs: &[f64]| Side {
        runs: values.len(),
        mean: mean(logs).exp(),
        least: values.iter().copied().fold(f64::INFINITY, f64::min),
        most: values.iter().copied().fold(0.0, f64::max),
    };
    Line {
        name: name.into(),
        is_time,
        a: side(a, &log_a),
        b: side(b, &log_b),
        ratio: difference.exp(),
        interval: half_width(&log_a, &log_b).map(|width| {
            let least = resolution(is_time, mean(&log_a).exp().min(mean(&log_b).exp()));
            let width = width.max(least);
            ((difference - width).exp(), (difference + width).exp())
        }),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Half of the 95 % interval of the difference of two means (Welch 1947).
fn half_width(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let error = |values: &[f64]| {
        let (middle, n) = (mean(values), values.len() as f64);
        values.iter().map(|value| (value - middle).powi(2)).sum::<f64>() / (n - 1.0) / n
    };
    let (error_a, error_b) = (error(a), error(b));
    let both = error_a + error_b;
    if both == 0.0 {
        return Some(0.0);
    }
    let (n_a, n_b) = (a.len() as f64, b.len() as f64);
    let freedom = both * both / (error_a * error_a / (n_a - 1.0) + error_b * error_b / (n_b - 1.0));
    Some(student(freedom) * both.sqrt())
}

/// The 97.5 % point of Student's distribution, for any degrees of freedom from 1 on: exact at whole
/// ones up to 10, interpolated between, and by the Cornish-Fisher expansion above.
fn student(freedom: f64) -> f64 {
    const EXACT: [f64; 10] =
        [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    if freedom < 10.0 {
        let low = freedom.max(1.0);
        let index = (low as usize - 1).min(EXACT.len() - 2);
        let part = low - (index + 1) as f64;
        return EXACT[index] + (EXACT[index + 1] - EXACT[index]) * part;
    }
    let z: f64 = 1.959_964;
    let (g1, g2) = ((z.powi(3) + z) / 4.0, (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0);
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + g1 / freedom + g2 / freedom.powi(2) + g3 / freedom.powi(3)
}

/// Reads reports, of which a file may hold several, one behind the other.
pub fn read_reports(paths: &[PathBuf]) -> anyhow::Result<Vec<LoadReport>> {
    let mut reports = Vec::new();
    for path in paths {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        for report in serde_json::Deserializer::from_reader(BufReader::new(file)).into_iter() {
            let report: LoadReport = report.with_context(|| format!("{} holds no report", path.display()))?;
            // Keys that are missing have their defaults, so that reports of other versions are read; any
            // object would pass for a report.
            ensure!(
                !report.run.is_empty() && !report.workload.is_empty(),
                "{} holds something else than a report of ringpost load --json: run or workload is missing",
                path.display()
            );
            reports.push(report);
        }
    }
    ensure!(!reports.is_empty(), "there is no report to compare");
    Ok(reports)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:22} {:>12} {:>12} {:>8}  95 % interval of the ratio", "", "A", "B", "B/A")?;
        for line in &self.lines {
            let text = |value: f64| match line.is_time {
                true if value < 1000.0 => format!("{value:.1} µs"),
                true => in_words(value as u64),
                false if value < 100.0 => format!("{value:.2}"),
                false => format!("{value:.0}"),
            };
            let interval = match line.interval {
                None => "unknown: too few runs".into(),
                Some((low, high)) if low <= 1.0 && high >= 1.0 => {
                    format!("{low:.3} to {high:.3}: no difference shown")
                }
                Some((low, high)) => format!("{low:.3} to {high:.3}"),
            };
            let (a, b) = (text(line.a.mean), text(line.b.mean));
            writeln!(f, "{:22} {a:>12} {b:>12} {:>8.3}  {interval}", line.name, line.ratio)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    fn runs(rates: &[f64]) -> Vec<LoadReport> {
        rates.iter().map(|&rate| LoadReport { rate, seconds: 1.0, ..LoadReport::default() }).collect()
    }

    #[test]
    fn a_known_difference() {
        let comparison = compare(&runs(&[100.0, 110.0, 90.0]), &runs(&[200.0, 220.0, 180.0]));
        let line = &comparison.lines[0];
        assert_eq!(
            (line.name.as_str(), line.a.runs, line.a.least, line.a.most),
            ("messages/s", 3, 90.0, 110.0)
        );
        assert!((line.ratio - 2.0).abs() < 1e-9);
        let (low, high) = line.interval.unwrap();
        // Logarithms have a standard error of 0.058 on each side, four degrees of freedom.
        assert!((1.56..1.62).contains(&low) && (2.46..2.56).contains(&high), "{low} {high}");
        assert_eq!(comparison.lines.len(), 1);
        assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);
    }

    #[test]
    fn equal_runs_differ_by_what_cannot_be_told_apart() {
        let same = || runs(&[100.0, 100.0, 100.0]);
        let (low, high) = compare(&same(), &same()).lines[0].interval.unwrap();
        assert!((0.998..1.0).contains(&low) && (1.0005..1.002).contains(&high), "{low} {high}");
        // Of 5 µs the next value is a fifth away.
        assert!((0.2..0.3).contains(&resolution(true, 5.0)) && resolution(true, 1e6) < 0.0011);
    }

    #[test]
    fn runs_without_a_figure_are_named() {
        let comparison = compare(&runs(&[100.0, 0.0]), &runs(&[100.0, 90.0]));
        assert_eq!((comparison.lines[0].a.runs, comparison.lines[0].b.runs), (1, 2));
        let text = comparison.to_string();
        assert!(text.contains("messages/s: 1 of the 2 runs of A have none, and are left out"), "{text}");
        assert_eq!(text.matches("left out").count(), 1, "{text}");
    }

    #[test]
    fn only_reports_are_compared() {
        let path = std::env::temp_dir().join(format!("ringpost-compare-{}", std::process::id()));
        let report = LoadReport { run: "a".into(), workload: "w".into(), ..LoadReport::default() };
        let good = serde_json::to_string(&report).unwrap();
        for (text, is_good) in [
            (good.clone(), true),
            (good.clone() + "\n" + &good, true),
            ("{}".into(), false),
            (good + "{\"trials\":[]}", false),
            (String::new(), false),
            ("[1]".into(), false),
        ] {
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_reports(std::slice::from_ref(&path)).is_ok(), is_good, "{text}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn single_runs_have_no_interval() {
        let comparison = compare(&runs(&[100.0]), &runs(&[50.0, 51.0]));
        assert_eq!(comparison.lines[0].interval, None);
        assert!(comparison.to_string().contains("too few runs"), "{comparison}");
        assert!(comparison.warnings.iter().any(|warning| warning.contains("chance")));
    }

    #[test]
    fn the_interval_covers_the_truth_as_often_as_it_says() {
        let seed = crate::clock::wall_us();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut side =
            || -> Vec<f64> { (0..4).map(|_| (0..12).map(|_| rng.unit()).sum::<f64>() * 0.1).collect() };
        let covered = (0..2000)
            .filter(|_| {
                let (a, b) = (side(), side());
                (mean(&a) - mean(&b)).abs() <= half_width(&a, &b).unwrap()
            })
            .count();
        // Welch's interval errs on the careful side at few runs. Six standard deviations of chance.
        assert!((1840..=2000).contains(&covered), "{covered}");
    }

    #[test]
    fn student_points() {
        for (freedom, want) in [(1.0, 12.706), (4.0, 2.776), (10.0, 2.228), (15.0, 2.131), (60.0, 2.000)] {
            assert!((student(freedom) - want).abs() < 2e-3, "{freedom}: {}", student(freedom));
        }
    }
}
