//! Limits of local addresses, counted by a receiver that sees from where each connection comes.
mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Server, run, wait_until};

const BODY: &str = "From: a@sender.test\r\nSubject: hi\r\n\r\nbody\r\n";

/// What a receiver has counted of one address.
#[derive(Clone, Default, Debug)]
struct Seen {
    open: usize,
    most: usize,
    names: Vec<String>,
    messages: Vec<Instant>,
}

/// A receiver that takes everything, and counts it by the address it comes from.
struct Receiver {
    addr: SocketAddr,
    seen: Arc<Mutex<BTreeMap<IpAddr, Seen>>>,
}

impl Receiver {
    /// With `pause` before the answer to a message.
    fn new(pause: Duration) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(BTreeMap::<IpAddr, Seen>::new()));
        let counted = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let from = stream.peer_addr().expect("connected").ip();
                let mut all = counted.lock().expect("not poisoned");
                let own = all.entry(from).or_default();
                own.open += 1;
                own.most = own.most.max(own.open);
                drop(all);
                let counted = counted.clone();
                std::thread::spawn(move || {
                    let _ = talk(
                        &stream,
                        |change| change(counted.lock().expect("not poisoned").entry(from).or_default()),
                        pause,
                    );
                    counted.lock().expect("not poisoned").entry(from).or_default().open -= 1;
                });
            }
        });
        Receiver { addr, seen }
    }

    fn messages(&self) -> usize {
        self.seen.lock().expect("not poisoned").values().map(|own| own.messages.len()).sum()
    }

    fn seen(&self, last: u8) -> Seen {
        self.seen
            .lock()
            .expect("not poisoned")
            .get(&IpAddr::from([127, 0, 0, last]))
            .cloned()
            .unwrap_or_default()
    }
}

fn talk(stream: &TcpStream, note: impl Fn(&dyn Fn(&mut Seen)), pause: Duration) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    writer.write_all(b"220 mx.test\r\n")?;
    let mut data = false;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        if data && line != "." {
            continue;
        }
        let reply = match verb.as_str() {
            "." => {
                data = false;
                std::thread::sleep(pause);
                "250 2.0.0 ok"
            }
            "EHLO" => {
                note(&|own| own.names.push(line[5..].to_owned()));
                "250-mx.test\r\n250 PIPELINING"
            }
            "MAIL" => {
                note(&|own| own.messages.push(Instant::now()));
                "250 2.1.0 ok"
            }
            "DATA" => {
                data = true;
                "354 go on"
            }
            "QUIT" => "221 2.0.0 bye",
            _ => "250 2.0.0 ok",
        };
        writer.write_all(format!("{reply}\r\n").as_bytes())?;
        if verb == "QUIT" {
            return Ok(());
        }
    }
    Ok(())
}

fn spool() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A server with that configuration file.
fn server(dir: &Path, receiver: &Receiver, toml: &str, args: &[&str]) -> Server {
    let file = dir.join("r.toml");
    std::fs::write(&file, toml).expect("the directory is writable");
    let (file, route) = (file.display().to_string(), format!("*={}", receiver.addr));
    Server::start(&dir.join("spool"), &[&["--config", &file, "--route", &route], args].concat())
}

fn send(server: &Server, messages: usize) {
    let mut client = Client::connect(server.addr);
    for nth in 0..messages {
        client.deliver("a@sender.test", &[&format!("b@d{}.test", nth % 8)], BODY);
    }
}

#[test]
fn the_receiver_never_counts_more_connections_than_an_address_may_have() {
    let toml = "[source.\"127.0.0.2\"]\nehlo-name = \"two.test\"\nconnections = 1\n\
                [source.\"127.0.0.3\"]\nehlo-name = \"three.test\"\nconnections = 2\n\
                [source.\"127.0.0.4\"]\nehlo-name = \"four.test\"\nconnections = 3\n\
                [destination.\"d0.test\"]\nsource = \"127.0.0.2\"\n";
    for workers in ["1", "2"] {
        let (dir, receiver) = (spool(), Receiver::new(Duration::from_millis(20)));
        let server = server(dir.path(), &receiver, toml, &["--workers", workers]);
        send(&server, 240);
        wait_until("delivery", || receiver.messages() == 240);
        for (last, name, limit) in [(2, "two.test", 1), (3, "three.test", 2), (4, "four.test", 3)] {
            let own = receiver.seen(last);
            assert!((1..=limit).contains(&own.most), "{workers} workers: {} from {last}", own.most);
            assert!(
                own.names.iter().all(|n| n == name) && !own.messages.is_empty(),
                "{last}: {:?}",
                own.names
            );
        }
        assert_eq!(receiver.seen.lock().expect("not poisoned").len(), 3, "from nowhere else");
        assert!(server.stop().success());
    }
}

#[test]
fn an_address_keeps_its_rate_whatever_is_sent_to() {
    let toml = "[source.\"127.0.0.5\"]\nehlo-name = \"five.test\"\nmessage-rate = \"20/s\"\n";
    for workers in ["1", "2"] {
        let (dir, receiver) = (spool(), Receiver::new(Duration::ZERO));
        let server = server(dir.path(), &receiver, toml, &["--workers", workers]);
        send(&server, 60);
        wait_until("delivery", || receiver.messages() == 60);
        let times = receiver.seen(5).messages;
        // A receiver that is late sees a window shorter than it was: two of three seconds must show.
        let span = times[59].duration_since(times[0]);
        println!("{workers} workers: 60 messages in {span:?}");
        assert!(span > Duration::from_secs(2), "{workers} workers: 60 at 20/s came in {span:?}");
        assert!(server.stop().success());
    }
}

#[test]
fn why_names_the_address_that_is_waited_for_and_a_reload_changes_it() {
    let toml = "[source.\"127.0.0.6\"]\nehlo-name = \"six.test\"\nconnections = 1\n";
    let (dir, receiver) = (spool(), Receiver::new(Duration::from_secs(3600)));
    let server = server(dir.path(), &receiver, toml, &[]);
    send(&server, 8);
    let spool = dir.path().join("spool").display().to_string();
    let why = |name: &str| run(&["why", name, "--spool", &spool]).1;
    let waits = || (0..8).filter(|of| why(&format!("d{of}.test")).contains("source 127.0.0.6")).count();
    wait_until("seven wait", || waits() == 7);
    assert_eq!(receiver.seen(6).most, 1);
    let more = toml.replace("connections = 1", "connections = 4");
    std::fs::write(dir.path().join("r.toml"), more).expect("the directory is writable");
    server.signal("HUP");
    wait_until("four connections", || receiver.seen(6).open == 4);
    wait_until("four wait", || waits() == 4);
    assert_eq!(receiver.seen(6).most, 4);
}

#[test]
fn check_finds_addresses_that_cannot_be_sent_from() {
    let dir = spool();
    let file = dir.path().join("r.toml");
    let check = |toml: &str, args: &[&str]| {
        std::fs::write(&file, toml).expect("the directory is writable");
        let file = file.display().to_string();
        let spool = dir.path().join("spool").display().to_string();
        run(&[&["check", "--hostname", "mta.test", "--spool", &spool, "--config", &file], args].concat())
    };
    let toml =
        "[source.\"127.0.0.2\"]\nehlo-name = \"two.test\"\nconnections = 5\nmessage-rate = \"5000/h\"\n";
    let (status, printed, errors) = check(toml, &["--route", "*=127.0.0.1:25"]);
    assert!(status.success(), "{errors}");
    assert!(printed.ends_with(toml), "it reads back: {printed}");
    for (toml, args, complaint) in [
        ("source = \"192.0.2.1,a.test\"", &[][..], "--source: 192.0.2.1 is not an address of this machine"),
        (
            toml,
            &["--route", "six.test=[::1]:25"],
            "\"six.test\" goes to [::1]:25, but no --source for it is IPv6",
        ),
        (&format!("{toml}[destination.\"a.test\"]\nsource = \"127.0.0.9\""), &[], "is none of --source"),
        ("[source.\"127.0.0.2\"]\nconnections = 5", &[], "[source.\"127.0.0.2\"]: has no ehlo-name"),
        ("[source.two]\nehlo-name = \"a.test\"", &[], "[source.\"two\"]: is not an address"),
        (
            "[source.\"127.0.0.2\"]\nehlo-name = \"a.test\"\nmax-age = \"1d\"",
            &[],
            "\"max-age\" is not one of its keys: connections, connection-rate, message-rate, ehlo-name",
        ),
        ("[source.\"127.0.0.2\"]\nehlo-name = \"bad_name\"", &[], "\"bad_name\" is not a host name"),
        (
            "[source.\"::1\"]\nehlo-name = \"a.test\"\n[source.\"0::1\"]\nehlo-name = \"b.test\"",
            &[],
            "stands there twice",
        ),
    ] {
        let (status, _, errors) = check(toml, args);
        assert!(!status.success() && errors.contains(complaint), "{toml}: {errors}");
    }
    let (status, printed, errors) = check(toml, &["--source", "127.0.0.3,three.test"]);
    assert!(status.success() && errors.contains("[source.\"127.0.0.2\"] has no effect"), "{errors}");
    assert!(
        printed.contains("[source.\"127.0.0.3\"]\nehlo-name = \"three.test\"")
            && !printed.contains("127.0.0.2\"]"),
        "{printed}"
    );
}
