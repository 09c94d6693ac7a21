//! A destination's part in the limits it shares with others.
//!
//! Owns: which pools a connection is in, asking for them, and giving them back. Promises: no connection
//! goes beyond the lookup of its hosts without a permit of every pool it is in, and its permit goes back
//! when its close is confirmed; a destination that has to wait for a pool asks once and opens nothing
//! meanwhile; where others wait, a connection gives way after `limits::CONNECTION_TURN` messages, and at
//! once when it has nothing to do. Must not: count a pool (that is `pool`).
use std::sync::Arc;

use super::connection::{Connection, State};
use super::policy::COMMON;
use super::pool::{self, PoolKey, PoolMessage, Request, Wanted};
use super::shard::Shard;
use super::sources::SourceSet;
use super::wheel::NIL;
use super::{Action, ConnId};
use crate::limits;

/// Kept for a destination that shares limits, once for each stream with limits and once for the others.
#[derive(Debug)]
pub(super) struct Shared {
    /// That of its lanes.
    stream: u16,
    /// Tells this life of the destination from others at the same place of the table.
    serial: u32,
    /// A connection was asked for and is not granted yet: only one is at a time.
    asks: bool,
    /// It has to wait, in one of these pools.
    pub(super) waits_for: Option<Arc<[PoolKey]>>,
    /// Granted, for the next connection.
    permit: Option<Arc<[PoolKey]>>,
    /// Messages are granted one by one.
    pub(super) metered: bool,
}

impl Shard {
    /// The hosts of a connection that is being opened are known: it goes on, or closes and waits.
    pub(super) fn resolved(
        &mut self,
        conn: ConnId,
        (hosts, provider, sources): (Option<u64>, u16, Option<SourceSet>),
        actions: &mut Vec<Action>,
    ) {
        let Some(place) = self.connections.place(conn) else { return };
        if self.connections.slab[place as usize].state != State::Opening {
            return;
        }
        let lane = &self.destinations.lanes[self.connections.slab[place as usize].lane as usize];
        let (destination, stream) = (lane.destination, lane.stream);
        let keys = pool::keys(&self.policies, (hosts, provider), sources, stream);
        let permit = self.connections.slab[place as usize].permit.take();
        if permit.as_ref().is_some_and(|permit| pool::fits(&self.policies, permit, &keys)) {
            self.connections.slab[place as usize].permit = permit;
            return self.proceed(place, actions);
        }
        if let Some(other) = permit {
            self.pools.give_back(&other, Wanted::Connection, actions);
        }
        if keys.is_empty() {
            return self.proceed(place, actions);
        }
        let metered = pool::is_metered(&self.policies, &keys);
        let shared = self.shared_of(destination, stream);
        shared.metered |= metered;
        let serial = shared.serial;
        if std::mem::replace(&mut shared.asks, true) {
            // Another has just asked; this one is not needed before that is granted.
            return self.close_opening(place, actions);
        }
        self.pools.ask((Wanted::Connection, conn), (destination, stream, serial), keys, actions);
    }

    fn shared_of(&mut self, destination: u32, stream: u16) -> &mut Shared {
        self.serial = self.serial.wrapping_add(1);
        let serial = self.serial;
        let all = &mut self.throttle_of(destination).shared;
        let at = all.iter().position(|own| own.stream == stream).unwrap_or_else(|| {
            all.push(Shared { stream, serial, asks: false, waits_for: None, permit: None, metered: false });
            all.len() - 1
        });
        &mut all[at]
    }

    fn shared(&mut self, destination: u32, stream: u16) -> Option<&mut Shared> {
        let at = self.destinations.slab.get(destination as usize)?.throttle;
        if at == NIL {
            return None;
        }
        self.throttles.slab[at as usize].shared.iter_mut().find(|own| own.stream == stream)
    }

    /// The part of the lane's destination that concerns the lane.
    fn shared_by(&self, lane: u32) -> Option<&Shared> {
        let lane = &self.destinations.lanes[lane as usize];
        let at = self.destinations.slab[lane.destination as usize].throttle;
        if at == NIL {
            return None;
        }
        self.throttles.slab[at as usize].shared.iter().find(|own| own.stream == lane.stream)
    }

    /// The lane's messages are granted one by one.
    pub(super) fn is_metered(&self, lane: u32) -> bool {
        self.shared_by(lane).is_some_and(|shared| shared.metered)
    }

    fn proceed(&mut self, place: u32, actions: &mut Vec<Action>) {
        let connection = &self.connections.slab[place as usize];
        let home = self.destinations.lanes[connection.lane as usize].home;
        let source = connection.permit.as_deref().and_then(pool::source_of);
        actions.push(Action::Proceed { home, conn: self.connections.id(place), source });
    }

    /// The permit that waits for the next connection of the destination for the stream.
    pub(super) fn take_permit(&mut self, destination: u32, stream: u16) -> Option<Arc<[PoolKey]>> {
        self.shared(destination, stream)?.permit.take()
    }

    /// Idle connections of the lane wait for a message to be granted: they are not closed for others, who
    /// might wait for the same, before `connection_idle` is over.
    pub(super) fn waits_for_grant(&self, lane: u32) -> bool {
        self.has_mail(lane) && self.is_metered(lane)
    }

    /// The lane's messages are granted one by one, and it has a connection that waits for one.
    pub(super) fn waits_for_message(&self, lane: u32) -> bool {
        let idle = |conn: u32| self.connections.slab[conn as usize].held == 0;
        self.is_metered(lane) && self.destinations.lanes[lane as usize].asking.front().is_some_and(idle)
    }

    /// A pool has not answered yet, or keeps the lane waiting: it opens nothing.
    pub(super) fn waits_for_pool(&self, lane: u32) -> bool {
        self.shared_by(lane).is_some_and(|shared| shared.asks)
    }

    /// Works off what this shard has said to itself.
    pub(super) fn read_letters(&mut self, actions: &mut Vec<Action>) {
        while let Some(message) = self.pools.letters.pop_front() {
            self.hear(message, actions);
        }
    }

    pub(super) fn hear(&mut self, message: PoolMessage, actions: &mut Vec<Action>) {
        let now = self.now;
        match message {
            PoolMessage::Ask(request) => self.pools.asked(&self.policies, now, request, actions),
            PoolMessage::Back(key, wanted) => {
                self.pools.came_back(&self.policies, now, (key, wanted), actions);
            }
            PoolMessage::Contended(key, true) => {
                self.contended.insert(key);
                self.make_way(key, actions);
            }
            PoolMessage::Contended(key, false) => {
                self.contended.remove(&key);
            }
            PoolMessage::Waits(request) => match request.wanted {
                Wanted::Connection => self.wait_for_pool(request, actions),
                Wanted::Message => self.wait_for_message(&request, actions),
            },
            PoolMessage::Granted(request) => match request.wanted {
                Wanted::Connection => self.granted_connection(&request, actions),
                Wanted::Message => self.granted_message(&request, actions),
            },
        }
    }

    /// Connections in the pool that have nothing to do are closed, for those who wait.
    fn make_way(&mut self, key: PoolKey, actions: &mut Vec<Action>) {
        for home in 0..self.homes.len() {
            for conn in self.homes[home].idle.members(&mut self.connections.slab) {
                let connection = &self.connections.slab[conn as usize];
                let in_it = connection.permit.as_ref().is_some_and(|keys| keys.contains(&key));
                if in_it && !self.has_mail(connection.lane) {
                    self.close(conn, actions);
                }
            }
        }
    }

    /// The request stays in the pool's queue; its connection does not wait with it.
    fn wait_for_pool(&mut self, request: Request, actions: &mut Vec<Action>) {
        let Some(shared) =
            self.shared(request.destination, request.stream).filter(|s| s.serial == request.serial)
        else {
            return;
        };
        shared.waits_for = Some(request.keys().clone());
        if let Some(place) = self.connections.place(request.conn)
            && self.connections.slab[place as usize].state == State::Opening
        {
            self.close_opening(place, actions);
        }
        let lanes: Vec<u32> = self.destinations.lanes_of(request.destination).collect();
        let own = |lane: &u32| self.destinations.lanes[*lane as usize].stream == request.stream;
        let lanes: Vec<u32> = lanes.into_iter().filter(own).collect();
        for lane in lanes {
            self.set_queue(lane, super::destination::Queue::None);
        }
    }

    fn granted_connection(&mut self, request: &Request, actions: &mut Vec<Action>) {
        let (destination, stream) = (request.destination, request.stream);
        let Some(shared) = self.shared(destination, stream).filter(|s| s.serial == request.serial) else {
            return self.pools.give_back(request.keys(), Wanted::Connection, actions);
        };
        (shared.asks, shared.waits_for) = (false, None);
        let opening = self
            .connections
            .place(request.conn)
            .filter(|place| self.connections.slab[*place as usize].state == State::Opening);
        if let Some(place) = opening {
            self.connections.slab[place as usize].permit = Some(request.keys().clone());
            self.proceed(place, actions);
        } else if let Some(shared) = self.shared(destination, stream) {
            shared.permit = Some(request.keys().clone());
        }
        self.seek_all(destination, actions);
        // Nobody wants it any more.
        if let Some(keys) = self.take_permit(destination, stream) {
            self.pools.give_back(&keys, Wanted::Connection, actions);
        }
        self.rearm(destination);
        self.tidy(destination);
    }

    /// Asks for a message for each connection of the lane that could send one.
    pub(super) fn serve_metered(&mut self, lane: u32, actions: &mut Vec<Action>) {
        let of = self.destinations.lanes[lane as usize].destination;
        if self.is_throttled(of) {
            let conn = self.destinations.lanes[lane as usize].asking.front();
            let free = |conn: &Connection| conn.held == 0 && !conn.asked;
            if self.has_mail(lane) && conn.is_some_and(|conn| free(&self.connections.slab[conn as usize])) {
                self.owe(lane);
            }
            return self.wake_when_due(of);
        }
        let mut left = self.destinations.lanes[lane as usize].ready.len;
        let asking = self.destinations.lanes[lane as usize].asking.members(&mut self.connections.slab);
        for conn in asking {
            let connection = &mut self.connections.slab[conn as usize];
            if left == 0 {
                return;
            }
            left -= 1;
            if connection.held > 0 || std::mem::replace(&mut connection.asked, true) {
                continue;
            }
            let keys = connection.permit.clone().unwrap_or_else(|| [].into());
            let metered: Arc<[PoolKey]> =
                keys.iter().filter(|key| pool::is_metered(&self.policies, &[**key])).copied().collect();
            let id = self.connections.id(conn);
            if metered.is_empty() {
                self.send_one(conn, actions);
            } else {
                self.pools.ask((Wanted::Message, id), (of, COMMON, 0), metered, actions);
            }
        }
    }

    /// The message has to wait elsewhere: others may use the destination's rate.
    fn wait_for_message(&mut self, request: &Request, actions: &mut Vec<Action>) {
        let Some(conn) = self.connections.place(request.conn) else { return };
        let lane = self.connections.slab[conn as usize].lane;
        if self.settle_owed(lane) {
            self.seek_all(request.destination, actions);
        }
    }

    fn granted_message(&mut self, request: &Request, actions: &mut Vec<Action>) {
        let place = self.connections.place(request.conn);
        if place.is_some_and(|conn| self.send_one(conn, actions)) {
            return;
        }
        self.pools.give_back(request.keys(), Wanted::Message, actions);
        if let Some(conn) = place {
            let lane = self.connections.slab[conn as usize].lane;
            if self.has_mail(lane) && self.connections.slab[conn as usize].held == 0 {
                self.owe(lane);
            }
        }
    }

    /// Sends one message over a connection that holds none, if there is one and it may go now.
    fn send_one(&mut self, conn: u32, actions: &mut Vec<Action>) -> bool {
        let connection = &mut self.connections.slab[conn as usize];
        connection.asked = false;
        let (lane, ready) = (connection.lane, connection.room > 0 && connection.held == 0);
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        if !ready || self.is_throttled(destination) || at != NIL && self.is_owed_to_another(at, lane) {
            return false;
        }
        let Some(entry) = self.pop_live(lane, actions) else { return false };
        self.settle_owed(lane);
        self.count_message_of(destination);
        self.deliver(conn, entry, actions);
        self.stand_back(conn);
        true
    }

    /// Others wait for a pool that the connection is in.
    pub(super) fn is_in_the_way(&self, conn: u32) -> bool {
        !self.contended.is_empty()
            && self.connections.slab[conn as usize]
                .permit
                .as_ref()
                .is_some_and(|keys| keys.iter().any(|key| self.contended.contains(key)))
    }

    /// The same, and it has had its turn.
    pub(super) fn has_had_its_turn(&self, conn: u32) -> bool {
        self.connections.slab[conn as usize].carried >= limits::CONNECTION_TURN && self.is_in_the_way(conn)
    }
}
