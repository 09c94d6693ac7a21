//! `ringpost why`: which gates hold a message or a destination, since when, and until when.
//!
//! Owns: the wording. Promises: one line per thing that waits, and one for each gate. Must not: guess; it
//! says what the server's own state says.
use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;

use super::client::{path_part, request};
use super::{ServerArgs, output};
use crate::control::{DeliveryView, GateView, State, WhyDestination, WhyMessage};
use crate::mail::id::MessageId;
use crate::mail::text::printable;

#[derive(Args)]
pub struct WhyArgs {
    /// A message id or a destination domain
    #[arg(value_name = "ID|DOMAIN")]
    subject: String,
    #[command(flatten)]
    server: ServerArgs,
}

/// Asks the server and explains.
pub fn run(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/api/v1/why/{}", path_part(&args.subject));
    if args.subject.parse::<MessageId>().is_ok() {
        let why: WhyMessage = request(&args.server.spool, "GET", &path)?;
        return print(&args.server, &why, || why.deliveries.iter().map(delivery).collect());
    }
    let why: WhyDestination = request(&args.server.spool, "GET", &path)?;
    print(&args.server, &why, || destination(&why))
}

fn print<T: serde::Serialize>(
    server: &ServerArgs,
    value: &T,
    text: impl FnOnce() -> String,
) -> anyhow::Result<ExitCode> {
    if server.json {
        output::json(value)?
    } else {
        output::text(&text())?
    }
    Ok(ExitCode::SUCCESS)
}

/// A gate in words, without its times.
fn gate_in_words(gate: &GateView) -> String {
    let detail = printable(gate.detail.as_bytes());
    let with = |words: &str| if detail.is_empty() { words.to_owned() } else { format!("{words}: {detail}") };
    match gate.gate.as_str() {
        "retry" => with("waits for its next attempt"),
        "message-rate" => with("waits for the rate of messages"),
        "connection-rate" => with("waits for the rate of new connections"),
        "connections" => with("waits for a free connection"),
        "worker-connections" => with("waits for a free connection of its worker"),
        "suspended" => with("its destination is suspended"),
        "host-down" => with("its hosts do not answer"),
        "held" => "is held by an operator".to_owned(),
        "failing" => with("an operator returns it to its sender"),
        "in-flight" => "is being delivered".to_owned(),
        "shared-limit" => with("shares a limit with others"),
        "turn" => with("waits for its turn"),
        other => with(&printable(other.as_bytes())),
    }
}

fn gate_line(gate: &GateView) -> String {
    let mut line = format!("  {}", gate_in_words(gate));
    if let Some(since) = gate.since {
        let _ = write!(line, ", since {since}");
    }
    if let Some(until) = gate.until {
        let _ = write!(line, ", until {until}");
    }
    if let Some(reason) = &gate.reason {
        let _ = write!(line, " ({})", printable(reason.as_bytes()));
    }
    line + "\n"
}

/// One recipient and its gates.
fn delivery(view: &DeliveryView) -> String {
    let attempts = match view.attempts {
        0 => String::new(),
        1 => ", 1 attempt so far".to_owned(),
        n => format!(", {n} attempts so far"),
    };
    let state = match view.state {
        State::Delivered => "is delivered",
        State::Failed => "has failed",
        State::Removed => "was removed by an operator",
        State::Quarantined => "was damaged by the disk",
        State::Finished => "is finished",
        waiting => waiting.as_str(),
    };
    let to = printable(view.destination.as_bytes());
    let mut out = format!("{}: {state}, to {to}{attempts}\n", printable(view.recipient.as_bytes()));
    for gate in &view.gates {
        out += &gate_line(gate);
    }
    if let Some(reply) = &view.last_reply {
        // The long part, and it is cut where it came in.
        out += &format!("  last reply: {}\n", printable(reply.as_bytes()));
    }
    out
}

/// A destination and its gates.
fn destination(why: &WhyDestination) -> String {
    let name = printable(why.destination.as_bytes());
    let mut out = match &why.queued {
        Some(view) => format!(
            "{name}: {} ready, {} deferred, {} in flight, {} held, {} connections\n",
            view.ready, view.deferred, view.in_flight, why.held, view.connections
        ),
        None if why.held > 0 => format!("{name}: nothing waits for it but what is held: {}\n", why.held),
        None => format!("{name}: no mail waits for it\n"),
    };
    why.gates.iter().for_each(|gate| out += &gate_line(gate));
    if let Some(view) = &why.queued {
        if let (Some(next), true) = (view.next_attempt, why.gates.is_empty()) {
            out += &format!("  waits for its next attempt, until {next}\n");
        } else if why.gates.is_empty() && view.ready + view.in_flight > 0 {
            out += "  nothing holds it: it is being delivered to\n";
        }
    }
    // Known to the file while the shard knows of no mail.
    if let Some(view) = why.suspension.as_ref().filter(|_| !why.gates.iter().any(|g| g.gate == "suspended")) {
        let until = view.until.map_or_else(String::new, |until| format!(", until {until}"));
        let reason = printable(view.reason.as_bytes());
        out += &format!("  is suspended, since {}{until} ({reason})\n", view.since);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::control::{DestinationView, SuspensionView, Timestamp};

    const LATER: Option<Timestamp> = Some(Timestamp(WallTime(60_000_000)));

    fn gate(kind: &str, detail: &str) -> GateView {
        GateView { gate: kind.into(), since: None, until: None, detail: detail.into(), reason: None }
    }

    #[test]
    fn every_gate_has_its_sentence() {
        for (gate, expected) in [
            (
                GateView { until: LATER, ..gate("retry", "after 2 attempts") },
                "  waits for its next attempt: after 2 attempts, until 1970-01-01T00:01:00Z\n",
            ),
            (gate("message-rate", "100/s"), "  waits for the rate of messages: 100/s\n"),
            (gate("connection-rate", "5/m"), "  waits for the rate of new connections: 5/m\n"),
            (gate("connections", "4 of 4 in use"), "  waits for a free connection: 4 of 4 in use\n"),
            (
                gate("shared-limit", "waits for a connection: the server"),
                "  shares a limit with others: waits for a connection: the server\n",
            ),
            (gate("worker-connections", ""), "  waits for a free connection of its worker\n"),
            (
                GateView { since: LATER, reason: Some("too \x1bmuch".into()), ..gate("suspended", "") },
                "  its destination is suspended, since 1970-01-01T00:01:00Z (too \\x1bmuch)\n",
            ),
            (
                gate("host-down", "the last connection failed"),
                "  its hosts do not answer: the last connection failed\n",
            ),
            (gate("held", "until an operator releases it"), "  is held by an operator\n"),
            (gate("failing", "3 before it"), "  an operator returns it to its sender: 3 before it\n"),
            (gate("in-flight", "a connection has it"), "  is being delivered\n"),
            (gate("turn", "7 before it"), "  waits for its turn: 7 before it\n"),
            (gate("new\n", ""), "  new\\x0a\n"),
        ] {
            assert_eq!(gate_line(&gate), expected);
        }
    }

    #[test]
    fn a_delivery_says_its_state_its_gates_and_the_last_reply() {
        let mut view = DeliveryView {
            recipient: "a@b.example".into(),
            destination: "c.example".into(),
            state: State::Deferred,
            attempts: 2,
            last_reply: Some("450 4.2.0 \x1bbusy".into()),
            gates: vec![gate("retry", "")],
        };
        assert_eq!(
            delivery(&view),
            "a@b.example: deferred, to c.example, 2 attempts so far\n  waits for its next attempt\n  last reply: 450 4.2.0 \\x1bbusy\n"
        );
        for (state, text) in
            [(State::Delivered, "is delivered"), (State::Quarantined, "was damaged by the disk")]
        {
            view = DeliveryView { state, attempts: 0, last_reply: None, gates: vec![], ..view };
            assert_eq!(delivery(&view), format!("a@b.example: {text}, to c.example\n"));
        }
    }

    #[test]
    fn a_destination_says_what_waits_there_and_why() {
        let queued = DestinationView {
            destination: "b.example".into(),
            ready: 1,
            deferred: 2,
            in_flight: 0,
            connections: 3,
            next_attempt: None,
            backoff_until: None,
        };
        let mut why = WhyDestination {
            destination: "b.example".into(),
            held: 4,
            queued: Some(queued.clone()),
            suspension: None,
            gates: vec![],
        };
        let counts = "b.example: 1 ready, 2 deferred, 0 in flight, 4 held, 3 connections\n";
        assert_eq!(destination(&why), format!("{counts}  nothing holds it: it is being delivered to\n"));
        why.gates = vec![gate("connections", "3 of 3 in use")];
        assert_eq!(destination(&why), format!("{counts}  waits for a free connection: 3 of 3 in use\n"));
        why.gates.clear();
        why.queued = Some(DestinationView { ready: 0, next_attempt: LATER, ..queued });
        assert!(destination(&why).ends_with("  waits for its next attempt, until 1970-01-01T00:01:00Z\n"));
        why = WhyDestination { queued: None, held: 0, ..why };
        assert_eq!(destination(&why), "b.example: no mail waits for it\n");
        why.suspension = Some(SuspensionView {
            destination: "b.example".into(),
            since: Timestamp(WallTime(0)),
            until: None,
            reason: "rest".into(),
        });
        assert!(destination(&why).ends_with("  is suspended, since 1970-01-01T00:00:00Z (rest)\n"));
    }
}
