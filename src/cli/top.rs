//! `ringpost top`: a running server, live.
//!
//! Owns: what is shown and how often. Promises: rates are counted over the time that really passed; on
//! anything but a terminal frames follow each other as plain text; a server that ends ends it. Must not:
//! ask for more than one page of destinations.
use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::client::{request, with_query};
use super::output::{self, Table};
use super::{ServerArgs, queue};
use crate::config::grammar;
use crate::control::{Counters, DestinationView, Report, SuspensionView};

/// Destinations shown.
const ROWS: usize = 20;
/// To the upper left corner, and everything behind it away (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Args)]
pub struct TopArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Looks before it ends; without it, until it is interrupted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = grammar::duration(text)?;
    if time < Duration::from_millis(100) { Err("write 100ms or more".into()) } else { Ok(time) }
}

/// Events in a second since the last look.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Rates {
    accepted: f64,
    delivered: f64,
    deferred: f64,
    failed: f64,
    connections: f64,
}

impl Rates {
    fn between(before: &Counters, now: &Counters, passed: Duration) -> Rates {
        // A server that was started anew counts from nothing.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / passed.as_secs_f64();
        let failed = |c: &Counters| c.failed_recipients + c.expired_recipients;
        Rates {
            accepted: rate(before.accepted_messages, now.accepted_messages),
            delivered: rate(before.delivered_recipients, now.delivered_recipients),
            deferred: rate(before.deferred_attempts, now.deferred_attempts),
            failed: rate(failed(before), failed(now)),
            connections: rate(before.outbound_total, now.outbound_total),
        }
    }
}

/// Looks at the server again and again.
pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let spool = &args.server.spool;
    let destinations_path = with_query("/api/v1/destinations", &[("limit", Some(ROWS.to_string()))]);
    let mut before: Report = request(spool, "GET", "/api/v1/counters")?;
    let mut at = Instant::now();
    let mut looks = 0;
    while args.count.is_none_or(|count| looks < count) {
        std::thread::sleep(args.interval);
        let report: Report = request(spool, "GET", "/api/v1/counters")?;
        let now = Instant::now();
        let rates = Rates::between(&before.counters, &report.counters, now.duration_since(at));
        let destinations: Vec<DestinationView> = request(spool, "GET", &destinations_path)?;
        let suspended: Vec<SuspensionView> = request(spool, "GET", "/api/v1/suspensions")?;
        if args.server.json {
            output::json_line(&serde_json::json!({
                "report": report, "rates": rates, "destinations": destinations, "suspended": suspended,
            }))?;
        } else {
            let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
            let frame = frame(&report, &rates, &destinations, &suspended);
            output::text(&format!("{clear}{frame}\n"))?;
        }
        (before, at) = (report, now);
        looks += 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn frame(
    report: &Report,
    rates: &Rates,
    destinations: &[DestinationView],
    suspended: &[SuspensionView],
) -> String {
    let c = &report.counters;
    let mut out = format!(
        "in {:.0}/s   delivered {:.0}/s   deferred {:.0}/s   failed {:.0}/s   new connections {:.0}/s\n",
        rates.accepted, rates.delivered, rates.deferred, rates.failed, rates.connections
    );
    let _ = writeln!(
        out,
        "queued {}: {} ready, {} deferred, {} in flight, {} held, {} to be returned",
        c.queued_messages_now,
        c.ready_recipients_now,
        c.deferred_recipients_now,
        c.in_flight_recipients_now,
        c.held_deliveries_now,
        c.failing_messages_now
    );
    let _ = writeln!(
        out,
        "clients {}   connections {}   commit p99 {:.2} ms   {:.0} MB resident   up {:.0} s\n",
        c.sessions_now,
        c.outbound_now,
        c.commit_us.p99 as f64 / 1e3,
        report.process.rss_bytes as f64 / 1e6,
        report.process.uptime_seconds
    );
    if destinations.is_empty() {
        out += "no destination has mail waiting\n";
        return out;
    }
    let mut table =
        Table::new(&["destination", "ready", "deferred", "in flight", "connections", "next attempt", ""]);
    for view in destinations {
        let is_suspended = suspended.iter().any(|s| s.destination == view.destination);
        let note = match view.backoff_until {
            _ if is_suspended => "suspended",
            Some(_) => "rests",
            None => "",
        };
        table.row([
            view.destination.clone(),
            view.ready.to_string(),
            view.deferred.to_string(),
            view.in_flight.to_string(),
            view.connections.to_string(),
            queue::time_or_dash(view.backoff_until.or(view.next_attempt)),
            note.to_owned(),
        ]);
    }
    out + &table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::control::Timestamp;

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let before = Counters { accepted_messages: 100, delivered_recipients: 50, ..Counters::default() };
        let now = Counters { accepted_messages: 400, delivered_recipients: 20, ..Counters::default() };
        let rates = Rates::between(&before, &now, Duration::from_millis(1500));
        assert_eq!((rates.accepted, rates.delivered), (200.0, 0.0));
    }

    #[test]
    fn a_frame_names_what_rests_and_what_is_suspended() {
        let view = |name: &str, backoff: Option<Timestamp>| DestinationView {
            destination: name.into(),
            ready: 1,
            deferred: 2,
            in_flight: 3,
            connections: 4,
            next_attempt: None,
            backoff_until: backoff,
        };
        let later = Some(Timestamp(WallTime(60_000_000)));
        let suspended = [SuspensionView {
            destination: "s.test".into(),
            since: Timestamp(WallTime(0)),
            until: None,
            reason: "rest".into(),
        }];
        let counters = Counters { held_deliveries_now: 9, ..Counters::default() };
        let report = Report { counters, ..Report::default() };
        let destinations = [view("a.test", None), view("r\x1b.test", later), view("s.test", later)];
        let frame = frame(&report, &Rates::default(), &destinations, &suspended);
        let line = |part: &str| frame.lines().find(|line| line.contains(part)).unwrap_or_default().trim_end();
        assert!(line("9 held").starts_with("queued 0: 0 ready"), "{frame}");
        assert!(line("r\\x1b.test").ends_with("1970-01-01T00:01:00Z  rests"), "{frame}");
        assert!(line("s.test").ends_with("suspended") && line("a.test").ends_with('-'), "{frame}");
    }
}
