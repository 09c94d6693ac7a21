//! What `ringpost spool` prints.
//!
//! Owns: the JSON objects and their definitions. Promises: names do not change once published; texts are
//! for people, numbers for programs. Must not: read files.
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::offline::{self, OfflineLog};
use crate::control::Timestamp;
use crate::mail::envelope::{BodyKind, Notify, Return};
use crate::mail::text::printable;
use crate::spool::{
    Damage, Finding, LiveMessage, Mark, ReadError, RecipientState, RecoveryError, Standing, StoredMessage,
    Tries,
};

/// `spool verify`.
#[derive(Default, Serialize)]
pub struct VerifyView {
    pub damage: Vec<DamageView>,
    /// Messages that this version must not deliver, and why. They are not damaged.
    pub held: Vec<String>,
    pub logs: Vec<LogView>,
}

/// One damaged place.
#[derive(PartialEq, Serialize)]
pub struct DamageView {
    pub log: Option<u16>,
    /// Number of the segment file; of records that are missing, the one in which they should begin, or that
    /// in front of it.
    pub segment: Option<u32>,
    /// In the segment file.
    pub offset: Option<u32>,
    /// The message, if it is known.
    pub id: Option<String>,
    pub what: String,
}

impl DamageView {
    pub fn of(log: u16, finding: &Finding) -> DamageView {
        let (segment, offset, id) = match finding {
            Finding::Damaged { file, offset, damage } => {
                let id = match damage {
                    Damage::Frame(_) => None,
                    Damage::Fragment(id) | Damage::Record(id) => Some(id.to_string()),
                };
                (Some(file.0), Some(*offset), id)
            }
            Finding::HeaderLost { file, .. } => (Some(file.0), Some(0), None),
            Finding::IndexLost { file, offset, .. } | Finding::Unreadable { file, offset, .. } => {
                (Some(file.0), Some(*offset), None)
            }
            Finding::Held { id, .. } => (None, None, Some(id.to_string())),
            Finding::Missing { after, before, .. } => {
                let spot = after.or(*before);
                (spot.map(|spot| spot.file.0), spot.map(|spot| spot.offset), None)
            }
        };
        DamageView { log: Some(log), segment, offset, id, what: finding.to_string() }
    }

    pub fn unreadable(log: u16, of: &OfflineLog, message: &LiveMessage, error: &ReadError) -> DamageView {
        let plan = of.recovered.read_plan(message.slot, &of.config);
        let segment = plan.and_then(|plan| plan.extents.last().map(|extent| extent.file.0));
        let what = format!("message {}: {error}", message.id);
        DamageView {
            log: Some(log),
            segment,
            offset: Some(message.place.offset),
            id: Some(message.id.to_string()),
            what,
        }
    }

    /// A log that cannot be read.
    pub fn of_log(log: u16, error: &RecoveryError) -> DamageView {
        let segment = error.file().map(|file| file.0);
        DamageView { log: Some(log), segment, offset: None, id: None, what: error.to_string() }
    }

    /// A file of the spool that is no segment.
    pub fn of_file(what: String) -> DamageView {
        DamageView { log: None, segment: None, offset: None, id: None, what }
    }
}

impl fmt::Display for DamageView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(log) = self.log {
            write!(f, "log {log}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// `spool stat`.
#[derive(Default, Serialize)]
pub struct StatView {
    /// Identity of the spool.
    pub spool: String,
    pub logs: Vec<LogView>,
    /// Pieces of damaged records that were set aside.
    pub quarantined_files: u64,
}

/// One log.
#[derive(Serialize)]
pub struct LogView {
    pub log: u16,
    /// Segment files that may hold something alive.
    pub segments: usize,
    /// Segment files that do not.
    pub free_segments: usize,
    /// Of all segment files.
    pub bytes: u64,
    pub messages: u64,
    pub pending_recipients: u64,
    /// Of the records of those messages.
    pub live_bytes: u64,
}

impl LogView {
    pub fn of(log: &mut OfflineLog) -> anyhow::Result<LogView> {
        let (segments, free_segments) = log.recovered.segment_counts();
        let mut view = LogView {
            log: log.config.log,
            segments,
            free_segments,
            bytes: log.file_bytes()?,
            messages: 0,
            pending_recipients: 0,
            live_bytes: 0,
        };
        for message in log.recovered.live().iter() {
            view.messages += 1;
            view.pending_recipients += u64::from(message.pending);
            view.live_bytes += message.bytes;
        }
        Ok(view)
    }
}

/// `spool dump`: a message without its text.
#[derive(Serialize)]
pub struct StoredView {
    pub id: String,
    pub log: u16,
    pub received: Timestamp,
    /// The reverse-path; empty for bounces.
    pub sender: String,
    pub client: Option<std::net::IpAddr>,
    /// The user who had logged in.
    pub user: Option<String>,
    /// `7bit`, `8bit` or `binary`.
    pub body_kind: &'static str,
    /// Whether addresses or header may hold UTF-8.
    pub smtputf8: bool,
    /// Whether it must not go over a connection without verified TLS.
    pub requiretls: bool,
    /// `full` or `hdrs`: what a report of failure returns, if the client said so.
    pub ret: Option<&'static str>,
    /// The client's name for the message, encoded.
    pub envid: Option<String>,
    /// Of the message as a file.
    pub bytes: usize,
    /// Why this version must not deliver it.
    pub held: Option<String>,
    pub recipients: Vec<RecipientView>,
    /// The header fields that were asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

#[derive(Serialize)]
pub struct RecipientView {
    pub address: String,
    /// `pending` or `done`.
    pub state: &'static str,
    pub attempts: u8,
    /// The sender has had a report that it is late.
    pub told_of_delay: bool,
    /// None before the first attempt.
    pub next_attempt: Option<Timestamp>,
    /// What the client wants to be told: `never`, or some of `success`, `failure` and `delay`.
    pub notify: Option<Vec<&'static str>>,
    /// The address that the client says the message was first sent to, encoded.
    pub original: Option<String>,
    /// What an operator has decided, while it holds.
    pub decided: Option<DecisionView>,
}

#[derive(Serialize)]
pub struct DecisionView {
    /// `none`, `held`, or `failing`: it is to be returned to its sender.
    pub mark: &'static str,
    /// It is delivered as mail for this domain is.
    pub destination: Option<String>,
    pub reason: String,
}

impl DecisionView {
    fn of(standing: &Standing) -> DecisionView {
        DecisionView {
            mark: match standing.mark {
                Mark::None => "none",
                Mark::Held => "held",
                Mark::Failing => "failing",
            },
            destination: standing.destination.as_ref().map(ToString::to_string),
            reason: standing.reason.to_string(),
        }
    }
}

fn words(notify: Notify) -> Vec<&'static str> {
    if notify == Notify::NEVER {
        return vec!["never"];
    }
    let all = [(notify.success, "success"), (notify.failure, "failure"), (notify.delay, "delay")];
    all.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect()
}

impl StoredView {
    pub fn of(
        log: &OfflineLog,
        message: &LiveMessage,
        stored: &StoredMessage,
        headers: &[String],
    ) -> StoredView {
        let envelope = &stored.envelope;
        let file = offline::as_file(stored);
        let recipients = envelope.recipients.iter().enumerate().map(|(n, recipient)| {
            let (state, tries, next) = match log.recovered.live().state(message.slot, n as u16) {
                Some(RecipientState::Pending { tries, next }) => ("pending", tries, next),
                _ => ("done", Tries::default(), Default::default()),
            };
            let next_attempt = (next.0 != 0).then_some(Timestamp(next));
            RecipientView {
                address: recipient.address.to_string(),
                state,
                attempts: tries.attempts(),
                told_of_delay: tries.is_told(),
                next_attempt,
                notify: recipient.notify.map(words),
                original: recipient.original.as_deref().map(Into::into),
                decided: log
                    .recovered
                    .live()
                    .standing(message.slot, n as u16)
                    .map(|standing| DecisionView::of(standing)),
            }
        });
        let values = headers.iter().filter_map(|name| Some((name.clone(), offline::header(&file, name)?)));
        StoredView {
            id: message.id.to_string(),
            log: log.config.log,
            received: Timestamp(envelope.received_at),
            sender: envelope.reverse_path.as_ref().map_or(String::new(), ToString::to_string),
            client: envelope.client,
            user: envelope.user.as_deref().map(Into::into),
            body_kind: match envelope.body_kind {
                BodyKind::SevenBit => "7bit",
                BodyKind::EightBit => "8bit",
                BodyKind::Binary => "binary",
            },
            smtputf8: envelope.smtp_utf8,
            requiretls: envelope.require_tls,
            ret: envelope.ret.map(|ret| match ret {
                Return::Full => "full",
                Return::Headers => "hdrs",
            }),
            envid: envelope.envid.as_deref().map(Into::into),
            bytes: file.len(),
            held: stored.hold.map(|hold| hold.to_string()),
            recipients: recipients.collect(),
            headers: values.collect(),
        }
    }

    /// A row of the list.
    pub fn cells(&self) -> [String; 6] {
        let pending: Vec<&RecipientView> = self.recipients.iter().filter(|r| r.state == "pending").collect();
        let first = pending.first().map_or("-", |r| &r.address);
        let more = if pending.len() > 1 { format!(" and {} more", pending.len() - 1) } else { String::new() };
        [
            self.id.clone(),
            self.received.to_string(),
            self.bytes.to_string(),
            format!("{}/{}", pending.len(), self.recipients.len()),
            if self.sender.is_empty() { "<>".into() } else { printable(self.sender.as_bytes()) },
            format!("{}{more}", printable(first.as_bytes())),
        ]
    }
}
