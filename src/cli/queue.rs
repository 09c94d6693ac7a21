//! `ringpost queue`: what waits in a running server, and acting on it.
//!
//! Owns: the subcommands and their output. Promises: what it prints as JSON is what the API said.
//! Must not: read the spool itself; a running server owns it.
use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ServerArgs;
use super::client::{path_part, request, with_query};
use super::output::{self, Table};
use crate::config::grammar;
use crate::control::{
    Act, DestinationView, MessageDetail, MessageView, OperationView, Report, Resumed, Stage, State,
    SuspensionView, Timestamp,
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
    /// Keep messages from being delivered until they are released
    Hold(OrderArgs),
    /// End a hold
    Release(OrderArgs),
    /// Try messages now; with --domain or --all also end the rest of a destination that did not answer
    Retry(OrderArgs),
    /// Return messages to their senders, at a pace
    Fail(OrderArgs),
    /// End messages without delivery and without a bounce
    Remove(OrderArgs),
    /// Deliver messages as mail for another domain is
    Move {
        /// That domain; a --route for it says where it lies, else its MX
        #[arg(long, value_name = "DOMAIN")]
        to: String,
        #[command(flatten)]
        order: OrderArgs,
    },
    /// Hold back all mail for a destination, what comes in later included
    Suspend {
        #[command(flatten)]
        destination: DestinationArgs,
        /// End it by itself after this time
        #[arg(long = "for", value_name = "TIME", value_parser = age)]
        time: Option<String>,
    },
    /// End the suspension of a destination
    Resume {
        #[command(flatten)]
        destination: DestinationArgs,
    },
}

#[derive(Args)]
struct DestinationArgs {
    /// The destination
    #[arg(long)]
    domain: String,
    /// Why, for the event log and for `ringpost why`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

/// Which messages. What is given must all fit.
#[derive(Args)]
struct SelectorArgs {
    /// This message
    #[arg(long)]
    id: Option<MessageId>,
    /// Recipients who wait for this destination
    #[arg(long)]
    domain: Option<String>,
    /// From this sender; empty for bounces
    #[arg(long, value_name = "ADDRESS")]
    sender: Option<String>,
    /// To this recipient
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
    /// Of this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Received longer ago than this
    #[arg(long, value_name = "TIME", value_parser = age)]
    older_than: Option<String>,
    /// In this state: ready, deferred or held (to list them also in-flight or failing)
    #[arg(long)]
    state: Option<State>,
}

impl SelectorArgs {
    fn pairs(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("id", self.id.map(|id| id.to_string())),
            ("domain", self.domain.clone()),
            ("sender", self.sender.clone()),
            ("recipient", self.recipient.clone()),
            ("stream", self.stream.clone()),
            ("older_than", self.older_than.clone()),
            ("state", self.state.map(|state| state.as_str().to_owned())),
        ]
    }
}

#[derive(Args)]
struct OrderArgs {
    #[command(flatten)]
    selector: SelectorArgs,
    /// All messages
    #[arg(long)]
    all: bool,
    /// Only say how many that would be
    #[arg(long)]
    dry_run: bool,
    /// Why, for the event log and for `ringpost why`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    selector: SelectorArgs,
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
        Command::Hold(order) => return self::order("hold", None, order),
        Command::Release(order) => return self::order("release", None, order),
        Command::Retry(order) => return self::order("retry", None, order),
        Command::Fail(order) => return self::order("fail", None, order),
        Command::Remove(order) => return self::order("remove", None, order),
        Command::Move { to, order } => return self::order("move", Some(to), order),
        Command::Suspend { destination, time } => suspend(destination, time.clone())?,
        Command::Resume { destination } => resume(destination)?,
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
    let suspended: Vec<SuspensionView> = request(&server.spool, "GET", "/api/v1/suspensions")?;
    let json = serde_json::json!({ "report": report, "destinations": destinations, "suspended": suspended });
    print(server, &json, || {
        show_report(&report) + &show_destinations(&destinations) + &show_suspended(&suspended)
    })
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut pairs = args.selector.pairs();
    pairs.push(("limit", Some(args.limit.to_string())));
    let messages: Vec<MessageView> =
        request(&args.server.spool, "GET", &with_query("/api/v1/queue", &pairs))?;
    print(&args.server, &messages, || show_messages(&messages))
}

/// Gives an order and waits for its end, showing how far it is. Ends with 1 if it ended early.
fn order(act: &str, to: Option<&String>, args: &OrderArgs) -> anyhow::Result<ExitCode> {
    let mut pairs = args.selector.pairs();
    pairs.push(("all", args.all.then(|| "true".to_owned())));
    pairs.push(("dry_run", args.dry_run.then(|| "true".to_owned())));
    pairs.push(("reason", args.reason.clone()));
    pairs.push(("to", to.cloned()));
    let spool = &args.server.spool;
    let mut view: OperationView =
        request(spool, "POST", &with_query(&format!("/api/v1/queue/{act}"), &pairs))?;
    let shows = std::io::stderr().is_terminal();
    while view.stage == Stage::Running {
        if shows {
            eprint!("\r{}", progress(&view));
        }
        view = request(spool, "GET", &format!("/api/v1/operations/{}", view.operation))?;
    }
    if shows {
        eprint!("\r\x1b[K");
    }
    print(&args.server, &view, || show_operation(&view))?;
    Ok(if view.error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn progress(view: &OperationView) -> String {
    let looked = match view.to_look_at {
        0 => String::new(),
        all => format!("looked at {} of {all} messages, ", view.looked_at),
    };
    format!("{looked}{} selected, {} done", view.matched, view.changed)
}

fn show_operation(view: &OperationView) -> String {
    let count = |n: u64| if n == 1 { "1 delivery".to_owned() } else { format!("{n} deliveries") };
    let mut out = if view.dry_run {
        format!("{} would be concerned", count(view.matched))
    } else {
        let done = match view.action {
            Act::Hold => "held",
            Act::Release => "released",
            Act::Retry => "due now",
            Act::Fail => "to be returned to their senders",
            Act::Remove => "removed",
            Act::Move => "moved",
        };
        let verb = if view.changed == 1 { "is" } else { "are" };
        format!("{} {verb} {done}", count(view.changed))
    };
    if view.in_flight > 0 {
        out +=
            &format!("; {} on the way to their destination just then, and left alone", count(view.in_flight));
    }
    if let Some(error) = &view.error {
        out += &format!("; it ended early: {}", printable(error.as_bytes()));
    }
    out + "\n"
}

fn suspend(args: &DestinationArgs, time: Option<String>) -> anyhow::Result<()> {
    let domain = path_part(&args.domain);
    let pairs = [("for", time), ("reason", args.reason.clone())];
    let path = with_query(&format!("/api/v1/destinations/{domain}/suspend"), &pairs);
    let view: SuspensionView = request(&args.server.spool, "POST", &path)?;
    print(&args.server, &view, || {
        let until = view.until.map_or_else(|| "it is resumed".to_owned(), |until| until.to_string());
        format!("{} is suspended until {until}\n", printable(view.destination.as_bytes()))
    })
}

fn resume(args: &DestinationArgs) -> anyhow::Result<()> {
    let path = format!("/api/v1/destinations/{}/resume", path_part(&args.domain));
    let done: Resumed =
        request(&args.server.spool, "POST", &with_query(&path, &[("reason", args.reason.clone())]))?;
    print(&args.server, &done, || {
        let was = if done.resumed { "is resumed" } else { "was not suspended" };
        format!("{} {was}\n", printable(args.domain.as_bytes()))
    })
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
                "{} ready, {} deferred, {} in flight, {} held",
                c.ready_recipients_now,
                c.deferred_recipients_now,
                c.in_flight_recipients_now,
                c.held_deliveries_now
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

fn show_suspended(suspended: &[SuspensionView]) -> String {
    if suspended.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["suspended", "since", "until", "reason"]);
    for view in suspended {
        table.row([
            view.destination.clone(),
            view.since.to_string(),
            time_or_dash(view.until),
            view.reason.clone(),
        ]);
    }
    format!("\n{}", table.render())
}

fn show_messages(messages: &[MessageView]) -> String {
    if messages.is_empty() {
        return "no message fits\n".to_owned();
    }
    let mut table =
        Table::new(&["id", "received", "bytes", "pending", "state", "next attempt", "sender", "user"]);
    for view in messages {
        table.row([
            view.id.to_string(),
            view.received.to_string(),
            view.bytes.to_string(),
            format!("{}/{}", view.pending, view.recipients),
            view.state.as_str().to_owned(),
            time_or_dash(view.next_attempt),
            sender_or_null(&view.sender),
            view.user.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render()
}

fn show_detail(detail: &MessageDetail) -> String {
    let message = &detail.message;
    let mut head = Table::new(&["message", &message.id.to_string()]);
    head.row(["received".into(), message.received.to_string()]);
    head.row(["from".into(), sender_or_null(&message.sender)]);
    head.row(["user".into(), message.user.clone().unwrap_or_else(|| "-".to_owned())]);
    head.row(["client".into(), detail.client.map_or_else(|| "-".to_owned(), |client| client.to_string())]);
    head.row(["bytes".into(), format!("{} in the spool", message.bytes)]);
    head.row(["state".into(), message.state.as_str().into()]);
    head.row(["expires".into(), time_or_dash(detail.expires)]);
    let mut table = Table::new(&["recipient", "state", "attempts", "next attempt", "last reply", "reason"]);
    for recipient in &detail.recipient_list {
        table.row([
            recipient.address.clone(),
            recipient.state.as_str().to_owned(),
            recipient.attempts.to_string(),
            time_or_dash(recipient.next_attempt),
            recipient.last_reply.clone().unwrap_or_else(|| "-".to_owned()),
            recipient.reason.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    format!("{}\n{}", head.render(), table.render())
}
