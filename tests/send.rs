//! `ringpost send`, through the real binary: what sendmail would do, and nothing by halves.
mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{BINARY, Peer, Server};

const LIMIT: Duration = Duration::from_secs(60);

/// Arguments, standard input; sender, recipients and body of what arrives.
type Case<'a> = (&'a [&'a str], &'a [u8], &'a str, &'a [&'a str], &'a str);

/// Exit status, standard output and standard error.
fn send(spool: &Path, args: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(BINARY)
        .arg("send")
        .args(["--spool", spool.to_str().expect("text")])
        .args(args)
        .env("LOGNAME", "someone")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // One that does not want the message does not read it.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let done = child.wait_with_output().expect("waited");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (done.status.code(), text(done.stdout), text(done.stderr))
}

#[test]
fn messages_are_sent_as_sendmail_sends_them() {
    let dir = tempfile::Builder::new().prefix("send-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("made");
    let (spool, peer) = (dir.path().join("spool"), Peer::willing());
    let file = dir.path().join("message.eml");
    std::fs::write(&file, "From: x@y.test\nSubject: file\n\none\n.\ntwo\n").expect("written");
    let file = file.to_str().expect("text");
    let server = Server::start(&spool, &["--route", &peer.route(), "--workers", "1"]);
    let from_to = ["--from", "a@sender.test", "--to", "b@one.test", "--to", "c@one.test"];
    let table: [Case<'_>; 5] = [
        (
            &[&from_to[..], &[file]].concat(),
            b"",
            "a@sender.test",
            &["b@one.test", "c@one.test"],
            "one\n.\ntwo\n",
        ),
        (
            &["-t", "-oi", "-f", "a@sender.test"],
            b"From: x@y.test\nTo: B <b@one.test>\nBcc: c@one.test,\n d@one.test\nSubject: t\n\nhi\n.\nx\n",
            "a@sender.test",
            &["b@one.test", "c@one.test", "d@one.test"],
            "hi\n.\nx\n",
        ),
        (&["-f", "", "b@one.test"], b"From: x@y.test\n\nup to\n.\nhere\n", "", &["b@one.test"], "up to\n"),
        (
            &["-f", "a@sender.test", "b@one.test"],
            b"no header\n",
            "a@sender.test",
            &["b@one.test"],
            "no header\n",
        ),
        (
            &["-i", "-f", "a@sender.test", "--", "b@one.test"],
            b"From: x@y.test\r\n\r\n8 bit: \xc3\xa9\r\n",
            "a@sender.test",
            &["b@one.test"],
            "8 bit: \u{e9}\n",
        ),
    ];
    for (args, input, from, to, body) in table {
        let (status, out, err) = send(&spool, args, input);
        assert_eq!((status, out.as_str(), err.as_str()), (Some(0), "", ""), "{args:?}");
        let got = peer.wait_for(1, LIMIT).remove(0);
        assert_eq!(
            (got.from.as_str(), got.to.iter().map(String::as_str).collect::<Vec<_>>()),
            (from, to.to_vec())
        );
        let (head, text) = got.data.split_once("\n\n").expect("a header");
        assert_eq!(text, body, "{args:?}");
        assert!(!head.contains("Bcc") && !head.contains("d@one.test"), "{head}");
        assert_eq!(head.matches("\nFrom: ").count(), 1, "{head}");
        peer.arrived.lock().expect("not poisoned").clear();
    }
    let (status, out, _) = send(&spool, &["-f", "a@sender.test", "b@one.test", "--json"], b"x\n");
    assert_eq!(status, Some(0));
    let id = serde_json::from_str::<serde_json::Value>(&out).expect("JSON")["id"].clone();
    assert!(peer.wait_for(1, LIMIT)[0].data.contains(id.as_str().expect("an id")));
    peer.arrived.lock().expect("not poisoned").clear();

    // Nothing of these goes out.
    let refused: [(&[&str], &[u8], &str); 9] = [
        (&["-f", "a@sender.test"], b"S: x\n\nx\n", "no recipients"),
        (&["-t", "-f", "a@sender.test"], b"S: x\n\nTo: b@one.test\n", "no recipients"),
        (&["-t", "-f", "a@sender.test"], b"To: b@one.test, <c@one.test\n\nx\n", "is not closed"),
        (&["-f", "a@sender.test", "b@one.test", "c d@one.test"], b"x\n", "c d@one.test"),
        (&["-f", "a b@sender.test", "b@one.test"], b"x\n", "a b@sender.test"),
        (&["-f", "a@sender.test", "b@one.test"], b"", "the message is empty"),
        (&["-f", "a@sender.test", "b@one.test"], b"a: b\rBcc: x\n\nx\n", "550 5.6.11 Message refused: a CR"),
        (&["-N", "sometimes", "-f", "a@sender.test", "b@one.test"], b"x\n", "notify: write never"),
        (
            &["--from", "a@sender.test", "--to", "b@one.test", "/no/such/file"],
            b"",
            "cannot open /no/such/file",
        ),
    ];
    for (args, input, why) in refused {
        let (status, out, err) = send(&spool, args, input);
        assert!(status == Some(1) && out.is_empty() && err.contains(why), "{args:?}: {status:?} {out} {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    assert!(server.stop().success());
    assert!(peer.arrived.lock().expect("not poisoned").is_empty());
    let (status, _, err) = send(&spool, &["-f", "a@sender.test", "b@one.test"], b"x\n");
    assert!(status == Some(1) && err.contains("no server is running on spool"), "{err}");
}
