//! Client and server talking in memory: every split of the bytes, resumption, garbage, endings.
use super::*;
use crate::clock::Rng;

fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["mx.example.com".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn server(versions: &[&'static SupportedProtocolVersion]) -> ServerTls {
    let (chain, key) = certificate();
    ServerTls::with_versions(&[pair_of(&chain, &key)], None, versions).unwrap()
}

fn pair_of<'a>(chain: &'a str, key: &'a str) -> PemPair<'a> {
    PemPair { chain: chain.as_bytes(), key: key.as_bytes() }
}

/// Carries bytes both ways in pieces of `size` until neither side has more; returns what each
/// decrypted: (client's, server's).
fn pump(client: &mut TlsStream, server: &mut TlsStream, size: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut at_client, mut at_server) = (Vec::new(), Vec::new());
    loop {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        client.take_output(&mut up);
        server.take_output(&mut down);
        if up.is_empty() && down.is_empty() {
            return (at_client, at_server);
        }
        for piece in up.chunks(size) {
            server.receive(piece, &mut at_server).unwrap();
        }
        for piece in down.chunks(size) {
            client.receive(piece, &mut at_client).unwrap();
        }
    }
}

fn pair(client: &ClientTls, server: &ServerTls) -> (TlsStream, TlsStream) {
    (client.connect("mx.example.com").unwrap(), server.accept().unwrap())
}

#[test]
fn every_split_of_the_bytes_carries_the_same_conversation() {
    let (client, server) = (ClientTls::opportunistic(), server(ALL_VERSIONS));
    let body: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
    for size in (1..40).chain([41, 255, 1024, 4095, 16_406, usize::MAX]) {
        let (mut c, mut s) = pair(&client, &server);
        // Said before the handshake: kept until it is over.
        c.send(b"EHLO a\r\n").unwrap();
        assert!(c.is_handshaking() && c.description().is_none());
        let (_, heard) = pump(&mut c, &mut s, size);
        assert_eq!(heard, b"EHLO a\r\n", "size {size}");
        assert!(!c.is_handshaking() && !s.is_handshaking());
        s.send(b"250 ok\r\n").unwrap();
        c.send(&body).unwrap();
        let (said, heard) = pump(&mut c, &mut s, size);
        assert_eq!((said.as_slice(), heard == body), (&b"250 ok\r\n"[..], true), "size {size}");
    }
}

#[test]
fn both_versions_are_spoken_and_named() {
    for (versions, want) in [
        (ALL_VERSIONS, "TLSv1.3 TLS_AES_256_GCM_SHA384"),
        (&[&rustls::version::TLS12][..], "TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ] {
        // An old server, then an old client.
        let sides = [
            (ClientTls::opportunistic(), server(versions)),
            (ClientTls::with_versions(versions), server(ALL_VERSIONS)),
        ];
        for (client, server) in sides {
            let (mut c, mut s) = pair(&client, &server);
            pump(&mut c, &mut s, usize::MAX);
            assert_eq!(c.description().as_deref(), Some(want));
            assert_eq!(s.description(), c.description());
        }
    }
}

#[test]
fn the_second_connection_to_a_host_resumes() {
    for versions in [ALL_VERSIONS, &[&rustls::version::TLS12][..]] {
        let (client, server) = (ClientTls::opportunistic(), server(versions));
        let mut kinds = Vec::new();
        for name in ["mx1.example.com", "mx1.example.com", "mx2.example.com", "192.0.2.1", "[192.0.2.1]"] {
            let (mut c, mut s) = (client.clone().connect(name).unwrap(), server.clone().accept().unwrap());
            pump(&mut c, &mut s, usize::MAX);
            assert_eq!(c.is_resumed(), s.is_resumed());
            kinds.push(c.is_resumed());
        }
        assert_eq!(kinds, [false, true, false, false, true], "{versions:?}");
    }
}

#[test]
fn server_name_is_sent_for_names_only() {
    for (name, sni) in [
        ("mx.example.com", true),
        ("mx.example.com.", true),
        ("192.0.2.1", false),
        ("[192.0.2.1]", false),
        ("2001:db8::1", false),
        ("[IPv6:2001:db8::1]", false),
    ] {
        let mut hello = Vec::new();
        ClientTls::opportunistic().connect(name).unwrap().take_output(&mut hello);
        assert_eq!(memchr::memmem::find(&hello, b"mx.example.com").is_some(), sni, "{name}");
    }
    for name in ["", "a b", "[x]", "é.example", "[IPv6"] {
        assert!(ClientTls::opportunistic().connect(name).is_err(), "{name}");
    }
}

/// The content type of an alert record.
const ALERT: u8 = 21;

#[test]
fn garbage_gives_an_error_and_an_alert() {
    let table: [&[u8]; 5] = [
        b"220 mx.example.com ESMTP\r\n",
        b"\x16\x03\x03\xff\xffxxxxxxxx",
        b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
        b"\x17\x03\x03\x00\x02ab",
        b"\0\0\0\0\0\0\0\0",
    ];
    let server = server(ALL_VERSIONS);
    for garbage in table {
        let streams =
            [ClientTls::opportunistic().connect("mx.example.com").unwrap(), server.accept().unwrap()];
        for mut stream in streams {
            stream.take_output(&mut Vec::new());
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let first = stream.receive(garbage, &mut plain).unwrap_err();
            stream.take_output(&mut out);
            assert_eq!((out.first(), plain.len()), (Some(&ALERT), 0), "{garbage:?}");
            assert_eq!(stream.receive(b"more", &mut plain).unwrap_err(), first, "{garbage:?}");
        }
    }
}

#[test]
fn altered_bytes_never_panic_and_never_pass_as_plaintext() {
    let (client, server) = (ClientTls::opportunistic(), server(ALL_VERSIONS));
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..300 {
        let (mut c, mut s) = pair(&client, &server);
        let (mut up, mut down, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        c.take_output(&mut up);
        s.receive(&up, &mut plain).unwrap();
        s.take_output(&mut down);
        // The server's first flight with one byte changed cannot lead to a finished handshake, but
        // for the bytes that carry no meaning (the record's legacy version).
        let at = rng.below(down.len() as u64) as usize;
        down[at] ^= 1 << rng.below(8);
        let result = c.receive(&down, &mut plain);
        assert!(plain.is_empty());
        if result.is_err() {
            assert!(c.is_handshaking());
        }
        c.take_output(&mut Vec::new());
    }
}

#[test]
fn a_signature_that_does_not_fit_the_certificate_is_refused() {
    let (client, server) = (ClientTls::opportunistic(), server(&[&rustls::version::TLS12]));
    let (mut c, mut s) = pair(&client, &server);
    let (mut up, mut down, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    c.take_output(&mut up);
    s.receive(&up, &mut plain).unwrap();
    s.take_output(&mut down);
    // The flight ends in the signature of ServerKeyExchange and the 4 bytes of ServerHelloDone, in
    // one record or two.
    let done = memchr::memmem::rfind(&down, &[14, 0, 0, 0]).unwrap();
    let own_record = down[..done].ends_with(&[22, 3, 3, 0, 4]);
    down[done - 1 - if own_record { 5 } else { 0 }] ^= 1;
    let error = c.receive(&down, &mut plain).unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

#[test]
fn close_notify_ends_each_direction() {
    let (client, server) = (ClientTls::opportunistic(), server(ALL_VERSIONS));
    let (mut c, mut s) = pair(&client, &server);
    pump(&mut c, &mut s, usize::MAX);
    c.send(b"QUIT\r\n").unwrap();
    c.close();
    c.close();
    assert!(c.send(b"x").is_err());
    let (mut wire, mut plain) = (Vec::new(), Vec::new());
    c.take_output(&mut wire);
    assert!(!c.has_output());
    wire.extend_from_slice(b"what follows is ignored");
    assert_eq!(s.receive(&wire, &mut plain), Ok(true));
    assert_eq!(plain, b"QUIT\r\n");
    // The other direction is still open.
    s.send(b"221 bye\r\n").unwrap();
    s.close();
    assert_eq!(pump(&mut c, &mut s, usize::MAX).0, b"221 bye\r\n");
}

#[test]
fn what_waits_to_be_sent_is_bounded() {
    let (client, server) = (ClientTls::opportunistic(), server(ALL_VERSIONS));
    let piece = vec![b'x'; 64 * 1024];
    let fill = |stream: &mut TlsStream| {
        let sent = (0..100).take_while(|_| stream.send(&piece).is_ok()).count();
        assert!(sent >= 4 && sent * piece.len() <= limits::TLS_UNSENT_BYTES, "{sent}");
    };
    // Before the handshake, then after it.
    fill(&mut client.connect("mx.example.com").unwrap());
    let (mut c, mut s) = pair(&client, &server);
    pump(&mut c, &mut s, usize::MAX);
    fill(&mut s);
    // Taking it makes room.
    let (mut c, mut s) = pair(&client, &server);
    pump(&mut c, &mut s, usize::MAX);
    for _ in 0..100 {
        c.send(&piece).unwrap();
        c.take_output(&mut Vec::new());
    }
}

#[test]
fn wrong_pem_is_told_apart() {
    let ((chain, key), (_, other)) = (certificate(), certificate());
    let table = [
        ("", key.as_str(), "no CERTIFICATE block"),
        ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", &key, "chain is not PEM"),
        (&chain, "", "private key is not a PEM key"),
        (&chain, &chain, "private key is not a PEM key"),
        (&chain, &other, "cannot be used"),
    ];
    for (chain, key, why) in table {
        let Err(error) = ServerTls::from_pem(&[pair_of(chain, key)], None) else { panic!("{why}") };
        assert!(error.to_string().contains(why), "{error}");
    }
}
