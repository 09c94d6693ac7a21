//! The DNS thread against a server that answers, lies, stalls and falls silent.
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;

use tokio::sync::Semaphore;

use super::testserver::{self, Zone};
use super::*;

fn domain(name: &str) -> Domain {
    Domain::parse(name.as_bytes()).unwrap()
}

fn mail(name: &str) -> Query {
    Query::Mail(domain(name))
}

fn resolver(server: SocketAddr) -> Resolver {
    Resolver::start(ResolveConfig { servers: vec![server], ..ResolveConfig::default() }).unwrap()
}

fn ask(resolver: &Resolver, query: Query) -> Answer {
    let (send, receive) = std_mpsc::channel();
    resolver.ask(query, Box::new(move |answer| send.send(answer).unwrap())).unwrap();
    let answer = receive.recv_timeout(2 * limits::DNS_LOOKUP_WAIT).expect("every question is answered");
    (*answer).clone()
}

/// `10 mx1.example 192.0.2.1 2001:db8::1; …` for hosts, else the variant's name.
fn shown(answer: &Answer) -> String {
    let Answer::Hosts(hosts) = answer else {
        return match answer {
            Answer::Temporary(cause) => format!("Temporary: {cause}"),
            other => format!("{other:?}"),
        };
    };
    let host = |h: &ResolvedHost| {
        let addresses: String = h.addresses.iter().map(|a| format!(" {a}")).collect();
        format!("{} {}{addresses}", h.preference, h.name)
    };
    hosts.iter().map(host).collect::<Vec<_>>().join("; ")
}

const ZONE: Zone = &[
    ("plain.example", "MX", "20 mx2.example"),
    ("plain.example", "MX", "10 mx1.example"),
    ("plain.example", "MX", "30 MX1.example"),
    ("mx1.example", "A", "192.0.2.1"),
    ("mx1.example", "A", "192.0.2.2"),
    ("mx1.example", "AAAA", "2001:db8::1"),
    ("mx2.example", "A", "192.0.2.3"),
    ("null.example", "MX", "0 ."),
    ("null-and-more.example", "MX", "0 ."),
    ("null-and-more.example", "MX", "10 mx2.example"),
    ("implicit.example", "A", "192.0.2.4"),
    ("implicit.example", "AAAA", "2001:db8::4"),
    ("empty.example", "TXT", ""),
    ("alias.example", "CNAME", "plain.example"),
    ("dangling.example", "CNAME", "absent.example"),
    ("mx-alias.example", "MX", "5 host-alias.example"),
    ("host-alias.example", "CNAME", "mx2.example"),
    ("servfail.example", "*", "!SERVFAIL"),
    ("refused.example", "*", "!REFUSED"),
    ("referral.example", "*", "!REFERRAL"),
    ("garbage.example", "*", "!GARBAGE"),
    ("forged.example", "A", "!FORGED 192.0.2.5"),
    ("truncated.example", "MX", "!TC 10 mx2.example"),
    ("cut.example", "*", "!TC-ALWAYS"),
    ("homeless.example", "MX", "10 absent.example"),
    ("homeless.example", "MX", "20 empty.example"),
    ("half.example", "MX", "10 servfail.example"),
    ("half.example", "MX", "20 mx2.example"),
    ("half.example", "MX", "30 absent.example"),
    ("unknown.example", "MX", "10 servfail.example"),
    ("unknown.example", "MX", "20 absent.example"),
    ("v4-only-server.example", "A", "192.0.2.6"),
    ("v4-only-server.example", "AAAA", "!SERVFAIL"),
    ("odd.example", "MX", "10 not_a_host!.example"),
    ("mx-fails.example", "MX", "!SERVFAIL"),
    ("mx-fails.example", "A", "192.0.2.7"),
];

const REFUSES: Zone = &[("mx-alias.example", "*", "!REFUSED"), ("host-alias.example", "*", "!REFUSED")];
const REFERS: Zone = &[("mx-alias.example", "*", "!REFERRAL"), ("host-alias.example", "*", "!REFERRAL")];
const SILENT: Zone = &[("mx-alias.example", "*", "!SILENT"), ("host-alias.example", "*", "!SILENT")];

#[test]
fn answers_of_every_kind() {
    let (_, server) = testserver::start(ZONE, 300);
    let resolver = resolver(server);
    let plain = "10 mx1.example 2001:db8::1 192.0.2.1 192.0.2.2; 20 mx2.example 192.0.2.3";
    let failed = |what: &str, why: &str| format!("Temporary: DNS lookup of {what}.example failed: {why}");
    let table = [
        ("plain.example", plain.to_owned()),
        ("alias.example", plain.to_owned()),
        ("null.example", "NullMx".to_owned()),
        ("null-and-more.example", "10 mx2.example 192.0.2.3".to_owned()),
        ("implicit.example", "0 implicit.example 2001:db8::4 192.0.2.4".to_owned()),
        ("empty.example", "NoSuchDomain".to_owned()),
        ("absent.example", "NoSuchDomain".to_owned()),
        ("dangling.example", "NoSuchDomain".to_owned()),
        ("mx-alias.example", "5 host-alias.example 192.0.2.3".to_owned()),
        ("truncated.example", "10 mx2.example 192.0.2.3".to_owned()),
        ("forged.example", "0 forged.example 192.0.2.5".to_owned()),
        ("homeless.example", "NoUsableHost".to_owned()),
        ("odd.example", "NoUsableHost".to_owned()),
        ("half.example", "10 servfail.example; 20 mx2.example 192.0.2.3".to_owned()),
        ("v4-only-server.example", "0 v4-only-server.example 192.0.2.6".to_owned()),
        ("servfail.example", failed("MX servfail", "the server said: Server Failure")),
        ("refused.example", failed("MX refused", "the server said: Query Refused")),
        ("mx-fails.example", failed("MX mx-fails", "the server said: Server Failure")),
        ("unknown.example", failed("AAAA servfail", "the server said: Server Failure")),
        ("referral.example", failed("MX referral", "the server does not resolve names for us")),
    ];
    for (name, want) in table {
        assert_eq!(shown(&ask(&resolver, mail(name))), want, "{name}");
    }
    assert!(matches!(ask(&resolver, mail("cut.example")), Answer::Temporary(_)));
}

#[test]
fn a_host_is_asked_for_its_addresses_only() {
    let (server, address) = testserver::start(ZONE, 300);
    let resolver = resolver(address);
    let host = |name| shown(&ask(&resolver, Query::Host(domain(name))));
    assert_eq!(host("mx2.example"), "0 mx2.example 192.0.2.3");
    assert_eq!(host("plain.example"), "NoSuchDomain");
    assert!(server.asked().iter().all(|q| !q.contains("MX")), "{:?}", server.asked());
}

#[test]
fn a_literal_is_its_own_answer() {
    let (server, address) = testserver::start(&[], 300);
    let resolver = resolver(address);
    for (name, want) in [("[192.0.2.9]", "192.0.2.9"), ("[IPv6:2001:db8::9]", "2001:db8::9")] {
        let answer = shown(&ask(&resolver, mail(name)));
        assert_eq!(answer.rsplit(' ').next(), Some(want), "{answer}");
    }
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[test]
fn truncated_answers_are_asked_again_over_tcp() {
    let (server, address) = testserver::start(ZONE, 300);
    ask(&resolver(address), mail("truncated.example"));
    assert_eq!(&server.asked()[..2], ["truncated.example MX udp", "truncated.example MX tcp"]);
}

#[test]
fn answers_and_absences_are_remembered() {
    let (server, address) = testserver::start(ZONE, 300);
    let resolver = resolver(address);
    for name in ["plain.example", "absent.example", "empty.example", "null.example"] {
        let first = ask(&resolver, mail(name));
        let asked = server.asked().len();
        assert_eq!(ask(&resolver, mail(name)), first);
        assert_eq!(server.asked().len(), asked, "{name}");
    }
    // A failure is not.
    ask(&resolver, mail("refused.example"));
    let asked = server.asked().len();
    ask(&resolver, mail("refused.example"));
    assert!(server.asked().len() > asked);
}

#[test]
fn silence_and_garbage_are_temporary() {
    let (server, address) = testserver::start(&[("silent.example", "*", "!SILENT")], 300);
    let try_wait = Duration::from_millis(50);
    let resolver =
        |server| Resolver::start(ResolveConfig { servers: vec![server], try_wait, retries: 1 }).unwrap();
    let answer = ask(&resolver(address), mail("silent.example"));
    assert_eq!(shown(&answer), "Temporary: DNS lookup of MX silent.example failed: no answer in time");
    assert!(server.asked().len() >= 2, "{:?}", server.asked());

    let (_, address) = testserver::start(ZONE, 300);
    assert!(matches!(ask(&resolver(address), mail("garbage.example")), Answer::Temporary(_)));
}

#[test]
fn no_server_at_all_is_temporary() {
    // A port that was just free.
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = ResolveConfig { servers: vec![address], try_wait: Duration::from_millis(50), retries: 0 };
    assert!(matches!(ask(&Resolver::start(config).unwrap(), mail("x.example")), Answer::Temporary(_)));
}

#[test]
fn one_server_that_answers_is_enough() {
    let (_, good) = testserver::start(ZONE, 300);
    for (zone, why) in [(REFUSES, "refuses"), (REFERS, "refers"), (SILENT, "is silent")] {
        let (_, bad) = testserver::start(zone, 300);
        // Which of two is asked, or heard, first is chance: ask often.
        for servers in [vec![bad, good], vec![good, bad]].into_iter().cycle().take(10) {
            let config = ResolveConfig { servers, ..ResolveConfig::default() };
            let answer = ask(&Resolver::start(config).unwrap(), mail("mx-alias.example"));
            assert_eq!(shown(&answer), "5 host-alias.example 192.0.2.3", "the other {why}");
        }
    }
}

#[test]
fn the_system_configuration_never_keeps_it_from_starting() {
    let resolver = Resolver::start(ResolveConfig::default()).unwrap();
    assert!(matches!(ask(&resolver, mail("[192.0.2.9]")), Answer::Hosts(_)));
}

#[test]
fn names_are_never_completed_from_a_search_list() {
    let (server, address) = testserver::start(ZONE, 300);
    assert_eq!(ask(&resolver(address), mail("single")), Answer::NoSuchDomain);
    assert!(server.asked().iter().all(|q| q.starts_with("single ")), "{:?}", server.asked());
}

#[test]
fn questions_taken_are_answered_after_the_last_handle_is_gone() {
    let (server, address) = testserver::start(&[("slow.example", "A", "!GATE 192.0.2.8")], 300);
    let (send, receive) = std_mpsc::channel();
    let resolver = resolver(address);
    resolver.ask(Query::Host(domain("slow.example")), Box::new(move |a| send.send(a).unwrap())).unwrap();
    drop(resolver);
    server.open_gate();
    let answer = receive.recv_timeout(2 * limits::DNS_LOOKUP_WAIT).unwrap();
    assert_eq!(shown(&answer), "0 slow.example 192.0.2.8");
}

/// What the thread's loop did with lookups made by hand.
#[derive(Default)]
struct Ran {
    started: Vec<String>,
    replied: Vec<String>,
    /// Most lookups in flight at a time.
    peak: usize,
}

/// Asks all `names` and lets the lookups finish once `finish_after` of them have been started.
fn run_loop(names: &[String], finish_after: usize) -> Ran {
    let (send, queue) = mpsc::channel(limits::DNS_QUEUE);
    let ran = Arc::new(Mutex::new(Ran::default()));
    for name in names {
        let (ran, shown) = (Arc::clone(&ran), name.clone());
        let reply: Reply = Box::new(move |_| ran.lock().unwrap().replied.push(shown));
        send.try_send(thread::Asked { query: mail(name), reply }).ok().unwrap();
    }
    drop(send);
    let in_flight = Arc::new(AtomicUsize::new(0));
    let finish = Arc::new(Semaphore::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(thread::run(queue, |query| {
        let (Query::Mail(name) | Query::Host(name)) = query;
        let mut ran = ran.lock().unwrap();
        ran.started.push(name.as_str().to_owned());
        ran.peak = ran.peak.max(1 + in_flight.fetch_add(1, Ordering::Relaxed));
        if ran.started.len() == finish_after {
            finish.add_permits(Semaphore::MAX_PERMITS);
        }
        let (finish, in_flight) = (Arc::clone(&finish), Arc::clone(&in_flight));
        async move {
            drop(finish.acquire().await);
            in_flight.fetch_sub(1, Ordering::Relaxed);
            Answer::NullMx
        }
    }));
    std::mem::take(&mut ran.lock().unwrap())
}

#[test]
fn equal_questions_in_flight_cost_one_lookup() {
    // The lookups finish when "b" is asked, which stands behind every "a" in the queue.
    let names = ["a", "a", "a", "a", "b"].map(str::to_owned);
    let mut ran = run_loop(&names, 2);
    ran.replied.sort();
    assert_eq!((ran.started, ran.replied), (vec!["a".to_owned(), "b".to_owned()], names.to_vec()));
}

#[test]
fn lookups_in_flight_are_bounded_and_none_is_lost() {
    let names: Vec<String> = (0..limits::DNS_LOOKUPS + 100).map(|i| format!("d{i}")).collect();
    let ran = run_loop(&names, limits::DNS_LOOKUPS);
    assert_eq!((ran.started.len(), ran.replied.len()), (names.len(), names.len()));
    assert_eq!(ran.peak, limits::DNS_LOOKUPS);
}

#[test]
fn a_full_queue_says_so() {
    let (queue, _asked) = mpsc::channel(1);
    let resolver = Resolver { queue };
    assert!(resolver.ask(mail("a"), Box::new(|_| ())).is_ok());
    assert!(resolver.clone().ask(mail("b"), Box::new(|_| ())).is_err());
}

#[test]
fn failures_have_their_codes() {
    let table = [
        (Answer::Hosts(Vec::new()), None),
        (Answer::NullMx, Some("556 5.1.10 the domain accepts no mail (null MX)")),
        (Answer::NoSuchDomain, Some("550 5.1.2 the domain does not exist or has no mail host")),
        (Answer::NoUsableHost, Some("550 5.4.4 none of the domain's mail hosts has an address")),
        (Answer::Temporary("why\r\n".into()), Some("450 4.4.3 why\\x0d\\x0a")),
    ];
    for (answer, want) in table {
        assert_eq!(answer.failure().map(|r| r.to_string()).as_deref(), want);
    }
}
