//! What is wrong at the start is said in one line with its remedy, and nothing is damaged.
mod common;

use std::net::TcpListener;
use std::path::Path;

use common::{Peer, Server, run};

fn spool() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// `serve` must fail with a single line that holds all of `words`.
fn must_refuse(spool: &Path, args: &[&str], words: &[&str]) {
    let spool = spool.to_str().expect("text");
    let all =
        [&["serve", "--listen", "127.0.0.1:0", "--hostname", "mta.test", "--spool", spool], args].concat();
    let (status, _, err) = run(&all);
    assert!(!status.success(), "{args:?} was accepted");
    for word in words {
        assert!(err.contains(word), "{word:?} is not in {err:?}");
    }
    let lines: Vec<&str> = err.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line: {err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn wrong_values_are_refused() {
    let dir = spool();
    for (flag, value) in [
        ("--workers", "0"),
        ("--durability", "maybe"),
        ("--relay-from", "10.0.0.0/99"),
        ("--route", "example.com"),
        ("--max-message-size", "many"),
        ("--retry-schedule", "1m,,5m"),
        ("--max-age", "5 fortnights"),
        ("--source", "nowhere"),
        ("--segment-size", "1"),
        ("--hostname", "a b"),
        ("--listen", "127.0.0.1"),
    ] {
        let path = dir.path().to_str().expect("text");
        let base = ["serve", "--spool", path, flag, value];
        let (status, _, err) = run(&base);
        assert!(!status.success(), "{flag} {value} was accepted");
        assert!(err.contains(flag), "{flag} is not named in {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "nothing was written");
}

#[test]
fn a_foreign_directory_is_not_touched() {
    let dir = spool();
    std::fs::write(dir.path().join("photo.jpg"), "not mail").expect("written");
    must_refuse(dir.path(), &[], &["not a ringpost spool", "photo.jpg"]);
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).expect("there").map(|e| e.expect("read").file_name()).collect();
    assert_eq!(names, ["photo.jpg"]);
}

#[test]
fn a_spool_that_is_a_file_or_cannot_be_made_is_refused() {
    let dir = spool();
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("written");
    must_refuse(&file, &[], &["spool", "file"]);
    must_refuse(Path::new("/proc/no/such/place"), &[], &["spool", "/proc/no/such"]);
}

#[test]
fn a_spool_in_use_is_refused_and_its_owner_lives_on() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    must_refuse(dir.path(), &[], &["in use"]);
    let mut client = common::Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    assert!(server.stop().success());
}

#[test]
fn a_port_in_use_is_refused() {
    let dir = spool();
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = holder.local_addr().expect("bound").to_string();
    let path = dir.path().to_str().expect("text");
    let (status, _, err) = run(&["serve", "--listen", &listen, "--hostname", "mta.test", "--spool", path]);
    assert!(!status.success());
    assert!(err.contains(&listen) && err.contains("in use"), "{err}");
}

#[test]
fn durable_mail_is_refused_on_memory_file_systems() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: /dev/shm is not there");
        return;
    };
    must_refuse(dir.path(), &[], &["tmpfs", "--durability"]);
    // Without the promise it runs there.
    let peer = Peer::willing();
    let server = Server::start(dir.path(), &["--durability", "os", "--route", &peer.route()]);
    let mut client = common::Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    peer.wait_for(1, std::time::Duration::from_secs(20));
    assert!(server.stop().success());
}

#[test]
fn local_commands_say_when_no_server_runs() {
    let dir = spool();
    let path = dir.path().to_str().expect("text");
    for command in [&["queue", "summary"][..], &["queue", "list"], &["why", "one.test"]] {
        let (status, _, err) = run(&[command, &["--spool", path]].concat());
        assert!(!status.success());
        assert!(err.contains("no server"), "{command:?}: {err}");
    }
}

#[test]
fn a_small_memlock_limit_is_enough() {
    let (dir, peer) = (spool(), Peer::willing());
    // Root is exempt from the limit unless it gives the capability up.
    let script = format!(
        "ulimit -l 2048; exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock {} serve --listen 127.0.0.1:0 \
         --hostname mta.test --spool {} --workers 2 --route '{}'",
        common::BINARY,
        dir.path().display(),
        peer.route()
    );
    if std::process::Command::new("setpriv").arg("--version").output().is_err() {
        println!("skipped: setpriv (util-linux) is not installed");
        return;
    }
    let server = Server::from_command(std::process::Command::new("bash").args(["-c", &script]));
    let mut client = common::Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    peer.wait_for(1, std::time::Duration::from_secs(20));
    let warnings = server.said.lock().expect("not poisoned").matches("WARN").count();
    assert!(warnings == 1, "one warning: {}", server.said.lock().expect("not poisoned"));
    assert!(server.stop().success());
}
