//! The worker's shard of the scheduler, and the way of its decisions to the homes.
//!
//! Owns: feeding the pure scheduler with events and carrying out its actions, here or through a post
//! to the worker that has the home. Promises: events of one sender reach a shard in order; an action
//! for a connection that has gone gives its entry back at once. Must not: decide anything itself.
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use super::home::Home;
use super::outbound::Errand;
use super::post::{Post, ShardEvent};
use super::{outbound, outcome, report};
use crate::clock::WallTime;
use crate::events::Event as Recorded;
use crate::mail::reply::Reply;
use crate::ring;
use crate::schedule::{Action, Adaptation, Event, Waiting};

impl Worker {
    /// Hands an event to the shard that owns it.
    pub fn tell_shard(self: &Rc<Self>, shard: usize, event: ShardEvent) {
        if shard == self.index {
            self.local.borrow_mut().push_back(Post::Shard(event));
            self.run_local();
        } else {
            self.outboxes.push(shard, Post::Shard(event));
        }
    }

    /// Takes a post from another worker.
    pub fn receive(self: &Rc<Self>, post: Post) {
        self.local.borrow_mut().push_back(post);
        self.run_local();
    }

    /// Works off the local queue. Not re-entered: what an action causes is queued behind it.
    pub(super) fn run_local(self: &Rc<Self>) {
        if self.running_local.replace(true) {
            return;
        }
        loop {
            let Some(post) = self.local.borrow_mut().pop_front() else { break };
            match post {
                Post::Shard(event) => self.run_shard(event),
                Post::Action { shard, action, why } => self.perform(shard, action, why),
                Post::Call(call) => call(self),
                Post::Fault => self.own_homes().for_each(Home::distrust_commits),
                Post::Drain => self.begin_drain(),
                Post::Stop => self.stop.raise(),
            }
        }
        self.running_local.set(false);
    }

    fn run_shard(self: &Rc<Self>, event: ShardEvent) {
        let why = match &event {
            ShardEvent::ConnectFailed { why, .. } => Some(why.clone()),
            _ => None,
        };
        let event = match &event {
            ShardEvent::Enqueue { destination, entry, waiting } => {
                let Waiting { recipients, attempts, told, stream, received_at, due } = *waiting;
                let entry = *entry;
                Event::Enqueue { destination, entry, stream, recipients, attempts, told, received_at, due }
            }
            ShardEvent::Want { conn, room } => Event::Want { conn: *conn, room: *room },
            ShardEvent::Finished { conn, entry, verdict } => {
                Event::Finished { conn: *conn, entry: *entry, verdict: *verdict }
            }
            ShardEvent::Deferred { conn, entry, recipients_left, verdict } => Event::Deferred {
                conn: *conn,
                entry: *entry,
                recipients_left: *recipients_left,
                verdict: *verdict,
            },
            ShardEvent::Returned { conn, entry } => Event::Returned { conn: *conn, entry: *entry },
            ShardEvent::ConnectFailed { conn, permanent, verdict, .. } => {
                Event::ConnectFailed { conn: *conn, permanent: *permanent, verdict: *verdict }
            }
            ShardEvent::ConnectPutOff { conn } => Event::ConnectPutOff { conn: *conn },
            ShardEvent::Closed { conn } => Event::Closed { conn: *conn },
            ShardEvent::Retry { destination } => Event::Retry { destination: destination.as_ref() },
            ShardEvent::Suspend { destination, until } => Event::Suspend { destination, until: *until },
            ShardEvent::Resume { destination } => Event::Resume { destination },
            ShardEvent::Policies(policies) => Event::Policies(policies.clone()),
            ShardEvent::Learnt { destination } => Event::Learnt { destination },
            ShardEvent::Resolved { conn, hosts, provider, sources } => {
                Event::Resolved { conn: *conn, hosts: *hosts, provider: *provider, sources: *sources }
            }
            ShardEvent::Pool(message) => Event::Pool(message.clone()),
        };
        self.decide(event, why);
    }

    pub(super) fn decide(self: &Rc<Self>, event: Event<'_>, why: Option<Arc<Reply>>) {
        let mut actions = self.actions.take();
        self.shard.borrow_mut().handle(self.clock.now(), event, &mut actions);
        self.carry_out(&mut actions, why);
        self.actions.replace(actions);
    }

    /// Hands what the shard wants done to the homes.
    pub(super) fn carry_out(self: &Rc<Self>, actions: &mut Vec<Action>, why: Option<Arc<Reply>>) {
        for action in actions.drain(..) {
            let Some(home) = home_of(&action) else {
                match action {
                    Action::Tell { shard, message } => {
                        self.tell_shard(shard.into(), ShardEvent::Pool(message));
                    }
                    other => self.tell_adapted(other),
                }
                continue;
            };
            let owner = self.shared.owner_of_home(home);
            let post = Post::Action { shard: self.index as u8, action, why: why.clone() };
            if owner == self.index {
                self.local.borrow_mut().push_back(post);
            } else {
                self.outboxes.push(owner, post);
            }
        }
        let next = self.shard.borrow().next_timer();
        if next.is_some_and(|at| self.timer_at.get().is_none_or(|armed| at < armed)) {
            self.timer.raise();
        }
    }

    fn perform(self: &Rc<Self>, shard: u8, action: Action, why: Option<Arc<Reply>>) {
        let Some(home) = home_of(&action).map(|home| self.home(home).clone()) else { return };
        match action {
            Action::Connect { conn, destination, source, stream, .. } => {
                let way = Errand { destination, source, stream };
                outbound::start(self, &home, (shard, conn), way);
            }
            Action::Deliver { conn, entry, .. } => {
                let connection = home.connections.borrow().get(&(shard, conn)).cloned();
                match connection {
                    Some(connection) => connection.give(entry),
                    None => self.tell_shard(shard.into(), ShardEvent::Returned { conn, entry }),
                }
            }
            Action::Proceed { conn, source, .. } => {
                if let Some(connection) = home.connections.borrow().get(&(shard, conn)) {
                    connection.proceed(source);
                }
            }
            Action::Close { conn, .. } => {
                if let Some(connection) = home.connections.borrow().get(&(shard, conn)) {
                    connection.close();
                }
            }
            Action::Deferred { entry, attempts, next } => {
                outcome::record_deferred(self, &home, entry, attempts, next, why.as_deref());
            }
            Action::Taken { entry, tag, waiting } => self.hand_to_order(tag, entry, waiting),
            Action::Expired { entry } => outcome::expire(self, &home, entry),
            Action::Delayed { entry, until } => report::delayed(self, &home, entry, until, why.as_deref()),
            // What is for the record alone has been told.
            Action::Adapted { .. } | Action::Tell { .. } => {}
            Action::Fail { entry } => outcome::fail(self, &home, entry, why.as_deref()),
        }
    }

    /// Puts on record what the shard has learnt of a destination.
    fn tell_adapted(&self, action: Action) {
        let Action::Adapted { destination, change } = action else { return };
        if !self.shared.events.is_on() {
            return;
        }
        let destination = destination.to_string();
        let event = match change {
            Adaptation::Limits { connections, per_hour } => {
                Recorded::Adapted { destination, connections: Some(connections), per_hour, until: None }
            }
            Adaptation::Suspended { until } => {
                Recorded::Adapted { destination, connections: Some(0), per_hour: None, until: Some(until) }
            }
            Adaptation::Recovered => {
                Recorded::Adapted { destination, connections: None, per_hour: None, until: None }
            }
        };
        self.shared.events.send(self.clock.now(), event);
    }

    /// The task that wakes the shard when something in it is due. It sleeps while nothing waits for
    /// time.
    pub async fn run_timer(self: Rc<Self>) {
        loop {
            let next = self.shard.borrow().next_timer();
            self.timer_at.set(next);
            match next {
                None => self.timer.wait().await,
                Some(at) => {
                    let wait = until(self.clock.now(), at);
                    if !wait.is_zero() {
                        tokio::select! {
                            () = ring::sleep(wait) => {}
                            () = self.timer.wait() => continue,
                        }
                    }
                    self.decide(Event::Timer, None);
                    self.run_local();
                    // Timer work comes in bounded batches: let sessions run between two of them.
                    ring::yield_turn().await;
                }
            }
        }
    }
}

fn until(now: WallTime, at: WallTime) -> Duration {
    at.since(now)
}

/// The home an action is for; None: it is for the record alone.
fn home_of(action: &Action) -> Option<u8> {
    match action {
        Action::Connect { home, .. }
        | Action::Proceed { home, .. }
        | Action::Deliver { home, .. }
        | Action::Close { home, .. } => Some(*home),
        Action::Deferred { entry, .. }
        | Action::Taken { entry, .. }
        | Action::Expired { entry }
        | Action::Delayed { entry, .. }
        | Action::Fail { entry } => Some(entry.home),
        Action::Adapted { .. } | Action::Tell { .. } => None,
    }
}
