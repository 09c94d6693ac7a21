//! TLS with clients, over loopback against the real binary.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::io::Read;
use std::time::Duration;

use common::{Client, Peer, Server, wait_until};
use rustls::ALL_VERSIONS;
use rustls::version::{TLS12, TLS13};
use tls::{Authority, Pair};

const LIMIT: Duration = Duration::from_secs(60);

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("tls-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
    pair: Pair,
    peer: Peer,
}

impl Site {
    fn new() -> Site {
        let (dir, authority) = (directory(), Authority::new());
        let pair = authority.sign(dir.path(), "mta", &["mta.test"], false);
        Site { dir, authority, pair, peer: Peer::willing() }
    }

    fn start(&self, args: &[&str]) -> Server {
        let route = self.peer.route();
        let own = [&self.pair.flags()[..], &["--route", &route, "--workers", "1"], args].concat();
        Server::start(&self.dir.path().join("spool"), &own)
    }
}

#[test]
fn mail_comes_through_both_versions_and_says_so() {
    let site = Site::new();
    let server = site.start(&[]);
    // Bodies of all kinds of way: copied, one fragment, many fragments.
    let line = "x".repeat(70) + "\r\n";
    for (version, described) in [(&TLS13, "TLSv1.3 TLS_"), (&TLS12, "TLSv1.2 TLS_ECDHE_ECDSA_WITH_")] {
        let config = site.authority.client(None, &[version]);
        let mut client = tls::starttls(server.addr, &config, "mta.test");
        assert!(!client.ask("EHLO client.test").contains("STARTTLS"));
        for size in [1, 500, 3_000, 60_000] {
            let body = format!("Subject: {size}\r\n\r\n{}", line.repeat(size));
            let reply = client.deliver("a@sender.test", &["b@one.test"], &body);
            assert!(reply.starts_with("250"), "{reply}");
            let arrived = site.peer.wait_for(1, LIMIT).remove(0);
            assert_eq!(arrived.data.split_once("\n\n").expect("a header").1.len(), line.len() * size - size);
            let trace = arrived.data.split_once("Subject:").expect("a subject").0;
            assert!(trace.contains(&format!("(using {described}")), "{trace}");
            assert!(trace.contains("with ESMTPS id "), "{trace}");
            site.peer.arrived.lock().expect("not poisoned").clear();
        }
        assert!(client.ask("QUIT").starts_with("221"));
        assert_eq!(client.reply(), "", "close_notify ends it well");
    }
    assert!(server.stop().success());
}

#[test]
fn what_was_sent_behind_starttls_in_the_clear_is_never_carried_out() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut client = Client::connect(server.addr);
    client.ask("EHLO client.test");
    client.ask("MAIL FROM:<a@sender.test>");
    client.send(b"STARTTLS\r\nMAIL FROM:<evil@sender.test>\r\nRCPT TO:<b@one.test>\r\n");
    assert!(client.reply().starts_with("220 "));
    let config = site.authority.client(None, ALL_VERSIONS);
    let stream = tls::handshake(client.into_stream(), &config, "mta.test").expect("a handshake");
    let mut client = Client::on(stream);
    // Nothing of it is there, and nothing of what was said before.
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("503"));
    assert!(client.ask("MAIL FROM:<a@sender.test>").starts_with("503 5.5.1 Say EHLO"));
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn certificates_are_chosen_by_name_and_signature() {
    let site = Site::new();
    let other = site.authority.sign(site.dir.path(), "other", &["other.test", "*.wild.test"], false);
    let rsa = site.authority.sign(site.dir.path(), "rsa", &["mta.test"], true);
    let server = site.start(&[&other.flags()[..], &rsa.flags()[..]].concat());
    let shown = |name: &str, config| {
        let client = tls::starttls(server.addr, config, name);
        client.stream().conn.peer_certificates().expect("shown")[0].clone()
    };
    let config = site.authority.client(None, ALL_VERSIONS);
    assert_eq!(shown("mta.test", &config), site.pair.der);
    assert_eq!(shown("other.test", &config), other.der);
    assert_eq!(shown("a.wild.test", &config), other.der);
    // A client that knows RSA only.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| format!("{:?}", suite.suite()).starts_with("TLS_ECDHE_RSA"));
    let old = {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_pem(&site.authority.pem));
        let builder = rustls::ClientConfig::builder_with_provider(provider.into());
        builder
            .with_protocol_versions(&[&TLS12])
            .expect("known")
            .with_root_certificates(roots)
            .with_no_client_auth()
    };
    assert_eq!(shown("mta.test", &old.into()), rsa.der);
    assert!(server.stop().success());
}

fn rustls_pem(pem: &str) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes()).map(|c| c.expect("PEM")).collect()
}

#[test]
fn sessions_resume_from_tickets() {
    let site = Site::new();
    let server = site.start(&[]);
    for version in [&TLS13, &TLS12] {
        let config = site.authority.client(None, &[version]);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut client = tls::starttls(server.addr, &config, "mta.test");
            // The ticket of TLS 1.3 comes behind the handshake.
            assert!(client.ask("NOOP").starts_with("250"));
            kinds.push(client.stream().conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed));
        }
        assert_eq!(kinds, [false, true, true], "{version:?}");
    }
    assert!(server.stop().success());
}

#[test]
fn client_certificates_are_asked_for_and_named() {
    let site = Site::new();
    let clients = Authority::new();
    let ca = site.dir.path().join("clients.pem");
    std::fs::write(&ca, &clients.pem).expect("written");
    let server = site.start(&["--tls-client-ca", ca.to_str().expect("UTF-8")]);
    let dns = clients.sign(site.dir.path(), "c1", &["client.example.test"], false);
    let common = clients.sign(site.dir.path(), "c2", &["robot7"], false);
    let stranger = site.authority.sign(site.dir.path(), "c3", &["stranger.test"], false);
    for (own, named) in [
        (Some(&dns), Some("client.example.test")),
        (Some(&common), Some("robot7")),
        // Nobody that we believe vouches for it: taken like one without.
        (Some(&stranger), None),
        (None, None),
    ] {
        for version in [&TLS13, &TLS12] {
            let config = site.authority.client(own, &[version]);
            // The second connection resumes, and the certificate with it.
            for _ in 0..2 {
                let mut client = tls::starttls(server.addr, &config, "mta.test");
                assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
                let arrived = site.peer.wait_for(1, LIMIT).remove(0);
                let comment = named.map(|name| format!("(client certificate {name} verified)"));
                assert_eq!(arrived.data.contains("client certificate"), named.is_some(), "{}", arrived.data);
                assert!(comment.is_none_or(|comment| arrived.data.contains(&comment)), "{}", arrived.data);
                site.peer.arrived.lock().expect("not poisoned").clear();
            }
        }
    }
    assert!(server.stop().success());
}

#[test]
fn certificates_change_without_dropping_a_session() {
    let site = Site::new();
    let server = site.start(&[]);
    let config = site.authority.client(None, ALL_VERSIONS);
    let shown = || {
        let client = tls::starttls(server.addr, &site.authority.client(None, ALL_VERSIONS), "mta.test");
        client.stream().conn.peer_certificates().expect("shown")[0].clone()
    };
    let mut old_session = tls::starttls(server.addr, &config, "mta.test");
    let first = site.pair.der.clone();
    assert_eq!(shown(), first);
    // A key that does not fit: everything stays, and it is said.
    let key = std::fs::read(&site.pair.key).expect("read");
    std::fs::write(&site.pair.key, "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n")
        .expect("written");
    server.signal("HUP");
    server.wait_for_word("stay what they were");
    assert_eq!(shown(), first);
    std::fs::write(&site.pair.key, key).expect("written");
    let renewed = site.authority.sign(site.dir.path(), "mta", &["mta.test"], false);
    server.signal("HUP");
    wait_until("the new certificate is shown", || shown() == renewed.der);
    assert!(old_session.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    site.peer.wait_for(1, LIMIT);
    assert!(server.stop().success());
}

#[test]
fn a_client_that_does_not_shake_hands_goes_and_harms_nobody() {
    let site = Site::new();
    let server = site.start(&[]);
    let mut garbage = Client::connect(server.addr);
    garbage.ask("EHLO c");
    garbage.ask("STARTTLS");
    garbage.send(b"EHLO in the clear\r\n");
    let mut rest = Vec::new();
    let mut stream = garbage.into_stream();
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest.first(), Some(&21), "an alert, then the end: {}", rest.escape_ascii());
    // Half a handshake, left alone: others are served meanwhile.
    let mut halves = Vec::new();
    for _ in 0..50 {
        let mut half = Client::connect(server.addr);
        half.ask("EHLO c");
        half.ask("STARTTLS");
        half.send(b"\x16\x03\x01\x02\x00\x01");
        halves.push(half);
    }
    let config = site.authority.client(None, ALL_VERSIONS);
    let mut client = tls::starttls(server.addr, &config, "mta.test");
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    site.peer.wait_for(1, LIMIT);
    drop(halves);
    assert!(server.stop().success());
}

#[test]
fn a_drain_ends_tls_sessions_with_a_word() {
    let site = Site::new();
    let server = site.start(&[]);
    let config = site.authority.client(None, ALL_VERSIONS);
    let mut client = tls::starttls(server.addr, &config, "mta.test");
    assert!(client.ask("NOOP").starts_with("250"));
    server.signal("TERM");
    assert!(client.reply().starts_with("421 4.3.2"));
    assert_eq!(client.reply(), "", "close_notify, not a cut");
    assert!(server.stop().success());
}
