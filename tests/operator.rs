//! What an operator orders, through the real binary: it happens, it is told, and it lasts over a restart.
mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Client, Peer, Server, default_reply, run};
use serde_json::Value;

const BODY: &str = "From: a@sender.test\r\nSubject: hi\r\n\r\nfirst\r\n";
const SHORT: Duration = Duration::from_secs(20);

fn spool() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A command on the server of `spool`; its standard output.
fn ask(spool: &Path, command: &[&str]) -> String {
    let (status, out, err) = run(&[command, &["--spool", spool.to_str().expect("text")]].concat());
    assert!(status.success(), "{command:?}: {err}{out}");
    out
}

fn json(spool: &Path, command: &[&str]) -> Value {
    serde_json::from_str(&ask(spool, &[command, &["--json"]].concat())).expect("JSON")
}

/// An order; how many deliveries it selected and changed.
fn order(spool: &Path, command: &[&str]) -> (u64, u64) {
    let done = json(spool, command);
    assert_eq!(done["stage"], "done", "{command:?}: {done}");
    (done["matched"].as_u64().expect("a number"), done["changed"].as_u64().expect("a number"))
}

/// The states of all queued messages, sorted.
fn states(spool: &Path) -> Vec<String> {
    let list = json(spool, &["queue", "list"]);
    let mut states: Vec<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|m| m["state"].as_str().expect("text").to_owned())
        .collect();
    states.sort();
    states
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SHORT, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn send(server: &Server, to: &[&str]) -> String {
    let reply = Client::connect(server.addr).deliver("a@sender.test", to, BODY);
    assert!(reply.starts_with("250"), "{reply}");
    reply.split_whitespace().nth(2).expect("an id in the reply").to_owned()
}

/// Takes nothing for now.
fn busy() -> Peer {
    Peer::scripted(|verb, _| {
        Some(if verb == "RCPT" { "450 4.2.0 not now".into() } else { default_reply(verb) })
    })
}

const HOUR: [&str; 2] = ["--retry-schedule", "1h"];

#[test]
fn what_is_held_stays_held_over_a_restart_and_is_delivered_when_released() {
    let (dir, peer) = (spool(), busy());
    let events = dir.path().with_extension("events");
    let log = ["--event-log", events.to_str().expect("text")];
    let route = peer.route();
    let server =
        Server::start(dir.path(), &[&["--workers", "2", "--route", &route], &HOUR[..], &log].concat());
    let ids: Vec<String> =
        (0..6).map(|n| send(&server, &[&format!("b{n}@one.test"), "c@two.test"])).collect();
    until("everything is deferred", || states(dir.path()) == ["deferred"; 6]);
    assert_eq!(order(dir.path(), &["queue", "hold", "--domain", "one.test", "--dry-run"]), (6, 0));
    assert_eq!(
        order(dir.path(), &["queue", "hold", "--domain", "one.test", "--reason", "list owner"]),
        (6, 6)
    );
    assert_eq!(
        order(dir.path(), &["queue", "hold", "--id", &ids[0]]),
        (1, 1),
        "of two deliveries one was held"
    );
    let why = ask(dir.path(), &["why", &ids[1]]);
    assert!(why.contains("held by an operator") && why.contains("list owner"), "{why}");
    server.kill();

    // The other number of workers, a willing peer, and all that is not held goes.
    let peer = Peer::willing();
    let route = peer.route();
    let server =
        Server::start(dir.path(), &[&["--workers", "1", "--route", &route], &HOUR[..], &log].concat());
    assert_eq!(order(dir.path(), &["queue", "retry", "--all"]), (5, 5));
    peer.wait_for(5, SHORT);
    until("what is held stays", || states(dir.path()) == ["held"; 6]);
    let why = json(dir.path(), &["why", "one.test"]);
    assert_eq!(why["held"], 6, "{why}");
    // A release of one message, then of all that is old enough, which is all.
    assert_eq!(order(dir.path(), &["queue", "release", "--id", &ids[0]]), (2, 2));
    assert_eq!(order(dir.path(), &["queue", "release", "--older-than", "1d"]), (0, 0));
    assert_eq!(order(dir.path(), &["queue", "release", "--all"]), (5, 5));
    // They keep the time of their next attempt.
    assert_eq!(order(dir.path(), &["queue", "retry", "--state", "deferred"]), (7, 7));
    peer.wait_for(12, SHORT);
    until("the queue is empty", || states(dir.path()).is_empty());
    assert!(server.stop().success());
    let told = std::fs::read_to_string(&events).expect("an event log");
    std::fs::remove_file(&events).expect("removed");
    let count = |part: &str| told.lines().filter(|line| line.contains(part)).count();
    assert_eq!(count("\"type\":\"changed\""), 7 + 7 + 7, "{told}");
    assert_eq!(count("\"type\":\"operator\",\"action\":\"hold\""), 2, "{told}");
    assert_eq!(count("\"reason\":\"list owner\""), 6 + 1, "{told}");
}

#[test]
fn what_fails_is_bounced_once_although_the_server_dies_at_once() {
    let (dir, peer) = (spool(), busy());
    let route = peer.route();
    let server = Server::start(dir.path(), &[&["--route", &route], &HOUR[..]].concat());
    for n in 0..30 {
        send(&server, &[&format!("b{n}@one.test"), "stays@one.test", "stays@two.test"]);
    }
    until("everything is deferred", || states(dir.path()) == ["deferred"; 30]);
    let done = json(dir.path(), &["queue", "fail", "--recipient", "b7@one.test"]);
    assert_eq!(
        (&done["changed"], &done["looked_at"], &done["to_look_at"]),
        (&1.into(), &30.into(), &30.into())
    );
    let (matched, changed) =
        order(dir.path(), &["queue", "fail", "--sender", "a@sender.test", "--domain", "one.test"]);
    assert_eq!((matched, changed), (30, 30));
    server.kill();
    let peer = Peer::willing();
    let route = peer.route();
    let server = Server::start(dir.path(), &[&["--route", &route], &HOUR[..]].concat());
    let bounces = |peer: &Peer| {
        let arrived = peer.arrived.lock().expect("not poisoned").clone();
        arrived.into_iter().filter(|m| m.from.is_empty()).collect::<Vec<_>>()
    };
    until("all are bounced", || {
        bounces(&peer).iter().map(|b| b.data.matches("Final-Recipient").count()).sum::<usize>() >= 60
    });
    std::thread::sleep(Duration::from_millis(500));
    let all = bounces(&peer);
    for n in 0..30 {
        let address = format!("b{n}@one.test");
        let reports = all.iter().filter(|b| b.data.contains(&format!("rfc822; {address}\n"))).count();
        assert_eq!(reports, 1, "{address}");
    }
    assert!(all.iter().all(|b| b.to == ["a@sender.test"] && b.data.contains("returned by an operator")));
    assert!(!all.iter().any(|b| b.data.contains("rfc822; stays@two.test")));
    assert_eq!(states(dir.path()).len(), 30, "what was not selected still waits");
    assert!(server.stop().success());
}

#[test]
fn what_is_moved_goes_where_it_was_moved_to_also_after_a_restart() {
    let (dir, broken, backup) = (spool(), busy(), Peer::willing());
    let routes =
        [format!("one.test={}", broken.addr), format!("backup.test={}", backup.addr), "*=127.0.0.1:9".into()];
    let routes: Vec<&str> = routes.iter().flat_map(|r| ["--route", r]).collect();
    let server = Server::start(dir.path(), &[&routes[..], &HOUR].concat());
    let ids: Vec<String> = (0..3).map(|n| send(&server, &[&format!("b{n}@one.test")])).collect();
    until("everything is deferred", || states(dir.path()) == ["deferred"; 3]);
    assert_eq!(order(dir.path(), &["queue", "hold", "--id", &ids[0]]), (1, 1));
    assert_eq!(order(dir.path(), &["queue", "move", "--domain", "one.test", "--to", "backup.test"]), (3, 3));
    let arrived = backup.wait_for(2, SHORT);
    assert!(arrived.iter().all(|m| m.to[0].ends_with("@one.test")), "{arrived:?}");
    until("one is left", || states(dir.path()) == ["held"]);
    server.kill();
    let server = Server::start(dir.path(), &[&routes[..], &HOUR].concat());
    let shown = json(dir.path(), &["queue", "show", &ids[0]]);
    assert_eq!(shown["recipient_list"][0]["destination"], "backup.test", "{shown}");
    assert_eq!(order(dir.path(), &["queue", "release", "--domain", "one.test"]), (0, 0), "it has moved");
    assert_eq!(order(dir.path(), &["queue", "release", "--domain", "backup.test"]), (1, 1));
    assert_eq!(order(dir.path(), &["queue", "retry", "--id", &ids[0]]), (1, 1));
    backup.wait_for(3, SHORT);
    assert!(server.stop().success());
}

#[test]
fn a_suspended_destination_gets_nothing_until_it_is_resumed() {
    let (dir, peer) = (spool(), Peer::willing());
    let route = peer.route();
    let server = Server::start(dir.path(), &["--route", &route]);
    ask(dir.path(), &["queue", "suspend", "--domain", "One.test", "--reason", "their request"]);
    send(&server, &["b@one.test"]);
    send(&server, &["b@two.test"]);
    assert_eq!(peer.wait_for(1, SHORT)[0].to, ["b@two.test"]);
    let why = ask(dir.path(), &["why", "one.test"]);
    assert!(why.contains("is suspended") && why.contains("their request"), "{why}");
    assert!(ask(dir.path(), &["queue", "summary"]).contains("their request"));
    server.kill();
    let server = Server::start(dir.path(), &["--route", &route]);
    send(&server, &["c@two.test"]);
    assert_eq!(peer.wait_for(2, SHORT)[1].to, ["c@two.test"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(peer.arrived.lock().expect("not poisoned").len(), 2, "it is suspended still");
    assert!(ask(dir.path(), &["queue", "resume", "--domain", "one.test"]).contains("one.test is resumed"));
    assert_eq!(peer.wait_for(3, SHORT)[2].to, ["b@one.test"]);
    assert!(ask(dir.path(), &["queue", "resume", "--domain", "one.test"]).contains("was not suspended"));
    assert!(server.stop().success());
}

#[test]
fn orders_beside_deliveries_lose_and_double_nothing() {
    let (dir, peer) = (spool(), Peer::willing());
    let route = peer.route();
    let server = Server::start(dir.path(), &["--workers", "2", "--route", &route, "--retry-schedule", "1s"]);
    let (path, done) =
        (dir.path().to_owned(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let operator = {
        let (path, done) = (path.clone(), done.clone());
        std::thread::spawn(move || {
            let mut held = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                held += order(&path, &["queue", "hold", "--domain", "d1.test"]).1;
                held += order(&path, &["queue", "hold", "--sender", "a@sender.test", "--state", "ready"]).1;
                order(&path, &["queue", "release", "--state", "held"]);
                order(&path, &["queue", "move", "--domain", "d2.test", "--to", "d3.test"]);
            }
            held
        })
    };
    let mut client = Client::connect(server.addr);
    for n in 0..600 {
        let to = [format!("u{n}@d1.test"), format!("u{n}@d2.test")];
        let reply = client.deliver("a@sender.test", &[&to[0], &to[1]], BODY);
        assert!(reply.starts_with("250"), "{reply}");
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    operator.join().expect("every order is carried out");
    order(&path, &["queue", "release", "--all"]);
    order(&path, &["queue", "retry", "--all"]);
    peer.wait_for(1200, Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(300));
    let mut to: Vec<String> =
        peer.arrived.lock().expect("not poisoned").iter().flat_map(|m| m.to.clone()).collect();
    to.sort();
    assert_eq!(to.len(), 1200);
    to.dedup();
    assert_eq!(to.len(), 1200, "nothing arrived twice");
    until("the queue is empty", || states(&path).is_empty());
    assert!(server.stop().success());
}

#[test]
fn a_stream_is_selected_by_its_name_waiting_held_and_after_a_restart() {
    let (dir, peer) = (spool(), busy());
    let route = peer.route();
    let args = [&["--route", &route, "--stream-header", "X-Stream"], &HOUR[..]].concat();
    let server = Server::start(dir.path(), &args);
    for (n, stream) in ["news", "news", "bills", "news"].iter().enumerate() {
        let mut client = Client::connect(server.addr);
        let body = format!("X-Stream: {stream}\r\n{BODY}");
        assert!(client.deliver("a@sender.test", &[&format!("b{n}@one.test")], &body).starts_with("250"));
    }
    until("everything is deferred", || states(dir.path()) == ["deferred"; 4]);
    assert_eq!(order(dir.path(), &["queue", "hold", "--stream", "news", "--dry-run"]), (3, 0));
    assert_eq!(order(dir.path(), &["queue", "hold", "--stream", "nothing"]), (0, 0));
    assert_eq!(order(dir.path(), &["queue", "hold", "--stream", "news", "--domain", "one.test"]), (3, 3));
    server.kill();
    let server = Server::start(dir.path(), &args);
    assert_eq!(states(dir.path()), ["deferred", "held", "held", "held"]);
    assert_eq!(order(dir.path(), &["queue", "remove", "--stream", "bills"]), (1, 1));
    assert_eq!(order(dir.path(), &["queue", "remove", "--stream", "bills"]), (0, 0));
    assert_eq!(order(dir.path(), &["queue", "remove", "--stream", "news", "--state", "held"]), (3, 3));
    assert!(states(dir.path()).is_empty());
    assert!(server.stop().success());
}

#[test]
fn a_reload_changes_routes_and_limits_or_nothing() {
    let (dir, first, second) = (spool(), Peer::willing(), Peer::willing());
    let file = dir.path().with_extension("toml");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    write(&format!("route = \"{}\"\n", first.route()));
    let server = Server::start(dir.path(), &["--config", file.to_str().expect("text")]);
    send(&server, &["a@one.test"]);
    first.wait_for(1, SHORT);
    let said = |part: &str| server.said.lock().expect("not poisoned").contains(part);
    write("route = \"nonsense\"\n[destination.\"one.test\"]\nconections = 3\n");
    server.signal("HUP");
    until("the mistake is named", || said("conections") && said("stays as it was"));
    send(&server, &["b@two.test"]);
    first.wait_for(2, SHORT);
    write(&format!(
        "route = \"{}\"\nworkers = 7\n[destination.\"one.test\"]\nconnections = 3\n",
        second.route()
    ));
    server.signal("HUP");
    until("it is in force", || said("is in force") && said("next start only: workers"));
    send(&server, &["c@three.test"]);
    assert_eq!(second.wait_for(1, SHORT)[0].to, ["c@three.test"]);
    std::fs::remove_file(&file).expect("removed");
    assert!(server.stop().success());
}

#[test]
fn resolve_and_check_say_what_applies_and_what_is_wrong() {
    let dir = spool();
    let file = dir.path().join("r.toml");
    let path = file.to_str().expect("text");
    std::fs::write(
        &file,
        "route = \"*=127.0.0.1:2526\"\n[destination.\"*.b.test\"]\nmessage-rate = \"5/s\"\n",
    )
    .expect("written");
    let (status, out, err) = run(&["resolve", "a.b.test", "--config", path, "--json"]);
    assert!(status.success(), "{err}");
    let resolved: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(resolved["route"], "the address 127.0.0.1:2526");
    let rate = resolved["limits"].as_array().expect("a list").iter().find(|l| l["key"] == "message-rate");
    let rate = rate.expect("it is set");
    assert_eq!((&rate["value"], &rate["from"]), (&"5/s".into(), &"[destination.\"*.b.test\"]".into()));
    let (status, out, _) = run(&["check", "--config", path, "--hostname", "mta.test"]);
    assert!(status.success() && out.contains("[destination.\"*.b.test\"]\nmessage-rate = \"5/s\""), "{out}");
    std::fs::write(&file, "[destination.\"b.test\"]\nsource = \"192.0.2.1\"\n[destinations.x]\n")
        .expect("written");
    let (status, _, err) = run(&["check", "--config", path]);
    assert!(
        !status.success() && err.contains("is none of --source") && err.contains("\"destinations\""),
        "{err}"
    );
}
