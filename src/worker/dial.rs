//! From a destination to a connection that is ready for mail.
//!
//! Owns: the order of attempts: route, DNS, plan, each target in turn, TLS where it is offered
//! (RFC 5321 §5, RFC 3207). Promises: bounded attempts and waits; a failure says whether it is final and
//! in whose words. Must not: send mail.
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use super::link::Link;
use super::policies::{provider_of, sources_of};
use super::post::ShardEvent;
use crate::config::Source;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::reply::Reply;
use crate::resolve::{Answer, Query};
use crate::ring::Stream;
use crate::route::{self, MxHost, Plan, PlanRules, Route, Target};
use crate::schedule::{SourceSet, shard_of};
use crate::smtp::client::{ClientConfig, ClientEvent, ClientPhase, ClientSession};

/// A connection whose greeting, EHLO and TLS are done.
pub struct Dialled {
    pub link: Link,
    pub session: ClientSession,
    pub host: Rc<str>,
    /// Commands the session wants sent (none as a rule).
    pub out: Vec<u8>,
}

pub enum DialError {
    /// Nothing was tried; a resource of ours is short.
    PutOff,
    Failed {
        permanent: bool,
        reply: Reply,
    },
}

fn failed(reply: Reply) -> DialError {
    DialError::Failed { permanent: reply.is_permanent(), reply }
}

/// Where a connection may go, before it goes anywhere.
pub struct Way {
    /// In the order in which they are tried.
    pub legs: Vec<Leg>,
    /// A name for the set of MX hosts; None: a route of the operator's.
    pub hosts: Option<u64>,
    /// Whose hosts they are; 0: nobody known.
    pub provider: u16,
}

/// Addresses to try one after the other, and from where.
pub struct Leg {
    targets: Vec<Target>,
    /// Of the targets' family; empty: the kernel's choice, for targets of any.
    sources: Vec<Source>,
}

impl Leg {
    /// The name of the local addresses it may use; None: the kernel's choice.
    pub fn set(&self) -> Option<SourceSet> {
        let addresses: Vec<IpAddr> = self.sources.iter().map(|source| source.address).collect();
        (!addresses.is_empty()).then(|| SourceSet::of(&addresses))
    }
}

impl Way {
    /// Tries what that local address can reach first.
    pub fn begin_with(&mut self, source: IpAddr) {
        self.legs.sort_by_key(|leg| !leg.sources.iter().any(|own| own.address == source));
    }

    /// Cuts the targets where the family of their addresses changes, if there are local addresses to be kept
    /// to. What none of those reaches is left out.
    fn cut(targets: Vec<Target>, known: &[Source], allowed: Option<&[IpAddr]>) -> Result<Vec<Leg>, Reply> {
        if known.is_empty() {
            return Ok(vec![Leg { targets, sources: Vec::new() }]);
        }
        let family = |target: &Target| target.address.is_ipv4();
        let mut unreached = None;
        let mut legs = Vec::new();
        for targets in targets.chunk_by(|a, b| family(a) == family(b)) {
            let sources = sources_of(known, allowed, family(&targets[0]));
            if sources.is_empty() {
                unreached = Some(targets[0].clone());
            } else {
                legs.push(Leg { targets: targets.to_vec(), sources });
            }
        }
        match unreached {
            Some(target) if legs.is_empty() => {
                let (ip, family) = (target.address.ip(), if family(&target) { "IPv4" } else { "IPv6" });
                let text = format!("{} has {ip} alone, and no --source for it is {family}", target.name);
                Err(Reply::local(451, (4, 4, 4), &text))
            }
            _ => Ok(legs),
        }
    }
}

/// Finds the hosts of a destination.
pub async fn find(worker: &Rc<Worker>, destination: &Domain) -> Result<Way, DialError> {
    let before = worker.shared.providers.get(destination);
    let way = targets(worker, destination).await?;
    let provider = way.provider;
    if before != provider && !learn(worker, destination, provider) {
        // Others are on their way already, and how many may be is another question now.
        return Err(DialError::PutOff);
    }
    Ok(way)
}

/// Connects to the first of the hosts that lets us, from the local address `source` if one is named.
pub async fn dial(worker: &Rc<Worker>, leg: &Leg, source: Option<IpAddr>) -> Result<Dialled, DialError> {
    let from = match source {
        Some(address) => match leg.sources.iter().find(|own| own.address == address) {
            Some(own) => std::slice::from_ref(own),
            // The configuration has changed meanwhile.
            None => return Err(DialError::PutOff),
        },
        None => &leg.sources[..],
    };
    let mut last = Reply::local(450, (4, 4, 1), "no host could be reached");
    for target in &leg.targets {
        match reach(worker, target, worker.next_source(from), true).await {
            Ok(dialled) => return Ok(dialled),
            // TLS that fails is worse than none only to those who demand it: try once in the clear.
            Err(Unreached::Tls(reply)) => {
                match reach(worker, target, worker.next_source(from), false).await {
                    Ok(dialled) => return Ok(dialled),
                    Err(Unreached::Tls(_)) => last = reply,
                    Err(Unreached::Host(reply)) => last = reply,
                    Err(Unreached::Ours) => return Err(DialError::PutOff),
                }
            }
            Err(Unreached::Host(reply)) => last = reply,
            Err(Unreached::Ours) => return Err(DialError::PutOff),
        }
        if worker.draining.get() {
            break;
        }
    }
    // A greeting of 5xx condemns a host, not the mail: another host or a later try may take it
    // (RFC 5321 §3.1 lets a server refuse a client for now).
    Err(DialError::Failed { permanent: false, reply: last })
}

/// DNS has said that another provider runs the mail of a destination than was known: its shard finds the
/// limits anew. True for the first who learns it.
fn learn(worker: &Rc<Worker>, destination: &Domain, provider: u16) -> bool {
    let first = worker.shared.providers.learn(destination, provider);
    if first {
        let shard = shard_of(destination, worker.shared.config.workers);
        worker.tell_shard(shard, ShardEvent::Learnt { destination: destination.clone() });
    }
    first
}

/// Where to connect, in order, and whose hosts these are.
async fn targets(worker: &Rc<Worker>, destination: &Domain) -> Result<Way, DialError> {
    let live = worker.live();
    let config = &live.config;
    let (query, port) = match config.routes.lookup(destination) {
        Route::Fixed(address) => {
            let targets = vec![Target { name: format!("[{}]", address.ip()).into(), address }];
            return way(worker, destination, targets, (None, 0));
        }
        Route::Literal(ip) => {
            let host = MxHost { preference: 0, name: destination.clone(), addresses: vec![ip] };
            let targets = plan(worker, &[host], config.mx_port, config.allow_private_mx)?;
            return way(worker, destination, targets, (None, 0));
        }
        Route::Host(name, port) => (Query::Host(name), port),
        Route::Mx(domain) => (Query::Mail(domain), config.mx_port),
    };
    let is_mx = matches!(query, Query::Mail(_));
    // A host named by the operator may be anywhere; one named by DNS may not.
    let allow_private = config.allow_private_mx || matches!(query, Query::Host(_));
    let (tell, told) = tokio::sync::oneshot::channel();
    let reply = Box::new(move |answer: Arc<Answer>| {
        let _ = tell.send(answer);
    });
    if worker.shared.resolver.ask(query, reply).is_err() {
        worker.counters.dns_busy.add(1);
        return Err(DialError::PutOff);
    }
    let Ok(answer) = told.await else { return Err(DialError::PutOff) };
    match &*answer {
        Answer::Hosts(hosts) => {
            let hosts: Vec<MxHost> = hosts
                .iter()
                .map(|h| MxHost {
                    preference: h.preference,
                    name: h.name.clone(),
                    addresses: h.addresses.clone(),
                })
                .collect();
            let provider = provider_of(&config.rules, &hosts);
            let site = is_mx.then(|| name_of(&hosts));
            way(worker, destination, plan(worker, &hosts, port, allow_private)?, (site, provider))
        }
        other => Err(failed(other.failure().expect("all but Hosts are failures"))),
    }
}

/// The targets and from where they are reached.
fn way(
    worker: &Rc<Worker>,
    destination: &Domain,
    targets: Vec<Target>,
    (hosts, provider): (Option<u64>, u16),
) -> Result<Way, DialError> {
    let live = worker.live();
    let config = &live.config;
    let allowed = match config.sources.is_empty() {
        true => None,
        false => config.rules.knobs(config.rules.rule_of(destination), provider).sources,
    };
    let legs = Way::cut(targets, &config.sources, allowed.as_deref()).map_err(failed)?;
    Ok(Way { legs, hosts, provider })
}

/// The set of hosts as a number: the same for all domains whose mail they take.
fn name_of(hosts: &[MxHost]) -> u64 {
    let mut names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    xxhash_rust::xxh3::xxh3_64(names.join(" ").as_bytes())
}

fn plan(worker: &Worker, hosts: &[MxHost], port: u16, allow_private: bool) -> Result<Vec<Target>, DialError> {
    let rules = PlanRules {
        port,
        allow_private,
        own_names: &worker.shared.own_names,
        own_addresses: &worker.shared.own_addresses,
    };
    match route::plan(hosts, &rules, &mut worker.rng.borrow_mut()) {
        Plan::Targets(targets) => Ok(targets),
        Plan::Refused { enhanced, text } => Err(failed(Reply::local(554, enhanced, text))),
        Plan::Nowhere { text } => Err(failed(Reply::local(451, (4, 4, 4), text))),
    }
}

enum Unreached {
    Host(Reply),
    Tls(Reply),
    /// It failed for lack of something of ours: the host has not been tried.
    Ours,
}

/// Whether an error says that descriptors, memory, ports or the `--source` address are missing here.
fn is_ours(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let ours =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|e| e.raw_os_error() == code))
}

fn lost(host: &str, error: &std::io::Error) -> Reply {
    let text = match error.kind() {
        std::io::ErrorKind::TimedOut => format!("{host} did not answer in time"),
        _ => format!("connection to {host} failed: {error}"),
    };
    Reply::local(450, (4, 4, 1), &text)
}

/// Connects to one address and brings the session to where it can take mail.
async fn reach(
    worker: &Rc<Worker>,
    target: &Target,
    source: Option<&Source>,
    starttls: bool,
) -> Result<Dialled, Unreached> {
    let local = source.map(|s| s.address);
    let ehlo_name = source.map_or(&*worker.shared.config.hostname, |s| &s.ehlo_name);
    let stream = Stream::connect(target.address, local, limits::CONNECT_WAIT).await.map_err(|error| {
        if is_ours(&error) {
            tracing::warn!(host = &*target.name, source = ?local, %error, "cannot open a connection");
            return Unreached::Ours;
        }
        Unreached::Host(lost(&target.name, &error))
    })?;
    let mut link = Link::new(stream);
    let mut session = ClientSession::new(ClientConfig { ehlo_name: ehlo_name.into(), starttls });
    let mut out = Vec::with_capacity(512);
    let result = greet(worker, target, &mut link, &mut session, &mut out).await;
    match result {
        Ok(()) => Ok(Dialled { link, session, host: Rc::from(&*target.name), out }),
        Err(unreached) => {
            link.close().await;
            Err(unreached)
        }
    }
}

async fn greet(
    worker: &Rc<Worker>,
    target: &Target,
    link: &mut Link,
    session: &mut ClientSession,
    out: &mut Vec<u8>,
) -> Result<(), Unreached> {
    let name = &*target.name;
    loop {
        let (consumed, event) = session.feed(link.input(), out);
        link.consume(consumed);
        match event {
            ClientEvent::Ready => return Ok(()),
            ClientEvent::StartTls => {
                if let Err(error) = link.start_tls(&worker.shared.tls, name, limits::TLS_HANDSHAKE_WAIT).await
                {
                    let text = format!("TLS with {name} failed: {error}");
                    return Err(Unreached::Tls(Reply::local(454, (4, 7, 5), &text)));
                }
                session.tls_established(out);
            }
            ClientEvent::Failed(reply) => return Err(Unreached::Host(reply)),
            ClientEvent::Bye => {
                let text = format!("{name} closed the session");
                return Err(Unreached::Host(Reply::local(450, (4, 4, 2), &text)));
            }
            ClientEvent::SendBody { .. } | ClientEvent::Done { .. } => {
                unreachable!("no transaction has been started")
            }
            ClientEvent::More => {
                link.send(out, limits::COMMAND_REPLY_WAIT)
                    .await
                    .map_err(|e| Unreached::Host(lost(name, &e)))?;
                let wait = match session.phase() {
                    ClientPhase::Greeting => limits::GREETING_WAIT,
                    _ => limits::COMMAND_REPLY_WAIT,
                };
                let read = link.receive(wait).await.map_err(|e| Unreached::Host(lost(name, &e)))?;
                if read == 0 {
                    let text = format!("{name} closed the connection before it was ready");
                    return Err(Unreached::Host(Reply::local(450, (4, 4, 2), &text)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_cut_by_the_addresses_that_reach_them() {
        let target =
            |text: &str| Target { name: "mx.test".into(), address: text.parse().expect("an address") };
        let source =
            |text: &str| Source { address: text.parse().expect("an address"), ehlo_name: "a.test".into() };
        let known = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(source);
        let v4: IpAddr = "192.0.2.2".parse().expect("an address");
        let four_six = ["1.1.1.1:25", "[::6]:25", "[::7]:25", "2.2.2.2:25"];
        for (targets, known, allowed, legs) in [
            (&four_six[..], &known[..0], None, Ok(vec![(4, 0)])),
            (&four_six[..], &known[..], None, Ok(vec![(1, 2), (2, 1), (1, 2)])),
            (&four_six[..], &known[..2], None, Ok(vec![(1, 2), (1, 2)])),
            (&four_six[..], &known[..], Some(&[v4][..]), Ok(vec![(1, 1), (1, 1)])),
            (
                &four_six[1..3],
                &known[..2],
                None,
                Err("451 4.4.4 mx.test has ::6 alone, and no --source for it is IPv6"),
            ),
            (&[][..], &known[..], None, Ok(vec![])),
        ] {
            let targets = targets.iter().map(|text| target(text)).collect();
            let cut = Way::cut(targets, known, allowed);
            let sizes = cut
                .as_ref()
                .map(|legs| legs.iter().map(|leg| (leg.targets.len(), leg.sources.len())).collect());
            assert_eq!(sizes.map_err(ToString::to_string), legs.map_err(str::to_owned));
            if let Ok(legs) = cut
                && legs.len() == 3
            {
                let mut way = Way { legs, hosts: None, provider: 0 };
                way.begin_with(known[2].address);
                let order: Vec<usize> = way.legs.iter().map(|leg| leg.targets.len()).collect();
                assert_eq!(order, [2, 1, 1], "what the address reaches comes first");
            }
        }
    }
}
