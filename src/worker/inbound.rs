//! The inbound driver: one task per SMTP session.
//!
//! Owns: the loop that feeds the sans-IO session with what the socket gave, stores the messages it
//! yields, and sends its replies. Promises: a reply to the end of data goes out only when the commit's
//! fate is known (RFC 5321 §4.2.5, §6.1); a session holds one small buffer while it talks commands, and none
//! while it is silent; no wait is without a bound, and a trickle of bytes renews none (RFC 5321 §4.5.3.2).
//! Must not: know the grammar of SMTP.
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::Worker;
use super::incoming::{Incoming, LEAST_READ, Stored};
use super::patience::{Patience, Waits};
use crate::clock::Tick;
use crate::events::Event;
use crate::limits;
use crate::ring::{self, Listener, Stream};
use crate::smtp::server::{Goodbye, Peer, ServerSession, Step, Verdict};

/// Accepts until the listener is closed.
pub async fn accept(worker: Rc<Worker>, listener: Listener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let worker = worker.clone();
                ring::spawn(async move { serve(worker, stream, peer).await });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => return,
            Err(error) => {
                // Out of descriptors, most likely: sessions that end will free some.
                tracing::warn!(%error, "accepting a connection failed");
                ring::sleep(limits::ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

async fn serve(worker: Rc<Worker>, stream: Stream, peer: SocketAddr) {
    let Some(_admitted) = worker.shared.gate.admit(peer.ip()) else {
        worker.counters.refused_connections.add(1);
        let text = b"421 4.7.0 too many connections, try again later\r\n".to_vec();
        let _ = stream.write_all(text, limits::GOODBYE_WAIT).await;
        stream.close().await;
        return;
    };
    worker.counters.connections.add(1);
    worker.counters.sessions_open.add(1);
    let key = worker.sessions.borrow_mut().insert(stream.clone());
    let talk = Talk::new(worker.clone(), stream.clone(), peer).run().await;
    worker.sessions.borrow_mut().remove(key);
    worker.counters.sessions_open.sub(1);
    match talk {
        // We said the last word: let the peer read it before the socket goes.
        Ended::ByUs => {
            stream.close_after_peer(limits::GOODBYE_WAIT).await;
        }
        Ended::ByPeer => stream.close().await,
    }
    worker.session_gone.raise();
}

/// Who ended the session.
enum Ended {
    ByUs,
    ByPeer,
}

/// One session at work.
struct Talk {
    worker: Rc<Worker>,
    stream: Stream,
    peer: SocketAddr,
    session: ServerSession,
    /// What was read; `input[start..]` is not yet consumed.
    input: Vec<u8>,
    start: usize,
    replies: Vec<u8>,
    incoming: Option<Incoming>,
    patience: Patience,
    /// When the input was read.
    heard: Tick,
}

impl Talk {
    fn new(worker: Rc<Worker>, stream: Stream, peer: SocketAddr) -> Talk {
        let may_relay = worker.shared.may_relay(peer.ip());
        let addr = peer.ip().to_canonical();
        let session = ServerSession::new(worker.shared.smtp.clone(), Peer::new(addr, may_relay));
        let config = &worker.shared.config;
        let waits = Waits { command: config.command_wait, data: config.data_wait };
        Talk {
            worker,
            stream,
            peer,
            session,
            input: Vec::new(),
            start: 0,
            replies: Vec::new(),
            incoming: None,
            patience: Patience::new(waits, ring::now()),
            heard: ring::now(),
        }
    }

    async fn run(mut self) -> Ended {
        self.session.greet(&mut self.replies);
        loop {
            if self.worker.draining.get() && self.incoming.is_none() {
                return self.say_goodbye(Goodbye::Stopping).await;
            }
            if !self.flush().await {
                return Ended::ByPeer;
            }
            // The stop may have come while the replies went out.
            if self.worker.draining.get() && self.incoming.is_none() {
                continue;
            }
            match self.read().await {
                Read::Some => {}
                Read::End => return Ended::ByPeer,
                Read::TimedOut => return self.say_goodbye(Goodbye::TimedOut).await,
            }
            self.heard = ring::now();
            if self.work().await {
                self.flush().await;
                return Ended::ByUs;
            }
        }
    }

    async fn say_goodbye(&mut self, why: Goodbye) -> Ended {
        self.session.say_goodbye(why, &mut self.replies);
        self.flush().await;
        Ended::ByUs
    }

    /// Sends the replies; false if the peer does not take them.
    async fn flush(&mut self) -> bool {
        if self.replies.is_empty() {
            return true;
        }
        let replies = std::mem::take(&mut self.replies);
        let (result, mut replies) = self.stream.write_all(replies, limits::REPLY_WRITE_WAIT).await;
        replies.clear();
        self.replies = replies;
        result.is_ok()
    }

    /// Reads more behind what is not yet consumed.
    async fn read(&mut self) -> Read {
        let left = self.patience.left(ring::now());
        if left.is_zero() {
            return Read::TimedOut;
        }
        if let Some(incoming) = self.incoming.as_mut().filter(|i| i.is_direct()) {
            return match incoming.read(&self.stream, left).await {
                Ok(0) => Read::End,
                Ok(_) => Read::Some,
                Err(error) => Read::from_error(&error),
            };
        }
        if self.session.in_body() {
            return self.read_within(left).await;
        }
        let soon = left.min(limits::IDLE_AFTER);
        match self.read_within(soon).await {
            Read::TimedOut if soon < left => self.read_when_it_speaks().await,
            read => read,
        }
    }

    async fn read_within(&mut self, wait: Duration) -> Read {
        self.make_room();
        let input = std::mem::take(&mut self.input);
        let (result, input) = self.stream.read(input, wait).await;
        self.input = input;
        match result {
            Ok(0) => Read::End,
            Ok(_) => Read::Some,
            // Woken because the server stops; the caller looks again.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Read::Some,
            Err(error) => Read::from_error(&error),
        }
    }

    /// Waits for a client that has been silent for a while, holding no more than it has sent, and makes
    /// room for others where the server is nearly full.
    async fn read_when_it_speaks(&mut self) -> Read {
        self.input.shrink_to_fit();
        self.replies = Vec::new();
        loop {
            let left = self.patience.left(ring::now());
            match self.stream.readable(left.min(limits::CROWDED_WAIT)).await {
                Ok(()) => return self.read_within(left).await,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    if left <= limits::CROWDED_WAIT || self.worker.shared.gate.is_crowded() {
                        return Read::TimedOut;
                    }
                }
                Err(error) => return Read::from_error(&error),
            }
        }
    }

    /// Moves the unconsumed rest to the front. A body deserves a larger buffer than commands do.
    fn make_room(&mut self) {
        if self.start == self.input.len() {
            self.input.clear();
        } else if self.start > 0 {
            self.input.drain(..self.start);
        }
        self.start = 0;
        if self.input.capacity() > limits::SESSION_BUFFER_BYTES {
            self.input.shrink_to(limits::SESSION_BUFFER_BYTES);
        }
        let len = self.input.len();
        if len == self.input.capacity() {
            self.input.reserve_exact(limits::SESSION_BUFFER_BYTES.saturating_sub(len).max(len));
        }
    }

    /// Takes note of what a step has made of the input: bytes of a body, or something whole, which is
    /// answered. Bytes of a command alone are no progress.
    fn heed(&mut self, consumed: usize, is_whole: bool) {
        if self.session.in_body() {
            self.patience.body(consumed, self.heard);
        } else if is_whole {
            self.patience.renew(self.heard);
        }
    }

    /// Makes all it can of the input. True when the session is over.
    async fn work(&mut self) -> bool {
        loop {
            if self.incoming.as_ref().is_some_and(Incoming::is_direct) {
                if !self.work_direct().await {
                    return false;
                }
                continue;
            }
            // A client that pipelines without pause would else keep a stopping server busy.
            if self.worker.draining.get() && self.incoming.is_none() {
                self.session.say_goodbye(Goodbye::Stopping, &mut self.replies);
                return true;
            }
            let answered = self.replies.len();
            let (consumed, step) = self.session.step(&self.input[self.start..], &mut self.replies);
            self.heed(consumed, step != Step::More || self.replies.len() != answered);
            match step {
                Step::More => {
                    self.start += consumed;
                    // A session that keeps its replies back makes progress once they are sent.
                    if self.replies.len() >= limits::REPLY_BYTES && self.start < self.input.len() {
                        if !self.flush().await {
                            return true;
                        }
                        continue;
                    }
                    return false;
                }
                Step::BodyStarts => {
                    self.start += consumed;
                    self.incoming = Some(Incoming::begin(&self.worker, &self.session, self.peer.ip()));
                }
                Step::Body(range) => {
                    if let Some(incoming) = &mut self.incoming {
                        incoming.take(&self.input[self.start..][range]);
                    }
                    self.start += consumed;
                    self.maybe_go_direct().await;
                }
                Step::BodyRefused => {
                    self.start += consumed;
                    self.drop_incoming();
                }
                Step::BodyEnds => {
                    self.start += consumed;
                    self.finish_message().await;
                }
                Step::Close => return true,
            }
        }
    }

    /// Once a body has outgrown the copy path, what follows is received into fragment buffers.
    async fn maybe_go_direct(&mut self) {
        let Some(incoming) = &mut self.incoming else { return };
        // With more than that left the body is about to end: the rest is the next commands.
        if incoming.wants_direct() && self.input.len() - self.start < LEAST_READ {
            let rest = self.input[self.start..].to_vec();
            let begun = ring::now();
            incoming.go_direct(&self.worker, &rest).await;
            self.patience.forgive(ring::now().since(begun));
            self.input.clear();
            self.start = 0;
        }
    }

    /// Feeds the session from the fragment buffer. False when more must be read.
    async fn work_direct(&mut self) -> bool {
        let incoming = self.incoming.as_mut().expect("the caller has looked");
        let (consumed, step) = self.session.step(incoming.unconsumed(), &mut self.replies);
        self.patience.body(consumed, self.heard);
        match step {
            Step::More => {
                let begun = ring::now();
                incoming.make_room(&self.worker).await;
                self.patience.forgive(ring::now().since(begun));
                false
            }
            Step::Body(range) => {
                debug_assert_eq!(range.start, 0, "body bytes are contiguous");
                incoming.consume(range.len());
                incoming.skip(consumed - range.len());
                true
            }
            Step::BodyRefused => {
                incoming.skip(consumed);
                self.input.extend_from_slice(incoming.unconsumed());
                self.drop_incoming();
                true
            }
            Step::BodyEnds => {
                incoming.skip(consumed);
                self.input.extend_from_slice(incoming.unconsumed());
                self.finish_message().await;
                true
            }
            Step::BodyStarts | Step::Close => unreachable!("a body can only go on, end or be refused"),
        }
    }

    fn drop_incoming(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            incoming.discard();
        }
        self.worker.counters.rejected_permanently.add(1);
    }

    /// Stores the message and answers for it.
    async fn finish_message(&mut self) {
        let incoming = self.incoming.take().expect("BodyEnds follows BodyStarts");
        let transaction = self.session.take_transaction();
        let stored = incoming.store(&self.worker, transaction.envelope).await;
        let verdict = match stored {
            Stored::Durable { slot, message, bytes } => {
                let worker = &self.worker;
                worker.counters.accepted.add(1);
                worker.counters.accepted_recipients.add(message.envelope.recipients.len() as u64);
                worker.counters.accepted_bytes.add(bytes);
                if worker.shared.events.is_on() {
                    worker.shared.events.send(
                        worker.clock.now(),
                        Event::Received {
                            id: message.id,
                            from: message
                                .envelope
                                .reverse_path
                                .as_ref()
                                .map_or(String::new(), ToString::to_string),
                            recipients: message
                                .envelope
                                .recipients
                                .iter()
                                .map(|r| r.address.to_string())
                                .collect(),
                            bytes,
                            client: message.envelope.client,
                        },
                    );
                }
                worker.enqueue(worker.inbox(), slot, &message.envelope);
                Verdict::Accepted(message.id)
            }
            Stored::NoRoom => Verdict::NoRoom,
            Stored::Failed => Verdict::Failed,
            Stored::Loop => Verdict::Loop,
        };
        match verdict {
            Verdict::Accepted(_) => {}
            Verdict::Loop => self.worker.counters.rejected_permanently.add(1),
            Verdict::NoRoom | Verdict::Failed => self.worker.counters.rejected_temporarily.add(1),
        }
        self.session.finish(verdict, &mut self.replies);
        self.patience.renew(ring::now());
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            incoming.discard();
        }
    }
}

enum Read {
    Some,
    End,
    TimedOut,
}

impl Read {
    fn from_error(error: &std::io::Error) -> Read {
        match error.kind() {
            std::io::ErrorKind::TimedOut => Read::TimedOut,
            std::io::ErrorKind::Interrupted => Read::Some,
            _ => Read::End,
        }
    }
}
