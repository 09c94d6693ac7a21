//! What an operator is shown of the messages in the logs of a worker.
//!
//! Owns: listing messages, one in full, and why one is not moving. Promises: looking changes nothing;
//! other work goes on while many messages are looked at. Must not: act on mail (`operate` does).
use std::rc::Rc;

use super::Worker;
use super::home::Home;
use super::message::Message;
use super::operate::destination_of;
use crate::clock::WallTime;
use crate::control::{
    DeliveryView, GateView, MessageDetail, MessageView, RecipientView, Selector, State, Timestamp,
};
use crate::mail::id::MessageId;
use crate::mail::text::printable;
use crate::schedule::{Entry, Gate, shard_of};
use crate::spool::{End, Mark, RecipientState, Slot};

/// Up to `limit` messages that the selector takes, oldest first.
pub async fn list(worker: Rc<Worker>, selector: Selector, limit: usize) -> Vec<MessageView> {
    let mut found = Vec::new();
    for home in worker.own_homes() {
        let mut live: Vec<(MessageId, Slot)> = {
            let log = home.log();
            let fits = |id: MessageId| {
                selector.id.is_none_or(|wanted| wanted == id)
                    && selector.received_before.is_none_or(|t| id.received_at() < t)
            };
            match selector.id {
                Some(id) => log.live().find(id).map(|slot| (id, slot)).into_iter().collect(),
                None => {
                    let whole = |slot| log.live().is_durable(slot);
                    let live = log.live().iter().filter(|m| m.pending > 0 && whole(m.slot) && fits(m.id));
                    live.map(|m| (m.id, m.slot)).collect()
                }
            }
        };
        live.sort_unstable();
        for (id, slot) in live {
            if found.len() >= limit {
                break;
            }
            let Ok(message) = home.load(slot).await else { continue };
            // Reading took time: the slot may have another message by now.
            if message.id != id {
                continue;
            }
            let view = view_of(&worker, home, slot, &message);
            if selects(&selector, &view, home, slot, &message) {
                found.push(view);
            }
        }
    }
    found
}

fn selects(selector: &Selector, view: &MessageView, home: &Home, slot: Slot, message: &Message) -> bool {
    let log = home.log();
    let unfinished = || {
        message.envelope.recipients.iter().enumerate().filter(|(n, _)| {
            matches!(log.live().state(slot, *n as u16), Some(RecipientState::Pending { .. }))
        })
    };
    let parts = message.envelope.parts(&*home.config.part_limit).count() as u16;
    let destinations = || (0..parts).filter_map(|part| destination_of(home, slot, message, part));
    selector.domain.as_ref().is_none_or(|d| destinations().any(|own| own == *d))
        && selector.recipient.as_ref().is_none_or(|a| unfinished().any(|(_, r)| r.address.as_str() == a))
        && selector.sender.as_ref().is_none_or(|s| *s == view.sender)
        && selector.stream.as_ref().is_none_or(|s| message.envelope.stream.as_deref() == Some(s))
        && selector.state.is_none_or(|s| s == view.state)
}

/// State of a recipient as its home knows it.
fn state_of(home: &Home, slot: Slot, recipient: u16, now: WallTime) -> (State, u8, Option<Timestamp>) {
    let log = home.log();
    let (attempts, next) = match log.live().state(slot, recipient) {
        Some(RecipientState::Pending { tries, next }) => (tries.attempts(), next),
        Some(RecipientState::Done(end)) => {
            let state = match end {
                End::Delivered => State::Delivered,
                End::Failed => State::Failed,
                End::Removed => State::Removed,
                End::Quarantined => State::Quarantined,
                End::Unknown => State::Finished,
            };
            return (state, 0, None);
        }
        None => return (State::Finished, 0, None),
    };
    let mark = log.live().standing(slot, recipient).map_or(Mark::None, |s| s.mark);
    match mark {
        Mark::Held => (State::Held, attempts, None),
        Mark::Failing => (State::Failing, attempts, None),
        Mark::None if home.connections.borrow().values().any(|c| c.holds(slot)) => {
            (State::InFlight, attempts, None)
        }
        Mark::None if next > now => (State::Deferred, attempts, Some(Timestamp(next))),
        Mark::None => (State::Ready, attempts, None),
    }
}

fn view_of(worker: &Worker, home: &Home, slot: Slot, message: &Message) -> MessageView {
    let now = worker.clock.now();
    let states = (0..message.envelope.recipients.len()).map(|n| state_of(home, slot, n as u16, now));
    // The one that moves first speaks for the message.
    let order = [State::InFlight, State::Ready, State::Deferred, State::Failing, State::Held];
    let rank = |state: State| order.iter().position(|s| *s == state).unwrap_or(order.len());
    let first = states.min_by_key(|(state, _, next)| (rank(*state), *next));
    let (state, _, next_attempt) = first.unwrap_or((State::Finished, 0, None));
    let log = home.log();
    let live = log.live().get(slot);
    let held = live.as_ref().is_some_and(|m| m.held);
    MessageView {
        id: message.id,
        received: Timestamp(message.envelope.received_at),
        sender: message.envelope.reverse_path.as_ref().map_or(String::new(), ToString::to_string),
        user: message.envelope.user.as_ref().map(|user| printable(user.as_bytes())),
        bytes: live.as_ref().map_or(0, |m| m.bytes),
        recipients: message.envelope.recipients.len() as u32,
        pending: live.as_ref().map_or(0, |m| m.pending),
        state: if held { State::Held } else { state },
        next_attempt,
    }
}

/// Where a message lies in the logs of this worker.
pub fn find(worker: &Worker, id: MessageId) -> Option<(Rc<Home>, Slot)> {
    worker.own_homes().find_map(|home| {
        let slot = home.log().live().find(id)?;
        Some((home.clone(), slot))
    })
}

/// One message in full.
pub async fn show(worker: Rc<Worker>, id: MessageId) -> Option<MessageDetail> {
    let (home, slot) = find(&worker, id)?;
    let message = home.load(slot).await.ok().filter(|m| m.id == id)?;
    let now = worker.clock.now();
    let last = message.last_replies.borrow();
    let recipient_list = message
        .envelope
        .recipients
        .iter()
        .enumerate()
        .map(|(n, recipient)| {
            let (state, attempts, next_attempt) = state_of(&home, slot, n as u16, now);
            let log = home.log();
            let standing = log.live().standing(slot, n as u16);
            let moved = standing.and_then(|s| s.destination.as_ref());
            RecipientView {
                address: recipient.address.to_string(),
                destination: moved.unwrap_or_else(|| recipient.address.domain()).to_string(),
                state,
                attempts: attempts.into(),
                next_attempt,
                last_reply: last.iter().rev().find(|(r, _)| usize::from(*r) == n).map(|(_, t)| t.to_string()),
                reason: standing.map(|s| s.reason.to_string()),
            }
        })
        .collect();
    let max_age = message.envelope.destinations().map(|(domain, _)| worker.max_age(domain)).max();
    let expires = message.envelope.received_at.saturating_add(max_age.unwrap_or_default());
    Some(MessageDetail {
        message: view_of(&worker, &home, slot, &message),
        client: message.envelope.client,
        expires: Some(Timestamp(expires)),
        recipient_list,
    })
}

/// What holds each delivery of a message, with the destination of each.
pub async fn why(worker: Rc<Worker>, id: MessageId) -> Option<Vec<DeliveryView>> {
    let (home, slot) = find(&worker, id)?;
    let message = home.load(slot).await.ok().filter(|m| m.id == id)?;
    let now = worker.clock.now();
    let mut deliveries = Vec::new();
    let parts = message.envelope.parts(&*home.config.part_limit);
    let ranges: Vec<_> = parts.map(|(_, range)| range).collect();
    for (part, range) in ranges.into_iter().enumerate() {
        let Some(destination) = destination_of(&home, slot, &message, part as u16) else { continue };
        let entry = Entry { home: home.config.index, slot, part: part as u16 };
        let shard = shard_of(&destination, worker.shared.config.workers);
        let name = destination.clone();
        let gates = worker
            .on(shard, move |there| async move { there.shard.borrow().explain_entry(&name, entry) })
            .await;
        let gates = gates.unwrap_or_default();
        for recipient in range {
            let (state, attempts, _) = state_of(&home, slot, recipient as u16, now);
            let last = message.last_replies.borrow();
            let last =
                last.iter().rev().find(|(r, _)| usize::from(*r) == recipient).map(|(_, t)| t.to_string());
            deliveries.push(DeliveryView {
                recipient: message.envelope.recipients[recipient].address.to_string(),
                destination: destination.to_string(),
                state,
                attempts: attempts.into(),
                last_reply: last,
                gates: own_gates(&home, slot, recipient as u16, state)
                    .unwrap_or_else(|| gates.iter().map(gate_view).collect()),
            });
        }
    }
    Some(deliveries)
}

/// The gates of a delivery that no shard has.
fn own_gates(home: &Home, slot: Slot, recipient: u16, state: State) -> Option<Vec<GateView>> {
    let log = home.log();
    let (gate, detail) = match state {
        State::Held => ("held", "until an operator releases it".to_owned()),
        State::Failing => {
            ("failing", format!("its bounce waits for its turn, with {} others", home.to_be_failed()))
        }
        State::Ready | State::Deferred | State::InFlight => return None,
        _ => return Some(Vec::new()),
    };
    let standing = log.live().standing(slot, recipient);
    Some(vec![GateView {
        gate: gate.into(),
        since: standing.map(|s| Timestamp(s.at)),
        until: None,
        detail,
        reason: standing.map(|s| s.reason.to_string()),
    }])
}

/// A gate as it is shown.
pub fn gate_view(gate: &Gate) -> GateView {
    GateView {
        gate: gate.kind.as_str().into(),
        since: gate.since.map(Timestamp),
        until: gate.until.map(Timestamp),
        detail: gate.detail.clone(),
        reason: None,
    }
}
