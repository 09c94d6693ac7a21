//! What the whole-binary tests share: a server process, a scripted peer, a small client.
//!
//! Owns: starting the real binary on free loopback ports with a spool of its own, and ending it in every
//! way. Promises: no process outlives its test. Must not: use the server's own parsers.
#![allow(dead_code, reason = "each test binary uses its part of this")]
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_ringpost");

/// A running `ringpost serve`.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
    /// All it has said on standard error so far.
    pub said: Arc<Mutex<String>>,
}

/// Waits until what is asked for is true.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Server {
    /// Starts on a free port and waits for `ready`.
    pub fn start(spool: &Path, args: &[&str]) -> Server {
        Server::from_command(
            Command::new(BINARY)
                .args(["serve", "--listen", "127.0.0.1:0", "--hostname", "mta.test", "--spool"])
                .arg(spool)
                .args(args),
        )
    }

    /// Runs a command that ends up as a server.
    pub fn from_command(command: &mut Command) -> Server {
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        let said = Arc::new(Mutex::new(String::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let log = said.clone();
        std::thread::spawn(move || {
            let mut addr = None;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some((_, at)) = line.split_once(" on ").filter(|_| addr.is_none()) {
                    addr = at.parse().ok();
                }
                log.lock().expect("not poisoned").push_str(&format!("{line}\n"));
                if line == "ready" {
                    let _ = tell.send(addr);
                }
            }
        });
        let addr = match told.recv_timeout(Duration::from_secs(60)) {
            Ok(Some(addr)) => addr,
            _ => {
                let _ = child.kill();
                panic!("no `ready`: {}", said.lock().expect("not poisoned"));
            }
        };
        Server { child, addr, said }
    }

    /// The address it says it takes `service` on.
    pub fn address_of(&self, service: &str) -> SocketAddr {
        let said = self.said.lock().expect("not poisoned");
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{service} on ")));
        line.and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("no {service}: {said}"))
    }

    /// Waits until it has said that.
    pub fn wait_for_word(&self, word: &str) {
        wait_until(word, || self.said.lock().expect("not poisoned").contains(word));
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("still running");
        self.child.wait().expect("waited");
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// SIGTERM, and its exit status.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait(Duration::from_secs(30))
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(start.elapsed() < limit, "the server does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("running");
        let after = stat.rsplit_once(')').expect("a name in brackets").1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the binary to its end with a bound on its time.
pub fn run(args: &[&str]) -> (ExitStatus, String, String) {
    let mut child = Command::new(BINARY)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    while child.try_wait().expect("waited").is_none() {
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().expect("killed");
            panic!("{args:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
    (child.wait().expect("waited"), out, err)
}

/// A client that sends lines and reads replies.
pub struct Client<S = TcpStream> {
    stream: BufReader<S>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Client {
        let mut client = Client::silent(addr);
        assert!(client.reply().starts_with("220 "));
        client
    }

    /// Connects and waits for nothing.
    pub fn silent(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        Client { stream: BufReader::new(stream) }
    }

    /// The bare connection.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

impl<S: Read + Write> Client<S> {
    /// A client on a connection that is there.
    pub fn on(stream: S) -> Client<S> {
        Client { stream: BufReader::new(stream) }
    }

    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("sent");
    }

    /// One whole reply, its lines joined with `\n`; empty at the end of the stream.
    pub fn reply(&mut self) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).unwrap_or(0) == 0 {
                return all;
            }
            let last = line.as_bytes().get(3) != Some(&b'-');
            all.push_str(line.trim_end());
            if last {
                return all;
            }
            all.push('\n');
        }
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        self.reply()
    }

    /// One whole transaction; returns the reply to the final dot.
    pub fn deliver(&mut self, from: &str, to: &[&str], body: &str) -> String {
        let to: Vec<String> = to.iter().map(|to| format!("<{to}>")).collect();
        self.deliver_with(&format!("<{from}>"), &to, body)
    }

    /// The same with paths in brackets, and parameters behind them.
    pub fn deliver_with(&mut self, from: &str, to: &[impl std::fmt::Display], body: &str) -> String {
        assert!(self.ask("EHLO client.test").starts_with("250"));
        let mail = self.ask(&format!("MAIL FROM:{from}"));
        assert!(mail.starts_with("250"), "{mail}");
        for to in to {
            let rcpt = self.ask(&format!("RCPT TO:{to}"));
            assert!(rcpt.starts_with("250"), "{rcpt}");
        }
        assert!(self.ask("DATA").starts_with("354"));
        self.send(body.as_bytes());
        self.ask(".")
    }
}

/// A message as a scripted peer received it.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub from: String,
    pub to: Vec<String>,
    /// Without dot-stuffing.
    pub data: String,
}

/// How a peer answers: given the verb (`connect`, `EHLO`, `MAIL`, `RCPT`, `DATA`, `.`) and its whole
/// line, the reply; `None` closes the connection; an empty reply says nothing.
pub type Script = dyn Fn(&str, &str) -> Option<String> + Send + Sync;

/// A receiver that answers as it is told and keeps what it took.
pub struct Peer {
    pub addr: SocketAddr,
    pub arrived: Arc<Mutex<Vec<Arrived>>>,
    pub sessions: Arc<Mutex<usize>>,
}

impl Peer {
    /// Takes everything.
    pub fn willing() -> Peer {
        Peer::scripted(|verb, _| Some(default_reply(verb)))
    }

    pub fn scripted(script: impl Fn(&str, &str) -> Option<String> + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let sessions = Arc::new(Mutex::new(0));
        let (kept, counted, script) = (arrived.clone(), sessions.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                *counted.lock().expect("not poisoned") += 1;
                let (kept, script) = (kept.clone(), script.clone());
                std::thread::spawn(move || talk(stream, &*script, &kept));
            }
        });
        Peer { addr, arrived, sessions }
    }

    /// Takes everything, and sends each reply in three pieces.
    pub fn dribbling() -> Peer {
        Peer::scripted(|verb, _| Some(format!("\u{0}{}", default_reply(verb))))
    }

    pub fn route(&self) -> String {
        format!("*={}", self.addr)
    }

    /// Waits until `count` messages have arrived.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Vec<Arrived> {
        let start = Instant::now();
        loop {
            let arrived = self.arrived.lock().expect("not poisoned").clone();
            if arrived.len() >= count {
                return arrived;
            }
            assert!(start.elapsed() < limit, "{} of {count} messages arrived: {arrived:?}", arrived.len());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub fn default_reply(verb: &str) -> String {
    match verb {
        "connect" => "220 peer.test ESMTP",
        "EHLO" => "250-peer.test\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME",
        "DATA" => "354 go on",
        "QUIT" => "221 2.0.0 bye",
        _ => "250 2.0.0 ok",
    }
    .to_string()
}

fn talk(stream: TcpStream, script: &Script, arrived: &Mutex<Vec<Arrived>>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines();
    let mut say = move |verb: &str, line: &str| -> Option<bool> {
        let reply = if verb == "503" { "503 5.5.1 order".into() } else { script(verb, line)? };
        if let Some(slow) = reply.strip_prefix('\0') {
            let reply = format!("{slow}\r\n");
            for half in reply.as_bytes().chunks(reply.len().div_ceil(3)) {
                writer.write_all(half).ok()?;
                std::thread::sleep(Duration::from_millis(1));
            }
            return Some(slow.starts_with('2') || slow.starts_with('3'));
        }
        if !reply.is_empty() {
            writer.write_all(format!("{reply}\r\n").as_bytes()).ok()?;
        }
        Some(reply.starts_with('2') || reply.starts_with('3'))
    };
    say("connect", "")?;
    let (mut mail, mut from, mut to) = (false, String::new(), Vec::new());
    loop {
        let line = lines.next()?.ok()?;
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        // A real peer keeps the order of commands whatever it thinks of them.
        let out_of_order = (verb == "RCPT" && !mail) || (verb == "DATA" && to.is_empty());
        let taken = if out_of_order { say("503", "")? } else { say(&verb, &line)? };
        let path =
            || line.split('<').nth(1).and_then(|p| p.split('>').next()).unwrap_or_default().to_string();
        match verb.as_str() {
            "MAIL" => (mail, from, to) = (taken, path(), Vec::new()),
            "RCPT" if taken => to.push(path()),
            "DATA" if taken => {
                let mut data = String::new();
                loop {
                    let line = lines.next()?.ok()?;
                    if line == "." {
                        break;
                    }
                    data.push_str(line.strip_prefix('.').unwrap_or(&line));
                    data.push('\n');
                }
                if say(".", "")? && !to.is_empty() {
                    let message = Arrived { from: from.clone(), to: to.clone(), data };
                    arrived.lock().expect("not poisoned").push(message);
                }
            }
            "QUIT" => return None,
            _ => {}
        }
    }
}
