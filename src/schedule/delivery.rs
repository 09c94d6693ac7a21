//! Handing out mail, and what becomes of it.
//!
//! Owns: the life of a connection between its first Want and its end, and of the entries it holds.
//! Promises: a connection never holds more than the window, nor is handed more than
//! `messages_per_connection`; an entry is handed out to one connection at a time, and never after
//! its expiry. Must not: open connections (that is `slots`).
//!
//! A connection that cannot be opened, and one that dies with mail in hand before it has brought a
//! single outcome, count alike: otherwise a peer that greets and hangs up would be dialled without
//! end. Only an outcome ends the probing of a destination.
use std::time::Duration;

use super::connection::State;
use super::destination::Queue;
use super::retry::{ceil_secs, floor_secs};
use super::shard::Shard;
use super::wheel::NIL;
use super::{Action, ConnId, Entry, Verdict};
use crate::limits;

impl Shard {
    pub(super) fn want(&mut self, conn: ConnId, room: u8, actions: &mut Vec<Action>) {
        let Some(conn) = self.connections.place(conn) else { return };
        self.stop_asking(conn);
        let connection = &mut self.connections.slab[conn as usize];
        let id = connection.lane;
        if connection.state == State::Closing {
            return;
        }
        let lane = &mut self.destinations.lanes[id as usize];
        let destination = lane.destination;
        if connection.state == State::Opening {
            connection.state = State::Open;
            lane.opening -= 1;
            self.destinations.slab[destination as usize].open += 1;
            self.stop_deferring(destination);
        }
        let closes = self.is_suspended(destination)
            || self.destinations.lanes[id as usize].ready.len > 0 && self.must_yield(conn);
        if closes {
            self.close(conn, actions);
        } else {
            self.ask(conn, room);
            self.serve(id, actions);
            self.settle(conn, actions);
        }
        self.seek(id, actions);
        self.rearm(destination);
    }

    /// Notes that the connection takes up to `room` more entries, within the window.
    fn ask(&mut self, conn: u32, room: u8) {
        let connection = &mut self.connections.slab[conn as usize];
        connection.room = room.min(self.window.saturating_sub(connection.held));
        if connection.room > 0 {
            let (lane, held) = (connection.lane, connection.held);
            let asking = &mut self.destinations.lanes[lane as usize].asking;
            match held {
                0 => asking.push_front(&mut self.connections.slab, conn),
                _ => asking.push_back(&mut self.connections.slab, conn),
            }
        }
    }

    /// A connection that still asks and holds mail now goes behind those that hold none.
    pub(super) fn stand_back(&mut self, conn: u32) {
        let connection = &self.connections.slab[conn as usize];
        let (lane, room) = (connection.lane as usize, connection.room);
        if room > 0 {
            let asking = &mut self.destinations.lanes[lane].asking;
            asking.remove(&mut self.connections.slab, conn);
            asking.push_back(&mut self.connections.slab, conn);
        }
    }

    pub(super) fn stop_asking(&mut self, conn: u32) {
        self.stop_idling(conn);
        let connection = &mut self.connections.slab[conn as usize];
        if std::mem::take(&mut connection.room) > 0 {
            let lane = connection.lane;
            self.destinations.lanes[lane as usize].asking.remove(&mut self.connections.slab, conn);
        }
    }

    fn stop_idling(&mut self, conn: u32) {
        let connection = &mut self.connections.slab[conn as usize];
        if connection.idle_since.take().is_some() {
            let home = self.destinations.lanes[connection.lane as usize].home;
            self.homes[usize::from(home)].idle.remove(&mut self.connections.slab, conn);
        }
    }

    /// A connection that asks and holds nothing is idle, unless its slot is wanted elsewhere.
    fn settle(&mut self, conn: u32, actions: &mut Vec<Action>) {
        let connection = &mut self.connections.slab[conn as usize];
        if connection.room == 0 || connection.held > 0 || connection.idle_since.is_some() {
            return;
        }
        let lane = connection.lane;
        if !self.waits_for_grant(lane) && self.idle_is_wanted(lane)
            || self.is_in_the_way(conn) && !self.has_mail(lane)
        {
            self.close(conn, actions);
            return;
        }
        self.connections.slab[conn as usize].idle_since = Some(self.now);
        let home = self.destinations.lanes[lane as usize].home;
        self.homes[usize::from(home)].idle.push_back(&mut self.connections.slab, conn);
    }

    pub(super) fn has_mail(&self, lane: u32) -> bool {
        self.destinations.lanes[lane as usize].ready.len > 0
    }

    /// Hands the lane's ready mail to the connections that ask for it, as far as the destination may
    /// have it.
    pub(super) fn serve(&mut self, lane: u32, actions: &mut Vec<Action>) {
        let destination = self.destinations.lanes[lane as usize].destination;
        if self.destinations.slab[destination as usize].throttle == NIL {
            self.serve_all(lane, actions);
        } else {
            self.serve_in_turn(lane, actions);
        }
    }

    pub(super) fn serve_all(&mut self, lane: u32, actions: &mut Vec<Action>) {
        while let Some(conn) = self.destinations.lanes[lane as usize].asking.front() {
            let Some(id) = self.pop_live(lane, actions) else { return };
            self.deliver(conn, id, actions);
        }
    }

    /// The lane's first ready entry that is not too old; those that are expire on the way, in batches.
    pub(super) fn pop_live(&mut self, lane: u32, actions: &mut Vec<Action>) -> Option<u32> {
        loop {
            let head = self.destinations.lanes[lane as usize].ready.front();
            if head == NIL {
                return None;
            }
            let destination = self.destinations.lanes[lane as usize].destination;
            let live = self.expiry(destination, head) > floor_secs(self.now);
            if !live && self.budget == 0 {
                self.list(destination);
                return None;
            }
            let id = self.pop_ready(lane)?;
            if live {
                return Some(id);
            }
            self.budget -= 1;
            self.expire(id, actions);
        }
    }

    pub(super) fn deliver(&mut self, conn: u32, id: u32, actions: &mut Vec<Action>) {
        self.stop_idling(conn);
        let connection = &mut self.connections.slab[conn as usize];
        let lane = &mut self.destinations.lanes[connection.lane as usize];
        self.entries[id].next = connection.in_flight;
        connection.in_flight = id;
        connection.held += 1;
        connection.carried += 1;
        connection.room -= 1;
        let full = connection.room == 0;
        let carried = connection.carried;
        let of = lane.destination;
        self.destinations.slab[lane.destination as usize].in_flight += 1;
        self.stats.in_flight += 1;
        let home = lane.home;
        if full {
            lane.asking.remove(&mut self.connections.slab, conn);
        }
        let conn_id = self.connections.id(conn);
        actions.push(Action::Deliver { home, conn: conn_id, entry: self.entries[id].entry() });
        if carried >= self.policy(of).messages_per_connection.max(1) {
            self.close(conn, actions);
        }
    }

    /// Takes back an entry the connection holds: the connection's place and the entry's id.
    fn take_back(&mut self, conn: ConnId, entry: Entry) -> Option<(u32, u32)> {
        let place = self.connections.place(conn)?;
        let connection = &mut self.connections.slab[place as usize];
        let (before, id) = self.entries.find(connection.in_flight, entry)?;
        self.entries.unlink(&mut connection.in_flight, before, id);
        connection.held -= 1;
        let destination = self.destinations.lanes[connection.lane as usize].destination;
        self.destinations.slab[destination as usize].in_flight -= 1;
        self.stats.in_flight -= 1;
        Some((place, id))
    }

    pub(super) fn finished(
        &mut self,
        conn: ConnId,
        entry: Entry,
        verdict: Verdict,
        actions: &mut Vec<Action>,
    ) {
        let Some((place, id)) = self.take_back(conn, entry) else { return };
        self.drop_entry(id);
        self.answered(place, actions);
        let destination = self.destination_of(place);
        match verdict {
            Verdict::Nothing => self.accepted(destination, actions),
            _ => self.learn(destination, verdict, 1, actions),
        }
    }

    pub(super) fn attempted(
        &mut self,
        conn: ConnId,
        entry: Entry,
        left: u16,
        verdict: Verdict,
        actions: &mut Vec<Action>,
    ) {
        let Some((place, id)) = self.take_back(conn, entry) else { return };
        let before = std::mem::replace(&mut self.entries[id].recipients, left);
        self.stats.recipients = self.stats.recipients - u64::from(before) + u64::from(left);
        let destination = self.destination_of(place);
        self.defer(destination, id, actions);
        self.learn(destination, verdict, 1, actions);
        self.answered(place, actions);
        self.rearm(destination);
    }

    /// The peer has spoken about a message: the destination is alive.
    fn answered(&mut self, conn: u32, actions: &mut Vec<Action>) {
        let connection = &mut self.connections.slab[conn as usize];
        connection.answered = true;
        if connection.held == 0 && connection.room > 0 {
            // To the front of those that ask: it has nothing to do any more.
            let room = connection.room;
            self.stop_asking(conn);
            self.ask(conn, room);
            self.settle(conn, actions);
        }
        let id = self.destination_of(conn);
        let destination = &mut self.destinations.slab[id as usize];
        if std::mem::take(&mut destination.failures) > 0 {
            destination.hold_until = 0;
            self.seek_all(id, actions);
        }
    }

    pub(super) fn returned(&mut self, conn: ConnId, entry: Entry, actions: &mut Vec<Action>) {
        let Some((place, id)) = self.take_back(conn, entry) else { return };
        self.stop_asking(place);
        let lane = self.put_back(place, id);
        self.serve(lane, actions);
        self.seek(lane, actions);
        self.rearm(self.destinations.lanes[lane as usize].destination);
    }

    /// An entry that the connection did not attempt goes to the front of its lane.
    fn put_back(&mut self, conn: u32, id: u32) -> u32 {
        let lane = self.connections.slab[conn as usize].lane;
        let weight = |stream| self.policies.weight(stream);
        self.destinations.lanes[lane as usize].ready.push_front(&mut self.entries, id, weight);
        self.count_ready(self.destinations.lanes[lane as usize].destination, id);
        lane
    }

    pub(super) fn closed(&mut self, conn: ConnId, actions: &mut Vec<Action>) {
        let Some(place) = self.connections.place(conn) else { return };
        let connection = &self.connections.slab[place as usize];
        if connection.state != State::Closing && connection.carried > 0 && !connection.answered {
            return self.connect_failed(conn, false, Verdict::Nothing, actions);
        }
        self.end(place, actions);
    }

    pub(super) fn connect_put_off(&mut self, conn: ConnId, actions: &mut Vec<Action>) {
        let Some(place) = self.connections.place(conn) else { return };
        let until = ceil_secs(self.now.saturating_add(limits::CONNECT_PUT_OFF_PAUSE));
        self.hold(self.destination_of(place), until);
        self.end(place, actions);
    }

    pub(super) fn connect_failed(
        &mut self,
        conn: ConnId,
        permanent: bool,
        verdict: Verdict,
        actions: &mut Vec<Action>,
    ) {
        let Some(place) = self.connections.place(conn) else { return };
        let id = self.destination_of(place);
        let own = u32::from(self.connections.slab[place as usize].state == State::Open);
        self.recall(place);
        if permanent {
            self.destinations.slab[id as usize].agenda.fail = true;
            self.list(id);
        } else if self.destinations.slab[id as usize].open > own {
            self.learn(id, verdict, own, actions);
            let earned = verdict == Verdict::FewerConnections && self.policy(id).adaptive;
            let pause = if earned { Duration::ZERO } else { limits::CONNECT_FAILED_PAUSE };
            self.hold(id, floor_secs(self.now.saturating_add(pause)));
        } else if self.destinations.slab[id as usize].failures == 0 || !self.held(id) {
            self.back_off(id);
        }
        self.end(place, actions);
        self.run_agenda(actions);
    }

    /// The destination as a whole rests; what is ready now has had its attempt. Failures of the
    /// same salvo find it resting and change nothing.
    fn back_off(&mut self, id: u32) {
        let destination = &mut self.destinations.slab[id as usize];
        destination.failures = destination.failures.saturating_add(1);
        let schedule = &self.policies.get(destination.policy).retry_schedule;
        let until = self.retry.next(self.now, schedule, destination.failures);
        destination.agenda.defer = true;
        let mut lane = destination.lanes;
        while lane != NIL {
            let current = &mut self.destinations.lanes[lane as usize];
            current.defer_left = current.ready.len;
            lane = current.sibling;
        }
        self.hold(id, until);
        self.list(id);
    }

    /// No new connection before `until`. Its lanes queue for none meanwhile, so that no connection
    /// gives its slot up for them.
    fn hold(&mut self, id: u32, until: u32) {
        let destination = &mut self.destinations.slab[id as usize];
        destination.hold_until = destination.hold_until.max(until);
        let mut lane = destination.lanes;
        while lane != NIL {
            self.set_queue(lane, Queue::None);
            lane = self.destinations.lanes[lane as usize].sibling;
        }
    }

    /// Puts back whatever the connection still holds, in order.
    fn recall(&mut self, conn: u32) {
        loop {
            let id = self.connections.slab[conn as usize].in_flight;
            if id == NIL {
                return;
            }
            let entry = self.entries[id].entry();
            if self.take_back(self.connections.id(conn), entry).is_some() {
                self.put_back(conn, id);
            }
        }
    }

    /// The end of a connection, however it came.
    fn end(&mut self, conn: u32, actions: &mut Vec<Action>) {
        self.recall(conn);
        let destination = self.destination_of(conn);
        self.release(conn, actions);
        self.rearm(destination);
        self.tidy(destination);
    }

    pub(super) fn destination_of(&self, conn: u32) -> u32 {
        self.destinations.lanes[self.connections.slab[conn as usize].lane as usize].destination
    }
}
