//! Configured limits, counted by `ringpost sink` as a receiver that refuses whatever is beyond them.
//! `RINGPOST_TEST_MESSAGES` says how many messages are sent each time (200): with more, how near to a limit the
//! server comes is less a matter of the start.
mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_ringpost");

fn how_many() -> u64 {
    let given = std::env::var("RINGPOST_TEST_MESSAGES");
    given.map_or(200, |n| n.parse().expect("RINGPOST_TEST_MESSAGES is a number"))
}

/// A receiver that takes five connections and 100 messages/s. Each connection may have one message on its way
/// when the receiver comes to look, so a burst of a few more than five is what the same rate looks like where
/// it was late; the connections of this sender bound it whatever the machine does.
const RECEIVER: &str = "[[receiver]]\nname = \"strict\"\ndomains = [\"strict.test\"]\nconnections_per_client = 5\n\
                        messages_per_second = 100.0\nburst = 8\ndata_delay = ";

struct Sink(Child);

impl Sink {
    /// It ends by itself when it has all messages.
    fn start(dir: &Path, delay: &str) -> (Sink, String) {
        let models = dir.join("models.toml");
        std::fs::write(&models, format!("{RECEIVER}{delay:?}\n")).expect("the directory is writable");
        let mut child = Command::new(BINARY)
            .args(["sink", "--listen", "127.0.0.1:0", "--json", "--models"])
            .arg(models)
            .args(["--messages", &how_many().to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says where it listens");
        // "sink listening on A to B, 2 addresses": the last is the receiver's.
        let addresses = line.split(" to ").nth(1).and_then(|rest| rest.split(',').next());
        let address = addresses.unwrap_or_else(|| panic!("{line}")).trim().to_owned();
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        (Sink(child), address)
    }

    /// Its report.
    fn report(mut self) -> serde_json::Value {
        let mut text = String::new();
        self.0.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        serde_json::from_str(&text).expect("JSON")
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends everything under these limits to a receiver that takes so long for each message; what the receiver refused, and how long it took in seconds.
fn run(limits: &str, workers: &str, delay: &str) -> (u64, f64) {
    let parent = env!("CARGO_TARGET_TMPDIR");
    let dir = tempfile::Builder::new().prefix("spool-").tempdir_in(parent).expect("a directory");
    let (sink, address) = Sink::start(dir.path(), delay);
    let file = dir.path().join("r.toml");
    let toml = format!("retry-schedule = \"1s\"\n[destination.\"strict.test\"]\n{limits}");
    std::fs::write(&file, toml).expect("the directory is writable");
    let (file, route) = (file.display().to_string(), format!("*={address}"));
    let args = ["--config", &file, "--route", &route, "--workers", workers];
    let server = Server::start(&dir.path().join("spool"), &args);
    let (to, messages) = (server.addr.to_string(), how_many().to_string());
    let load =
        ["load", "--to", &to, "--messages", &messages, "--connections", "16", "--to-domain", "strict.test"];
    let (status, _, errors) = common::run(&load);
    assert!(status.success(), "{errors}");
    let report = sink.report();
    assert_eq!(
        (report["unique"].as_u64(), report["duplicates"].as_u64()),
        (Some(how_many()), Some(0)),
        "{report}"
    );
    // A connection that is refused is none to the receiver: the sender has counted those.
    let spool = dir.path().join("spool").display().to_string();
    let (_, summary, _) = common::run(&["queue", "summary", "--json", "--spool", &spool]);
    let failed = summary.split("\"outbound_failed\":").nth(1).expect("a counter");
    let failed: u64 = failed.split([',', '}']).next().and_then(|n| n.trim().parse().ok()).expect("a number");
    assert!(server.stop().success());
    (failed + report["refused"].as_u64().expect("a count"), report["seconds"].as_f64().expect("a time"))
}

#[test]
fn a_receiver_that_counts_refuses_nothing_whatever_the_number_of_workers() {
    // The rate is what binds, then the connections.
    for (workers, delay, most) in [("1", "0s", 100), ("2", "0s", 100), ("1", "100ms", 50), ("2", "100ms", 50)]
    {
        let (refused, seconds) = run("connections = 5\nmessage-rate = \"100/s\"\n", workers, delay);
        assert_eq!(refused, 0, "{workers} workers, {delay} a message");
        // Not asserted: a busy machine may take longer, never less.
        let sent = how_many();
        let rate = sent as f64 / seconds;
        println!("{workers} workers, {delay} a message: {rate:.1} messages/s of {most}, nothing refused");
        assert!(seconds > (sent - 8) as f64 / 100.0 - 0.1, "{sent} at 100/s came in {seconds} s");
    }
}

#[test]
fn the_receiver_counts_connections_and_messages() {
    for (limits, delay) in
        [("connections = 5\n", "0s"), ("connections = 15\nmessage-rate = \"100/s\"\n", "100ms")]
    {
        let (refused, _) = run(&format!("adaptive = false\n{limits}"), "2", delay);
        assert!(refused > 0, "nothing is refused with {limits}");
    }
}
