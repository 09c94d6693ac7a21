//! `ringpost queue`: what waits in a running server, and acting on it.
//!
//! Owns: the subcommands and their output. Promises: what it prints as JSON is what the API said.
//! Must not: read the spool itself; a running server owns it.
use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ServerArgs;
use super::client::{request, with_query};
use super::output::{self, Table};
use crate::config::grammar;
use crate::control::{
    DestinationView, MessageDetail, MessageView, Removed, Report, Retried, State, Timestamp,
};
use crate::limits;
use crate::mail::id::MessageId;
use crate::mail::text::printable;

#[derive(Args)]
pub struct QueueArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Totals, and the destinations with the most mail
    Summary {
        #[command(flatten)]
        server: ServerArgs,
        /// Destinations to show
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = limit)]
        limit: u64,
    },
    /// Messages, oldest first
    List(ListArgs),
    /// One message in full
    Show {
        /// Message id, as in Received headers and events
        id: MessageId,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Try deferred mail now
    Retry {
        /// The destination to try
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        domain: Option<String>,
        /// Every destination
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Take a message out, without delivery and without a bounce
    Remove {
        /// Message id
        id: MessageId,
        /// Why, for the event log
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// With an unfinished recipient in this domain
    #[arg(long)]
    domain: Option<String>,
    /// From this sender; empty for bounces
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    /// To this recipient, unfinished
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
    /// In this state: ready, deferred, in-flight or held
    #[arg(long)]
    state: Option<State>,
    /// Received longer ago than this
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: Option<String>,
    /// Messages to show
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = limit)]
    limit: u64,
}

fn limit(text: &str) -> Result<u64, String> {
    let most = limits::CONTROL_LIST as u64;
    grammar::number(text).and_then(|n| match n {
        n if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("write a number from 1 to {most}")),
    })
}

/// A duration, passed on as it was written.
fn age(text: &str) -> Result<String, String> {
    grammar::duration(text).map(|_| text.to_owned())
}

/// Asks the server and prints what it said.
pub fn run(args: &QueueArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Summary { server, limit } => summary(server, *limit)?,
        Command::List(args) => list(args)?,
        Command::Show { id, server } => {
            let detail: MessageDetail = request(&server.spool, "GET", &format!("/api/v1/messages/{id}"))?;
            print(server, &detail, || show_detail(&detail))?;
        }
        Command::Retry { domain, all, server } => {
            let all = all.then(|| "true".to_owned());
            let path = with_query("/api/v1/retry", &[("domain", domain.clone()), ("all", all)]);
            let done: Retried = request(&server.spool, "POST", &path)?;
            print(server, &done, || format!("{} deliveries are due now\n", done.retried))?;
        }
        Command::Remove { id, reason, server } => {
            let path = with_query(&format!("/api/v1/messages/{id}"), &[("reason", reason.clone())]);
            let done: Removed = request(&server.spool, "DELETE", &path)?;
            print(server, &done, || format!("{id} is removed\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print<T: serde::Serialize>(
    server: &ServerArgs,
    value: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if server.json { output::json(value) } else { output::text(&text()) }
}

fn summary(server: &ServerArgs, limit: u64) -> anyhow::Result<()> {
    let report: Report = request(&server.spool, "GET", "/api/v1/counters")?;
    let path = with_query("/api/v1/destinations", &[("limit", Some(limit.to_string()))]);
    let destinations: Vec<DestinationView> = request(&server.spool, "GET", &path)?;
    let json = serde_json::json!({ "report": report, "destinations": destinations });
    print(server, &json, || show_report(&report) + &show_destinations(&destinations))
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let path = with_query(
        "/api/v1/queue",
        &[
            ("domain", args.domain.clone()),
            ("sender", args.sender.clone()),
            ("recipient", args.recipient.clone()),
            ("state", args.state.map(|state| state.as_str().to_owned())),
            ("older_than", args.older_than.clone()),
            ("limit", Some(args.limit.to_string())),
        ],
    );
    let messages: Vec<MessageView> = request(&args.server.spool, "GET", &path)?;
    print(&args.server, &messages, || show_messages(&messages))
}

/// A time, or a dash.
pub fn time_or_dash(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

fn sender_or_null(sender: &str) -> String {
    if sender.is_empty() { "<>".to_owned() } else { sender.to_owned() }
}

fn show_report(report: &Report) -> String {
    let c = &report.counters;
    let rows = [
        ("queued", format!("{} messages, {} recipients", c.queued_messages_now, c.queued_recipients_now)),
        (
            "waiting",
            format!(
                "{} ready, {} deferred, {} in flight",
                c.ready_recipients_now, c.deferred_recipients_now, c.in_flight_recipients_now
            ),
        ),
        ("accepted", format!("{} messages, {}", c.accepted_messages, megabytes(c.accepted_bytes))),
        ("refused", format!("{} permanently, {} for now", c.rejected_permanently, c.rejected_temporarily)),
        ("delivered", format!("{} recipients", c.delivered_recipients)),
        ("deferred", format!("{} attempts", c.deferred_attempts)),
        (
            "failed",
            format!(
                "{} recipients, {} expired, {} removed, {} bounces",
                c.failed_recipients, c.expired_recipients, c.removed_recipients, c.bounces
            ),
        ),
        ("open", format!("{} clients, {} connections to destinations", c.sessions_now, c.outbound_now)),
        (
            "commit",
            format!(
                "p50 {:.2} ms, p99 {:.2} ms, {} groups, {} lost",
                c.commit_us.p50 as f64 / 1e3,
                c.commit_us.p99 as f64 / 1e3,
                c.commit_us.count,
                c.groups_lost
            ),
        ),
        (
            "spool",
            format!(
                "{} segments, {} live, {} written, amplification {:.2}",
                c.segments_now,
                megabytes(c.live_bytes_now),
                megabytes(c.written_bytes),
                report.write_amplification
            ),
        ),
        (
            "process",
            format!(
                "{}, durability {}, workers {}, up {:.0} s, {:.1} s CPU, {} resident",
                printable(report.process.version.as_bytes()),
                printable(report.process.durability.as_bytes()),
                report.process.workers,
                report.process.uptime_seconds,
                report.process.cpu_seconds,
                megabytes(report.process.rss_bytes)
            ),
        ),
    ];
    rows.iter().fold(String::new(), |mut out, (name, text)| {
        writeln!(out, "{name:<10} {text}").expect("writing to a String cannot fail");
        out
    })
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn show_destinations(destinations: &[DestinationView]) -> String {
    if destinations.is_empty() {
        return "no destination has mail waiting\n".to_owned();
    }
    let mut table =
        Table::new(&["destination", "ready", "deferred", "in flight", "connections", "next attempt"]);
    for view in destinations {
        table.row([
            view.destination.clone(),
            view.ready.to_string(),
            view.deferred.to_string(),
            view.in_flight.to_string(),
            view.connections.to_string(),
            time_or_dash(view.backoff_until.or(view.next_attempt)),
        ]);
    }
    format!("\n{}", table.render())
}

fn show_messages(messages: &[MessageView]) -> String {
    if messages.is_empty() {
        return "no message fits\n".to_owned();
    }
    let mut table = Table::new(&["id", "received", "bytes", "pending", "state", "next attempt", "sender"]);
    for view in messages {
        table.row([
            view.id.to_string(),
            view.received.to_string(),
            view.bytes.to_string(),
            format!("{}/{}", view.pending, view.recipients),
            view.state.as_str().to_owned(),
            time_or_dash(view.next_attempt),
            sender_or_null(&view.sender),
        ]);
    }
    table.render()
}

fn show_detail(detail: &MessageDetail) -> String {
    let message = &detail.message;
    let mut head = Table::new(&["message", &message.id.to_string()]);
    head.row(["received".into(), message.received.to_string()]);
    head.row(["from".into(), sender_or_null(&message.sender)]);
    head.row(["client".into(), detail.client.map_or_else(|| "-".to_owned(), |client| client.to_string())]);
    head.row(["bytes".into(), format!("{} in the spool", message.bytes)]);
    head.row(["state".into(), message.state.as_str().into()]);
    head.row(["expires".into(), time_or_dash(detail.expires)]);
    let mut table = Table::new(&["recipient", "state", "attempts", "next attempt", "last reply"]);
    for recipient in &detail.recipient_list {
        table.row([
            recipient.address.clone(),
            recipient.state.as_str().to_owned(),
            recipient.attempts.to_string(),
            time_or_dash(recipient.next_attempt),
            recipient.last_reply.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    format!("{}\n{}", head.render(), table.render())
}
