//! Who the client of a session is: logins, XCLIENT, and what its rates allow.
//!
//! Owns: the driver's answers to the steps of a session that are about the client. Promises: a password is
//! checked on another thread; a failed login is answered late, counted and logged without what was said;
//! who has failed too often is not asked again. Must not: know a mechanism.
use std::net::SocketAddr;
use std::sync::Arc;

use super::inbound::Talk;
use super::{Worker, gate};
use crate::auth::{Bindings, Exchange, Mechanism, Next, User};
use crate::events::Event;
use crate::limits;
use crate::mail::text::printable;
use crate::ring;
use crate::schedule::Rate;
use crate::smtp::sasl::AuthSaid;
use crate::smtp::server::{AuthAnswer, Login, Peer};
use crate::smtp::xclient::Xclient;

/// What a step of an exchange comes to.
enum Verdict {
    Success(Arc<User>),
    Wrong,
    Malformed,
    Busy,
}

impl Talk {
    /// Answers what the client said in an authentication exchange.
    pub(super) async fn authenticate(&mut self, said: AuthSaid) {
        let answer = self.authentication_answer(said).await;
        self.session.answer_auth(answer, &mut self.replies);
    }

    async fn authentication_answer(&mut self, said: AuthSaid) -> AuthAnswer {
        let (worker, client) = (self.worker.clone(), self.client.ip());
        let next = match said {
            // Asked at each turn: others from there may have failed since the last one.
            _ if !worker.shared.gate.may_log_in(client, worker.clock.tick()) => return self.refuse_unseen(),
            AuthSaid::Begin(mechanism, initial) => {
                let doors = worker.shared.doors.load_full();
                let (Some(mechanism), Some(users)) = (Mechanism::of_name(mechanism), doors.users.clone())
                else {
                    return AuthAnswer::Busy;
                };
                let mut exchange = Box::new(Exchange::new(mechanism, users, self.bindings()));
                let next = exchange.begin(initial.as_ref().map(|secret| secret.bytes()));
                self.exchange = Some(exchange);
                next
            }
            AuthSaid::Response(response) => match &mut self.exchange {
                Some(exchange) => exchange.step(response.bytes()),
                None => Next::Malformed,
            },
        };
        let verdict = match next {
            Next::Challenge(challenge) => return AuthAnswer::Challenge(challenge),
            Next::Check(attempt) => match self.login_turn().await {
                gate::Login::No => return self.refuse_unseen(),
                gate::Login::Wait => Verdict::Busy,
                gate::Login::May(_under_way) => match worker.shared.checkers.check(attempt).await {
                    Ok(Some(user)) => Verdict::Success(user),
                    Ok(None) => Verdict::Wrong,
                    Err(_) => Verdict::Busy,
                },
            },
            Next::Success(user) => Verdict::Success(user),
            Next::Wrong => Verdict::Wrong,
            Next::Malformed => Verdict::Malformed,
        };
        self.conclude(verdict).await
    }

    /// Waits while the passwords that are being checked for the same client could use up what may fail.
    async fn login_turn(&self) -> gate::Login {
        let begun = ring::now();
        loop {
            let (gate, now) = (&self.worker.shared.gate, self.worker.clock.tick());
            match gate.begin_login(self.client.ip(), now) {
                gate::Login::Wait if ring::now().since(begun) < limits::LOGIN_TURN_WAIT => {}
                answer => return answer,
            }
            ring::sleep(limits::LOGIN_RETRY_WAIT).await;
        }
    }

    fn refuse_unseen(&mut self) -> AuthAnswer {
        self.exchange = None;
        tracing::warn!(client = %self.client.ip(), "a login is refused unseen: too many have failed from there");
        self.worker.counters.failed_logins.add(1);
        AuthAnswer::TooMany
    }

    /// Ends an exchange.
    async fn conclude(&mut self, verdict: Verdict) -> AuthAnswer {
        let Some(exchange) = self.exchange.take() else { return AuthAnswer::Malformed };
        let (worker, client) = (self.worker.clone(), self.client.ip());
        let name = printable(exchange.name().as_bytes());
        let mechanism = exchange.mechanism().name();
        let done = matches!(verdict, Verdict::Success(_));
        if matches!(verdict, Verdict::Busy) {
            tracing::warn!(%client, "a login was put off: too many passwords wait to be checked");
            worker.counters.busy_logins.add(1);
            return AuthAnswer::Busy;
        }
        if worker.shared.events.is_on() {
            let event = Event::Login { user: name.clone(), client, mechanism, success: done };
            worker.shared.events.send(worker.clock.now(), event);
        }
        match verdict {
            Verdict::Success(user) => {
                worker.counters.logins.add(1);
                let login = Login {
                    user: user.name.clone(),
                    senders: user.senders.clone(),
                    counted: user.rate.is_some(),
                };
                self.user = Some(user);
                AuthAnswer::Success(login)
            }
            _ => {
                worker.counters.failed_logins.add(1);
                worker.shared.gate.login_failed(client, worker.clock.tick());
                tracing::warn!(%client, user = name, mechanism, "a login failed");
                ring::sleep(limits::FAILED_LOGIN_PAUSE).await;
                if matches!(verdict, Verdict::Malformed) { AuthAnswer::Malformed } else { AuthAnswer::Wrong }
            }
        }
    }

    /// What the channel has to bind to.
    pub(super) fn bindings(&self) -> Bindings {
        self.tls.as_ref().map_or_else(Bindings::default, |session| Bindings {
            exporter: session.exporter,
            end_point: session.end_point.clone(),
        })
    }

    /// Whether one more message may come now.
    pub(super) fn admit_mail(&mut self) {
        let (gate, now) = (&self.worker.shared.gate, self.worker.clock.tick());
        let may = match &self.user {
            Some(user) => rate_of(user).is_none_or(|rate| gate.may_submit(&user.name, rate, now)),
            None => gate.may_mail(self.client.ip(), now),
        };
        if !may {
            self.worker.counters.rejected_temporarily.add(1);
        }
        self.session.admit_mail(may, &mut self.replies);
    }

    /// Counts the recipients of a user's message; the first one counted when the message was admitted.
    pub(super) fn count_recipients(&self) {
        let more = self.session.transaction().envelope.recipients.len().saturating_sub(1) as u32;
        if let Some((user, rate)) = self.user.as_ref().and_then(|user| Some((user, rate_of(user)?)))
            && more > 0
        {
            self.worker.shared.gate.submitted(&user.name, rate, more, self.worker.clock.tick());
        }
    }

    /// A proxy has said for whom it speaks. False if that client is not let in.
    pub(super) fn rename(&mut self, said: &Xclient) -> bool {
        self.hold_errors_against_client();
        let (ip, port) = (said.addr.unwrap_or(self.client.ip()), said.port.unwrap_or(self.client.port()));
        self.client = SocketAddr::new(ip, port);
        self.user = None;
        let trusted = self.worker.shared.may_relay(ip);
        if let Err(refused) = self.place.give_to(ip, trusted, self.worker.clock.tick()) {
            self.worker.counters.refused_connections.add(1);
            let reply = refused.reply(&self.worker.shared.config.hostname);
            self.replies.extend_from_slice(reply.as_bytes());
            return false;
        }
        let peer = peer(&self.worker, self.client, self.from);
        self.session.set_peer(peer, said, &mut self.replies);
        true
    }
}

/// A client as its session knows it: `client` is whom it is taken for, `from` who it was when it came.
pub fn peer(worker: &Worker, client: SocketAddr, from: SocketAddr) -> Peer {
    let shared = &worker.shared;
    let may_relay = shared.may_relay(client.ip());
    Peer {
        addr: client.ip().to_canonical(),
        may_relay,
        xclient: shared.config.xclient_from.iter().any(|network| network.contains(from.ip())),
        counted: !may_relay && !client.ip().to_canonical().is_loopback() && shared.gate.counts_messages(),
    }
}

fn rate_of(user: &User) -> Option<Rate> {
    user.rate.map(|(count, per)| Rate::new(count, per))
}
