//! A client's way from `accept` to its session.
//!
//! Owns: the order of what comes before the first reply: the PROXY header, the gate, the TLS handshake of a
//! `--submissions` listener, the pause before the greeting. Promises: each of them has a bound in time;
//! whoever fails one costs a connection for a moment and nothing else. Must not: know SMTP beyond the
//! replies with which it turns a client away.
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::Worker;
use super::doors::{Doors, Service};
use super::gate::{Place, Refused};
use super::inbound::{Ended, Talk};
use super::wire::Wire;
use crate::limits;
use crate::ring::{self, Listener, Stream};
use crate::smtp::proxy::{self, Origin};
use crate::tls;

/// RFC 5321 §3.1 has the server speak first; what speaks before it is no mail client. (After 554 the
/// connection would have to stay until QUIT.)
const SPOKE_FIRST: &str = "Wait for the greeting before you speak";
/// Whom the client of a proxy that does not know it is taken for: nobody in particular, who has no rights unless
/// everyone has, and all of whom share the limits of one.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A client that may have a session.
pub struct Arrival {
    pub wire: Wire,
    /// Whom it is taken for: a proxy's client where a PROXY header says so.
    pub client: SocketAddr,
    pub service: Service,
    pub place: Place,
    pub doors: std::sync::Arc<Doors>,
    /// The handshake that the connection began with.
    pub tls: Option<tls::Session>,
    /// What was read behind a PROXY header.
    pub early: Vec<u8>,
}

/// Accepts until the listener is closed.
pub async fn accept(worker: Rc<Worker>, listener: Listener, service: Service) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let worker = worker.clone();
                ring::spawn(async move { serve(worker, stream, from, service).await });
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => return,
            Err(error) => {
                // Out of descriptors, most likely: sessions that end will free some.
                tracing::warn!(%error, "accepting a connection failed");
                ring::sleep(limits::ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

async fn serve(worker: Rc<Worker>, stream: Stream, from: SocketAddr, service: Service) {
    let key = worker.sessions.borrow_mut().insert(stream.clone());
    let ended = match worker.shared.gate.enter() {
        Some(place) => visit(&worker, &stream, from, service, place).await,
        None => Box::pin(turn_away(&worker, &mut Wire::new(stream.clone()), service, Refused::Crowded)).await,
    };
    worker.sessions.borrow_mut().remove(key);
    match ended {
        // We said the last word: let the peer read it before the socket goes.
        Ended::ByUs => {
            stream.close_after_peer(limits::GOODBYE_WAIT).await;
        }
        Ended::ByPeer => stream.close().await,
    }
    worker.session_gone.raise();
}

async fn visit(
    worker: &Rc<Worker>,
    stream: &Stream,
    from: SocketAddr,
    service: Service,
    place: Place,
) -> Ended {
    let shared = &worker.shared;
    let (wire, doors) = (Wire::new(stream.clone()), shared.doors.load_full());
    // Boxed: what a task hands on by value it keeps the room of.
    let mut arrival =
        Box::new(Arrival { wire, client: from, service, place, doors, tls: None, early: Vec::new() });
    if shared.config.proxy_from.iter().any(|network| network.contains(from.ip())) {
        match Box::pin(read_proxy_header(&mut arrival.wire)).await {
            Ok((origin, rest)) => {
                arrival.early = rest;
                arrival.client = match origin {
                    Origin::Client(client) => client,
                    Origin::Proxy => from,
                    Origin::Unknown => UNKNOWN,
                };
            }
            Err(why) => {
                tracing::warn!(proxy = %from, why, "a connection of a --proxy-from network is closed");
                worker.counters.refused_connections.add(1);
                return Ended::ByPeer;
            }
        }
    }
    let client = arrival.client.ip();
    let trusted = shared.may_relay(client);
    if let Err(refused) = arrival.place.admit(client, trusted, worker.clock.tick()) {
        return Box::pin(turn_away(worker, &mut arrival.wire, service, refused)).await;
    }
    worker.counters.connections.add(1);
    worker.counters.sessions_open.add(1);
    let ended = greet(worker, arrival, trusted).await;
    worker.counters.sessions_open.sub(1);
    ended
}

/// What comes between the gate and the session.
async fn greet(worker: &Rc<Worker>, mut arrival: Box<Arrival>, trusted: bool) -> Ended {
    if arrival.service == Service::Submissions {
        let early = std::mem::take(&mut arrival.early);
        match Box::pin(handshake(worker, &mut arrival.wire, &arrival.doors, arrival.client.ip(), early)).await
        {
            Some(session) => arrival.tls = Some(session),
            None => return Ended::ByPeer,
        }
    } else if !worker.shared.config.greet_pause.is_zero() && !trusted {
        match Box::pin(pause(worker, &mut arrival)).await {
            Pause::Kept => {}
            Pause::Left => return Ended::ByPeer,
            Pause::Spoken => {
                tracing::info!(client = %arrival.client.ip(), "a client spoke before the greeting");
                worker.shared.gate.erred(arrival.client.ip(), 1, worker.clock.tick());
                worker.counters.early_talkers.add(1);
                let reply = format!("421 4.7.0 {} {SPOKE_FIRST}\r\n", worker.shared.config.hostname);
                let _ = arrival.wire.write_all(reply.into(), limits::GOODBYE_WAIT).await;
                return Ended::ByUs;
            }
        }
    }
    Talk::new(worker.clone(), *arrival).run().await
}

/// What a client does in the pause before the greeting.
enum Pause {
    Kept,
    Spoken,
    Left,
}

async fn pause(worker: &Rc<Worker>, arrival: &mut Arrival) -> Pause {
    if !arrival.early.is_empty() {
        return Pause::Spoken;
    }
    match arrival.wire.readable(worker.shared.config.greet_pause).await {
        Err(error) => match error.kind() {
            // Also where the server stops: the session says so.
            ErrorKind::TimedOut | ErrorKind::Interrupted => Pause::Kept,
            _ => Pause::Left,
        },
        // Something to read is the end of the stream, where the client has closed.
        Ok(()) => match arrival.wire.read(Vec::with_capacity(1), limits::GOODBYE_WAIT).await.0 {
            Ok(0) | Err(_) => Pause::Left,
            Ok(_) => Pause::Spoken,
        },
    }
}

/// Does the handshake; none if it fails, which is counted.
pub async fn handshake(
    worker: &Rc<Worker>,
    wire: &mut Wire,
    doors: &Doors,
    client: IpAddr,
    early: Vec<u8>,
) -> Option<tls::Session> {
    let tls = doors.tls.as_ref()?;
    match wire.start_tls(tls, early, limits::TLS_ACCEPT_WAIT).await {
        Ok(session) => {
            worker.counters.tls_handshakes.add(1);
            worker.counters.tls_resumed.add(u64::from(session.resumed));
            Some(session)
        }
        Err(error) => {
            tracing::debug!(%client, %error, "a TLS handshake failed");
            worker.counters.tls_failures.add(1);
            if !worker.shared.may_relay(client) {
                worker.shared.gate.erred(client, 1, worker.clock.tick());
            }
            None
        }
    }
}

async fn turn_away(worker: &Worker, wire: &mut Wire, service: Service, why: Refused) -> Ended {
    worker.counters.refused_connections.add(1);
    // A client that begins with a handshake would not understand a reply.
    if service != Service::Submissions {
        let reply = why.reply(&worker.shared.config.hostname);
        let _ = wire.write_all(reply.into(), limits::GOODBYE_WAIT).await;
    }
    Ended::ByUs
}

/// Reads the PROXY header: whose connection it says this is, and what was read behind it.
async fn read_proxy_header(wire: &mut Wire) -> Result<(Origin, Vec<u8>), String> {
    let deadline = ring::now().saturating_add(limits::PROXY_HEADER_WAIT);
    let mut input = Vec::with_capacity(limits::PROXY_HEADER_BYTES);
    loop {
        match proxy::read(&input) {
            Ok(Some(header)) => return Ok((header.origin, input.split_off(header.bytes))),
            Ok(None) => {}
            Err(why) => return Err(why.to_string()),
        }
        let (result, back) = wire.read(input, deadline.since(ring::now())).await;
        input = back;
        match result {
            Ok(0) => return Err("it ended before its PROXY header did".into()),
            Ok(_) => {}
            Err(error) => return Err(format!("no PROXY header came: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a task of ours holds, whatever it waits for.
    fn bytes<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_silent_session_is_small() {
        type Accepted = (Rc<Worker>, Stream, SocketAddr, Service);
        let task = bytes(|(worker, stream, from, service): Accepted| serve(worker, stream, from, service));
        println!("{task} bytes of task, {} of session", size_of::<Talk>());
        assert!(task + size_of::<Talk>() <= limits::IDLE_SESSION_BYTES, "{task} + {}", size_of::<Talk>());
    }
}
