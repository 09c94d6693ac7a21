//! Reports to senders: whether one is due, and its way into the queue (RFC 3461 §5, §6).
//!
//! Owns: the envelope of a report and its commit. Promises: none is made for a message with a null
//! reverse-path (RFC 3461 §6.1), nor for a recipient whose sender did not want it; where a report ends its
//! recipients, it is in the log before anything else says that they have ended. Must not: decide
//! outcomes.
use std::rc::Rc;

use super::Worker;
use super::fate::Watch;
use super::home::Home;
use super::message::Message;
use crate::clock::WallTime;
use crate::events::Event;
use crate::limits;
use crate::mail::dsn::{self, Kind, Report, Reported};
use crate::mail::envelope::{Envelope, Recipient};
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::ring;
use crate::schedule::Entry;
use crate::spool::{NewMessage, Outcome, RecipientState, Refusal, Reports, Slot, Tries};

/// What a report says of one recipient.
pub struct Ended {
    pub recipient: u16,
    pub reply: Reply,
    /// Who said it; none if nobody was reached.
    pub host: Option<Rc<str>>,
}

/// What a report says of all of them.
pub struct Notice {
    pub kind: Kind,
    pub expired: bool,
    /// Its commit is the end of the recipients: they are not delivered again whatever comes.
    pub ends_them: bool,
    pub retry_until: Option<WallTime>,
    pub last_attempt: Option<WallTime>,
}

impl Notice {
    /// A report of that kind that ends nothing.
    pub fn of(kind: Kind, last_attempt: Option<WallTime>) -> Notice {
        Notice { kind, expired: false, ends_them: false, retry_until: None, last_attempt }
    }
}

/// Reports recipients that were passed on to a host without DSN, whose sender wants to know. The delivery
/// is recorded already; a crash in between costs the report, never a second copy of the message.
pub fn relayed(worker: &Rc<Worker>, home: &Rc<Home>, message: &Rc<Message>, passed_on: Vec<Ended>) {
    if passed_on.is_empty() || message.envelope.reverse_path.is_none() {
        return;
    }
    let (worker, home, message) = (worker.clone(), home.clone(), message.clone());
    ring::spawn(async move {
        let notice = Notice::of(Kind::Relayed, Some(worker.clock.now()));
        for some in passed_on.chunks(limits::DSN_RECIPIENTS) {
            write(&worker, &home, &message, &some.iter().collect::<Vec<_>>(), &notice).await;
        }
    });
}

/// Whether the sender may be told of a delay of that recipient.
pub fn may_tell_of_delay(envelope: &Envelope, recipient: &Recipient) -> bool {
    envelope.reverse_path.is_some() && recipient.wants_delay()
}

/// Tells the sender that recipients of the part are late and are tried until `until`: those that still wait
/// and of whom it was not told before. That it was told is recorded when the report is durable: a crash
/// between the two repeats it. Where the spool has no room it is not told.
pub fn delayed(worker: &Rc<Worker>, home: &Rc<Home>, entry: Entry, until: WallTime, why: Option<&Reply>) {
    let Some(id) = home.log().live().get(entry.slot).map(|m| m.id) else { return };
    let (refusals, why) = (home.refusals_of(entry), why.cloned());
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        let message = match home.load(entry.slot).await {
            Ok(message) if message.id == id => message,
            Ok(_) => return,
            Err(error) => {
                let slot = entry.slot;
                return tracing::warn!(slot, %error, "a late message cannot be read: its sender is not told");
            }
        };
        let last_of = |replies: &[(u16, Reply)], recipient: u16| {
            replies.iter().find(|(r, _)| *r == recipient).map(|(_, reply)| reply.clone())
        };
        let about = |recipient: u16| {
            let refused = refusals.as_ref().and_then(|r| Some((last_of(&r.replies, recipient)?, &r.host)));
            let (reply, host) = match refused {
                Some((reply, host)) => (Some(reply), Some(host.clone())),
                None => (why.clone().or_else(|| last_of(&message.last_replies.borrow(), recipient)), None),
            };
            let reply = reply.unwrap_or_else(|| Reply::local(450, (4, 4, 7), "not delivered so far"));
            Ended { recipient, reply, host }
        };
        let tried = refusals.is_some() || why.is_some();
        let last_attempt = tried.then(|| worker.clock.now());
        let notice = Notice { retry_until: Some(until), ..Notice::of(Kind::Delayed, last_attempt) };
        let late: Vec<Ended> = untold(&home, &message, entry).into_iter().map(about).collect();
        for some in late.chunks(limits::DSN_RECIPIENTS) {
            let about: Vec<&Ended> = some.iter().collect();
            let Some(Written { id: report, slot }) = write(&worker, &home, &message, &about, &notice).await
            else {
                return;
            };
            durable(&home, slot, report).await;
            note_told(&worker, &home, entry, &message, (some, until), report);
        }
    });
}

/// Recipients of the part that wait, of whose delay the sender may be told and was not.
fn untold(home: &Home, message: &Message, entry: Entry) -> Vec<u16> {
    let mut late = home.unfinished(message, entry);
    late.retain(|&recipient| {
        let state = home.log().live().state(entry.slot, recipient);
        matches!(state, Some(RecipientState::Pending { tries, .. }) if !tries.is_told())
            && may_tell_of_delay(&message.envelope, &message.envelope.recipients[usize::from(recipient)])
    });
    late
}

/// Records that the sender has been told; where the recipients stand is as it was.
fn note_told(
    worker: &Worker,
    home: &Home,
    entry: Entry,
    message: &Message,
    (about, until): (&[Ended], WallTime),
    report: MessageId,
) {
    let (now, mut outcomes) = (worker.clock.now(), Vec::with_capacity(about.len()));
    for Ended { recipient, reply, host } in about {
        let state = home.log().live().state(entry.slot, *recipient);
        let Some(RecipientState::Pending { tries, next }) = state else { continue };
        let tries = Tries::new(tries.attempts(), true);
        outcomes.push((*recipient, Outcome::Deferred { tries, next, reply: reply.clone() }));
        if worker.shared.events.is_on() {
            let to = &message.envelope.recipients[usize::from(*recipient)];
            let (recipient, host) = (to.address.to_string(), host.as_deref().unwrap_or_default().to_owned());
            let (id, reply) = (message.id, reply.to_string());
            worker.shared.events.send(now, Event::Delayed { id, recipient, host, reply, until, report });
        }
    }
    home.record(entry.slot, message.id, outcomes, now);
}

/// A report in the log.
#[derive(Clone, Copy)]
pub struct Written {
    pub id: MessageId,
    pub slot: Slot,
}

/// Appends the report to the log of the message it reports on and arranges its queueing. None if there is
/// nobody to tell or nothing to be told.
pub async fn write(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    message: &Rc<Message>,
    about: &[&Ended],
    notice: &Notice,
) -> Option<Written> {
    let sender = message.envelope.reverse_path.as_ref().filter(|_| !about.is_empty())?;
    let now = worker.clock.now();
    let id = home.next_id(now);
    let recipients: Vec<u16> = about.iter().map(|r| r.recipient).collect();
    let reported: Vec<Reported<'_>> = about
        .iter()
        .map(|r| Reported {
            recipient: &message.envelope.recipients[usize::from(r.recipient)],
            reply: &r.reply,
            host: r.host.as_deref(),
            expired: notice.expired,
            last_attempt: notice.last_attempt,
        })
        .collect();
    let mut body = Vec::with_capacity(4096);
    let form = dsn::report(
        &mut body,
        &Report {
            kind: notice.kind,
            reporting_mta: &worker.shared.config.hostname,
            id,
            at: now,
            original: message.id,
            envelope: &message.envelope,
            original_sender: sender,
            retry_until: notice.retry_until,
            recipients: &reported,
            original_body: &message.body,
        },
    );
    let envelope = Envelope {
        recipients: vec![Recipient::new(sender.clone())],
        body_kind: form.kind,
        smtp_utf8: form.smtp_utf8,
        received_at: now,
        ..Envelope::default()
    };
    loop {
        let reports = notice.ends_them.then_some(Reports { id: message.id, recipients: &recipients });
        let new =
            NewMessage { id, envelope: &envelope, fragments: &[], parts: &[&body], reports, kept: true };
        let appended = home.append(&new);
        match appended {
            Ok((slot, group)) => {
                worker.counters.bounces.add(1);
                home.keep(slot, Message::new(id, envelope, body.into()));
                queue_when_durable(worker, home, Written { id, slot }, home.watch(group));
                return Some(Written { id, slot });
            }
            Err(Refusal::Busy) => home.progress.wait().await,
            // A delay does not end because it could not be told of.
            Err(Refusal::NoRoom | Refusal::Unwritable) if notice.kind == Kind::Delayed => return None,
            // The outcome waits with its report: a failure must not be recorded without it.
            Err(Refusal::NoRoom | Refusal::Unwritable) => ring::sleep(limits::SPOOL_RETRY_WAIT).await,
        }
    }
}

/// The log writes a report again by itself if its commit fails, so it is queued whatever came of the first
/// try; but not before it is durable.
fn queue_when_durable(worker: &Rc<Worker>, home: &Rc<Home>, report: Written, commit: Watch) {
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        let Written { id, slot } = report;
        if !commit.wait().await {
            durable(&home, slot, id).await;
        }
        let Ok(message) = home.load(slot).await else { return };
        // Meanwhile an operator may have removed it, and its slot may be another message's.
        if home.log().live().get(slot).is_some_and(|m| m.id == id) && message.id == id {
            worker.enqueue(&home, slot, &message.envelope);
        }
    });
}

/// Waits until the report is on the disk, or has ended otherwise.
async fn durable(home: &Home, slot: Slot, id: MessageId) {
    let waits = || {
        let log = home.log();
        log.live().get(slot).is_some_and(|m| m.id == id) && !log.live().is_durable(slot)
    };
    while waits() {
        home.progress.wait().await;
    }
}
