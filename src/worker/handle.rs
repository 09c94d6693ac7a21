//! The workers as the control plane sees them.
//!
//! Owns: [`Handle`], which turns each request into calls that run on the workers and gathers their
//! answers. Promises: a worker that is busy is never waited for by another worker, only by the control
//! thread; what an operator orders is durable before it is confirmed. Must not: touch a worker's state
//! from another thread.
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use hdrhistogram::Histogram;
use tokio::sync::oneshot;

use super::operate::{self, Running};
use super::post::{Batch, Post};
use super::suspensions::Suspensions;
use super::{Shared, Worker, inject, look};
use crate::clock::WallTime;
use crate::control::{
    Act, BoxFuture, Counters, DestinationView, Distribution, Injected, Injection, MessageDetail, MessageView,
    Order, Progress, Refused, Selector, Server, State, SuspensionView, Timestamp, WhyDestination, WhyMessage,
};
use crate::events::Event;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;
use crate::ring::{self, MailboxSender};
use crate::schedule::{self, shard_of};

/// The control plane's way to the workers.
pub struct Handle {
    shared: Arc<Shared>,
    senders: Vec<MailboxSender<Batch>>,
    suspensions: Arc<Suspensions>,
    ready: AtomicBool,
    /// Names an order to the workers.
    next_tag: AtomicU32,
    /// Whose turn it is to take mail that comes over HTTP.
    next_inbox: AtomicUsize,
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

/// Runs a job that takes its time on a worker. None if the worker is gone or its mailbox full.
async fn run_on<T, F>(
    sender: MailboxSender<Batch>,
    job: impl FnOnce(Rc<Worker>) -> F + Send + 'static,
) -> Option<T>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    ask(sender, move |worker, tell| {
        let worker = worker.clone();
        ring::spawn(async move { drop(tell.send(job(worker).await)) });
    })
    .await
}

const BUSY: &str = "a worker takes no more requests at this moment: try again";

impl Handle {
    pub fn new(
        shared: Arc<Shared>,
        senders: Vec<MailboxSender<Batch>>,
        suspensions: Arc<Suspensions>,
    ) -> Handle {
        let (ready, next_tag) = (AtomicBool::new(false), AtomicU32::new(1));
        Handle { shared, senders, suspensions, ready, next_tag, next_inbox: AtomicUsize::new(0) }
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// The worker that has the log of `id`.
    fn owner(&self, id: MessageId) -> MailboxSender<Batch> {
        let worker = usize::from(id.log()) % self.senders.len();
        self.senders[worker].clone()
    }

    fn shard(&self, domain: &Domain) -> MailboxSender<Batch> {
        self.senders[shard_of(domain, self.senders.len())].clone()
    }
}

/// The reason an operator gave, where a gate is a suspension.
fn add_reason(gates: &mut [crate::control::GateView], suspension: Option<&SuspensionView>) {
    for gate in gates.iter_mut().filter(|g| g.gate == schedule::GateKind::Suspended.as_str()) {
        if let Some(known) = suspension {
            gate.reason = Some(known.reason.clone());
            gate.since = Some(known.since);
        }
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
            all.into_iter().map(destination_view).collect()
        })
    }

    fn list(&self, selector: Selector, limit: usize) -> BoxFuture<Vec<MessageView>> {
        let senders = match selector.id {
            Some(id) => vec![self.owner(id)],
            None => self.senders.clone(),
        };
        Box::pin(async move {
            let mut all = Vec::new();
            for sender in senders {
                let selector = selector.clone();
                let answer = run_on(sender, move |worker| look::list(worker, selector, limit));
                all.extend(answer.await.unwrap_or_default());
            }
            all.sort_by_key(|m: &MessageView| m.received);
            all.truncate(limit);
            all
        })
    }

    fn show(&self, id: MessageId) -> BoxFuture<Option<MessageDetail>> {
        let owner = self.owner(id);
        Box::pin(async move { run_on(owner, move |worker| look::show(worker, id)).await.flatten() })
    }

    fn why_message(&self, id: MessageId) -> BoxFuture<Option<WhyMessage>> {
        let (owner, suspensions) = (self.owner(id), self.suspensions.clone());
        Box::pin(async move {
            let mut deliveries = run_on(owner, move |worker| look::why(worker, id)).await.flatten()?;
            for delivery in &mut deliveries {
                let domain = Domain::parse(delivery.destination.as_bytes()).ok();
                let suspension = domain.and_then(|d| suspensions.get(&d, WallTime::now()));
                add_reason(&mut delivery.gates, suspension.as_ref());
            }
            Some(WhyMessage { id, deliveries })
        })
    }

    fn why_destination(&self, domain: Domain) -> BoxFuture<WhyDestination> {
        let (shard, senders) = (self.shard(&domain), self.senders.clone());
        let suspension = self.suspensions.get(&domain, WallTime::now());
        Box::pin(async move {
            let name = domain.clone();
            let known = ask(shard, move |worker, tell| {
                let _ = tell.send(worker.shard.borrow().explain(&name));
            });
            let known = known.await.flatten();
            let mut held = 0;
            for sender in senders {
                let name = domain.clone();
                let count = ask(sender, move |worker, tell| {
                    let count = |home: &Rc<super::home::Home>| home.parked.borrow().count(&name);
                    let _ = tell.send(worker.own_homes().map(count).sum::<usize>());
                });
                held += count.await.unwrap_or_default() as u64;
            }
            let mut gates: Vec<_> = known.iter().flat_map(|k| &k.gates).map(look::gate_view).collect();
            add_reason(&mut gates, suspension.as_ref());
            let stats = known.map(|k| destination_view(k.stats));
            WhyDestination { destination: domain.to_string(), held, queued: stats, suspension, gates }
        })
    }

    fn operate(&self, order: Order, progress: Arc<Progress>) -> BoxFuture<Result<(), String>> {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let run = Running { order: Arc::new(order), progress, tag };
        let senders = self.senders.clone();
        let owner = run.order.selector.id.map(|id| self.owner(id));
        let shard = run.order.selector.domain.as_ref().map(|domain| self.shard(domain));
        let events = self.shared.events.clone();
        Box::pin(async move {
            let done = operate(&run, &senders, owner, shard).await;
            if !run.order.dry_run {
                events.send(WallTime::now(), operated(&run, done.as_ref().err()));
            }
            done
        })
    }

    fn suspend(&self, domain: Domain, view: SuspensionView) -> BoxFuture<Result<(), String>> {
        let (shard, suspensions, events) =
            (self.shard(&domain), self.suspensions.clone(), self.shared.events.clone());
        Box::pin(async move {
            let (name, new, now) = (domain.clone(), view.clone(), WallTime::now());
            let written = tokio::task::spawn_blocking(move || suspensions.add(name, new, now)).await;
            written.map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))?;
            let (destination, reason) = (view.destination.clone(), view.reason.clone());
            events.send(now, Event::Suspended { destination, until: view.until.map(|t| t.0), reason });
            let until = view.until.map(|t| t.0);
            let told = ask(shard, move |worker, tell| {
                worker.decide(schedule::Event::Suspend { destination: &domain, until }, None);
                let _ = tell.send(());
            });
            told.await.ok_or_else(|| BUSY.to_owned())
        })
    }

    fn resume(&self, domain: Domain, reason: String) -> BoxFuture<Result<bool, String>> {
        let (shard, suspensions, events) =
            (self.shard(&domain), self.suspensions.clone(), self.shared.events.clone());
        Box::pin(async move {
            let (name, now) = (domain.clone(), WallTime::now());
            let written = tokio::task::spawn_blocking(move || suspensions.remove(&name, now)).await;
            let known = written.map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))?;
            if known {
                events.send(now, Event::Resumed { destination: domain.to_string(), reason });
            }
            // Told in any case: a receiver's answer may have suspended it as well.
            let told = ask(shard, move |worker, tell| {
                worker.decide(schedule::Event::Resume { destination: &domain }, None);
                let _ = tell.send(());
            });
            told.await.map(|()| known).ok_or_else(|| BUSY.to_owned())
        })
    }

    fn suspensions(&self) -> Vec<SuspensionView> {
        self.suspensions.list(WallTime::now()).into_iter().map(|(_, view)| view).collect()
    }

    /// All messages of a request go to one worker, so that they share its groups.
    fn inject(&self, messages: Vec<Injection>, client: IpAddr) -> BoxFuture<Vec<Injected>> {
        let turn = self.next_inbox.fetch_add(1, Ordering::Relaxed);
        let sender = self.senders[turn % self.senders.len()].clone();
        let (posts, answers): (Vec<Post>, Vec<_>) = messages
            .into_iter()
            .map(|message| {
                let (tell, told) = oneshot::channel();
                let call = move |worker: &Rc<Worker>| {
                    let worker = worker.clone();
                    ring::spawn(async move {
                        drop(tell.send(inject::accept(&worker, message, client).await));
                    });
                };
                (Post::Call(Box::new(call)), told)
            })
            .unzip();
        // Nothing may be written to a log before recovery has read all of it.
        let refused = match () {
            () if !self.is_ready() => Some("451 4.3.2 The server is starting or stopping, try again later"),
            () if sender.try_send(posts).is_err() => Some(BUSY),
            () => None,
        };
        Box::pin(async move {
            let mut injected = Vec::with_capacity(answers.len());
            for answer in answers {
                injected.push(match refused {
                    Some(why) => Injected::Refused(Refused::Unavailable, why.into()),
                    None => answer.await.unwrap_or_else(|_| {
                        Injected::Refused(Refused::Unavailable, "421 4.3.2 Service shutting down".into())
                    }),
                });
            }
            injected
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
            held_deliveries_now: worker.own_homes().map(|h| h.parked.borrow().len() as u64).sum(),
            failing_messages_now: worker.own_homes().map(|h| h.to_be_failed() as u64).sum(),
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

fn destination_view(stats: schedule::DestinationStats) -> DestinationView {
    DestinationView {
        destination: stats.destination.to_string(),
        ready: stats.ready,
        deferred: stats.deferred,
        in_flight: stats.in_flight,
        connections: stats.connections,
        next_attempt: stats.next.map(Timestamp),
        backoff_until: stats.backoff_until.map(Timestamp),
    }
}

/// Sends an order to the workers that it concerns, one after the other.
async fn operate(
    run: &Running,
    senders: &[MailboxSender<Batch>],
    owner: Option<MailboxSender<Batch>>,
    shard: Option<MailboxSender<Batch>>,
) -> Result<(), String> {
    let selector = &run.order.selector;
    let busy = || Err(BUSY.to_owned());
    if let (Some(id), Some(owner)) = (selector.id, owner) {
        let run = run.clone();
        return run_on(owner, move |worker| operate::one(worker, run, id)).await.unwrap_or_else(busy);
    }
    let act = run.order.act;
    let of_destinations = Selector { domain: selector.domain.clone(), ..Selector::default() };
    if act == Act::Retry && *selector == of_destinations && !run.order.dry_run {
        return retry(run, shard.map_or_else(|| senders.to_vec(), |shard| vec![shard])).await;
    }
    // What looks at messages says by itself which are held.
    if selector.needs_envelope()
        || (run.order.dry_run && (selector.received_before.is_some() || selector.stream.is_some()))
    {
        for sender in senders {
            let run = run.clone();
            run_on(sender.clone(), move |worker| operate::scan(worker, run)).await.unwrap_or_else(busy)?;
        }
        return Ok(());
    }
    if act.takes_waiting() && selector.state != Some(State::Held) {
        let shards = shard.map_or_else(|| senders.to_vec(), |shard| vec![shard]);
        for sender in shards {
            let run = run.clone();
            run_on(sender, move |worker| operate::queued(worker, run)).await.unwrap_or_else(busy)?;
        }
    }
    if act.takes_held() && selector.state.is_none_or(|s| s == State::Held) {
        for sender in senders {
            let run = run.clone();
            run_on(sender.clone(), move |worker| operate::held(worker, run)).await.unwrap_or_else(busy)?;
        }
    }
    Ok(())
}

/// All deferred mail of a destination, or of all: the shard has its own way for that, which also ends a
/// destination's rest and probes it with one connection first.
async fn retry(run: &Running, shards: Vec<MailboxSender<Batch>>) -> Result<(), String> {
    for sender in shards {
        let domain = run.order.selector.domain.clone();
        let touched = ask(sender, move |worker, tell| {
            let deferred = match &domain {
                None => worker.shard.borrow().stats().deferred,
                Some(domain) => worker.shard.borrow().explain(domain).map_or(0, |known| known.stats.deferred),
            };
            worker.decide(schedule::Event::Retry { destination: domain.as_ref() }, None);
            let _ = tell.send(deferred);
        });
        let touched = touched.await.ok_or(BUSY)?;
        Progress::add(&run.progress.matched, touched);
        Progress::add(&run.progress.changed, touched);
    }
    Ok(())
}

/// The event of an order that has ended.
fn operated(run: &Running, error: Option<&String>) -> Event {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Event::Operator {
        action: run.order.act.as_str(),
        selector: run.order.selector.to_string(),
        to: run.order.to.as_ref().map(ToString::to_string),
        reason: run.order.reason.to_string(),
        matched: count(&run.progress.matched),
        changed: count(&run.progress.changed),
        in_flight: count(&run.progress.in_flight),
        error: error.cloned(),
    }
}
