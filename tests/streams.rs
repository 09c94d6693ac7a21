//! Streams through the real binary: their limits as a receiver counts them, and who may name them.
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Peer, Server, default_reply, run, wait_until};

/// What a receiver has counted of one sender.
#[derive(Clone, Default, Debug)]
struct Seen {
    open: usize,
    most: usize,
    messages: Vec<Instant>,
}

type Counts = Arc<Mutex<BTreeMap<String, Seen>>>;

/// A receiver that takes everything, after `pause`, and counts it by sender.
fn receiver(pause: Duration) -> (Peer, Counts) {
    let counts = Counts::default();
    let seen = counts.clone();
    let peer = Peer::scripted(move |verb, line| {
        thread_local! { static SENDER: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) } }
        if verb == "MAIL" {
            let sender = line.split(['<', '@']).nth(1).unwrap_or_default().to_owned();
            let mut seen = seen.lock().expect("not poisoned");
            let own = seen.entry(sender.clone()).or_default();
            own.open += 1;
            own.most = own.most.max(own.open);
            own.messages.push(Instant::now());
            SENDER.set(sender);
        } else if verb == "." {
            std::thread::sleep(pause);
            seen.lock().expect("not poisoned").entry(SENDER.take()).or_default().open -= 1;
        }
        Some(default_reply(verb))
    });
    (peer, counts)
}

fn spool() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn server(dir: &Path, route: &str, toml: &str, args: &[&str]) -> Server {
    let file = dir.join("r.toml");
    std::fs::write(&file, toml).expect("the directory is writable");
    let file = file.display().to_string();
    let own = ["--config", &file, "--route", route, "--stream-header", "X-Stream"];
    Server::start(&dir.join("spool"), &[&own, args].concat())
}

/// So many of each of two streams, to eight destinations.
fn send(server: &Server, messages: usize) {
    let mut client = Client::connect(server.addr);
    for nth in 0..messages {
        for stream in ["slow", "fast"] {
            let body = format!("X-Stream: {stream}\r\n\r\nbody\r\n");
            client.deliver(&format!("{stream}@sender.test"), &[&format!("b@d{}.test", nth % 8)], &body);
        }
    }
}

fn of(counts: &Counts, sender: &str) -> Seen {
    counts.lock().expect("not poisoned").get(sender).cloned().unwrap_or_default()
}

#[test]
fn a_stream_has_no_more_connections_than_it_may() {
    for workers in ["1", "2"] {
        let (dir, (peer, counts)) = (spool(), receiver(Duration::from_millis(20)));
        let toml = "[stream.slow]\nconnections = 2\n";
        let server = server(dir.path(), &peer.route(), toml, &["--workers", workers]);
        send(&server, 120);
        wait_until("delivery", || {
            ["slow", "fast"].map(|name| of(&counts, name).messages.len()) == [120, 120]
        });
        let most = of(&counts, "slow").most;
        assert!((1..=2).contains(&most), "{workers} workers: {most} at a time");
        assert!(server.stop().success());
    }
}

#[test]
fn a_stream_keeps_its_rate_and_others_do_not_wait_for_it() {
    for workers in ["1", "2"] {
        let (dir, (peer, counts)) = (spool(), receiver(Duration::ZERO));
        let toml = "[stream.slow]\nmessage-rate = \"20/s\"\nweight = 3\n";
        let server = server(dir.path(), &peer.route(), toml, &["--workers", workers]);
        send(&server, 60);
        wait_until("delivery", || ["slow", "fast"].map(|name| of(&counts, name).messages.len()) == [60, 60]);
        let times = of(&counts, "slow").messages;
        // A receiver that is late sees a window shorter than it was: two of three seconds must show.
        let span = times[59].duration_since(times[0]);
        println!("{workers} workers: 60 messages in {span:?}");
        assert!(span > Duration::from_secs(2), "{workers} workers: 60 at 20/s came in {span:?}");
        assert!(server.stop().success());
    }
}

#[test]
fn why_names_the_stream_and_strangers_name_none() {
    let (dir, (peer, counts)) = (spool(), receiver(Duration::from_secs(3600)));
    let toml = "[stream.slow]\nconnections = 1\n";
    let first = server(dir.path(), &peer.route(), toml, &[]);
    send(&first, 8);
    let spool = dir.path().join("spool").display().to_string();
    let why = |name: &str| run(&["why", name, "--spool", &spool]).1;
    let waits =
        || (0..8).filter(|of| why(&format!("d{of}.test")).contains("stream slow (connections 1")).count();
    wait_until("seven wait", || waits() == 7);
    assert_eq!((of(&counts, "slow").most, of(&counts, "fast").most), (1, 8));
    first.kill();
    let strangers = ["--relay-from", "10.0.0.0/8", "--local-domain", "d0.test"];
    let second = server(dir.path(), &peer.route(), toml, &strangers);
    let mut client = Client::connect(second.addr);
    client.deliver("stranger@sender.test", &["b@d0.test"], "X-Stream: slow\r\n\r\nbody\r\n");
    let list = |args: &[&str]| run(&[&["queue", "list", "--json", "--spool", &spool], args].concat()).1;
    let of_stranger = ["--sender", "stranger@sender.test"];
    assert!(list(&of_stranger).contains("stranger@"), "it is queued");
    assert!(!list(&["--stream", "slow"]).contains("stranger@"), "and of no stream");
    assert!(list(&["--stream", "slow"]).contains("slow@"), "as before the restart");
}

#[test]
fn what_the_operator_says_of_refusals_comes_first() {
    let (dir, senders) = (spool(), Peer::willing());
    let peer = Peer::scripted(|verb, _| {
        Some(if verb == "RCPT" { "451 4.7.1 our policy, try later".into() } else { default_reply(verb) })
    });
    let toml = "[[rule]]\ncode = \"400-499\"\ntext = \"our policy\"\naction = \"bounce\"\n";
    let late = format!("late.test={}", peer.addr);
    let server = server(dir.path(), &senders.route(), toml, &["--route", &late]);
    Client::connect(server.addr).deliver("a@sender.test", &["b@late.test"], "Subject: x\r\n\r\nbody\r\n");
    let report = senders.wait_for(1, Duration::from_secs(30)).remove(0);
    assert!(
        report.data.contains("\nAction: failed\n") && report.data.contains("our policy"),
        "{}",
        report.data
    );
    assert!(server.stop().success());
}

#[test]
fn check_knows_streams_and_rules() {
    let dir = spool();
    let file = dir.path().join("r.toml");
    let check = |toml: &str| {
        std::fs::write(&file, toml).expect("the directory is writable");
        let file = file.display().to_string();
        let spool = dir.path().join("spool").display().to_string();
        run(&["check", "--hostname", "mta.test", "--spool", &spool, "--config", &file])
    };
    let toml = "[stream.\"a b\"]\nweight = 5\ntransactional = true\nconnections = 3\nmessage-rate = \"5/s\"\n\
                \n[[rule]]\ncode = \"421\"\ntext = \"busy\"\naction = \"suspend\"\nfor = \"90m\"\n";
    let (status, printed, errors) = check(&format!("stream-header = \"X-Stream\"\n{toml}"));
    assert!(status.success() && errors.is_empty(), "{errors}");
    assert!(printed.ends_with(toml), "it reads back: {printed}");
    assert!(check(toml).2.contains("streams have no effect"));
    for (toml, complaint) in [
        ("[stream.a]\nweight = 0", "[stream.\"a\"]: weight 0 is no number from 1 to 100"),
        ("[stream.a]\nweight = \"x\"", "weight \"x\" is no number"),
        ("[stream.\"\"]\nweight = 1", "is no name of a stream"),
        ("[stream.a]\ntransactional = 3", "transactional takes true or false"),
        (
            "[stream.a]\nmax-age = \"1d\"",
            "\"max-age\" is not one of its keys: connections, connection-rate, message-rate, weight, transactional",
        ),
        ("[rule]\naction = \"bounce\"", "\"rule\": is a list of sections: write [[rule]]"),
        ("[[rule]]\naction = \"bounce\"", "[[rule]] number 1: fits every refusal"),
        ("[destination.\"a.test\"]\nadaptive = 3", "adaptive"),
    ] {
        let (status, _, errors) = check(toml);
        assert!(!status.success() && errors.contains(complaint), "{toml}: {errors}");
    }
}
