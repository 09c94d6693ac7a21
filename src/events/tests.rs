//! Tests of the event stream: what a line says, what is lost and counted, what a full disk does.
use std::sync::Mutex;

use super::*;

/// 2030-01-31T23:59:59.000001Z.
const AT: WallTime = WallTime(1_896_134_399_000_001);
const ID: MessageId = MessageId(0x0123_4567_89ab_cdef);

fn line(event: Event) -> String {
    let mut out = Vec::new();
    json::append_line(&mut out, &Record { time: AT, event });
    String::from_utf8(out).unwrap()
}

fn removed(reason: &str) -> Event {
    Event::Removed { id: ID, recipient: "a@b.example".into(), reason: reason.into() }
}

#[test]
fn every_variant_has_its_fields() {
    let (recipient, host, reply) =
        ("a@b.example".to_owned(), "mx.b.example".to_owned(), "250 2.0.0 ok".to_owned());
    let (r, h, p) = (|| recipient.clone(), || host.clone(), || reply.clone());
    let head = r#"{"time":"2030-01-31T23:59:59.000001Z","type":"#;
    let table = [
        (
            Event::Received {
                id: ID,
                from: String::new(),
                recipients: vec![r(), "c@d.example".into()],
                bytes: 4096,
                client: Some("2001:db8::1".parse().unwrap()),
                user: None,
                tls: None,
                certificate: None,
            },
            r#""received","id":"028t5cy4tqkff","from":"","recipients":["a@b.example","c@d.example"],"bytes":4096,"client":"2001:db8::1"}"#,
        ),
        (
            Event::Received {
                id: ID,
                from: String::new(),
                recipients: vec![],
                bytes: 1,
                client: None,
                user: Some("a".into()),
                tls: Some("TLSv1.3 X".into()),
                certificate: Some("c.example".into()),
            },
            r#""received","id":"028t5cy4tqkff","from":"","recipients":[],"bytes":1,"client":null,"user":"a","tls":"TLSv1.3 X","certificate":"c.example"}"#,
        ),
        (
            Event::Login {
                user: "a".into(),
                client: "192.0.2.1".parse().unwrap(),
                mechanism: "PLAIN",
                success: false,
            },
            r#""login","user":"a","client":"192.0.2.1","mechanism":"PLAIN","success":false}"#,
        ),
        (
            Event::Delivered {
                id: ID,
                recipient: r(),
                host: h(),
                reply: p(),
                attempts: 1,
                queued_ms: 7,
                tls: Some("TLSv1.3 TLS_AES_128_GCM_SHA256".into()),
                user: Some("u".into()),
            },
            r#""delivered","id":"028t5cy4tqkff","recipient":"a@b.example","host":"mx.b.example","reply":"250 2.0.0 ok","attempts":1,"queued_ms":7,"tls":"TLSv1.3 TLS_AES_128_GCM_SHA256","user":"u"}"#,
        ),
        (
            Event::Deferred {
                id: ID,
                recipient: r(),
                host: h(),
                reply: p(),
                attempts: 2,
                next: WallTime(0),
                user: None,
            },
            r#""deferred","id":"028t5cy4tqkff","recipient":"a@b.example","host":"mx.b.example","reply":"250 2.0.0 ok","attempts":2,"next":"1970-01-01T00:00:00.000000Z"}"#,
        ),
        (
            Event::Failed {
                id: ID,
                recipient: r(),
                host: h(),
                reply: p(),
                attempts: 3,
                bounce: Some(MessageId(1)),
                user: Some("u".into()),
            },
            r#""failed","id":"028t5cy4tqkff","recipient":"a@b.example","host":"mx.b.example","reply":"250 2.0.0 ok","attempts":3,"bounce":"0000000000001","user":"u"}"#,
        ),
        (
            Event::Failed {
                id: ID,
                recipient: r(),
                host: h(),
                reply: p(),
                attempts: 3,
                bounce: None,
                user: None,
            },
            r#""failed","id":"028t5cy4tqkff","recipient":"a@b.example","host":"mx.b.example","reply":"250 2.0.0 ok","attempts":3,"bounce":null}"#,
        ),
        (removed("spam"), r#""removed","id":"028t5cy4tqkff","recipient":"a@b.example","reason":"spam"}"#),
    ];
    for (event, want) in table {
        assert_eq!(line(event), format!("{head}{want}\n"));
    }
}

#[test]
fn text_is_ascii_on_the_line_and_whole_after_parsing() {
    for text in ["\r\n\0\x1b[31m", "\"\\", "\x7f\u{85}\u{202e}", "grüße 😀", ""] {
        let line = line(removed(text));
        assert!(line.trim_end().bytes().all(|b| matches!(b, b' '..=b'~')), "{line:?}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["reason"], text);
    }
}

#[test]
fn the_furthest_time_is_still_a_time() {
    let mut out = Vec::new();
    json::append_line(&mut out, &Record { time: WallTime(u64::MAX), event: removed("") });
    assert!(out.starts_with(b"{\"time\":\"9999-12-31T23:59:59."), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (sender, queue) = channel(2);
    for _ in 0..5 {
        sender.send(AT, removed("x"));
    }
    assert_eq!((queue.len(), sender.dropped(), sender.clone().dropped()), (2, 3, 3));
}

#[test]
fn off_takes_and_forgets() {
    let sender = EventSender::off();
    sender.send(AT, removed("x"));
    assert_eq!((sender.is_on(), sender.dropped()), (false, 0));
}

#[test]
fn the_file_is_private_appended_to_and_whole() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.json");
    for _ in 0..2 {
        let (sender, thread) = start(&path).unwrap();
        assert!(sender.is_on());
        for i in 0..1000 {
            sender.send(WallTime(i), removed(&i.to_string()));
        }
        drop(sender);
        thread.join().unwrap();
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    let reasons: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["reason"].as_str().unwrap().to_owned())
        .collect();
    let want: Vec<String> = (0..1000).chain(0..1000).map(|i| i.to_string()).collect();
    assert_eq!(reasons, want);
}

#[test]
fn a_path_that_cannot_be_opened_is_named() {
    let error = start(Path::new("/nonexistent/events.json")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/events.json"), "{error}");
}

/// A disk with room for `room` bytes, which an operator may raise.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let (text, room) = &mut *self.0.lock().unwrap();
        let n = bytes.len().min(*room - text.len());
        if n == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        text.extend_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_counted_and_the_log_goes_on_with_whole_lines() {
    let one = line(removed("x")).len();
    // Room, lines counted as lost, and lines whole in the end. Where only the line feed was missing,
    // the next write completes the line it was counted for.
    let table = [(0, 3, 3), (1, 3, 3), (one, 2, 4), (one + 5, 2, 4), (3 * one - 1, 1, 6), (3 * one, 0, 6)];
    for (room, lost, whole) in table {
        let disk = Disk::default();
        disk.0.lock().unwrap().1 = room;
        let losses = Arc::new(Losses::default());
        let mut writer = Writer::new(Box::new(disk.clone()), Arc::clone(&losses));
        let batch = |writer: &mut Writer| {
            for _ in 0..3 {
                writer.push(&Record { time: AT, event: removed("x") });
            }
            writer.write();
        };
        batch(&mut writer);
        assert_eq!(losses.unwritten.load(Ordering::Relaxed), lost, "room {room}");
        disk.0.lock().unwrap().1 = usize::MAX;
        batch(&mut writer);
        assert_eq!(losses.unwritten.load(Ordering::Relaxed), lost, "room {room}");
        let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
        let parsed = text.lines().filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()).count();
        assert_eq!(parsed, whole, "room {room}: {text}");
    }
}
