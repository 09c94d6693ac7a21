//! Mail from and to programs that share no code with this one: Postfix's smtp-source and smtp-sink, swaks,
//! msmtp, Python's smtplib, nodemailer, openssl. Postfix as a client is its smtp-source here, which is no daemon
//! and does not pipeline; its daemon's own client, smtp(8), is not run.
//!
//! A test whose program is not installed says so and passes; `scripts/foreign.sh` has the line that
//! installs them all, and runs the same programs with more mail.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Arrived, Peer, Server};

const LIMIT: Duration = Duration::from_secs(60);

fn spool() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
    tempfile::Builder::new().prefix("foreign-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The program, or `None` with a word about the test that is skipped.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        println!("skipped: {name} is not installed (scripts/foreign.sh says how)");
    }
    found
}

/// Runs a client to its end, with `input` on its standard input.
fn run_client(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let written = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("waited");
    written.expect("the client reads its input");
    output
}

fn assert_good(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The lines of a message behind its header.
fn body(message: &Arrived) -> &str {
    message.data.split_once("\n\n").expect("an empty line ends the header").1
}

/// Postfix's smtp-sink on a free port.
struct SmtpSink {
    child: Child,
    addr: SocketAddr,
    dumps: tempfile::TempDir,
}

impl SmtpSink {
    /// Ends by itself after `messages`. Each is dumped to a file of its own.
    fn start(path: &Path, messages: usize, flags: &[&str]) -> SmtpSink {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        SmtpSink::start_at(path, free, messages, flags)
    }

    fn start_at(path: &Path, addr: SocketAddr, messages: usize, flags: &[&str]) -> SmtpSink {
        let dumps = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dumps.path(), PermissionsExt::from_mode(0o777)).expect("ours");
        let mut command = Command::new(path);
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        let child = command
            .args(flags)
            .args(["-M", &messages.to_string(), "-d"])
            .arg(dumps.path().join("m"))
            .args([&addr.to_string(), "256"])
            .stdout(Stdio::null())
            .spawn()
            .expect("smtp-sink starts");
        let start = Instant::now();
        while TcpStream::connect(addr).is_err() {
            assert!(start.elapsed() < LIMIT, "smtp-sink does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        SmtpSink { child, addr, dumps }
    }

    fn route(&self) -> String {
        format!("*={}", self.addr)
    }

    /// Waits for the last message; gives all of them as they were dumped.
    fn finish(mut self) -> Vec<String> {
        let start = Instant::now();
        while self.child.try_wait().expect("waited").is_none() {
            assert!(start.elapsed() < LIMIT, "{} messages arrived", self.dumped().len());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.dumped()
    }

    fn dumped(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.dumps.path()).expect("ours");
        files.map(|f| std::fs::read_to_string(f.expect("ours").path()).expect("text")).collect()
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn smtp_source(path: &Path, to: SocketAddr, flags: &[&str]) -> Output {
    let command = &mut Command::new(path);
    run_client(command.args(flags).args(["-f", "a@sender.test", "-t", "b@one.test"]).arg(to.to_string()), "")
}

#[test]
fn from_smtp_source_to_smtp_sink() {
    let (Some(source), Some(sink)) = (program("smtp-source"), program("smtp-sink")) else { return };
    // A sink that cannot do a thing must get its mail all the same.
    for (messages, flags) in [(400, &[][..]), (50, &["-p"]), (50, &["-e"]), (50, &["-8", "-E", "-N"])] {
        let (dir, sink) = (spool(), SmtpSink::start(&sink, messages, flags));
        let server = Server::start(dir.path(), &["--route", &sink.route()]);
        let count = messages.to_string();
        // -d: many messages over each connection, then one connection each.
        assert_good(&smtp_source(&source, server.addr, &["-d", "-s", "10", "-m", &count, "-l", "4096"]));
        let arrived = sink.finish();
        assert_eq!(arrived.len(), messages, "{flags:?}");
        for message in arrived {
            assert!(message.contains("X-Mail-Args: <a@sender.test>"), "{message}");
            assert!(message.contains("X-Rcpt-Args: <b@one.test>"), "{message}");
            assert!(message.contains("by mta.test with "), "{message}");
        }
        assert!(server.stop().success());
    }
}

#[test]
fn from_smtp_source_over_a_connection_each_with_many_recipients() {
    let (Some(source), Some(sink)) = (program("smtp-source"), program("smtp-sink")) else { return };
    let (dir, sink) = (spool(), SmtpSink::start(&sink, 100, &[]));
    let server = Server::start(dir.path(), &["--route", &sink.route()]);
    assert_good(&smtp_source(&source, server.addr, &["-s", "20", "-m", "100", "-l", "70000", "-r", "5"]));
    for message in sink.finish() {
        assert_eq!(message.matches("X-Rcpt-Args: <").count(), 5, "{message}");
        // The dump has LF for CRLF.
        assert!(message.len() > 69_000, "{}", message.len());
    }
    assert!(server.stop().success());
}

#[test]
fn a_sink_that_hangs_up_or_refuses_for_a_while_gets_everything() {
    let (Some(source), Some(sink)) = (program("smtp-source"), program("smtp-sink")) else { return };
    // A sink that hangs up, answers 421 or 450; then, at the same port, a willing one.
    for unwilling in [["-q", "MAIL"], ["-Q", "DATA"], ["-r", "RCPT"], ["-r", "."]] {
        let (dir, bad) = (spool(), SmtpSink::start(&sink, 40, &unwilling));
        let server = Server::start(dir.path(), &["--route", &bad.route(), "--retry-schedule", "1s"]);
        assert_good(&smtp_source(&source, server.addr, &["-d", "-s", "4", "-m", "40", "-l", "1000"]));
        let addr = bad.addr;
        drop(bad);
        let good = SmtpSink::start_at(&sink, addr, 40, &[]);
        assert_eq!(good.finish().len(), 40, "{unwilling:?}");
        assert!(server.stop().success());
    }
}

#[test]
fn smtp_source_smuggles_nothing() {
    let Some(source) = program("smtp-source") else { return };
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let hidden = "MAIL FROM:<evil@sender.test>\nRCPT TO:<b@two.test>\nDATA\nSubject: hidden\n\nhi\n.\n";
    // It writes CRLF for each LF of the file, doubles dots that begin a line, and leaves CR as it is.
    for (end, arrives) in [(".\n", true), (".\r\n", false), ("\r.\r", false), ("a\r\n.\n", false)] {
        let text = format!("Subject: seen\n\nbefore\n{end}{hidden}");
        let file = dir.path().join("text");
        std::fs::write(&file, &text).expect("written");
        let output = smtp_source(&source, server.addr, &["-F", file.to_str().expect("UTF-8")]);
        assert_eq!(output.status.success(), arrives, "{end:?}: {output:?}");
        if arrives {
            // With a line end of its own behind all.
            assert_eq!(body(&peer.wait_for(1, LIMIT)[0]), format!("before\n{end}{hidden}\n"));
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("550 5.6."), "{end:?}: {said}");
        }
    }
    // What is behind the last refusal came and went: nothing else was taken meanwhile.
    assert_good(&smtp_source(&source, server.addr, &[]));
    let arrived = peer.wait_for(2, LIMIT);
    assert!(arrived.len() == 2 && arrived.iter().all(|message| message.to == ["b@one.test"]));
    assert!(server.stop().success());
}

#[test]
fn from_swaks() {
    let Some(swaks) = program("swaks") else { return };
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    for extra in [&[][..], &["--pipeline"], &["--protocol", "SMTP"]] {
        let output = run_client(
            Command::new(&swaks)
                .args(["--server", &server.addr.to_string(), "--helo", "client.test"])
                .args(["--from", "a@sender.test", "--to", "b@one.test,c@one.test"])
                .args(["--header", "Subject: from swaks", "--body", ".dotted\\n..twice\\nlast"])
                .args(extra),
            "",
        );
        assert_good(&output);
        let arrived = peer.wait_for(1, LIMIT);
        assert_eq!(arrived[0].to, ["b@one.test", "c@one.test"], "{extra:?}");
        assert!(arrived[0].data.contains("Subject: from swaks\n"));
        assert_eq!(body(&arrived[0]).trim_end(), ".dotted\n..twice\nlast");
        peer.arrived.lock().expect("not poisoned").clear();
    }
    // A refusal at RCPT is an error of its own in swaks: 24.
    let no_relay = run_client(
        Command::new(&swaks).args([
            "--server",
            &server.addr.to_string(),
            "--from",
            "a@sender.test",
            "--to",
            "no domain@",
        ]),
        "",
    );
    assert_eq!(no_relay.status.code(), Some(24), "{}", String::from_utf8_lossy(&no_relay.stdout));
    assert!(server.stop().success());
}

const SMTPLIB: &str = r#"
import smtplib, sys
host, port = sys.argv[1].split(":")
client = smtplib.SMTP(host, int(port), local_hostname="client.test", timeout=30)
client.ehlo()
assert client.has_extn("size") and client.has_extn("pipelining") and client.has_extn("8bitmime")
assert client.noop()[0] == 250 and client.rset()[0] == 250 and client.verify("b@one.test")[0] == 252
text = "From: a@sender.test\r\nSubject: from smtplib\r\n\r\n"
for n in range(20):
    refused = client.sendmail("a@sender.test", ["b@one.test", "c@two.test"],
                              text + f"number {n}\r\n.\r\n..\r\n.dot\r\nlast")
    assert refused == {}, refused
client.sendmail("a@sender.test", "b@one.test", (text + "gr\u00fc\u00dfe\r\n").encode(),
                mail_options=["BODY=8BITMIME"])
try:
    client.sendmail("a@sender.test", ["b@one.test"], text + "x" * 70 + ("\r\n" + "x" * 70) * 20000)
    raise SystemExit("too large a message was taken")
except smtplib.SMTPSenderRefused as error:
    assert error.smtp_code == 552, error
refused = client.sendmail("a@sender.test", ["b@one.test", "<broken"], text + "one of two\r\n")
assert list(refused) == ["<broken"], refused
client.sendmail("", ["b@one.test"], text + "nobody's\r\n")
assert client.has_extn("smtputf8") and client.has_extn("dsn") and client.has_extn("chunking")
client.sendmail("a@sender.test", "b@b\u00fccher.test", text + "abroad\r\n",
                mail_options=["SMTPUTF8", "ENVID=x"], rcpt_options=["NOTIFY=NEVER"])
assert client.quit()[0] == 221
"#;

#[test]
fn from_smtplib() {
    let Some(python) = program("python3") else { return };
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route(), "--max-message-size", "1MiB"]);
    let to = server.addr.to_string();
    assert_good(&run_client(Command::new(python).args(["-c", SMTPLIB, &to]), ""));
    // 20 for two destinations each, then five.
    let arrived = peer.wait_for(44, LIMIT);
    for n in 0..20 {
        let text = format!("number {n}\n.\n..\n.dot\nlast\n");
        let of_it: Vec<_> = arrived.iter().filter(|m| body(m) == text).collect();
        assert_eq!(of_it.len(), 2, "{n}");
    }
    assert_eq!(arrived.iter().filter(|m| body(m) == "grüße\n").count(), 1);
    assert_eq!(arrived.iter().filter(|m| body(m) == "one of two\n").count(), 1);
    assert_eq!(arrived.iter().filter(|m| m.from.is_empty()).count(), 1);
    let abroad = arrived.iter().find(|m| body(m) == "abroad\n").expect("it arrived");
    assert_eq!(abroad.to, ["b@xn--bcher-kva.test"]);
    assert_eq!(arrived.len(), 44);
    assert!(server.stop().success());
}

#[test]
fn from_msmtp() {
    let Some(msmtp) = program("msmtp") else { return };
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let output = run_client(
        Command::new(msmtp).args(["--host=127.0.0.1", &format!("--port={}", server.addr.port())]).args([
            "--tls=off",
            "--auth=off",
            "--from=a@sender.test",
            "b@one.test",
            "c@one.test",
        ]),
        "From: a@sender.test\nSubject: from msmtp\n\n.dotted\nlast\n",
    );
    assert_good(&output);
    let arrived = peer.wait_for(1, LIMIT);
    assert_eq!(arrived[0].to, ["b@one.test", "c@one.test"]);
    assert_eq!(body(&arrived[0]), ".dotted\nlast\n");
    assert!(server.stop().success());
}

const NODEMAILER: &str = r#"
const [host, port] = process.argv[1].split(":");
const transport = require("nodemailer").createTransport({ host, port, secure: false, pool: true, maxConnections: 3 });
const send = n => transport.sendMail({
  from: "a@sender.test", to: "b@one.test, c@one.test", subject: "from nodemailer", text: `number ${n}\n.dot\n`,
  attachments: [{ filename: "zeros", content: Buffer.alloc(50000) }],
});
Promise.all([...Array(30).keys()].map(send)).then(() => transport.close(), e => { console.error(e); process.exit(1); });
"#;

#[test]
fn from_nodemailer() {
    let Some(node) = program("node") else { return };
    let installed = Command::new(&node).args(["-e", "require('nodemailer')"]).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        println!("skipped: nodemailer is not installed (scripts/foreign.sh says how)");
        return;
    }
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let to = server.addr.to_string();
    assert_good(&run_client(Command::new(node).args(["-e", NODEMAILER, &to]), ""));
    let arrived = peer.wait_for(30, LIMIT);
    for n in 0..30 {
        let text = format!("number {n}\n.dot\n");
        assert_eq!(arrived.iter().filter(|m| m.data.contains(&text)).count(), 1, "{n}");
    }
    assert!(server.stop().success());
}

/// A server with a certificate and a user, `user` whose password is `secret`.
struct Guarded {
    dir: tempfile::TempDir,
    peer: Peer,
    server: Server,
}

impl Guarded {
    fn start(credential: &str) -> Guarded {
        let (dir, peer, authority) = (spool(), Peer::willing(), tls::Authority::new());
        let pair = authority.sign(dir.path(), "mta", &["mta.test", "localhost"], false);
        std::fs::write(dir.path().join("ca.pem"), &authority.pem).expect("written");
        let users = dir.path().join("users");
        std::fs::write(&users, format!("user:{credential} from=sender.test\n")).expect("written");
        let (route, users) = (peer.route(), users.to_str().expect("UTF-8").to_owned());
        let own = ["--submission", "127.0.0.1:0", "--submissions", "127.0.0.1:0", "--auth-file", &users];
        let args = [&pair.flags()[..], &own, &["--route", &route, "--relay-from", "192.0.2.0/24"]].concat();
        let server = Server::start(&dir.path().join("spool"), &args);
        Guarded { dir, peer, server }
    }

    fn ca(&self) -> String {
        self.dir.path().join("ca.pem").to_str().expect("UTF-8").to_owned()
    }

    /// Takes the one message that came, which was submitted through TLS.
    fn arrived(&self, what: &str) -> Arrived {
        let message = self.peer.wait_for(1, LIMIT).remove(0);
        assert!(message.data.contains("with ESMTPSA id"), "{what}: {}", message.data);
        assert_eq!(
            message.data.matches("\nMessage-ID: ").count() + message.data.matches("\nMessage-Id: ").count(),
            1
        );
        self.peer.arrived.lock().expect("not poisoned").clear();
        message
    }
}

/// `secret`, for PLAIN, LOGIN and SCRAM.
const SCRAM: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0$UdmKRUjfgm0U6mfMFFn/tGaEoriNY2YlrUES5w+4kaA=:ZH6upP+u0RFc4kNZYflxg+txwr3oIlzDM/JXePM5XCY=";
/// `secret`, as `crypt(3)` hashes it.
const BCRYPT: &str = "$2b$04$C6o1Nyo8o6kODLJSlgK7GOSCLD4k6K7n32no3LZSnSLLJWQMP0wIC";

#[test]
fn from_openssl() {
    let Some(openssl) = program("openssl") else { return };
    let guarded = Guarded::start(SCRAM);
    for (flag, service, version) in [
        (Some("smtp"), "submission", "-tls1_3"),
        (Some("smtp"), "submission", "-tls1_2"),
        (None, "submissions", "-tls1_3"),
    ] {
        let addr = guarded.server.address_of(service).to_string();
        let mut command = Command::new(&openssl);
        command.args(["s_client", "-connect", &addr, "-servername", "mta.test", version, "-crlf", "-quiet"]);
        command.args(["-verify_return_error", "-CAfile", &guarded.ca()]);
        if let Some(protocol) = flag {
            command.args(["-starttls", protocol]);
        }
        // Everything at once: the session takes what is pipelined, and an exchange in turns as well.
        let said = "EHLO client.test\nAUTH PLAIN AHVzZXIAc2VjcmV0\nMAIL FROM:<a@sender.test>\n\
                    RCPT TO:<b@one.test>\nDATA\nSubject: from openssl\n\nhi\n.\nQUIT\n";
        let output = run_client(&mut command, said);
        assert!(String::from_utf8_lossy(&output.stdout).contains("235 2.7.0"), "{output:?}");
        assert_eq!(body(&guarded.arrived("openssl")), "hi\n");
    }
    assert!(guarded.server.stop().success());
}

#[test]
fn from_swaks_with_a_login() {
    let Some(swaks) = program("swaks") else { return };
    for credential in [SCRAM, BCRYPT] {
        let guarded = Guarded::start(credential);
        for (service, flags) in [
            ("submission", &["--tls", "--auth", "PLAIN"][..]),
            ("submission", &["--tls", "--auth", "LOGIN"]),
            ("submissions", &["--tls-on-connect", "--auth", "PLAIN"]),
        ] {
            let to = guarded.server.address_of(service).to_string();
            let output = run_client(
                Command::new(&swaks)
                    .args(["--server", &to, "--helo", "client.test", "--from", "a@sender.test"])
                    .args(["--to", "b@one.test", "--body", "hi", "--auth-user", "user"])
                    .args(["--auth-password", "secret"])
                    .args(flags),
                "",
            );
            let said = String::from_utf8_lossy(&output.stdout);
            if said.contains("not available") || output.status.code() == Some(10) {
                println!(
                    "skipped: swaks lacks a Perl module for TLS or AUTH (scripts/foreign.sh says which)"
                );
                return;
            }
            assert_good(&output);
            guarded.arrived("swaks");
        }
        // A wrong password: 28 is swaks' word for a failed login.
        let to = guarded.server.address_of("submission").to_string();
        let output = run_client(
            Command::new(&swaks)
                .args(["--server", &to, "--from", "a@sender.test", "--to", "b@one.test", "--tls"])
                .args(["--auth", "PLAIN", "--auth-user", "user", "--auth-password", "wrong"]),
            "",
        );
        assert_eq!(output.status.code(), Some(28), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(guarded.server.stop().success());
    }
}

const SMTPLIB_TLS: &str = r#"
import smtplib, ssl, sys
host, port, ca, kind = sys.argv[1].rsplit(":", 1) + sys.argv[2:4]
context = ssl.create_default_context(cafile=ca)
if kind == "submissions":
    client = smtplib.SMTP_SSL("localhost", int(port), context=context, timeout=30)
else:
    client = smtplib.SMTP("localhost", int(port), timeout=30)
    client.starttls(context=context)
client.ehlo()
try:
    client.sendmail("a@sender.test", ["b@one.test"], "Subject: x\r\n\r\nno login\r\n")
    raise SystemExit("mail was taken without a login")
except smtplib.SMTPSenderRefused as error:
    assert error.smtp_code == 530, error
client.login("user", "secret")
client.sendmail("a@sender.test", ["b@one.test"], "Subject: from smtplib\r\n\r\nhi\r\n")
client.quit()
"#;

#[test]
fn from_smtplib_with_a_login() {
    let Some(python) = program("python3") else { return };
    let guarded = Guarded::start(BCRYPT);
    for service in ["submission", "submissions"] {
        let to = guarded.server.address_of(service).to_string();
        let mut command = Command::new(&python);
        assert_good(&run_client(command.args(["-c", SMTPLIB_TLS, &to, &guarded.ca(), service]), ""));
        assert_eq!(body(&guarded.arrived("smtplib")), "hi\n");
    }
    assert!(guarded.server.stop().success());
}

#[test]
fn from_msmtp_with_a_login() {
    let Some(msmtp) = program("msmtp") else { return };
    let guarded = Guarded::start(SCRAM);
    for (service, starttls) in [("submission", "on"), ("submissions", "off")] {
        // msmtp knows SCRAM where its GNU SASL does; it takes the best that is offered.
        for auth in ["on", "plain"] {
            let port = guarded.server.address_of(service).port();
            let output = run_client(
                Command::new(&msmtp).args(["--host=localhost", &format!("--port={port}")]).args([
                    "--tls=on",
                    &format!("--tls-starttls={starttls}"),
                    &format!("--tls-trust-file={}", guarded.ca()),
                    &format!("--auth={auth}"),
                    "--user=user",
                    "--passwordeval=echo secret",
                    "--from=a@sender.test",
                    "b@one.test",
                ]),
                "From: a@sender.test\nSubject: from msmtp\n\nhi\n",
            );
            assert_good(&output);
            assert_eq!(body(&guarded.arrived("msmtp")), "hi\n");
        }
    }
    assert!(guarded.server.stop().success());
}

const NODEMAILER_TLS: &str = r#"
const [port, ca, secure] = process.argv.slice(1);
const options = { host: "localhost", port: +port, secure: secure === "true", requireTLS: true,
  tls: { ca: require("fs").readFileSync(ca) }, auth: { user: "user", pass: "secret" } };
const transport = require("nodemailer").createTransport(options);
transport.sendMail({ from: "a@sender.test", to: "b@one.test", subject: "from nodemailer", text: "hi\n" })
  .then(() => transport.close(), e => { console.error(e); process.exit(1); });
"#;

#[test]
fn from_nodemailer_with_a_login() {
    let Some(node) = program("node") else { return };
    let installed = Command::new(&node).args(["-e", "require('nodemailer')"]).stderr(Stdio::null()).status();
    if !installed.is_ok_and(|status| status.success()) {
        println!("skipped: nodemailer is not installed (scripts/foreign.sh says how)");
        return;
    }
    let guarded = Guarded::start(SCRAM);
    for (service, secure) in [("submission", "false"), ("submissions", "true")] {
        let port = guarded.server.address_of(service).port().to_string();
        let mut command = Command::new(&node);
        assert_good(&run_client(command.args(["-e", NODEMAILER_TLS, &port, &guarded.ca(), secure]), ""));
        guarded.arrived("nodemailer");
    }
    assert!(guarded.server.stop().success());
}
