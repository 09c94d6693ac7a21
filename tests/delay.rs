//! Senders of mail that is late are told, once, if they may be.
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Client, Peer, Server, default_reply, wait_until};

const BODY: &str = "From: a@sender.test\r\nSubject: hi\r\n\r\nbody\r\n";
const LIMIT: Duration = Duration::from_secs(30);

/// A receiver that puts off every recipient, and how many it has put off.
fn busy() -> (Peer, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let peer = Peer::scripted(move |verb, _| {
        Some(if verb == "RCPT" {
            counted.fetch_add(1, Ordering::Relaxed);
            "451 4.3.2 not now".to_owned()
        } else {
            default_reply(verb)
        })
    });
    (peer, asked)
}

/// Waits until the receiver has put off `more` recipients.
fn wait_for_attempts(asked: &AtomicUsize, more: usize) {
    let until = asked.load(Ordering::Relaxed) + more;
    wait_until("attempts", || asked.load(Ordering::Relaxed) >= until);
}

fn server(dir: &std::path::Path, late: &Peer, senders: &Peer, args: &[&str]) -> Server {
    let late = format!("late.test={}", late.addr);
    let senders = senders.route();
    Server::start(dir, &[&["--route", &late, "--route", &senders, "--retry-schedule", "1s"], args].concat())
}

fn spool() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

#[test]
fn senders_are_told_once_for_each_recipient_even_over_a_crash() {
    let (dir, senders) = (spool(), Peer::willing());
    let (late, asked) = busy();
    let args = ["--delay-warning", "2s"];
    let first = server(dir.path(), &late, &senders, &args);
    let mut client = Client::connect(first.addr);
    let to = [
        "<plain@late.test>",
        "<never@late.test> NOTIFY=NEVER",
        "<failure@late.test> NOTIFY=SUCCESS,FAILURE",
        "<delay@late.test> NOTIFY=DELAY ORCPT=rfc822;first@late.test",
    ];
    client.deliver_with("<a@sender.test> ENVID=e77", &to, BODY);
    client.deliver_with("<>", &["<nobody@late.test>"], BODY);
    let report = senders.wait_for(1, LIMIT).remove(0);
    assert_eq!((report.from.as_str(), report.to), ("", vec!["a@sender.test".to_owned()]));
    for line in [
        "Subject: Delayed mail, still being tried",
        "Original-Envelope-Id: e77",
        "Final-Recipient: rfc822; plain@late.test",
        "Final-Recipient: rfc822; delay@late.test",
        "Original-Recipient: rfc822; first@late.test",
        "Action: delayed",
    ] {
        assert!(report.data.lines().any(|l| l == line), "{line} in {}", report.data);
    }
    // What the receiver said last, if an attempt found it late; mail that waits for one gets late as well.
    let is_status = |line: &str| ["Status: 4.3.2", "Status: 4.4.7"].contains(&line);
    assert_eq!(report.data.lines().filter(|line| is_status(line)).count(), 2, "{}", report.data);
    assert!(report.data.contains("\nWill-Retry-Until: "), "{}", report.data);
    assert!(!report.data.contains("never@") && !report.data.contains("failure@"), "{}", report.data);
    wait_for_attempts(&asked, 10);
    first.kill();
    let second = server(dir.path(), &late, &senders, &args);
    wait_for_attempts(&asked, 10);
    // One that came later is told of; what went before it would have come by now.
    Client::connect(second.addr).deliver("b@sender.test", &["other@late.test"], BODY);
    let reports = senders.wait_for(2, LIMIT);
    wait_for_attempts(&asked, 10);
    assert_eq!(senders.arrived.lock().expect("not poisoned").len(), 2, "told once");
    assert_eq!(reports[1].to, ["b@sender.test"]);
    assert!(second.stop().success());
    let dump = common::run(&["spool", "dump", "--json", "--spool", &dir.path().display().to_string()]).1;
    assert_eq!(dump.matches("\"told_of_delay\":true").count(), 3, "{dump}");
}

#[test]
fn mail_that_gets_late_while_the_server_is_down_is_told_of_and_zero_is_never() {
    let (dir, senders) = (spool(), Peer::willing());
    let (late, asked) = busy();
    let first = server(dir.path(), &late, &senders, &["--delay-warning", "0"]);
    Client::connect(first.addr).deliver("a@sender.test", &["b@late.test"], BODY);
    wait_for_attempts(&asked, 4);
    assert!(first.stop().success());
    assert_eq!(senders.arrived.lock().expect("not poisoned").len(), 0, "0 is never");
    let second = server(dir.path(), &late, &senders, &["--delay-warning", "1s"]);
    let reports = senders.wait_for(1, LIMIT);
    assert!(reports[0].data.contains("\nAction: delayed\n"), "{}", reports[0].data);
    assert!(second.stop().success());
}
