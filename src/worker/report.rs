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
use crate::limits;
use crate::mail::dsn::{self, Kind, Report, Reported};
use crate::mail::envelope::{Envelope, Recipient};
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::ring;
use crate::spool::{NewMessage, Refusal, Reports};

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
}

/// Reports recipients that were passed on to a host without DSN, whose sender wants to know. The delivery
/// is recorded already; a crash in between costs the report, never a second copy of the message.
pub fn relayed(worker: &Rc<Worker>, home: &Rc<Home>, message: &Rc<Message>, passed_on: Vec<Ended>) {
    if passed_on.is_empty() || message.envelope.reverse_path.is_none() {
        return;
    }
    let (worker, home, message) = (worker.clone(), home.clone(), message.clone());
    ring::spawn(async move {
        let notice = Notice { kind: Kind::Relayed, expired: false, ends_them: false, retry_until: None };
        for some in passed_on.chunks(limits::DSN_RECIPIENTS) {
            write(&worker, &home, &message, &some.iter().collect::<Vec<_>>(), &notice).await;
        }
    });
}

/// Appends the report to the log of the message it reports on and arranges its queueing. Returns its id;
/// none if there is nobody to tell or nothing to be told.
pub async fn write(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    message: &Rc<Message>,
    about: &[&Ended],
    notice: &Notice,
) -> Option<MessageId> {
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
            last_attempt: Some(now),
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
        let new = NewMessage { id, envelope: &envelope, fragments: &[], parts: &[&body], reports };
        let appended = home.append(&new);
        match appended {
            Ok((slot, group)) => {
                worker.counters.bounces.add(1);
                home.keep(slot, Message::new(id, envelope, body.into()));
                queue_when_durable(worker, home, slot, home.watch(group));
                return Some(id);
            }
            Err(Refusal::Busy) => home.progress.wait().await,
            // The outcome waits with its report: a failure must not be recorded without it.
            Err(Refusal::NoRoom | Refusal::Unwritable) => ring::sleep(limits::SPOOL_RETRY_WAIT).await,
        }
    }
}

/// The log writes a report again by itself if its commit fails, so it is queued whatever came of the first
/// try; but not before that is known.
fn queue_when_durable(worker: &Rc<Worker>, home: &Rc<Home>, slot: u32, commit: Watch) {
    let (worker, home) = (worker.clone(), home.clone());
    ring::spawn(async move {
        commit.wait().await;
        if let Ok(message) = home.load(slot).await {
            worker.enqueue(&home, slot, &message.envelope);
        }
    });
}
