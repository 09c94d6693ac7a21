//! From replies to outcomes: what is recorded, what is bounced, what is told.
//!
//! Owns: the rules of RFC 5321 §4.2.5, §4.5.5 and §6.1 and RFC 3461 §5.2 for the sending side: 2xx
//! delivered, and reported where that was asked for and the next hop does not report; 4xx tried again;
//! 5xx or too old returned to the sender, unless the client wanted no notice of failure. Promises: the DSN is in the log before the outcome that it reports, and its
//! commit record counts as that outcome. Must not: talk to peers or decide when to try again.
use std::rc::Rc;

use super::Worker;
use super::home::{Home, Refusals};
use super::message::{LoadError, Message};
use super::post::ShardEvent;
use super::report::{self, Ended, Notice};
use crate::clock::WallTime;
use crate::events::Event;
use crate::limits;
use crate::mail::dsn::Kind;
use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::mail::text::printable;
use crate::ring;
use crate::schedule::{ConnId, Entry, Reaction, Verdict};
use crate::spool::{Outcome, Tries};

/// Where a delivery took place, for events and DSNs.
pub struct Peer {
    pub host: Rc<str>,
    pub tls: Option<Rc<str>>,
    /// Whether the peer sends reports itself (RFC 3461): what is asked for is its business then.
    pub dsn: bool,
}

/// A message's part that was tried over a connection.
pub struct Tried<'a> {
    pub shard: u8,
    pub conn: ConnId,
    pub entry: Entry,
    pub message: &'a Rc<Message>,
    pub recipients: &'a [u16],
    pub peer: &'a Peer,
}

/// Records what an attempt came to, one reply per recipient, and tells the shard.
pub fn settle(worker: &Rc<Worker>, home: &Rc<Home>, tried: &Tried<'_>, replies: Vec<Reply>) {
    let now = worker.clock.now();
    let slot = tried.entry.slot;
    if home.log().live().get(slot).is_none_or(|m| m.id != tried.message.id) {
        // It ended while it was on its way; there is nothing left to record.
        let (conn, entry, verdict) = (tried.conn, tried.entry, Verdict::Nothing);
        let event = ShardEvent::Finished { conn, entry, verdict };
        worker.tell_shard(tried.shard.into(), event);
        return;
    }
    let mut delivered = Vec::with_capacity(tried.recipients.len());
    let mut refused = Vec::new();
    let mut deferred = Vec::new();
    let mut relayed = Vec::new();
    let mut verdict = Verdict::Nothing;
    for (&recipient, reply) in tried.recipients.iter().zip(replies) {
        if reply.is_success() {
            if worker.shared.events.is_on() {
                tell_delivered(worker, tried, recipient, &reply, now);
            }
            let to = &tried.message.envelope.recipients[usize::from(recipient)];
            if !tried.peer.dsn && to.wants_success() {
                let host = Some(tried.peer.host.clone());
                relayed.push(Ended { recipient, reply: reply.clone(), host });
            }
            delivered.push((recipient, Outcome::Delivered(reply)));
            continue;
        }
        let reaction = worker.live().rules.judge(&reply);
        if let Reaction::Tell(told) = reaction
            && verdict == Verdict::Nothing
        {
            verdict = told;
        }
        if reply.is_permanent() || reaction == Reaction::Bounce {
            refused.push(Ended { recipient, reply, host: Some(tried.peer.host.clone()) });
        } else {
            deferred.push((recipient, reply));
        }
    }
    worker.counters.delivered.add(delivered.len() as u64);
    if !delivered.is_empty() {
        worker.counters.delivered_bytes.add(tried.message.body.len() as u64);
        home.record(slot, tried.message.id, delivered, now);
        report::relayed(worker, home, tried.message, relayed);
    }
    if !refused.is_empty() {
        fail_recipients(worker, home, slot, refused, false);
    }
    let (conn, entry) = (tried.conn, tried.entry);
    let event = if deferred.is_empty() {
        ShardEvent::Finished { conn, entry, verdict }
    } else {
        let recipients_left = deferred.len() as u16;
        tried.message.remember(&deferred);
        home.remember_refusals(entry, Refusals { host: tried.peer.host.clone(), replies: deferred });
        ShardEvent::Deferred { conn, entry, recipients_left, verdict }
    };
    worker.tell_shard(tried.shard.into(), event);
}

/// What the scheduler is to learn from a reply to no message in particular.
pub fn verdict(worker: &Worker, reply: &Reply) -> Verdict {
    match worker.live().rules.judge(reply) {
        Reaction::Tell(verdict) => verdict,
        Reaction::Bounce => Verdict::Nothing,
    }
}

fn tell_delivered(worker: &Worker, tried: &Tried<'_>, recipient: u16, reply: &Reply, now: WallTime) {
    let envelope = &tried.message.envelope;
    worker.shared.events.send(
        now,
        Event::Delivered {
            id: tried.message.id,
            recipient: envelope.recipients[usize::from(recipient)].address.to_string(),
            host: tried.peer.host.to_string(),
            reply: reply.to_string(),
            attempts: tried.message.attempts.get().saturating_add(1),
            queued_ms: now.since(envelope.received_at).as_millis() as u64,
            tls: tried.peer.tls.as_ref().map(|t| t.to_string()),
            user: submitter(envelope),
        },
    );
}

/// Who submitted a message, for its events.
fn submitter(envelope: &Envelope) -> Option<String> {
    envelope.user.as_ref().map(|user| printable(user.as_bytes()))
}

/// Calls `then` with the part's unfinished recipients: at once where they are known without the message,
/// else when it has been read.
fn with_unfinished(home: &Rc<Home>, entry: Entry, then: impl FnOnce(Vec<u16>) + 'static) {
    if let Some(pending) = home.unfinished_without_body(entry) {
        return then(pending);
    }
    if let Some(message) = home.cached(entry.slot) {
        return then(home.unfinished(&message, entry));
    }
    let home = home.clone();
    ring::spawn(async move {
        match home.load(entry.slot).await {
            Ok(message) => then(home.unfinished(&message, entry)),
            Err(error) => tracing::error!(slot = entry.slot, %error, "a queued message cannot be read"),
        }
    });
}

/// The shard has set the next attempt: it is made durable with the reason.
pub fn record_deferred(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    entry: Entry,
    attempts: u8,
    next: WallTime,
    why: Option<&Reply>,
) {
    let Some(id) = home.log().live().get(entry.slot).map(|m| m.id) else { return };
    if let Some(refusals) = home.take_refusals(entry) {
        write_deferred(worker, home, entry, id, (attempts, next), refusals);
        return;
    }
    let reply = why.cloned().unwrap_or_else(|| Reply::local(450, (4, 4, 1), "no host could be reached"));
    let (worker, kept) = (worker.clone(), home.clone());
    with_unfinished(home, entry, move |pending| {
        let replies: Vec<_> = pending.into_iter().map(|r| (r, reply.clone())).collect();
        if let Some(message) = kept.cached(entry.slot) {
            message.remember(&replies);
        }
        let refusals = Refusals { host: Rc::from(""), replies };
        write_deferred(&worker, &kept, entry, id, (attempts, next), refusals);
    });
}

fn write_deferred(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    entry: Entry,
    id: MessageId,
    (attempts, next): (u8, WallTime),
    refusals: Refusals,
) {
    worker.counters.deferred.add(refusals.replies.len() as u64);
    if let Some(message) = home.cached(entry.slot) {
        message.attempts.set(attempts);
    }
    if worker.shared.events.is_on() {
        tell_deferred(worker, home, entry, refusals.clone(), (attempts, next));
    }
    let outcomes = refusals
        .replies
        .into_iter()
        .map(|(recipient, reply)| {
            (recipient, Outcome::Deferred { tries: Tries::new(attempts, false), next, reply })
        })
        .collect();
    home.record(entry.slot, id, outcomes, worker.clock.now());
}

fn tell_deferred(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    entry: Entry,
    refusals: Refusals,
    (attempts, next): (u8, WallTime),
) {
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        let Ok(message) = home.load(entry.slot).await else { return };
        for (recipient, reply) in refusals.replies {
            let Some(to) = message.envelope.recipients.get(usize::from(recipient)) else { continue };
            worker.shared.events.send(
                worker.clock.now(),
                Event::Deferred {
                    id: message.id,
                    recipient: to.address.to_string(),
                    host: refusals.host.to_string(),
                    reply: reply.to_string(),
                    attempts,
                    next,
                    user: submitter(&message.envelope),
                },
            );
        }
    });
}

/// The part is older than `--max-age`: its pending recipients fail, with what was last said of them.
pub fn expire(worker: &Rc<Worker>, home: &Rc<Home>, entry: Entry) {
    let known = home.take_refusals(entry);
    let (worker, kept) = (worker.clone(), home.clone());
    with_unfinished(home, entry, move |pending| {
        let message = kept.cached(entry.slot);
        let refused = pending
            .into_iter()
            .map(|recipient| {
                let last_of = |replies: &[(u16, Reply)]| {
                    replies.iter().find(|(r, _)| *r == recipient).map(|(_, reply)| reply.clone())
                };
                if let Some((host, reply)) =
                    known.as_ref().and_then(|k| Some((k.host.clone(), last_of(&k.replies)?)))
                {
                    return Ended { recipient, reply, host: Some(host) };
                }
                let reply = message
                    .as_ref()
                    .and_then(|m| last_of(&m.last_replies.borrow()))
                    .unwrap_or_else(|| Reply::local(450, (4, 4, 7), "delivery time expired"));
                Ended { recipient, reply, host: None }
            })
            .collect();
        fail_recipients(&worker, &kept, entry.slot, refused, true);
    });
}

/// The destination can never take mail.
pub fn fail(worker: &Rc<Worker>, home: &Rc<Home>, entry: Entry, why: Option<&Reply>) {
    let reply = why.cloned().unwrap_or_else(|| Reply::local(550, (5, 4, 4), "the destination takes no mail"));
    let (worker, kept) = (worker.clone(), home.clone());
    with_unfinished(home, entry, move |pending| {
        let refused = pending
            .into_iter()
            .map(|recipient| Ended { recipient, reply: reply.clone(), host: None })
            .collect();
        fail_recipients(&worker, &kept, entry.slot, refused, false);
    });
}

pub fn fail_recipients(worker: &Rc<Worker>, home: &Rc<Home>, slot: u32, refused: Vec<Ended>, expired: bool) {
    if refused.is_empty() {
        return;
    }
    let Some(id) = home.log().live().get(slot).map(|m| m.id) else { return };
    home.mark_failing(slot, refused.iter().map(|r| r.recipient));
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        let message = read_for_bounce(&home, slot).await.filter(|m| m.id == id);
        let Some(message) = message else {
            home.unmark_failing(slot, refused.iter().map(|r| r.recipient));
            return;
        };
        let mut refused = refused;
        while !refused.is_empty() {
            let rest = refused.split_off(refused.len().min(limits::DSN_RECIPIENTS));
            bounce(&worker, &home, slot, &message, refused, expired).await;
            refused = rest;
        }
    });
}

/// The message, however long the disk takes to give it. None if it is gone or damaged, and so ended.
async fn read_for_bounce(home: &Rc<Home>, slot: u32) -> Option<Rc<Message>> {
    loop {
        match home.load(slot).await {
            Ok(message) => return Some(message),
            Err(LoadError::Io(kind)) => {
                tracing::warn!(slot, %kind, "a failed message cannot be read for its bounce; trying again");
                ring::sleep(limits::SPOOL_RETRY_WAIT).await;
            }
            Err(error) => {
                tracing::error!(slot, %error, "a failed message cannot be read for its bounce");
                return None;
            }
        }
    }
}

/// Writes the DSN (where one is due) and the outcomes, in this order, then queues the DSN.
async fn bounce(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    slot: u32,
    message: &Rc<Message>,
    refused: Vec<Ended>,
    expired: bool,
) {
    let now = worker.clock.now();
    let recipients = &message.envelope.recipients;
    let to_tell: Vec<&Ended> =
        refused.iter().filter(|r| recipients[usize::from(r.recipient)].wants_failure()).collect();
    let notice = Notice { expired, ends_them: true, ..Notice::of(Kind::Failed, Some(now)) };
    let report = report::write(worker, home, message, &to_tell, &notice).await.map(|report| report.id);
    let counter = if expired { &worker.counters.expired } else { &worker.counters.failed };
    counter.add(refused.len() as u64);
    if worker.shared.events.is_on() {
        for r in &refused {
            let to = &recipients[usize::from(r.recipient)];
            worker.shared.events.send(
                now,
                Event::Failed {
                    id: message.id,
                    recipient: to.address.to_string(),
                    host: r.host.as_deref().unwrap_or_default().to_string(),
                    reply: r.reply.to_string(),
                    attempts: message.attempts.get().saturating_add(u8::from(!expired)),
                    bounce: report.filter(|_| to.wants_failure()),
                    user: submitter(&message.envelope),
                },
            );
        }
    }
    home.unmark_failing(slot, refused.iter().map(|r| r.recipient));
    let outcomes = refused.into_iter().map(|r| (r.recipient, Outcome::Failed(r.reply))).collect();
    home.record(slot, message.id, outcomes, now);
}
