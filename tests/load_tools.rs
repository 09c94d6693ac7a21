//! The load tools as commands: what they write and the status they end with.
mod common;

use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use common::{BINARY, run};

/// A sink in a process of its own, and where it listens.
struct Sink {
    child: Child,
    at: String,
    /// It ends when nobody listens to it any more.
    _said: std::io::BufReader<ChildStderr>,
}

impl Sink {
    fn start(args: &[&str]) -> Sink {
        use std::io::BufRead;
        let mut command = Command::new(BINARY);
        command.args(["sink", "--listen", "127.0.0.1:0", "--json"]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut said = std::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        let rest = line.strip_prefix("sink listening on ").expect("its address");
        // With models the last of the addresses is that of the receiver.
        let at =
            rest.split([' ', ',']).find(|word| word.contains(':')).expect("an address").trim().to_owned();
        Sink { child, at, _said: said }
    }
    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }
    /// Its status at the end it comes to by itself, and its report.
    fn end(self) -> (i32, serde_json::Value) {
        let output = self.child.wait_with_output().expect("waited");
        let report = serde_json::from_slice(&output.stdout).expect("a report");
        (output.status.code().expect("a status"), report)
    }
}

fn load(args: &[&str]) -> (i32, String, String) {
    let (status, out, err) = run(&[&["load"], args].concat());
    (status.code().expect("a status"), out, err)
}

fn closed() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_run_leaves_its_reports_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let (page, log) = (dir.path().join("r.html"), dir.path().join("r.hlog"));
    std::fs::write(&page, "x".repeat(1 << 20)).expect("an older and larger page");
    let sink = Sink::start(&["--messages", "100"]);
    let common = ["--to", &sink.at, "--messages", "50", "--json", "--connections", "2"];
    let more = ["--report", text(&page), "--hdr", text(&log), "--rate", "500/s"];
    let (status, json, _) = load(&[&common[..], &more].concat());
    assert_eq!(status, 0, "{json}");
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    assert!(std::fs::read_to_string(&log).expect("a log").starts_with("#[Histogram log format"));
    // Reports of two sides, and something that is none.
    let (status, other, _) = load(&common);
    assert_eq!(status, 0, "{other}");
    let files = ["a.json", "b.json", "none.json"].map(|name| dir.path().join(name));
    for (file, content) in files.iter().zip([&json, &other, "{}"]) {
        std::fs::write(file, content).expect("written");
    }
    let (status, table, _) = load(&["compare", text(&files[0]), text(&files[1])]);
    assert!(status == 0 && table.contains("B/A") && table.contains("the workloads differ"), "{table}");
    let (status, _, error) = load(&["compare", text(&files[0]), text(&files[2])]);
    assert!(status != 0 && error.contains("something else than a report"), "{error}");
    let (status, report) = sink.end();
    assert_eq!((status, report["unique"].as_u64()), (0, Some(100)), "{report}");
}

#[test]
fn what_is_not_sent_fails_the_command() {
    let gone = closed();
    let (status, out, _) = load(&["--to", &gone, "--messages", "5"]);
    assert!(status == 1 && out.contains("ended early: connect failed"), "{out}");
    // Told before anything is tried.
    let report = "/nonexistent/report.html";
    let (status, out, error) = load(&["--to", &gone, "--messages", "5", "--report", report]);
    assert!(status != 0 && out.is_empty() && error.contains(report), "{out} {error}");
    let (status, out, error) = load(&["--to", &gone, "--messages", "5", "--measure-pid", "1073741823"]);
    assert!(status != 0 && out.is_empty() && error.contains("no such process"), "{out} {error}");

    let sink = Sink::start(&[]);
    let args = ["load", "--to", &sink.at, "--rate", "200/s", "--duration", "60s", "--connections", "2"];
    let mut command = Command::new(BINARY);
    let child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(500));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let output = child.wait_with_output().expect("waited");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && out.contains("interrupted: not all was sent"), "{out}");
    sink.signal("TERM");
    assert_eq!(sink.end().0, 0);
}

#[test]
fn a_pair_ends_well_only_when_all_has_arrived() {
    let at = closed();
    let (status, out, _) = load(&["--to", &at, "--sink", &at, "--messages", "40", "--connections", "2"]);
    assert!(status == 0 && out.contains("all 40 acknowledged deliveries arrived exactly once"), "{out}");
    // A server that keeps what it takes.
    let keeper = Sink::start(&["--messages", "40"]);
    let to = ["--to", &keeper.at, "--sink", &closed(), "--arrival-wait", "200ms"].map(str::to_owned);
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let (status, out, _) = load(&[&to[..], &["--messages", "40", "--connections", "2"]].concat());
    assert!(status == 1 && out.contains("40 not arrived yet"), "{out}");
    assert_eq!(keeper.end().0, 0);
}

#[test]
fn a_sink_that_saw_mail_twice_says_so() {
    let sink = Sink::start(&["--quiet-exit", "300ms"]);
    let mut client = common::Client::connect(sink.at.parse().expect("an address"));
    let stamp = "X-Ringpost-Load: 00000001-000000000000 1000000000000000 0000000000000000 00001";
    for _ in 0..2 {
        let reply = client.deliver("a@b.test", &["c@d.test"], &format!("{stamp}\r\n\r\nx\r\n"));
        assert!(reply.starts_with("250"), "{reply}");
    }
    let (status, report) = sink.end();
    assert_eq!((status, report["duplicates"].as_u64()), (1, Some(1)), "{report}");
}

#[test]
fn a_search_fails_where_no_rate_is_good() {
    let quick =
        ["--search-trial", "150ms", "--warmup", "50ms", "--search-pause", "0s", "--search-samples", "1"];
    let gone = closed();
    let search = |to: &str, rate: &str| {
        let common = ["--to", to, "--search", "2s", "--connections", "4", "--rate", rate];
        load(&[&common[..], &quick].concat())
    };
    let (status, out, _) = search(&gone, "1/s");
    assert!(status == 1 && out.contains("no rate that was tried keeps the bound"), "{out}");
    // One message in twelve is refused: fewer than that are taken, whatever the rate.
    let sink = Sink::start(&["--reject-every", "12"]);
    let begun = Instant::now();
    let (status, out, _) = search(&sink.at, "40/s");
    println!("{:?}\n{out}", begun.elapsed());
    assert!(out.contains("were refused or lost"), "{out}");
    assert_eq!(status == 0, out.contains("highest rate that keeps the bound"), "{out}");
    sink.signal("TERM");
    assert_eq!(sink.end().0, 0);
}
