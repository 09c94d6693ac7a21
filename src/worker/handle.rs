//! The workers as the control plane sees them.
//!
//! Owns: [`Handle`], which turns each request into calls that run on the workers and gathers their
//! answers. Promises: a worker that is busy is never waited for by another worker, only by the control
//! thread; an operator's removal is durable before it is confirmed. Must not: touch a worker's state
//! from another thread.
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use tokio::sync::oneshot;

use super::home::Home;
use super::message::Message;
use super::post::{Batch, Post, ShardEvent};
use super::{Shared, Worker};
use crate::clock::WallTime;
use crate::control::{
    BoxFuture, Counters, DestinationView, Distribution, MessageDetail, MessageView, RecipientView, Selector,
    Server, State, Timestamp,
};
use crate::events::Event;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;
use crate::ring::{self, MailboxSender};
use crate::schedule::{Entry, shard_of};
use crate::spool::{Outcome, RecipientState, Slot};

/// The control plane's way to the workers.
pub struct Handle {
    shared: Arc<Shared>,
    senders: Vec<MailboxSender<Batch>>,
    ready: AtomicBool,
}

/// Runs `call` on a worker. None if the worker is gone or its mailbox full.
async fn ask<T: Send + 'static>(
    sender: MailboxSender<Batch>,
    call: impl FnOnce(&Rc<Worker>, oneshot::Sender<T>) + Send + 'static,
) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let post = Post::Call(Box::new(move |worker| call(worker, tell)));
    sender.try_send(vec![post]).ok()?;
    told.await.ok()
}

impl Handle {
    pub fn new(shared: Arc<Shared>, senders: Vec<MailboxSender<Batch>>) -> Handle {
        Handle { shared, senders, ready: AtomicBool::new(false) }
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// The worker that has the log of `id`.
    fn owner(&self, id: MessageId) -> MailboxSender<Batch> {
        let worker = usize::from(id.log()) % self.senders.len();
        self.senders[worker].clone()
    }
}

impl Server for Handle {
    fn counters(&self) -> BoxFuture<Counters> {
        let senders = self.senders.clone();
        let events = self.shared.events.clone();
        Box::pin(async move {
            let mut sum = Counters::default();
            let mut commits = Histogram::<u64>::new(3).expect("three digits are valid");
            let mut groups = commits.clone();
            for sender in senders {
                let answer = ask(sender, |worker, tell| {
                    let one = worker.counters.view(worker);
                    let commits = worker.counters.commit_us.borrow().clone();
                    let groups = worker.counters.group_bytes.borrow().clone();
                    let _ = tell.send((one, commits, groups));
                });
                let Some((one, c, g)) = answer.await else { continue };
                sum.add(&one);
                let _ = commits.add(c);
                let _ = groups.add(g);
            }
            sum.commit_us = Distribution::of(&commits);
            sum.group_bytes = Distribution::of(&groups);
            sum.events_dropped = events.dropped();
            sum
        })
    }

    fn destinations(&self, limit: usize) -> BoxFuture<Vec<DestinationView>> {
        let senders = self.senders.clone();
        Box::pin(async move {
            let mut all = Vec::new();
            for sender in senders {
                let answer = ask(sender, move |worker, tell| {
                    let _ = tell.send(worker.shard.borrow().destinations(limit));
                });
                all.extend(answer.await.unwrap_or_default());
            }
            all.sort_by_key(|d| std::cmp::Reverse(d.ready + d.deferred + d.in_flight));
            all.truncate(limit);
            all.into_iter()
                .map(|d| DestinationView {
                    destination: d.destination.to_string(),
                    ready: d.ready,
                    deferred: d.deferred,
                    in_flight: d.in_flight,
                    connections: d.connections,
                    next_attempt: d.next.map(Timestamp),
                    backoff_until: d.backoff_until.map(Timestamp),
                })
                .collect()
        })
    }

    fn list(&self, selector: Selector, limit: usize) -> BoxFuture<Vec<MessageView>> {
        let senders = self.senders.clone();
        let selector = Arc::new(selector);
        Box::pin(async move {
            let mut all = Vec::new();
            for sender in senders {
                let selector = selector.clone();
                let answer = ask(sender, move |worker, tell| {
                    let worker = worker.clone();
                    ring::spawn(async move {
                        let _ = tell.send(list_on(&worker, &selector, limit).await);
                    });
                });
                all.extend(answer.await.unwrap_or_default());
            }
            all.sort_by_key(|m: &MessageView| m.received);
            all.truncate(limit);
            all
        })
    }

    fn show(&self, id: MessageId) -> BoxFuture<Option<MessageDetail>> {
        let owner = self.owner(id);
        Box::pin(async move {
            ask(owner, move |worker, tell| {
                let worker = worker.clone();
                ring::spawn(async move {
                    let _ = tell.send(show_on(&worker, id).await);
                });
            })
            .await
            .flatten()
        })
    }

    fn retry(&self, domain: Option<Domain>) -> BoxFuture<u64> {
        let senders = match &domain {
            Some(domain) => vec![self.senders[shard_of(domain, self.senders.len())].clone()],
            None => self.senders.clone(),
        };
        Box::pin(async move {
            let mut touched = 0;
            for sender in senders {
                let domain = domain.clone();
                let answer = ask(sender, move |worker, tell| {
                    let deferred = match &domain {
                        None => worker.shard.borrow().stats().deferred,
                        Some(domain) => {
                            let all = worker.shard.borrow().destinations(usize::MAX);
                            all.iter().find(|d| d.destination == *domain).map_or(0, |d| d.deferred)
                        }
                    };
                    worker.tell_shard(worker.index, ShardEvent::Retry { destination: domain });
                    let _ = tell.send(deferred);
                });
                touched += answer.await.unwrap_or_default();
            }
            touched
        })
    }

    fn remove(&self, id: MessageId, reason: String) -> BoxFuture<bool> {
        let owner = self.owner(id);
        Box::pin(async move {
            ask(owner, move |worker, tell| {
                let worker = worker.clone();
                ring::spawn(async move {
                    let _ = tell.send(remove_on(&worker, id, reason).await);
                });
            })
            .await
            .unwrap_or(false)
        })
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

impl super::counters::Counters {
    /// This worker's numbers as they are published; the distributions are left to the caller.
    fn view(&self, worker: &Worker) -> Counters {
        let shard = worker.shard.borrow().stats();
        let mut view = Counters {
            accepted_messages: self.accepted.get(),
            accepted_recipients: self.accepted_recipients.get(),
            accepted_bytes: self.accepted_bytes.get(),
            rejected_permanently: self.rejected_permanently.get(),
            rejected_temporarily: self.rejected_temporarily.get(),
            sessions_total: self.connections.get(),
            sessions_refused: self.refused_connections.get(),
            sessions_now: self.sessions_open.get(),
            early_talkers: self.early_talkers.get(),
            tls_handshakes: self.tls_handshakes.get(),
            tls_resumed: self.tls_resumed.get(),
            tls_failed: self.tls_failures.get(),
            logins: self.logins.get(),
            logins_failed: self.failed_logins.get(),
            logins_busy: self.busy_logins.get(),
            delivered_recipients: self.delivered.get(),
            deferred_attempts: self.deferred.get(),
            failed_recipients: self.failed.get(),
            expired_recipients: self.expired.get(),
            removed_recipients: self.removed.get(),
            bounces: self.bounces.get(),
            outbound_total: self.outbound_total.get(),
            outbound_failed: self.connect_failures.get(),
            outbound_now: self.outbound_open.get(),
            queued_recipients_now: shard.recipients,
            ready_recipients_now: shard.ready,
            deferred_recipients_now: shard.deferred,
            in_flight_recipients_now: shard.in_flight,
            destinations_now: shard.destinations,
            dns_busy: self.dns_busy.get(),
            damaged_places: self.damaged.get(),
            ..Counters::default()
        };
        for home in worker.own_homes() {
            let stats = home.log().stats();
            view.queued_messages_now += stats.live_messages;
            view.cached_bytes_now += home.cached_bytes();
            view.groups_lost += stats.lost_groups;
            view.segments_now += stats.segments + stats.prepared_segments + stats.free_files;
            view.live_bytes_now += stats.live_bytes;
            view.written_bytes += stats.bytes_written;
            view.recorded_bytes += stats.mail_bytes;
            view.quarantined_messages += stats.quarantined;
            view.unwritable_logs_now += u64::from(!home.log().takes_outcomes());
        }
        view
    }
}

async fn list_on(worker: &Rc<Worker>, selector: &Selector, limit: usize) -> Vec<MessageView> {
    let mut found = Vec::new();
    for home in worker.own_homes() {
        let mut live: Vec<(MessageId, Slot)> =
            home.log().live().iter().filter(|m| m.pending > 0).map(|m| (m.id, m.slot)).collect();
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
            let view = view_of(worker, home, slot, &message);
            if selects(selector, &view, home, slot, &message) {
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
    selector.domain.as_ref().is_none_or(|d| unfinished().any(|(_, r)| r.address.domain() == d))
        && selector.recipient.as_ref().is_none_or(|a| unfinished().any(|(_, r)| r.address.as_str() == a))
        && selector.sender.as_ref().is_none_or(|s| *s == view.sender)
        && selector.state.is_none_or(|s| s == view.state)
        && selector.received_before.is_none_or(|t| message.envelope.received_at < t)
}

/// State of a pending recipient as its home knows it.
fn waiting_for(now: WallTime, next: WallTime) -> (State, Option<Timestamp>) {
    if next > now { (State::Deferred, Some(Timestamp(next))) } else { (State::Ready, None) }
}

fn view_of(worker: &Worker, home: &Home, slot: Slot, message: &Message) -> MessageView {
    let log = home.log();
    let now = worker.clock.now();
    let live = log.live().get(slot);
    let next = (0..message.envelope.recipients.len())
        .filter_map(|n| match log.live().state(slot, n as u16) {
            Some(RecipientState::Pending { next, .. }) => Some(next),
            _ => None,
        })
        .min()
        .unwrap_or_default();
    let (mut state, next_attempt) = waiting_for(now, next);
    if live.as_ref().is_some_and(|m| m.held) {
        state = State::Held;
    }
    MessageView {
        id: message.id,
        received: Timestamp(message.envelope.received_at),
        sender: message.envelope.reverse_path.as_ref().map_or(String::new(), ToString::to_string),
        bytes: live.as_ref().map_or(0, |m| m.bytes),
        recipients: message.envelope.recipients.len() as u32,
        pending: live.as_ref().map_or(0, |m| m.pending),
        state,
        next_attempt,
    }
}

fn find(worker: &Worker, id: MessageId) -> Option<(Rc<Home>, Slot)> {
    worker.own_homes().find_map(|home| {
        let slot = home.log().live().find(id)?;
        Some((home.clone(), slot))
    })
}

async fn show_on(worker: &Rc<Worker>, id: MessageId) -> Option<MessageDetail> {
    let (home, slot) = find(worker, id)?;
    let message = home.load(slot).await.ok().filter(|m| m.id == id)?;
    let now = worker.clock.now();
    let log = home.log();
    let last = message.last_replies.borrow();
    let recipient_list = message
        .envelope
        .recipients
        .iter()
        .enumerate()
        .map(|(n, recipient)| {
            let (state, attempts, next_attempt) = match log.live().state(slot, n as u16) {
                Some(RecipientState::Pending { attempts, next }) => {
                    let (state, next) = waiting_for(now, next);
                    (state, attempts, next)
                }
                _ => (State::Delivered, 0, None),
            };
            RecipientView {
                address: recipient.address.to_string(),
                destination: recipient.address.domain().to_string(),
                state,
                attempts: attempts.into(),
                next_attempt,
                last_reply: last.iter().rev().find(|(r, _)| usize::from(*r) == n).map(|(_, t)| t.to_string()),
            }
        })
        .collect();
    drop(log);
    Some(MessageDetail {
        message: view_of(worker, &home, slot, &message),
        client: message.envelope.client,
        expires: Some(Timestamp(message.envelope.received_at.saturating_add(worker.shared.config.max_age))),
        recipient_list,
    })
}

async fn remove_on(worker: &Rc<Worker>, id: MessageId, reason: String) -> bool {
    let Some((home, slot)) = find(worker, id) else { return false };
    let Ok(message) = home.load(slot).await else { return false };
    forget(worker, &home, slot, &message).await;
    let deadline = Instant::now() + limits::ROUND_TRIP_WAIT;
    // A delivery under way keeps the slot until it is answered.
    while home.connections.borrow().values().any(|c| c.holds(slot)) {
        if Instant::now() > deadline {
            return false;
        }
        ring::sleep(limits::DRAIN_POLL).await;
        forget(worker, &home, slot, &message).await;
    }
    // What is failing already is being bounced; that outcome stands.
    let parts = message.envelope.parts(&*worker.shared.part_limit).count() as u16;
    let entry = |part| Entry { home: home.config.index, slot, part };
    let pending: Vec<u16> = (0..parts).flat_map(|part| home.pending(&message, entry(part))).collect();
    if home.log().live().find(id) != Some(slot) || pending.is_empty() {
        return false;
    }
    let now = worker.clock.now();
    let outcomes = pending.iter().map(|&n| (n, Outcome::Removed)).collect();
    if !home.record_durably(slot, id, outcomes, now).await {
        return false;
    }
    worker.counters.removed.add(pending.len() as u64);
    for n in pending {
        let recipient = message.envelope.recipients[usize::from(n)].address.to_string();
        worker.shared.events.send(now, Event::Removed { id, recipient, reason: reason.clone() });
    }
    true
}

/// Has the shards forget the parts of a message that wait. What a shard said of a part before it forgot it
/// has been worked off when this ends.
async fn forget(worker: &Rc<Worker>, home: &Rc<Home>, slot: Slot, message: &Message) {
    let shards = worker.shared.config.workers;
    for (part, (destination, _)) in message.envelope.parts(&*worker.shared.part_limit).enumerate() {
        let entry = Entry { home: home.config.index, slot, part: part as u16 };
        let shard = shard_of(destination, shards);
        worker.tell_shard(shard, ShardEvent::Forget { entry, destination: destination.clone() });
        worker.round_trip(shard).await;
    }
}

impl Worker {
    /// Ends when everything that worker `to` had sent here before this call has been worked off.
    async fn round_trip(self: &Rc<Self>, to: usize) {
        if to == self.index {
            return;
        }
        let (tell, told) = oneshot::channel::<()>();
        let back = self.index;
        self.outboxes.push(
            to,
            Post::Call(Box::new(move |there| {
                let answer = Post::Call(Box::new(move |_| {
                    let _ = tell.send(());
                }));
                there.outboxes.push(back, answer);
            })),
        );
        let _ = tokio::time::timeout(limits::ROUND_TRIP_WAIT, told).await;
    }
}
