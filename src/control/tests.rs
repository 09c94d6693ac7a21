//! The control thread over its real socket and real TCP, with a server made up for the test.
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::WallTime;

const TOKEN: &str = "0123456789abcdef";
const KNOWN: MessageId = MessageId(77);

/// Answers from constants and writes down what it was asked to do.
#[derive(Default)]
struct Fake {
    is_ready: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, text: String) {
        self.asked.lock().expect("no test thread panics with it").push(text);
    }
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("no test thread panics with it"))
    }
}

fn at_once<T: Send + 'static>(value: T) -> BoxFuture<T> {
    Box::pin(std::future::ready(value))
}

fn message() -> MessageView {
    MessageView {
        id: KNOWN,
        received: Timestamp(WallTime(1_000_000)),
        sender: "a@example.com".into(),
        user: None,
        bytes: 4096,
        recipients: 1,
        pending: 1,
        state: State::Deferred,
        next_attempt: None,
    }
}

impl Server for Fake {
    fn counters(&self) -> BoxFuture<Counters> {
        at_once(Counters {
            accepted_messages: 4321,
            written_bytes: 3,
            recorded_bytes: 2,
            ..Counters::default()
        })
    }
    fn destinations(&self, limit: usize) -> BoxFuture<Vec<DestinationView>> {
        self.note(format!("destinations {limit}"));
        at_once(
            ["a.example", "b.example"]
                .map(|destination| DestinationView {
                    destination: destination.into(),
                    ready: 1,
                    deferred: 2,
                    in_flight: 3,
                    connections: 4,
                    next_attempt: None,
                    backoff_until: None,
                })
                .into(),
        )
    }
    fn list(&self, selector: Selector, limit: usize) -> BoxFuture<Vec<MessageView>> {
        self.note(format!("list {selector} {limit}"));
        at_once(vec![message()])
    }
    fn show(&self, id: MessageId) -> BoxFuture<Option<MessageDetail>> {
        let detail =
            MessageDetail { message: message(), client: None, expires: None, recipient_list: vec![] };
        at_once((id == KNOWN).then_some(detail))
    }
    fn why_message(&self, id: MessageId) -> BoxFuture<Option<WhyMessage>> {
        at_once((id == KNOWN).then(|| WhyMessage { id, deliveries: vec![] }))
    }
    fn why_destination(&self, domain: Domain) -> BoxFuture<WhyDestination> {
        at_once(WhyDestination {
            destination: domain.to_string(),
            held: 6,
            queued: None,
            suspension: None,
            gates: vec![],
        })
    }
    fn operate(&self, order: Order, progress: Arc<Progress>) -> BoxFuture<Result<(), String>> {
        let to = order.to.as_ref().map(Domain::as_str).unwrap_or("nowhere");
        self.note(format!(
            "{} {} to {to}: {} {}",
            order.act.as_str(),
            order.selector,
            order.reason,
            order.dry_run
        ));
        Progress::add(&progress.changed, 7);
        at_once(if order.selector.id == Some(KNOWN) { Err("it is on its way".into()) } else { Ok(()) })
    }
    fn suspend(&self, domain: Domain, view: SuspensionView) -> BoxFuture<Result<(), String>> {
        self.note(format!("suspend {domain} {}: {}", view.until.is_some(), view.reason));
        at_once(if domain.as_str() == "full.example" { Err("the disk is full".into()) } else { Ok(()) })
    }
    fn resume(&self, domain: Domain, reason: String) -> BoxFuture<Result<bool, String>> {
        self.note(format!("resume {domain}: {reason}"));
        at_once(Ok(true))
    }
    fn suspensions(&self) -> Vec<SuspensionView> {
        vec![SuspensionView {
            destination: "s.example".into(),
            since: Timestamp(WallTime(0)),
            until: None,
            reason: "quiet".into(),
        }]
    }
    fn inject(&self, messages: Vec<Injection>, client: IpAddr) -> BoxFuture<Vec<Injected>> {
        let one = |injection: Injection| {
            let to: Vec<&str> = injection.envelope.recipients.iter().map(|r| r.address.as_str()).collect();
            self.note(format!("[{client} to {} {}]", to.join(","), injection.message.escape_ascii()));
            let refused = |why, text: &'static str| Injected::Refused(why, text.into());
            match &*injection.message {
                b"full" => refused(Refused::NoRoom, "452 4.3.1 No room"),
                b"busy" => refused(Refused::Unavailable, "451 4.3.0 Not now"),
                b"large" => refused(Refused::TooLarge, "552 5.3.4 Too large"),
                b"bad" => refused(Refused::Content, "550 5.6.11 A CR"),
                _ => Injected::Accepted(KNOWN),
            }
        };
        let injected: Vec<Injected> = messages.into_iter().map(one).collect();
        at_once(injected)
    }
    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }
}

fn config(spool: &Path, address: Option<&str>, token: Option<&str>) -> ControlConfig {
    ControlConfig {
        spool: spool.to_owned(),
        address: address.map(|a| a.parse().expect("written in this test")),
        token: token.map(str::to_owned),
        durability: Durability::Disk,
        workers: 2,
        max_recipients: 2,
        injection_bytes: 1024,
    }
}

/// Sends one request and returns status and body.
fn exchange(mut stream: impl Read + Write, request: &str, headers: &str) -> (u16, String) {
    write!(stream, "{request} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn local(spool: &Path, request: &str) -> (u16, String) {
    exchange(socket::connect(spool).expect("connected"), request, "Host: ringpost\r\n")
}

#[test]
fn the_local_socket_serves_every_route() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let fake = Arc::new(Fake::default());
    let handle = start(config(spool.path(), None, None), fake.clone()).expect("started");
    let known = format!("/api/v1/messages/{KNOWN}");
    let unknown = format!("/api/v1/messages/{}", MessageId(78));
    for (request, status, part, asked) in [
        ("GET /healthz", 200, "ok", ""),
        ("GET /readyz", 503, "not ready", ""),
        ("GET /metrics", 200, "\nringpost_accepted_messages_total 4321\n", ""),
        ("GET /metrics", 200, "ringpost_info{version=\"0.1.0\",durability=\"disk\",workers=\"2\"} 1", ""),
        ("GET /api/v1/counters", 200, "\"accepted_messages\":4321", ""),
        ("GET /api/v1/counters", 200, "\"write_amplification\":1.5", ""),
        ("GET /api/v1/destinations", 200, "\"destination\":\"a.example\"", "destinations 100"),
        ("GET /api/v1/destinations?limit=7", 200, "b.example", "destinations 7"),
        ("GET /api/v1/destinations?limit=0", 400, "limit: write a number from 1 to 10000", ""),
        ("GET /api/v1/destinations?limit=x", 400, "error", ""),
        ("GET /api/v1/destinations?limits=1", 400, "unknown field", ""),
        ("GET /api/v1/queue", 200, "\"pending\":1", "list all 100"),
        (
            "GET /api/v1/queue?sender=&recipient=x@A.example&state=in-flight&limit=9",
            200,
            "4096",
            "list sender <>, recipient <x@a.example>, state in-flight 9",
        ),
        ("GET /api/v1/queue?state=lost", 400, "state: write one of ready, deferred", ""),
        ("GET /api/v1/queue?older_than=2", 400, "older_than: ", ""),
        ("GET /api/v1/queue?domian=a.example", 400, "unknown field", ""),
        (&format!("GET {known}"), 200, "\"received\":\"1970-01-01T00:00:01Z\"", ""),
        (&format!("GET {unknown}"), 404, "no message", ""),
        ("GET /api/v1/messages/x", 400, "13 characters", ""),
        (
            "POST /api/v1/queue/hold?domain=A.Example&reason=a%0Ab",
            200,
            "\"stage\":\"done\"",
            "hold domain a.example to nowhere: a\\x0ab false",
        ),
        (
            &format!("POST /api/v1/queue/fail?id={KNOWN}&dry_run=true"),
            200,
            "\"error\":\"it is on its way\"",
            &format!("fail id {KNOWN} to nowhere: no reason given true"),
        ),
        (
            "POST /api/v1/queue/move?all=true&to=b.example",
            200,
            "\"changed\":7",
            "move all to b.example: no reason given false",
        ),
        ("POST /api/v1/queue/move?all=true", 400, "say where to move it", ""),
        ("POST /api/v1/queue/hold?all=true&to=b.example", 400, "to goes with move only", ""),
        ("POST /api/v1/queue/hold", 400, "say which messages", ""),
        ("POST /api/v1/queue/hold?state=in-flight", 400, "only what is ready, deferred or held", ""),
        ("POST /api/v1/queue/drop?all=true", 400, "write one of hold, release", ""),
        ("GET /api/v1/queue/hold?all=true", 405, "wrong method", ""),
        ("GET /api/v1/operations", 200, "\"operation\":3", ""),
        ("GET /api/v1/operations/1", 200, "\"action\":\"hold\"", ""),
        ("GET /api/v1/operations/4", 404, "no operation 4", ""),
        ("GET /api/v1/operations/x", 400, "a number", ""),
        (
            "POST /api/v1/destinations/A.Example/suspend?for=2h&reason=rest",
            200,
            "\"destination\":\"a.example\"",
            "suspend a.example true: rest",
        ),
        (
            "POST /api/v1/destinations/full.example/suspend",
            503,
            "the disk is full",
            "suspend full.example false: no reason given",
        ),
        ("POST /api/v1/destinations/a.example/suspend?for=2", 400, "for: ", ""),
        ("POST /api/v1/destinations/a..b/suspend", 400, "domain: ", ""),
        ("POST /api/v1/destinations/a.example/resume", 200, "true", "resume a.example: no reason given"),
        ("GET /api/v1/suspensions", 200, "\"reason\":\"quiet\"", ""),
        (&format!("GET /api/v1/why/{KNOWN}"), 200, "\"deliveries\":[]", ""),
        (&format!("GET /api/v1/why/{}", MessageId(78)), 404, "no message", ""),
        ("GET /api/v1/why/A.Example", 200, "\"held\":6", ""),
        ("GET /api/v1/why/a..b", 400, "domain: ", ""),
        ("GET /nowhere", 404, "no such path", ""),
    ] {
        let (got, body) = local(spool.path(), request);
        assert_eq!(got, status, "{request}: {body}");
        assert!(body.contains(part), "{request}: {body}");
        assert_eq!(fake.asked().concat(), asked, "{request}");
    }
    fake.is_ready.store(true, Ordering::Relaxed);
    assert_eq!(local(spool.path(), "GET /readyz").0, 200);
    handle.stop();
    assert!(!spool.path().join(socket::NAME).exists());
}

/// The head of the answer and its body.
fn inject(stream: impl Read + Write, headers: &str, body: &str) -> (String, String) {
    let mut stream = stream;
    let length = body.len();
    write!(
        stream,
        "POST /api/v1/messages HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.to_ascii_lowercase(), body.to_owned())
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn mail_is_handed_over_and_answered() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let fake = Arc::new(Fake::default());
    let _handle = start(config(spool.path(), None, None), fake.clone()).expect("started");
    let mail = |text: &str| format!(r#"{{"from":"","to":["a@b.example"],"message":"{text}"}}"#);
    let id = format!(r#"{{"id":"{KNOWN}"}}"#);
    let asked = |text: &str| format!("[127.0.0.1 to a@b.example {text}]");
    for (body, status, retry, answer, handed_over) in [
        (mail("x"), 200, false, id.clone(), asked("x")),
        (format!("[{}]", mail("x")), 200, false, format!("[{id}]"), asked("x")),
        (
            format!(" [{}, {}]", mail("x"), mail("y")),
            200,
            false,
            format!("[{id},{id}]"),
            asked("x") + &asked("y"),
        ),
        (mail("full"), 507, true, r#"{"error":"452 4.3.1 No room"}"#.into(), asked("full")),
        (mail("busy"), 503, true, r#"{"error":"451 4.3.0 Not now"}"#.into(), asked("busy")),
        (mail("large"), 413, false, r#"{"error":"552 5.3.4 Too large"}"#.into(), asked("large")),
        (mail("bad"), 422, false, r#"{"error":"550 5.6.11 A CR"}"#.into(), asked("bad")),
        (
            format!("[{}, {}]", mail("x"), mail("full")),
            207,
            false,
            format!(r#"[{id},{{"status":507,"error":"452 4.3.1 No room"}}]"#),
            asked("x") + &asked("full"),
        ),
        (format!("[{}, {{}}]", mail("x")), 400, false, "missing field".into(), String::new()),
        ("{".into(), 400, false, "EOF".into(), String::new()),
        (mail(&"x".repeat(1024)), 413, false, "send larger mail by SMTP".into(), String::new()),
    ] {
        let (head, got) = inject(socket::connect(spool.path()).expect("connected"), JSON, &body);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{body}: {head} {got}");
        assert_eq!(head.contains("\r\nretry-after: 5"), retry, "{body}: {head}");
        assert!(got.contains(&answer), "{body}: {got}");
        assert_eq!(fake.asked().concat(), handed_over, "{body}");
    }
    for (headers, status) in [("", 415), ("Content-Type: text/plain\r\n", 415), (JSON, 200)] {
        let stream = socket::connect(spool.path()).expect("connected");
        let (head, _) = inject(stream, headers, &mail("x"));
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{headers}: {head}");
    }
    let chunked = format!("Host: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n0\r\n");
    let stream = socket::connect(spool.path()).expect("connected");
    assert_eq!(exchange(stream, "POST /api/v1/messages", &chunked).0, 411);
}

#[test]
fn mail_beyond_the_room_waits_outside() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let fake = Arc::new(Fake::default());
    let _handle = start(config(spool.path(), None, None), fake.clone()).expect("started");
    // One request has most of the room and does not end.
    let mut slow = socket::connect(spool.path()).expect("connected");
    let head = format!("POST /api/v1/messages HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 1000\r\n\r\n");
    slow.write_all(head.as_bytes()).expect("sent");
    let mail = r#"{"from":"","to":["a@b.example"],"message":"x"}"#;
    let mut answers =
        std::iter::repeat_with(|| inject(socket::connect(spool.path()).expect("connected"), JSON, mail));
    // It may take a moment until the slow one is seen.
    let (head, body) = answers.find(|(head, _)| !head.starts_with("http/1.1 200 ")).expect("no end");
    assert!(head.starts_with("http/1.1 503 ") && head.contains("\r\nretry-after: 5"), "{head}");
    assert!(body.contains("try again"), "{body}");
    // Its end gives the room back.
    drop(slow);
    answers.find(|(head, _)| head.starts_with("http/1.1 200 ")).expect("no end");
}

#[test]
fn mail_over_tcp_needs_the_token() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let mail = r#"{"from":"","to":["a@b.example"],"message":"x"}"#;
    for (token, authorization, status) in [
        (Some(TOKEN), String::new(), 401),
        (Some(TOKEN), format!("Authorization: Bearer {TOKEN}x\r\n"), 401),
        (None, format!("Authorization: Bearer {TOKEN}\r\n"), 403),
        (Some(TOKEN), format!("Authorization: Bearer {TOKEN}\r\n"), 200),
    ] {
        let fake = Arc::new(Fake::default());
        let handle = start(config(spool.path(), Some("127.0.0.1:0"), token), fake.clone()).expect("started");
        let stream = std::net::TcpStream::connect(handle.address().expect("it listens")).expect("connected");
        let (head, _) = inject(stream, &format!("{JSON}{authorization}"), mail);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{authorization}: {head}");
        let expected = if status == 200 { "[127.0.0.1 to a@b.example x]" } else { "" };
        assert_eq!(fake.asked().concat(), expected);
    }
}

#[test]
fn domains_are_normalised() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let fake = Arc::new(Fake::default());
    let _handle = start(config(spool.path(), None, None), fake.clone()).expect("started");
    for (request, status, part, asked) in [
        ("GET /api/v1/destinations?domain=B.Example", 200, "b.example", "destinations 10000"),
        ("GET /api/v1/queue?domain=A.Example", 200, "4096", "list domain a.example 100"),
        ("GET /api/v1/queue?domain=a..b", 400, "domain: ", ""),
    ] {
        let (got, body) = local(spool.path(), request);
        assert!(
            got == status && body.contains(part) && !body.contains("\"a.example\""),
            "{request}: {got} {body}"
        );
        assert_eq!(fake.asked().concat(), asked, "{request}");
    }
}

#[test]
fn the_socket_is_private_and_replaces_a_stale_one() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    // What a killed server leaves: a socket that nobody listens on.
    drop(socket::bind(spool.path()).expect("bound"));
    assert!(socket::connect(spool.path()).is_err());
    let _handle = start(config(spool.path(), None, None), Arc::new(Fake::default())).expect("started");
    let meta = std::fs::metadata(spool.path().join(socket::NAME)).expect("the socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(local(spool.path(), "GET /healthz"), (200, "ok\n".into()));
}

#[test]
fn the_length_of_the_spool_path_does_not_matter() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let spool = base.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&spool).expect("made");
    let handle = start(config(&spool, None, None), Arc::new(Fake::default())).expect("started");
    assert_eq!(local(&spool, "GET /healthz").0, 200);
    handle.stop();
    assert!(!spool.join(socket::NAME).exists());
}

#[test]
fn tcp_wants_token_and_host() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let config = config(spool.path(), Some("127.0.0.1:0"), Some(TOKEN));
    let handle = start(config, Arc::new(Fake::default())).expect("started");
    let address = handle.address().expect("it listens");
    for (path, headers, status) in [
        ("/healthz", format!("Host: {address}\r\n"), 200),
        ("/healthz", "Host: evil.example\r\n".into(), 403),
        ("/healthz", String::new(), 403),
        ("/metrics", format!("Host: {address}\r\n"), 401),
        ("/metrics", format!("Host: {address}\r\nAuthorization: Bearer {TOKEN}\r\n"), 200),
        ("/metrics", format!("Host: {address}\r\nAuthorization: Bearer {TOKEN}x\r\n"), 401),
        ("/metrics", format!("Host: evil.example\r\nAuthorization: Bearer {TOKEN}\r\n"), 403),
        ("/nowhere", format!("Host: {address}\r\n"), 401),
        ("/nowhere", format!("Host: {address}\r\nAuthorization: Bearer {TOKEN}\r\n"), 404),
    ] {
        let stream = std::net::TcpStream::connect(address).expect("connected");
        let (got, body) = exchange(stream, &format!("GET {path}"), &headers);
        assert_eq!(got, status, "{path} {headers}: {body}");
    }
    handle.stop();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_taken_port_and_a_missing_spool_are_said() {
    let spool = tempfile::tempdir().expect("a temporary directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let taken = config(spool.path(), Some(&address), Some(TOKEN));
    let missing = config(&spool.path().join("none"), None, None);
    for (config, part) in [(taken, "cannot listen on --control"), (missing, "cannot make the socket")] {
        let error = start(config, Arc::new(Fake::default())).err().expect("an error");
        assert!(error.to_string().contains(part), "{error:#}");
    }
}
