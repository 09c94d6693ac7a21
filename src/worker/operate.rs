//! Carrying out an operator's order about queued mail.
//!
//! Owns: the way of an order through the workers: a shard gives deliveries up ([`Take`]), their home
//! records what was decided, and when that is durable they are parked, failed, ended or queued again.
//! Promises: what was recorded holds over a restart before it is counted as changed; a delivery is in
//! exactly one place at any time (its shard, an order, `Parked`, `Failing`), and an order that ends early
//! puts back what it had; each step is bounded by `limits::ORDER_BATCH`. Must not: touch a delivery that
//! a connection has.
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::Worker;
use super::fate::Watch;
use super::home::Home;
use super::message::Message;
use super::post::Post;
use super::report;
use crate::clock::WallTime;
use crate::control::{Act, Order, Progress, Selector, State};
use crate::events::Event;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::id::MessageId;
use crate::ring;
use crate::schedule::{self, Action, Entry, Take, Waiting, shard_of};
use crate::spool::{Mark, RecipientState, Refusal, Slot, Standing};

/// An order on its way.
#[derive(Clone)]
pub struct Running {
    pub order: Arc<Order>,
    pub progress: Arc<Progress>,
    /// Names it to the shards.
    pub tag: u32,
}

type Done = Result<(), String>;

/// A delivery that an order has taken.
pub struct Taken {
    pub entry: Entry,
    pub waiting: Waiting,
}

/// A delivery that an order is about.
struct Chosen {
    entry: Entry,
    waiting: Waiting,
    /// It was parked.
    held: bool,
    /// The recipients selected; none: all of the part.
    recipients: Option<Vec<u16>>,
}

const GONE: &str = "a worker has stopped: ask again when the server is up";

impl Worker {
    /// Runs `job` on a worker and waits for its end.
    pub async fn on<T, F, J>(self: &Rc<Self>, to: usize, job: J) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        J: FnOnce(Rc<Worker>) -> F + Send + 'static,
    {
        if to == self.index {
            return Ok(job(self.clone()).await);
        }
        let (tell, told) = oneshot::channel();
        let back = self.index;
        let call = move |there: &Rc<Worker>| {
            let there = there.clone();
            ring::spawn(async move {
                let answer = job(there.clone()).await;
                let say = move |_: &Rc<Worker>| drop(tell.send(answer));
                there.outboxes.push(back, Post::Call(Box::new(say)));
            });
        };
        self.outboxes.push(to, Post::Call(Box::new(call)));
        told.await.map_err(|_| GONE.to_owned())
    }

    /// Has the shard here give up entries of a destination. Returns the workers that have them now.
    fn take(self: &Rc<Self>, destination: &Domain, which: Take<'_>, tag: u32) -> BTreeSet<usize> {
        let mut actions = Vec::new();
        let event = schedule::Event::Take { destination, which, tag };
        self.shard.borrow_mut().handle(self.clock.now(), event, &mut actions);
        let owners = actions
            .iter()
            .filter_map(|action| match action {
                Action::Taken { entry, .. } => Some(self.shared.owner_of_home(entry.home)),
                _ => None,
            })
            .collect();
        self.carry_out(&mut actions, None);
        self.run_local();
        owners
    }

    /// A shard has given this up for an order.
    pub fn hand_to_order(&self, tag: u32, entry: Entry, waiting: Waiting) {
        self.taken.borrow_mut().entry(tag).or_default().push(Taken { entry, waiting });
    }

    fn collect(&self, tag: u32) -> Vec<Taken> {
        self.taken.borrow_mut().remove(&tag).unwrap_or_default()
    }
}

/// The destination a part of a message waits for.
pub fn destination_of(home: &Home, slot: Slot, message: &Message, part: u16) -> Option<Domain> {
    let (own, mut range) = message.envelope.parts(&*home.config.part_limit).nth(part.into())?;
    let moved = range.find_map(|r| home.log().live().standing(slot, r as u16)?.destination.clone());
    Some(moved.unwrap_or_else(|| own.clone()))
}

/// A deferred or waiting delivery that its log knows, as it would be queued.
fn waiting_of(home: &Home, slot: Slot, message: &Message, part: u16) -> Option<Waiting> {
    let (_, range) = message.envelope.parts(&*home.config.part_limit).nth(part.into())?;
    let log = home.log();
    let mut waiting = Waiting { received_at: message.envelope.received_at, told: true, ..Waiting::default() };
    for recipient in range {
        if let Some(RecipientState::Pending { tries, next }) = log.live().state(slot, recipient as u16) {
            waiting.recipients += 1;
            (waiting.attempts, waiting.due) = (waiting.attempts, waiting.due).max((tries.attempts(), next));
            let to = &message.envelope.recipients[recipient];
            waiting.told &= tries.is_told() || !report::may_tell_of_delay(&message.envelope, to);
        }
    }
    (waiting.recipients > 0).then_some(waiting)
}

// ── Mail in the queue of a destination ───────────────────────────────────────────────────────────────

/// The deliveries that wait in the shard of this worker, for one destination or all.
pub async fn queued(worker: Rc<Worker>, run: Running) -> Done {
    let names = match &run.order.selector.domain {
        Some(domain) => vec![domain.clone()],
        None => worker.shard.borrow().destinations(usize::MAX).into_iter().map(|d| d.destination).collect(),
    };
    let mut homes = BTreeSet::new();
    for name in names {
        let done = queued_for(&worker, &run, &name, &mut homes).await;
        for owner in std::mem::take(&mut homes) {
            let (run, name) = (run.clone(), name.clone());
            worker.on(owner, move |there| async move { put_all_back(&there, &run, &name) }).await?;
        }
        done?;
    }
    Ok(())
}

async fn queued_for(worker: &Rc<Worker>, run: &Running, name: &Domain, homes: &mut BTreeSet<usize>) -> Done {
    let state = run.order.selector.state;
    let ready = state.is_none_or(|s| s == State::Ready);
    let deferred = state.is_none_or(|s| s == State::Deferred);
    let Some(stats) = worker.shard.borrow().explain(name).map(|e| e.stats) else { return Ok(()) };
    Progress::add(&run.progress.in_flight, stats.in_flight);
    let stream = match &run.order.selector.stream {
        // It has a number if any mail of it is queued.
        Some(name) => match worker.shared.streams.known(name) {
            Some(number) => Some(number),
            None => return Ok(()),
        },
        None => None,
    };
    if run.order.dry_run && stream.is_none() && run.order.selector.received_before.is_none() {
        let count = if ready { stats.ready } else { 0 } + if deferred { stats.deferred } else { 0 };
        Progress::add(&run.progress.matched, count);
        return Ok(());
    }
    loop {
        let which = Take::Some { ready, deferred, stream, most: limits::ORDER_BATCH };
        let owners = worker.take(name, which, run.tag);
        if owners.is_empty() {
            return Ok(());
        }
        homes.extend(&owners);
        for owner in owners {
            let (run, name) = (run.clone(), name.clone());
            worker.on(owner, move |there| async move { sift(&there, &run, &name).await }).await??;
        }
    }
}

/// Works off what was taken; what is not selected is kept until the whole destination has been gone through.
async fn sift(worker: &Rc<Worker>, run: &Running, destination: &Domain) -> Done {
    let mut chosen = Vec::new();
    for taken in worker.collect(run.tag) {
        let home = worker.home(taken.entry.home);
        let Some(id) = home.log().live().get(taken.entry.slot).map(|m| m.id) else { continue };
        let old_enough = run.order.selector.received_before.is_none_or(|t| id.received_at() < t);
        if old_enough {
            Progress::add(&run.progress.matched, 1);
        }
        if old_enough && !run.order.dry_run {
            let Taken { entry, waiting } = taken;
            chosen.push(Chosen { entry, waiting, held: false, recipients: None });
        } else {
            worker.spared.borrow_mut().entry(run.tag).or_default().push(taken);
        }
    }
    apply(worker, run, destination, chosen).await
}

fn put_all_back(worker: &Rc<Worker>, run: &Running, destination: &Domain) {
    let spared = worker.spared.borrow_mut().remove(&run.tag).unwrap_or_default();
    for Taken { entry, waiting } in worker.collect(run.tag).into_iter().chain(spared) {
        worker.queue_part(destination, entry, waiting);
    }
}

// ── Mail that is held ────────────────────────────────────────────────────────────────────────────────

/// The deliveries that are held in the homes of this worker, of one destination or all.
pub async fn held(worker: Rc<Worker>, run: Running) -> Done {
    let homes: Vec<Rc<Home>> = worker.own_homes().cloned().collect();
    for home in homes {
        let names: Vec<Domain> = match &run.order.selector.domain {
            Some(domain) => vec![domain.clone()],
            None => home.parked.borrow().destinations().map(|(d, _)| d.clone()).collect(),
        };
        for name in names {
            held_for(&worker, &home, &run, &name).await?;
        }
    }
    Ok(())
}

async fn held_for(worker: &Rc<Worker>, home: &Rc<Home>, run: &Running, name: &Domain) -> Done {
    let stream = run.order.selector.stream.as_ref().map(|name| worker.shared.streams.known(name));
    if stream == Some(None) {
        return Ok(());
    }
    let stream = stream.flatten();
    let mut after = None;
    loop {
        let parts = home.parked.borrow().some(name, after, limits::ORDER_BATCH);
        let Some(last) = parts.last() else { return Ok(()) };
        after = Some(*last);
        let mut chosen = Vec::new();
        for (slot, part) in parts {
            let Some(id) = home.log().live().get(slot).map(|m| m.id) else { continue };
            let waiting = home.parked.borrow().get(name, (slot, part));
            let of_stream = stream.is_none_or(|number| waiting.is_some_and(|w| w.stream.number() == number));
            if !of_stream || run.order.selector.received_before.is_some_and(|t| id.received_at() >= t) {
                continue;
            }
            Progress::add(&run.progress.matched, 1);
            let taken =
                if run.order.dry_run { None } else { home.parked.borrow_mut().take(name, (slot, part)) };
            if let Some(waiting) = taken {
                let entry = Entry { home: home.config.index, slot, part };
                chosen.push(Chosen { entry, waiting, held: true, recipients: None });
            }
        }
        apply(worker, run, name, chosen).await?;
        ring::yield_turn().await;
    }
}

// ── One message ──────────────────────────────────────────────────────────────────────────────────────

/// The message with this id, if a log of this worker has it.
pub async fn one(worker: Rc<Worker>, run: Running, id: MessageId) -> Done {
    let unknown = || format!("no message {id} in the queue: it is finished, or never was");
    let find = || {
        worker.own_homes().find_map(|home| {
            let slot = home.log().live().find(id)?;
            Some((home.clone(), slot))
        })
    };
    let (home, slot) = find().ok_or_else(unknown)?;
    if home.log().live().get(slot).is_some_and(|m| m.held) {
        return Err(format!(
            "message {id} was written by another version, and is kept as it is: see `ringpost spool verify`"
        ));
    }
    let message = home.load(slot).await.map_err(|error| format!("message {id} cannot be read: {error}"))?;
    let mut selected = select(&run.order.selector, &home, slot, &message);
    if selected.is_empty() {
        return Err(format!("message {id} has nothing of what was selected"));
    }
    let act = run.order.act;
    selected.retain(|s| if s.held { act.takes_held() } else { act.takes_waiting() });
    if run.order.dry_run {
        Progress::add(&run.progress.matched, selected.len() as u64);
        return Ok(());
    }
    let deadline = Instant::now() + limits::ROUND_TRIP_WAIT;
    let mut left = selected;
    Progress::add(&run.progress.matched, left.len() as u64);
    loop {
        let flying = |home: &Rc<Home>| home.connections.borrow().values().any(|c| c.holds(slot));
        let was_flying = flying(&home);
        left = take_these(&worker, &home, &run, left).await?;
        left.retain(|s| {
            home.log().live().find(id) == Some(slot) && !home.unfinished(&message, s.entry).is_empty()
        });
        if left.is_empty() {
            return Ok(());
        }
        // A delivery under way keeps the message until it is answered.
        if Instant::now() > deadline || !(was_flying || flying(&home)) {
            Progress::add(&run.progress.in_flight, left.len() as u64);
            return Err(format!("message {id} is on its way to its destination at this moment: try again"));
        }
        ring::sleep(limits::DRAIN_POLL).await;
    }
}

/// A delivery found by looking at its message.
struct Selected {
    entry: Entry,
    destination: Domain,
    held: bool,
    recipients: Option<Vec<u16>>,
}

/// What the selector takes of a message.
fn select(selector: &Selector, home: &Home, slot: Slot, message: &Message) -> Vec<Selected> {
    let sender = message.envelope.reverse_path.as_ref().map_or("", |a| a.as_str());
    if selector.sender.as_ref().is_some_and(|s| s != sender)
        || selector.received_before.is_some_and(|t| message.id.received_at() >= t)
        || selector.id.is_some_and(|id| id != message.id)
        || selector.stream.is_some() && selector.stream.as_deref() != message.envelope.stream.as_deref()
    {
        return Vec::new();
    }
    let now = WallTime::now();
    let parts = message.envelope.parts(&*home.config.part_limit).count() as u16;
    let mut found = Vec::new();
    for part in 0..parts {
        let entry = Entry { home: home.config.index, slot, part };
        let unfinished = home.unfinished(message, entry);
        let Some(destination) = destination_of(home, slot, message, part) else { continue };
        if unfinished.is_empty() || selector.domain.as_ref().is_some_and(|d| *d != destination) {
            continue;
        }
        let held = home.parked.borrow().get(&destination, (slot, part)).is_some();
        let due = waiting_of(home, slot, message, part).map_or(WallTime(0), |w| w.due);
        let fits = match selector.state {
            None => true,
            Some(State::Held) => held,
            Some(State::Ready) => !held && due <= now,
            Some(State::Deferred) => !held && due > now,
            Some(_) => false,
        };
        let recipients = selector.recipient.as_ref().map(|wanted| {
            let is_it = |r: &u16| message.envelope.recipients[usize::from(*r)].address.as_str() == wanted;
            unfinished.into_iter().filter(is_it).collect::<Vec<_>>()
        });
        if fits && recipients.as_ref().is_none_or(|r| !r.is_empty()) {
            found.push(Selected { entry, destination, held, recipients });
        }
    }
    found
}

/// Takes these deliveries, each from where it is, and applies the order. Returns those that were nowhere.
async fn take_these(
    worker: &Rc<Worker>,
    home: &Rc<Home>,
    run: &Running,
    wanted: Vec<Selected>,
) -> Result<Vec<Selected>, String> {
    let act = run.order.act;
    let mut by_destination: HashMap<Domain, Vec<Selected>> = HashMap::new();
    for selected in wanted {
        by_destination.entry(selected.destination.clone()).or_default().push(selected);
    }
    let mut missing = Vec::new();
    for (destination, wanted) in by_destination {
        let (held, queued): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|s| s.held);
        let mut chosen = Vec::new();
        for Selected { entry, recipients, .. } in held.into_iter().filter(|_| act.takes_held()) {
            if let Some(waiting) = home.parked.borrow_mut().take(&destination, (entry.slot, entry.part)) {
                chosen.push(Chosen { entry, waiting, held: true, recipients });
            }
        }
        let mut queued: Vec<_> = queued.into_iter().filter(|_| act.takes_waiting()).collect();
        if !queued.is_empty() {
            let entries: Vec<Entry> = queued.iter().map(|s| s.entry).collect();
            let (shard, tag, name) =
                (shard_of(&destination, worker.shared.config.workers), run.tag, destination.clone());
            worker
                .on(shard, move |there| async move {
                    there.take(&name, Take::These(&entries), tag);
                })
                .await?;
        }
        for Taken { entry, waiting } in worker.collect(run.tag) {
            if let Some(at) = queued.iter().position(|s| s.entry == entry) {
                let recipients = queued.swap_remove(at).recipients;
                chosen.push(Chosen { entry, waiting, held: false, recipients });
            } else {
                worker.queue_part(&destination, entry, waiting);
            }
        }
        missing.extend(queued);
        apply(worker, run, &destination, chosen).await?;
    }
    Ok(missing)
}

// ── Mail found by looking at every message ───────────────────────────────────────────────────────────

/// Looks at every message of this worker's logs. Other work goes on between any two of them.
pub async fn scan(worker: Rc<Worker>, run: Running) -> Done {
    let homes: Vec<Rc<Home>> = worker.own_homes().cloned().collect();
    for home in &homes {
        Progress::add(&run.progress.to_look_at, home.log().live().len() as u64);
    }
    for home in &homes {
        let mut found = Vec::new();
        let slots = home.log().live().slots();
        for slot in 0..slots {
            // What is still being written has not been accepted, and cannot be read.
            let live = {
                let log = home.log();
                log.live().get(slot).filter(|m| m.pending > 0 && !m.held && log.live().is_durable(slot))
            };
            let Some(live) = live else { continue };
            Progress::add(&run.progress.looked_at, 1);
            if run.order.selector.received_before.is_some_and(|t| live.id.received_at() >= t) {
                continue;
            }
            let Ok(message) = home.load(slot).await else { continue };
            // Reading took time: the slot may have another message by now.
            if message.id == live.id {
                found.extend(select(&run.order.selector, home, slot, &message));
            }
            drop(message);
            if found.len() >= limits::ORDER_BATCH {
                apply_found(&worker, home, &run, std::mem::take(&mut found)).await?;
            }
            if slot.is_multiple_of(limits::SCANNED_PER_TURN) {
                ring::yield_turn().await;
            }
        }
        apply_found(&worker, home, &run, found).await?;
    }
    Ok(())
}

async fn apply_found(worker: &Rc<Worker>, home: &Rc<Home>, run: &Running, mut found: Vec<Selected>) -> Done {
    let act = run.order.act;
    found.retain(|s| if s.held { act.takes_held() } else { act.takes_waiting() });
    Progress::add(&run.progress.matched, found.len() as u64);
    if run.order.dry_run || found.is_empty() {
        return Ok(());
    }
    let missing = take_these(worker, home, run, found).await?;
    Progress::add(&run.progress.in_flight, missing.len() as u64);
    Ok(())
}

// ── What is done ─────────────────────────────────────────────────────────────────────────────────────

/// What was recorded of one delivery.
struct Recorded {
    home: Rc<Home>,
    id: MessageId,
    chosen: Chosen,
    recipients: Vec<u16>,
    /// For the event, where one is sent for each recipient.
    addresses: Vec<String>,
    standing: Standing,
}

/// Records the order for these deliveries of one destination, and does the rest when that is durable.
async fn apply(worker: &Rc<Worker>, run: &Running, destination: &Domain, chosen: Vec<Chosen>) -> Done {
    let mut chosen = chosen.into_iter();
    let mut recorded = Vec::new();
    let mut watches = Vec::new();
    let mut error = None;
    for mut one in chosen.by_ref() {
        let home = worker.home(one.entry.home).clone();
        let Some(id) = home.log().live().get(one.entry.slot).map(|m| m.id) else { continue };
        let recipients = match one.recipients.take() {
            Some(recipients) => recipients,
            None => home.unfinished_of(one.entry, id).await,
        };
        if recipients.is_empty() {
            continue;
        }
        let addresses = addresses(worker, run, &home, &one, &recipients).await;
        match record(worker, run, &home, &one, &recipients, destination).await {
            Ok((standing, watch)) => {
                watches.extend(watch);
                recorded.push(Recorded { home, id, chosen: one, recipients, addresses, standing });
            }
            Err(refusal) => {
                settle_back(worker, &home, destination, one);
                error = Some(match refusal {
                    Refusal::NoRoom => {
                        "the spool has no room for the record: free some disk space and repeat it"
                    }
                    _ => "the spool cannot be written: mend the disk and repeat it",
                });
                break;
            }
        }
    }
    for one in chosen {
        let home = worker.home(one.entry.home).clone();
        settle_back(worker, &home, destination, one);
    }
    let mut durable = true;
    for watch in watches {
        durable &= watch.wait().await;
    }
    if !durable {
        // The log writes it again by itself; it stands, but nobody must rely on it yet.
        error = Some("a write to the spool failed: look at the disk, and repeat it");
    }
    let count = recorded.len() as u64;
    for one in recorded {
        follow(worker, run, destination, one).await;
    }
    if durable {
        Progress::add(&run.progress.changed, count);
    }
    error.map_or(Ok(()), |why| Err(why.to_owned()))
}

/// Back to where it came from.
fn settle_back(worker: &Rc<Worker>, home: &Rc<Home>, destination: &Domain, one: Chosen) {
    let Entry { slot, part, .. } = one.entry;
    if one.held {
        home.parked.borrow_mut().add(destination, (slot, part), one.waiting);
    } else {
        worker.queue_part(destination, one.entry, one.waiting);
    }
}

/// Appends the record that the order needs; none for a retry.
async fn record(
    worker: &Rc<Worker>,
    run: &Running,
    home: &Rc<Home>,
    one: &Chosen,
    recipients: &[u16],
    destination: &Domain,
) -> Result<(Standing, Option<Watch>), Refusal> {
    let now = worker.clock.now();
    let slot = one.entry.slot;
    let first = recipients.first().copied().unwrap_or_default();
    let known = home.log().live().standing(slot, first).map(|s| Standing::clone(s));
    let mut standing = Standing { reason: run.order.reason.clone(), ..known.unwrap_or_default() };
    match run.order.act {
        Act::Retry => return Ok((standing, None)),
        Act::Remove => {
            let watch = home.record_removal(slot, recipients, now).await?;
            return Ok((standing, Some(watch)));
        }
        Act::Hold => standing.mark = Mark::Held,
        Act::Release => standing.mark = Mark::None,
        Act::Fail => standing.mark = Mark::Failing,
        Act::Move => standing.destination = Some(run.order.to.clone().unwrap_or_else(|| destination.clone())),
    }
    let watch = home.record_change(slot, recipients, standing.clone(), now).await?;
    Ok((standing, Some(watch)))
}

/// The record is durable: what follows from it.
async fn follow(worker: &Rc<Worker>, run: &Running, destination: &Domain, one: Recorded) {
    let Recorded { home, id, chosen, recipients, addresses, standing } = one;
    let Chosen { entry, mut waiting, held, .. } = chosen;
    let now = worker.clock.now();
    tell(worker, run, id, (recipients.len(), addresses), destination);
    match run.order.act {
        Act::Hold => home.parked.borrow_mut().add(destination, (entry.slot, entry.part), waiting),
        Act::Release => worker.queue_part(destination, entry, waiting),
        Act::Retry => {
            waiting.due = now;
            worker.queue_part(destination, entry, waiting);
        }
        Act::Move => {
            let to = standing.destination.as_ref().unwrap_or(destination);
            if standing.mark == Mark::Held {
                home.parked.borrow_mut().add(to, (entry.slot, entry.part), waiting);
            } else {
                waiting.due = now;
                worker.queue_part(to, entry, waiting);
            }
        }
        Act::Fail | Act::Remove => {
            if run.order.act == Act::Fail {
                home.fail_later(entry.slot, id, recipients);
            } else {
                worker.counters.removed.add(recipients.len() as u64);
            }
            // Others of the same part were not selected.
            let rest = home.unfinished_of(entry, id).await;
            if !rest.is_empty() {
                waiting.recipients = rest.len() as u16;
                settle_back(worker, &home, destination, Chosen { entry, waiting, held, recipients: None });
            }
        }
    }
}

/// Whom an order ends, for the event log: afterwards the message may be gone.
async fn addresses(
    worker: &Worker,
    run: &Running,
    home: &Rc<Home>,
    one: &Chosen,
    recipients: &[u16],
) -> Vec<String> {
    if run.order.act != Act::Remove || !worker.shared.events.is_on() {
        return Vec::new();
    }
    let message = home.load(one.entry.slot).await.ok();
    let address = |r: &u16| {
        let recipient = message.as_ref()?.envelope.recipients.get(usize::from(*r))?;
        Some(recipient.address.to_string())
    };
    recipients.iter().map(|r| address(r).unwrap_or_default()).collect()
}

/// One event for a delivery; for one that is removed, one for each recipient.
fn tell(
    worker: &Worker,
    run: &Running,
    id: MessageId,
    (count, addresses): (usize, Vec<String>),
    destination: &Domain,
) {
    let (now, events) = (worker.clock.now(), &worker.shared.events);
    let reason = run.order.reason.to_string();
    for recipient in addresses {
        events.send(now, Event::Removed { id, recipient, reason: reason.clone() });
    }
    if run.order.act != Act::Remove && events.is_on() {
        let (action, destination) = (run.order.act.as_str(), destination.to_string());
        let to = run.order.to.as_ref().map(ToString::to_string);
        events.send(now, Event::Changed { id, action, destination, to, recipients: count as u32, reason });
    }
}

/// Every delivery of a message is ended by age, also one that is held.
pub async fn expire_parked(worker: Rc<Worker>) {
    loop {
        ring::sleep(limits::PARKED_EXPIRY_WAIT).await;
        let homes: Vec<Rc<Home>> = worker.own_homes().cloned().collect();
        for home in homes {
            let names: Vec<Domain> = home.parked.borrow().destinations().map(|(d, _)| d.clone()).collect();
            for name in names {
                let max_age = worker.max_age(&name);
                let mut after = None;
                loop {
                    let parts = home.parked.borrow().some(&name, after, limits::ORDER_BATCH);
                    let Some(last) = parts.last() else { break };
                    after = Some(*last);
                    let now = worker.clock.now();
                    for (slot, part) in parts {
                        let waiting = home.parked.borrow().get(&name, (slot, part));
                        if waiting.is_some_and(|w| w.received_at.saturating_add(max_age) <= now) {
                            home.parked.borrow_mut().take(&name, (slot, part));
                            super::outcome::expire(
                                &worker,
                                &home,
                                Entry { home: home.config.index, slot, part },
                            );
                        }
                    }
                    ring::yield_turn().await;
                }
            }
        }
    }
}
