//! The report of a run as one page of HTML.
//!
//! Owns: [`page`]. Promises: one file that loads nothing, readable in light and dark and without
//! scripts; whatever a server said is escaped. Must not: compute figures; they are the report's.
mod plot;

use std::fmt::Write;

use crate::report::{LoadReport, in_words};
use plot::{Plot, Series};

const STYLE: &str = include_str!("html/style.css");

/// The page that shows `report`.
pub fn page(report: &LoadReport) -> String {
    let mut body = String::new();
    header(report, &mut body);
    // The rest of an interval at the end holds too few messages to compare with the others.
    let mut points = &report.timeline[..];
    if let [first, .., last] = points
        && last.seconds < first.seconds / 2.0
    {
        points = &points[..points.len() - 1];
    }
    let per_point = |value: &dyn Fn(&crate::timeline::Point) -> f64| -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.at_sec + point.seconds / 2.0, value(point))).collect()
    };
    let rate = per_point(&|point| point.accepted as f64 / point.seconds.max(1e-6));
    let plot = |title: &str| Plot::new(title).grey_until(report.warmup_seconds);
    body += &plot("Accepted messages per second").with(Series::area("messages/s", 1, rate)).draw();
    let ms = |us: u64| us as f64 / 1e3;
    // An interval without messages has no percentiles: it is a gap, not a zero.
    let latency = |value: &dyn Fn(&crate::timeline::Point) -> u64| -> Vec<(f64, f64)> {
        per_point(&|point| if point.accepted == 0 { f64::NAN } else { ms(value(point)) })
    };
    body += &plot("Latency of accepted messages (ms, logarithmic)")
        .logarithmic()
        .with(Series::line("max", 4, latency(&|point| point.max_us)))
        .with(Series::line("p99", 3, latency(&|point| point.p99_us)))
        .with(Series::line("p90", 2, latency(&|point| point.p90_us)))
        .with(Series::line("p50", 1, latency(&|point| point.p50_us)))
        .draw();
    if !report.errors.is_empty() {
        let mut plot = plot("Errors per second, by kind");
        for (index, kind) in report.errors.keys().enumerate() {
            let count = |point: &crate::timeline::Point| {
                point.errors.get(kind).copied().unwrap_or(0) as f64 / point.seconds.max(1e-6)
            };
            plot = plot.with(Series::line(kind, 1 + index % plot::COLOURS, per_point(&count)));
        }
        body += &plot.draw();
    }
    process(report, &mut body);
    stages(report, &mut body);
    errors(report, &mut body);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>Load on {target}</title><style>{STYLE}</style></head>\n<body><main>{body}</main></body></html>\n",
        target = escape(&report.target)
    )
}

fn header(report: &LoadReport, body: &mut String) {
    let _ = write!(
        body,
        "<h1>Load on {}</h1><p class=\"sub\">{}. Seed {}, run {}.</p>",
        escape(&report.target),
        escape(&report.workload),
        report.seed,
        escape(&report.run)
    );
    for text in report
        .failure
        .iter()
        .map(|failure| format!("The run ended early: {failure}"))
        .chain(report.is_interrupted.then(|| "Interrupted: not all was sent that was asked for".into()))
        .chain(report.warnings.iter().cloned())
    {
        let _ = write!(body, "<p class=\"warning\">{}</p>", escape(&text));
    }
    let whole = &report.latency.whole;
    let held = match report.rate_held {
        None => "closed loop".to_owned(),
        Some(true) => format!("of {:.0}/s asked for: held", report.due_rate.unwrap_or_default()),
        Some(false) => format!(
            "of {:.0}/s asked for: not held, {:.1} % late",
            report.due_rate.unwrap_or_default(),
            report.late_share * 100.0
        ),
    };
    let [p50, p90, p99, _, max] = whole.in_words();
    let mut tiles = vec![
        (
            "messages accepted",
            grouped(report.accepted - report.warmup_accepted),
            match report.warmup_seconds > 0.0 {
                true => format!("in {:.2} s behind {} s of warm-up", report.seconds, report.warmup_seconds),
                false => format!("in {:.2} s", report.seconds),
            },
        ),
        ("messages per second", grouped(report.rate.round() as u64), held),
        ("p50", p50, format!("p90 {p90}")),
        ("p99", p99, format!("max {max}")),
        (
            "not accepted",
            grouped(report.rejected + report.unknown + report.unsent + report.not_begun),
            format!(
                "{} refused, {} unknown, {} not begun",
                report.rejected, report.unknown, report.not_begun
            ),
        ),
    ];
    if let Some(verdict) = &report.verdict {
        let [_, _, p99, ..] = report.latency.end_to_end.in_words();
        let p99 = format!("end to end p99 {p99}");
        tiles.push(("arrived", grouped(verdict.arrived), p99));
    }
    if let Some(process) = &report.process {
        let memory = process.peak_rss_bytes as f64 / f64::from(1 << 20);
        let cpu = format!("{:.1} µs", process.cpu_us_per_message);
        tiles.push(("server CPU per message", cpu, format!("{memory:.1} MiB at most")));
    }
    body.push_str("<div class=\"tiles\">");
    for (name, value, note) in tiles {
        let _ = write!(body, "<div><span>{name}</span><b>{value}</b><small>{}</small></div>", escape(&note));
    }
    body.push_str("</div>");
}

fn process(report: &LoadReport, body: &mut String) {
    let Some(process) = &report.process else { return };
    let cores = process.samples.windows(2).map(|pair| {
        let seconds = (pair[1].at_sec - pair[0].at_sec).max(1e-6);
        let cpu = (pair[1].cpu_sec - pair[0].cpu_sec).max(0.0);
        (f64::midpoint(pair[0].at_sec, pair[1].at_sec), cpu / seconds)
    });
    let plot = |title: &str| Plot::new(title).grey_until(report.warmup_seconds);
    *body += &plot("Processors the server uses").with(Series::area("processors", 2, cores.collect())).draw();
    let memory = process.samples.iter().map(|s| (s.at_sec, s.rss_bytes as f64 / f64::from(1 << 20)));
    *body += &plot("Memory of the server (MiB)").with(Series::area("MiB", 3, memory.collect())).draw();
}

fn stages(report: &LoadReport, body: &mut String) {
    body.push_str(
        "<h2>Latency by stage</h2><div class=\"scroll\"><table><thead><tr><th>stage<th>count<th>mean<th>p50<th>p90<th>p99\
         <th>p99.9<th>max</tr></thead><tbody>",
    );
    let late = (report.late.count > 0).then_some(("late start", report.late));
    for (name, p) in report.latency.named().into_iter().chain(late) {
        let _ = write!(body, "<tr><th>{name}<td>{}<td>{}", grouped(p.count), in_words(p.mean_us as u64));
        for text in p.in_words() {
            let _ = write!(body, "<td>{text}");
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table></div>");
    let _ = write!(
        body,
        "<p class=\"sub\">The source used {:.1} µs of CPU per message and was busy {:.0} % of the time.</p>",
        report.cpu_us_per_message,
        report.busy_share * 100.0
    );
    if let (Some(verdict), Some(sink)) = (&report.verdict, &report.sink) {
        let _ = write!(
            body,
            "<p class=\"sub\">At the sink {}. It used {:.1} µs of CPU per message and was busy {:.0} % of the time.</p>",
            escape(&verdict.to_string()),
            sink.cpu_us_per_message,
            sink.busy_share * 100.0
        );
    }
}

fn errors(report: &LoadReport, body: &mut String) {
    if report.errors.is_empty() {
        return;
    }
    body.push_str("<h2>Errors</h2><div class=\"scroll\"><table class=\"errors\"><thead><tr><th>kind<th>count<th>first text</tr></thead><tbody>");
    for (kind, count) in &report.errors {
        let sample = report.error_samples.get(kind).map_or("", String::as_str);
        let _ = write!(body, "<tr><th>{}<td>{}<td>{}</tr>", escape(kind), grouped(*count), escape(sample));
    }
    body.push_str("</tbody></table></div>");
}

/// A number with a thin space between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
