//! Receiver models over the wire: what each key of a model does to a client, and that each shipped model
//! says to one what its file says.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringpost_loadgen::{Sink, SinkArgs, SinkHandle};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, Stream};

/// A sink with one receiver, from `hosts_from` on, and the address of that receiver.
fn receiver(name: &str, hosts_from: &str, keys: &str) -> (SinkHandle, SocketAddr) {
    let path = std::env::temp_dir().join(format!("ringpost-receiver-{name}-{}.toml", std::process::id()));
    std::fs::write(&path, format!("[[receiver]]\n{keys}\n")).unwrap();
    let mut args = SinkArgs::new("127.0.0.1:0".parse().unwrap());
    (args.models, args.hosts_from) = (Some(path.clone()), hosts_from.parse().unwrap());
    let sink = Sink::start(&args).unwrap();
    std::fs::remove_file(&path).unwrap();
    let addr = sink.addrs()[1];
    (sink, addr)
}

/// A client that speaks one command after the other.
struct Client(TcpStream, BufReader<TcpStream>);

impl Client {
    /// Connects; with the greeting.
    fn connect(addr: SocketAddr) -> (Client, String) {
        let socket = TcpStream::connect(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut client = Client(socket.try_clone().unwrap(), BufReader::new(socket));
        let greeting = client.reply();
        (client, greeting)
    }
    /// One reply, its lines behind each other; empty where the server has closed.
    fn reply(&mut self) -> String {
        let mut text = String::new();
        loop {
            let start = text.len();
            if self.1.read_line(&mut text).unwrap_or(0) == 0 || text.as_bytes().get(start + 3) != Some(&b'-')
            {
                return text.trim_end().replace("\r\n", "\n");
            }
        }
    }
    fn say(&mut self, command: &str) -> String {
        // A server that has closed is seen in the reply.
        let _ = self.0.write_all(format!("{command}\r\n").as_bytes());
        self.reply()
    }
    fn message(&mut self, text: &str) -> String {
        for command in ["MAIL FROM:<a@b.test>", "RCPT TO:<r0@c.test>", "DATA"] {
            let reply = self.say(command);
            assert!(reply.starts_with('2') || reply.starts_with("354"), "{command}: {reply}");
        }
        self.say(&format!("{text}\r\n."))
    }
}

/// How often the command is taken before it is refused, and the refusal.
fn taken(
    client: &mut Client,
    most: usize,
    command: impl Fn(usize) -> String,
    reset: bool,
) -> (usize, String) {
    let mut taken = 0;
    for number in 0..most {
        let reply = client.say(&command(number));
        match reply.get(..3) {
            Some("250") => taken += 1,
            // The same share of addresses does not exist, which is no limit.
            Some("550" | "554") => {}
            _ => return (taken, reply),
        }
        if reset {
            client.say("RSET");
        }
    }
    (taken, String::new())
}

#[test]
fn shipped_models_say_what_their_file_says() {
    // How soon a model answers is left out: what it answers is looked at.
    let quick = "banner_delay = \"0s\"\nreply_delay = \"0s\"\ndata_delay = \"0s\"";
    let start = |model: &str, keys: &str| {
        receiver(model, "127.8.0.1", &format!("model = \"{model}\"\n{quick}\n{keys}"))
    };
    // The greeting, extensions, recipients of a message, messages of a rate or connection, connections.
    type Case = (&'static str, &'static str, &'static [&'static str], Option<(usize, &'static str)>);
    type Limits = (Option<(usize, &'static str)>, Option<(usize, &'static str)>);
    let table: [(Case, Limits); 5] = [
        (
            ("gmail", "mx.google.test", &["STARTTLS", "CHUNKING"], Some((100, "452 4.5.3 Your message has"))),
            (Some((100, "421 4.7.0 Try again later")), Some((20, "421 4.7.0 Try again later"))),
        ),
        (
            ("outlook", "BN8NAM11FT000", &["STARTTLS", "CHUNKING"], Some((200, "452 4.5.3 Too many"))),
            (Some((60, "451 4.7.650 The mail server")), Some((10, "421 4.3.2 The maximum number"))),
        ),
        (
            ("yahoo", "mta0000.mail.yahoo.test", &["STARTTLS"], Some((30, "452 4.5.3 Too many"))),
            (Some((20, "421 Max message per connection")), Some((5, "421 4.7.0 [TSS04]"))),
        ),
        (
            ("icloud", "p00-mx.icloud.test", &["STARTTLS"], Some((50, "452 4.5.3"))),
            (Some((50, "450 4.7.1 [CS01]")), Some((10, "421 4.7.1 Service unavailable"))),
        ),
        // Mail is taken behind STARTTLS only.
        (
            ("gmx", "gmx.test (mxgmx)", &["STARTTLS"], None),
            (Some((0, "530 5.7.0")), Some((5, "421 gmx.test (mxgmx)"))),
        ),
    ];
    for ((model, banner, extensions, recipients), (messages, connections)) in table {
        // Chance has its own test.
        let (sink, addr) = start(model, "tempfail_share = 0.0\noutage_for = \"0s\"");
        let (mut client, greeting) = Client::connect(addr);
        assert!(greeting.starts_with(&format!("220 {banner}")), "{model}: {greeting}");
        let ehlo = client.say("EHLO client.test");
        for extension in ["STARTTLS", "CHUNKING"] {
            assert_eq!(ehlo.contains(extension), extensions.contains(&extension), "{model}: {ehlo}");
        }
        if let Some((most, text)) = recipients {
            client.say("MAIL FROM:<a@b.test>");
            let (taken, reply) = taken(&mut client, most * 2, |n| format!("RCPT TO:<r{n}@c.test>"), false);
            assert_eq!(taken, most, "{model}: {reply}");
            assert!(reply.starts_with(text), "{model}: {reply}");
            client.say("RSET");
        }
        if let Some((most, text)) = messages {
            let already = usize::from(recipients.is_some());
            let begin = |_| "MAIL FROM:<a@b.test>".to_owned();
            let (taken, reply) = taken(&mut client, most * 2 + 1, begin, true);
            // A bucket fills while it is emptied.
            assert!((most..=most + most / 4).contains(&(taken + already)), "{model}: {taken}, {reply}");
            assert!(reply.starts_with(text), "{model}: {reply}");
        }
        drop(client);
        if let Some((most, text)) = connections {
            // The connection before is gone when the server has seen its end.
            std::thread::sleep(Duration::from_millis(100));
            let mut clients: Vec<(Client, String)> = (0..=most).map(|_| Client::connect(addr)).collect();
            let (_, last) = clients.pop().unwrap();
            assert!(clients.iter().all(|(_, greeting)| greeting.starts_with("220")), "{model}");
            assert!(last.starts_with(text), "{model}: {last}");
        }
        sink.stop().unwrap();
    }
    // Two that are made for trouble: one that greylists, with less patience than it has; one that is ill.
    let (sink, addr) = start("greylisting", "greylist = \"200ms\"\nunknown_share = 0.0");
    let (mut client, _) = Client::connect(addr);
    client.say("MAIL FROM:<a@b.test>");
    let reply = client.say("RCPT TO:<r0@c.test>");
    assert!(reply.starts_with("450 4.2.0") && reply.contains("Greylisted"), "{reply}");
    sink.stop().unwrap();
    let (sink, addr) = start("ailing", "");
    let (mut client, _) = Client::connect(addr);
    assert!(client.say("EHLO client.test").contains("STARTTLS"));
    assert!(client.say("STARTTLS").starts_with("220"));
    assert!(client.reply().starts_with("500"), "no TLS follows");
    sink.stop().unwrap();
}

#[test]
fn greylisting_remembers_sender_and_recipient() {
    let (sink, addr) = receiver("greylist", "127.8.1.1", "greylist = \"300ms\"");
    let (mut client, _) = Client::connect(addr);
    let begun = Instant::now();
    let mut attempt = |sender: &str, recipient: &str| {
        client.say(&format!("MAIL FROM:<{sender}>"));
        let reply = client.say(&format!("RCPT TO:<{recipient}>"));
        client.say("RSET");
        reply[..3].to_owned()
    };
    assert_eq!(attempt("a@b.test", "c@d.test"), "451");
    std::thread::sleep(Duration::from_millis(310).saturating_sub(begun.elapsed()));
    assert_eq!(attempt("a@b.test", "c@d.test"), "250");
    // Another sender, and another recipient, begin anew.
    assert_eq!([attempt("x@b.test", "c@d.test"), attempt("a@b.test", "e@d.test")], ["451", "451"]);
    sink.stop().unwrap();
}

#[test]
fn outages_come_and_go() {
    let keys = "outage_every = \"400ms\"\noutage_for = \"200ms\"\noutage = \"451 4.3.2 down\"";
    let (sink, addr) = receiver("outage", "127.8.2.1", keys);
    let (mut client, _) = Client::connect(addr);
    let (mut seen, until) = (Vec::new(), Instant::now() + Duration::from_secs(10));
    // Up, down and up again, whatever it is at first.
    while seen.len() < 4 && Instant::now() < until {
        let is_up = client.say("MAIL FROM:<a@b.test>").starts_with("250");
        client.say("RSET");
        if seen.last() != Some(&is_up) {
            seen.push(is_up);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(seen == [true, false, true, false] || seen == [false, true, false, true], "{seen:?}");
    sink.stop().unwrap();
}

#[test]
fn shares_are_shares() {
    let keys = "tempfail_share = 0.3\ntempfail = \"451 4.3.0 by chance\"\nunknown_addresses = [\"nobody@\"]";
    let (sink, addr) = receiver("shares", "127.8.3.1", keys);
    let (mut client, _) = Client::connect(addr);
    client.say("MAIL FROM:<a@b.test>");
    let mut count = |address: &str, code: &str| {
        (0..300).filter(|_| client.say(&format!("RCPT TO:<{address}>")).starts_with(code)).count()
    };
    // Six standard deviations of 300 draws.
    let put_off = count("somebody@c.test", "451 4.3.0 by chance");
    assert!((42..138).contains(&put_off), "{put_off}");
    assert_eq!(count("nobody@c.test", "550 5.1.1"), 300);
    sink.stop().unwrap();
}

#[test]
fn caps_hold_within_a_connection() {
    let keys = "messages_per_connection = 2\nrecipients_per_message = 3\npipelining = false\nauth = true\n\
        too_many_messages = \"421-4.7.0 enough\\n421 4.7.0 of this\"\n\
        too_many_recipients = \"452 4.5.3 three\"";
    let (sink, addr) = receiver("caps", "127.8.4.1", keys);
    let (mut client, greeting) = Client::connect(addr);
    assert!(greeting.starts_with("220"));
    let ehlo = client.say("EHLO client.test");
    assert!(!ehlo.contains("PIPELINING") && ehlo.contains("AUTH PLAIN LOGIN"), "{ehlo}");
    client.say("MAIL FROM:<a@b.test>");
    let codes: Vec<String> =
        (0..4).map(|n| client.say(&format!("RCPT TO:<r{n}@c.test>"))[..3].to_owned()).collect();
    assert_eq!(codes, ["250", "250", "250", "452"]);
    client.say("RSET");
    assert!(client.message("Subject: one\r\n\r\none").starts_with("250"));
    assert_eq!(client.say("MAIL FROM:<a@b.test>"), "421-4.7.0 enough\n421 4.7.0 of this");
    assert_eq!(client.say("NOOP"), "", "it has closed");
    sink.stop().unwrap();
}

/// Accepts every certificate and keeps it.
#[derive(Debug, Default)]
struct Keeper(Mutex<Vec<u8>>);

impl ServerCertVerifier for Keeper {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = certificate.to_vec();
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The certificate that is shown, with a greeting behind it.
fn shown(certificate: &str, hosts_from: &str) -> Vec<u8> {
    let keys = format!("tls = \"implicit\"\ncertificate = \"{certificate}\"");
    let (sink, addr) = receiver(certificate, hosts_from, &keys);
    let keeper = Arc::new(Keeper::default());
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(keeper.clone())
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), "mx.test".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut greeting = [0; 3];
    Stream::new(&mut tls, &mut socket).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220");
    sink.stop().unwrap();
    keeper.0.lock().unwrap().clone()
}

#[test]
fn certificates_are_wrong_in_the_way_they_say() {
    let holds = |certificate: &[u8], text: &str| {
        certificate.windows(text.len()).any(|window| window == text.as_bytes())
    };
    // What stands in them (X.509 writes names and times as text): a name under test, and the year 2001.
    for (name, hosts_from, is_of_test, is_over) in [
        ("self-signed", "127.8.5.1", true, false),
        ("expired", "127.8.6.1", true, true),
        ("wrong-name", "127.8.7.1", false, false),
    ] {
        let certificate = shown(name, hosts_from);
        assert_eq!(holds(&certificate, "*.test"), is_of_test, "{name}");
        assert_eq!(holds(&certificate, "elsewhere.invalid"), !is_of_test, "{name}");
        assert_eq!(holds(&certificate, "010101000000Z"), is_over, "{name}");
    }
}
