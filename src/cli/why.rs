//! `ringpost why`: which gate holds a message or a destination, and until when.
//!
//! Owns: the wording. Promises: one sentence per thing that waits. Must not: guess; it says what the
//! server's own state says.
use std::process::ExitCode;

use clap::Args;

use super::client::{request, with_query};
use super::{ServerArgs, output};
use crate::control::{DestinationView, MessageDetail, RecipientView, State};
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
    let spool = &args.server.spool;
    if let Ok(id) = args.subject.parse::<MessageId>() {
        let detail: MessageDetail = request(spool, "GET", &format!("/api/v1/messages/{id}"))?;
        return print(&args.server, &detail, || detail.recipient_list.iter().map(recipient).collect());
    }
    let path = with_query("/api/v1/destinations", &[("domain", Some(args.subject.clone()))]);
    let found: Vec<DestinationView> = request(spool, "GET", &path)?;
    print(&args.server, &found, || match found.first() {
        Some(view) => destination(view),
        None => format!("{}: no mail waits for it\n", printable(args.subject.as_bytes())),
    })
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

/// One line on one recipient.
fn recipient(view: &RecipientView) -> String {
    let gate = match (view.state, view.next_attempt) {
        (State::Ready, _) => format!("waits for a free connection to {}", view.destination),
        (State::Deferred, Some(next)) => format!("waits for its next attempt at {next}"),
        (State::Deferred, None) => "waits for its next attempt".to_owned(),
        (State::InFlight, _) => format!("is being delivered to {}", view.destination),
        (State::Held, _) => "is held until an operator releases it".to_owned(),
        (State::Delivered, _) => "is delivered".to_owned(),
        (State::Failed, _) => "has failed".to_owned(),
        (State::Removed, _) => "was removed by an operator".to_owned(),
    };
    let attempts = match view.attempts {
        0 => String::new(),
        n => format!(", after {n} attempts"),
    };
    let reply = view.last_reply.as_ref().map(|reply| format!("; last reply: {reply}")).unwrap_or_default();
    // The reply is the long part, and it is cut where it came in.
    format!("{}: {gate}{attempts}{}\n", printable(view.address.as_bytes()), printable(reply.as_bytes()))
}

/// One line on one destination.
fn destination(view: &DestinationView) -> String {
    let gate = match (view.backoff_until, view.next_attempt) {
        (Some(until), _) => format!("rests until {until} after failed connections"),
        (None, _) if view.ready > 0 && view.connections > 0 => {
            "is being delivered to; what is ready waits for a free connection".to_owned()
        }
        (None, _) if view.ready > 0 => "waits for a connection to be opened".to_owned(),
        (None, _) if view.in_flight > 0 => "is being delivered to".to_owned(),
        (None, Some(next)) => format!("waits for its next attempt at {next}"),
        (None, None) => "waits for its next attempt".to_owned(),
    };
    format!(
        "{}: {gate} ({} ready, {} deferred, {} in flight, {} connections)\n",
        printable(view.destination.as_bytes()),
        view.ready,
        view.deferred,
        view.in_flight,
        view.connections
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::control::Timestamp;

    const LATER: Option<Timestamp> = Some(Timestamp(WallTime(60_000_000)));

    #[test]
    fn every_state_of_a_recipient_has_its_sentence() {
        for (state, attempts, next_attempt, last_reply, expected) in [
            (State::Ready, 0, None, None, "a@b.example: waits for a free connection to b.example\n"),
            (
                State::Deferred,
                2,
                LATER,
                Some("450 4.2.0 \x1bbusy"),
                "a@b.example: waits for its next attempt at 1970-01-01T00:01:00Z, after 2 attempts; last reply: 450 4.2.0 \\x1bbusy\n",
            ),
            (State::InFlight, 0, None, None, "a@b.example: is being delivered to b.example\n"),
            (
                State::Delivered,
                1,
                None,
                Some("250 ok"),
                "a@b.example: is delivered, after 1 attempts; last reply: 250 ok\n",
            ),
        ] {
            let view = RecipientView {
                address: "a@b.example".into(),
                destination: "b.example".into(),
                state,
                attempts,
                next_attempt,
                last_reply: last_reply.map(str::to_owned),
            };
            assert_eq!(recipient(&view), expected);
        }
    }

    #[test]
    fn the_gate_of_a_destination_is_the_one_that_holds() {
        for (ready, in_flight, connections, next_attempt, backoff_until, part) in [
            (1, 0, 0, LATER, LATER, "rests until 1970-01-01T00:01:00Z"),
            (1, 1, 1, None, None, "waits for a free connection"),
            (1, 0, 0, None, None, "waits for a connection to be opened"),
            (0, 1, 1, None, None, "is being delivered to ("),
            (0, 0, 0, LATER, None, "waits for its next attempt at 1970"),
        ] {
            let view = DestinationView {
                destination: "b.example".into(),
                ready,
                deferred: 0,
                in_flight,
                connections,
                next_attempt,
                backoff_until,
            };
            assert!(destination(&view).contains(part), "{}", destination(&view));
        }
    }
}
