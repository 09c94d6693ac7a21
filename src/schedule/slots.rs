//! Who gets the next connection.
//!
//! Owns: the sharing out of two resources, the slots of a destination and those of a home. A *lane*
//! (one destination's mail at one home) that could use another connection gets it if both have a
//! slot free; else it stands in the queue of the one that has none, in that one's order: lanes
//! without any connection first (`starved`; of them those with urgent mail), then those that would like one more (`growing`).
//!
//! Promises, after every event: a destination with lanes in its queues has no slot free (or may open
//! none now), nor has a home. Fairness: as long as more lanes wait than slots are about to come
//! free, an idle connection is closed at once to make room; and for a starved lane the first
//! connection that asks for mail gives its slot up, if its lane has another one or if it has carried
//! `limits::CONNECTION_TURN` messages; to a lane with urgent mail every other yields at once. So the lane first in line waits for one window of messages of
//! one connection, or, if every lane it competes with has but one, for one turn of one connection;
//! the n-th in line for n of them. A lane that gave up its last slot queues anew, behind the others.
//!
//! Must not: hand out mail.
use super::Action;
use super::connection::State;
use super::destination::{Queue, Queues, Waiting};
use super::policy::COMMON;
use super::pool::{Wanted, source_of};
use super::shard::Shard;
use super::wheel::NIL;
use crate::limits;

impl Shard {
    /// Connections the destination may hold: one while it is probed, none while it must rest.
    pub(super) fn slots(&self, destination: u32) -> u32 {
        if self.held(destination) {
            0
        } else if self.destinations.slab[destination as usize].failures > 0 {
            1
        } else {
            let limit = self.policy(destination).limits.connections.max(1);
            let at = self.destinations.slab[destination as usize].throttle;
            if at == NIL {
                return limit;
            }
            let adaptive = self.throttles.slab[at as usize].adaptive.as_ref();
            adaptive.map_or(limit, |adaptive| adaptive.connections.min(limit))
        }
    }

    fn destination_full(&self, destination: u32) -> bool {
        self.destinations.slab[destination as usize].used >= self.slots(destination)
    }

    pub(super) fn home_full(&self, home: u8) -> bool {
        self.homes[usize::from(home)].used >= self.connections_per_home
    }

    /// The lane has more ready mail than the connections being opened for it are expected to take.
    fn could_use_another(&self, id: u32) -> bool {
        let lane = &self.destinations.lanes[id as usize];
        let destination = &self.destinations.slab[lane.destination as usize];
        lane.ready.len > lane.opening * limits::ENTRIES_PER_OPENING
            && lane.defer_left == 0
            && !destination.agenda.fail
            && !self.held(lane.destination)
            && (destination.throttle == NIL
                || self.may_send_soon(id) && !self.waits_for_pool(id) && !self.waits_for_message(id))
    }

    /// Opens what the lane can use and may have; else it queues, or leaves the queue it is in.
    pub(super) fn seek(&mut self, lane: u32, actions: &mut Vec<Action>) {
        while self.admit(lane, actions) {}
    }

    /// Opens one connection for the lane, if it can use one and may. Else sees to it that the lane is
    /// in the right queue, or in none.
    fn admit(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        if !self.could_use_another(id) {
            self.set_queue(id, Queue::None);
            self.wake_when_due(self.destinations.lanes[id as usize].destination);
            return false;
        }
        let lane = &self.destinations.lanes[id as usize];
        let (starved, urgent) = (lane.active == 0, lane.ready.is_urgent());
        let (destination, home) = (lane.destination, lane.home);
        let full = self.destination_full(destination);
        let queue = match (full || !self.connection_is_due(destination), self.home_full(home)) {
            (true, _) if starved && urgent => Queue::DestinationUrgent,
            (true, _) if starved => Queue::DestinationStarved,
            (true, _) => Queue::DestinationGrowing,
            (false, true) if starved && urgent => Queue::HomeUrgent,
            (false, true) if starved => Queue::HomeStarved,
            (false, true) => Queue::HomeGrowing,
            (false, false) => Queue::None,
        };
        self.set_queue(id, queue);
        if queue == Queue::None {
            self.open(id, actions);
            return true;
        }
        if full || matches!(queue, Queue::HomeUrgent | Queue::HomeStarved | Queue::HomeGrowing) {
            self.make_room(id, actions);
        }
        false
    }

    fn open(&mut self, id: u32, actions: &mut Vec<Action>) {
        let lane = &mut self.destinations.lanes[id as usize];
        lane.opening += 1;
        lane.active += 1;
        lane.used += 1;
        let destination = &mut self.destinations.slab[lane.destination as usize];
        destination.used += 1;
        let (home, name, of, stream) = (lane.home, destination.name.clone(), lane.destination, lane.stream);
        self.homes[usize::from(home)].used += 1;
        self.count_connection(of);
        let permit = self.take_permit(of, stream);
        let conn = self.connections.open(id);
        let source = permit.as_deref().and_then(source_of);
        if let Some(place) = self.connections.place(conn) {
            self.connections.slab[place as usize].permit = permit;
        }
        let stream = (stream != COMMON).then_some(stream);
        actions.push(Action::Connect { home, conn, destination: name, source, stream });
    }

    /// Moves the lane to the end of `queue`, unless it is in it already.
    pub(super) fn set_queue(&mut self, id: u32, queue: Queue) {
        let before = self.destinations.lanes[id as usize].queue;
        if before == queue {
            return;
        }
        if before != Queue::None {
            self.with_queue(id, before, |waiting, lanes| waiting.remove(lanes, id));
        }
        if queue != Queue::None {
            self.with_queue(id, queue, |waiting, lanes| waiting.push_back(lanes, id));
        }
        self.destinations.lanes[id as usize].queue = queue;
    }

    fn with_queue(
        &mut self,
        id: u32,
        queue: Queue,
        change: impl FnOnce(&mut Waiting, &mut slab::Slab<super::destination::Lane>),
    ) {
        let lane = &self.destinations.lanes[id as usize];
        let queues = match queue {
            Queue::HomeUrgent | Queue::HomeStarved | Queue::HomeGrowing => {
                &mut self.homes[usize::from(lane.home)].queues
            }
            _ => &mut self.destinations.slab[lane.destination as usize].queues,
        };
        let waiting = match queue {
            Queue::DestinationUrgent | Queue::HomeUrgent => &mut queues.urgent,
            Queue::DestinationStarved | Queue::HomeStarved => &mut queues.starved,
            _ => &mut queues.growing,
        };
        change(waiting, &mut self.destinations.lanes);
    }

    /// Closes one idle connection that holds a slot the queued lane needs, if there is one and no
    /// other slot is about to come free.
    fn make_room(&mut self, id: u32, actions: &mut Vec<Action>) {
        let lane = &self.destinations.lanes[id as usize];
        let idle = match lane.queue {
            Queue::HomeUrgent | Queue::HomeStarved | Queue::HomeGrowing => {
                let home = &self.homes[usize::from(lane.home)];
                let front = if home.queues.short() { home.idle.front() } else { None };
                front.filter(|conn| !self.waits_for_grant(self.connections.slab[*conn as usize].lane))
            }
            _ => {
                let short = self.destinations.slab[lane.destination as usize].queues.short();
                if short { self.idle_of(lane.destination) } else { None }
            }
        };
        if let Some(idle) = idle {
            self.close(idle, actions);
        }
    }

    /// A connection of the destination that has nothing to do, nor waits for its turn under a rate.
    fn idle_of(&self, destination: u32) -> Option<u32> {
        self.destinations
            .lanes_of(destination)
            .filter(|lane| self.destinations.lanes[*lane as usize].ready.len == 0)
            .filter_map(|lane| self.destinations.lanes[lane as usize].asking.front())
            .find(|conn| self.connections.slab[*conn as usize].idle_since.is_some())
    }

    fn both_queues(&self, lane: u32) -> [&Queues; 2] {
        let lane = &self.destinations.lanes[lane as usize];
        let destination = &self.destinations.slab[lane.destination as usize];
        [&destination.queues, &self.homes[usize::from(lane.home)].queues]
    }

    /// Someone could use the slot of a connection of this lane that has nothing to do. Under a rate, the
    /// destination's own lanes could not.
    pub(super) fn idle_is_wanted(&self, lane: u32) -> bool {
        let [destination, home] = self.both_queues(lane);
        home.short() || destination.short() && !self.is_held_back(lane)
    }

    /// The connection, which asks for mail and could have some, must give its slot to a lane without.
    pub(super) fn must_yield(&self, conn: u32) -> bool {
        let connection = &self.connections.slab[conn as usize];
        let lane = &self.destinations.lanes[connection.lane as usize];
        let queues = self.both_queues(connection.lane);
        let turn_is_over = lane.active > 1 || connection.carried >= limits::CONNECTION_TURN;
        self.has_had_its_turn(conn)
            || turn_is_over && queues.into_iter().any(Queues::starving)
            || !lane.ready.is_urgent() && queues.into_iter().any(Queues::pressing)
    }

    /// No more mail for the connection: its slot comes free when the close is confirmed.
    pub(super) fn close(&mut self, conn: u32, actions: &mut Vec<Action>) {
        self.stop_asking(conn);
        let connection = &mut self.connections.slab[conn as usize];
        debug_assert_eq!(
            connection.state,
            State::Open,
            "one that opens is waited for, one that closes is closed"
        );
        connection.state = State::Closing;
        let lane = &mut self.destinations.lanes[connection.lane as usize];
        lane.active -= 1;
        let destination = &mut self.destinations.slab[lane.destination as usize];
        destination.open -= 1;
        destination.queues.closing += 1;
        self.homes[usize::from(lane.home)].queues.closing += 1;
        actions.push(Action::Close { home: lane.home, conn: self.connections.id(conn) });
    }

    /// A connection that is being opened is to go no further.
    pub(super) fn close_opening(&mut self, conn: u32, actions: &mut Vec<Action>) {
        let connection = &mut self.connections.slab[conn as usize];
        debug_assert_eq!(connection.state, State::Opening);
        connection.state = State::Closing;
        let lane = &mut self.destinations.lanes[connection.lane as usize];
        lane.opening -= 1;
        lane.active -= 1;
        self.destinations.slab[lane.destination as usize].queues.closing += 1;
        self.homes[usize::from(lane.home)].queues.closing += 1;
        actions.push(Action::Close { home: lane.home, conn: self.connections.id(conn) });
    }

    /// The connection is gone: forgets it and passes its slots on.
    pub(super) fn release(&mut self, conn: u32, actions: &mut Vec<Action>) {
        self.stop_asking(conn);
        let connection = self.connections.slab.remove(conn as usize);
        if let Some(keys) = &connection.permit {
            self.pools.give_back(keys, Wanted::Connection, actions);
        }
        let id = connection.lane;
        let lane = &mut self.destinations.lanes[id as usize];
        let (destination_id, home_id) = (lane.destination, lane.home);
        let destination = &mut self.destinations.slab[destination_id as usize];
        let home = &mut self.homes[usize::from(home_id)];
        match connection.state {
            State::Opening => {
                lane.opening -= 1;
                lane.active -= 1;
            }
            State::Open => {
                lane.active -= 1;
                destination.open -= 1;
            }
            State::Closing => {
                destination.queues.closing -= 1;
                home.queues.closing -= 1;
            }
        }
        lane.used -= 1;
        destination.used -= 1;
        home.used -= 1;
        self.grant_destination(destination_id, actions);
        self.grant_home(home_id, actions);
        self.seek(id, actions);
        self.tidy_lane(id);
    }

    /// Gives the destination's free slots to the lanes that queue for them.
    pub(super) fn grant_destination(&mut self, destination: u32, actions: &mut Vec<Action>) {
        while !self.destination_full(destination) && self.connection_is_due(destination) {
            let front = self.destinations.slab[destination as usize].queues.front();
            let Some(lane) = front else { return };
            self.grant(lane, Queue::DestinationGrowing, actions);
        }
    }

    /// Gives the home's free slots to the lanes that queue for them.
    fn grant_home(&mut self, home: u8, actions: &mut Vec<Action>) {
        while !self.home_full(home) {
            let Some(lane) = self.homes[usize::from(home)].queues.front() else { return };
            self.grant(lane, Queue::HomeGrowing, actions);
        }
    }

    /// One connection for the lane that is first in line; for the next it stands at the end.
    fn grant(&mut self, lane: u32, end: Queue, actions: &mut Vec<Action>) {
        self.set_queue(lane, Queue::None);
        if self.admit(lane, actions) && self.could_use_another(lane) {
            self.set_queue(lane, end);
        }
    }

    /// Forgets the lane if it has neither ready mail nor connections.
    pub(super) fn tidy_lane(&mut self, id: u32) {
        let lane = &self.destinations.lanes[id as usize];
        if lane.ready.len == 0 && lane.used == 0 {
            self.set_queue(id, Queue::None);
            self.forget_turn(id);
            self.destinations.remove_lane(id);
        }
    }
}
