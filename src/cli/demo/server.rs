//! The server of a demonstration: a child process of this one.
//!
//! Owns: starting it, learning its port, its CPU time, ending it. Promises: whichever way the
//! demonstration ends, the child ends too; what it said on standard error is at hand when it fails.
//! Must not: inherit the user's settings, which could make the figures those of something else.
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Wait for the server to say that it is ready: it may have to fill its first segments.
const START_WAIT: Duration = Duration::from_secs(120);
/// Wait for the server to end after SIGTERM: longer than the grace it is given.
const STOP_WAIT: Duration = Duration::from_secs(40);
/// Grace the server is given for its drain.
const GRACE: &str = "30s";
/// Lines of the child's standard error kept for a failure.
const KEPT_LINES: usize = 20;
/// Longest line of it.
const LINE_BYTES: u64 = 4096;

/// What the server is to be like.
pub struct ServerPlan<'a> {
    pub spool: &'a Path,
    pub sink: SocketAddr,
    pub durability: &'a str,
    pub workers: Option<u32>,
    /// Connections it may make to the sink.
    pub connections: u32,
}

/// The running child.
pub struct Server {
    child: Child,
    address: SocketAddr,
    said: Said,
}

type Said = Arc<Mutex<VecDeque<String>>>;

impl Server {
    /// Starts the server and waits until it is ready. `stopped` is asked while waiting.
    pub fn start(plan: &ServerPlan<'_>, stopped: &dyn Fn() -> bool) -> anyhow::Result<Server> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.args(arguments(plan)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        // Ctrl-C goes to the whole foreground group; the server is ended in order instead.
        let mut child = command.process_group(0).spawn().context("cannot start the server")?;
        let stderr = child.stderr.take().expect("standard error is piped");
        let said = Said::default();
        let mut server = Server { child, address: SocketAddr::from(([0; 4], 0)), said: said.clone() };
        let (send, news) = channel();
        thread::Builder::new()
            .name("server-log".into())
            .spawn(move || listen(stderr, &said, |n| drop(send.send(n))))?;
        server.address = server.wait_until_ready(&news, stopped)?;
        Ok(server)
    }

    fn wait_until_ready(
        &mut self,
        news: &Receiver<News>,
        stopped: &dyn Fn() -> bool,
    ) -> anyhow::Result<SocketAddr> {
        let until = Instant::now() + START_WAIT;
        let mut address = None;
        while Instant::now() < until {
            match news.recv_timeout(Duration::from_millis(50)) {
                Ok(News::Listening(at)) => address = address.or(Some(at)),
                Ok(News::Ready) => {
                    return address.context("the server is ready but has not said its address");
                }
                Err(RecvTimeoutError::Timeout) if stopped() => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure("the server did not start")),
            }
        }
        Err(self.failure(&format!("the server was not ready within {} s", START_WAIT.as_secs())))
    }

    /// Where it receives mail.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU it has used so far, user and system, kernel work on its threads included.
    pub fn cpu(&self) -> Duration {
        fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .ok()
            .and_then(|stat| cpu_ticks(&stat))
            .map_or(Duration::ZERO, |ticks| {
                Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
            })
    }

    /// Sends SIGTERM and waits for the end. Fails when it does not end, or not well.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM);
        let until = Instant::now() + STOP_WAIT;
        while Instant::now() < until {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure(&ended(status))),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(self.failure("the server did not stop after SIGTERM"))
    }

    /// An error of that text with what the server said last.
    pub fn failure(&self, what: &str) -> anyhow::Error {
        // The last words may still be in the pipe.
        thread::sleep(Duration::from_millis(50));
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = said.iter().map(String::as_str).collect();
        match lines.is_empty() {
            true => anyhow!("{what}; it said nothing"),
            false => anyhow!("{what}; it said:\n  {}", lines.join("\n  ")),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only for a process that has ended, which is what was wanted.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a child that has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(status: ExitStatus) -> String {
    format!("the server ended badly ({status})")
}

/// Settings that the child must not take from the environment. `RINGPOST_LOG` may pass: it changes what is
/// logged, not what is done.
fn is_setting(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("RINGPOST_") && name != "RINGPOST_LOG")
}

fn arguments(plan: &ServerPlan<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    flag("--listen", "127.0.0.1:0".into());
    flag("--hostname", "demo.ringpost.invalid".into());
    flag("--spool", plan.spool.into());
    flag("--durability", plan.durability.into());
    flag("--route", format!("*={}", plan.sink).into());
    flag("--destination-connections", plan.connections.to_string().into());
    flag("--shutdown-grace", GRACE.into());
    if let Some(workers) = plan.workers {
        flag("--workers", workers.to_string().into());
    }
    arguments.insert(0, "serve".into());
    arguments.push("--end-with-parent".into());
    arguments
}

/// What the demonstration waits for on the child's standard error.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Listening(SocketAddr),
    Ready,
}

fn listen(stderr: ChildStderr, said: &Said, mut tell: impl FnMut(News)) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    // A read error is as final as the end of the pipe.
    while matches!(reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line), Ok(1..)) {
        let text = crate::mail::text::printable(line.trim_ascii_end());
        if let Some(news) = understand(&text) {
            tell(news);
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == KEPT_LINES {
            said.pop_front();
        }
        said.push_back(text);
        line.clear();
    }
}

fn understand(line: &str) -> Option<News> {
    match line.strip_prefix("listening on ") {
        Some(address) => address.parse().ok().map(News::Listening),
        None => (line == "ready").then_some(News::Ready),
    }
}

/// User and system time of `/proc/PID/stat`: fields 14 and 15, counted behind the name, which may
/// itself hold spaces and brackets (proc(5)).
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut tick = || fields.next()?.parse::<u64>().ok();
    Some(tick()? + tick()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_server_are_understood() {
        for (line, news) in [
            (
                "listening on 127.0.0.1:40000",
                Some(News::Listening("127.0.0.1:40000".parse().expect("an address"))),
            ),
            ("ready", Some(News::Ready)),
            ("listening on nothing", None),
            ("INFO listening on 127.0.0.1:1", None),
            ("not ready", None),
            ("", None),
        ] {
            assert_eq!(understand(line), news, "{line}");
        }
    }

    #[test]
    fn cpu_is_found_behind_any_name() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 10 0 0 0 123 77 0 0 20 0 3 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(200));
        assert_eq!(cpu_ticks("42 (x) S 1"), None);
        assert!(fs::read_to_string("/proc/self/stat").is_ok_and(|stat| cpu_ticks(&stat).is_some()));
    }

    #[test]
    fn only_settings_are_kept_from_the_child() {
        for (name, is) in
            [("RINGPOST_LISTEN", true), ("RINGPOST_CONFIG", true), ("RINGPOST_LOG", false), ("PATH", false)]
        {
            assert_eq!(is_setting(&name.into()), is, "{name}");
        }
    }

    #[test]
    fn the_arguments_are_a_valid_command() {
        use clap::Parser;
        let plan = ServerPlan {
            spool: Path::new("s"),
            sink: SocketAddr::from(([127, 0, 0, 1], 1)),
            durability: "disk",
            workers: Some(2),
            connections: 64,
        };
        let words = std::iter::once("ringpost".into()).chain(arguments(&plan));
        assert!(crate::cli::Cli::try_parse_from(words).is_ok());
    }
}
