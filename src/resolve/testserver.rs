//! A small DNS server for tests, UDP and TCP on one port, written without the resolver's own codec so
//! that a mistake there cannot cancel itself out.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Name, type, value. A value that starts with `!` is a way to misbehave (see [`Server::respond`]);
/// with type `*` it holds for every type.
pub(super) type Zone = &'static [(&'static str, &'static str, &'static str)];

const TYPES: [(&str, u16); 4] = [("A", 1), ("CNAME", 5), ("MX", 15), ("AAAA", 28)];
const SOA: u16 = 6;
const NS: u16 = 2;

pub(super) struct Server {
    zone: Zone,
    ttl: u32,
    /// `name type transport` of everything asked, in order.
    asked: Mutex<Vec<String>>,
    /// Opened to let answers of value `!GATE …` go.
    gate: (Mutex<bool>, Condvar),
}

/// What goes back: response code, truncated, answers, authority; none for silence.
#[derive(Default)]
struct Response {
    code: u8,
    truncated: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
}

struct Record {
    owner: String,
    record_type: u16,
    data: Vec<u8>,
}

/// Starts a server; it runs until the tests end.
pub(super) fn start(zone: Zone, ttl: u32) -> (Arc<Server>, SocketAddr) {
    // The port the system gives for UDP may be taken for TCP: try until one is free for both.
    let (udp, tcp) = (0..100)
        .find_map(|_| {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
            Some((udp, tcp))
        })
        .expect("a port that is free for UDP and TCP");
    let address = udp.local_addr().unwrap();
    let gate = (Mutex::new(false), Condvar::new());
    let server = Arc::new(Server { zone, ttl, asked: Mutex::default(), gate });
    let (for_udp, for_tcp) = (Arc::clone(&server), Arc::clone(&server));
    thread::spawn(move || for_udp.serve_udp(udp));
    thread::spawn(move || for_tcp.serve_tcp(tcp));
    (server, address)
}

impl Server {
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(super) fn open_gate(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }

    fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = [0; 1500];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            let (query, server, socket) = (buffer[..len].to_vec(), Arc::clone(&self), Arc::clone(&socket));
            thread::spawn(move || {
                for packet in server.respond(&query, false) {
                    socket.send_to(&packet, peer).unwrap();
                }
            });
        }
    }

    fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        for stream in listener.incoming() {
            let (mut stream, server) = (stream.unwrap(), Arc::clone(&self));
            thread::spawn(move || {
                let mut length = [0; 2];
                while stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    stream.read_exact(&mut query).unwrap();
                    for packet in server.respond(&query, true) {
                        let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
                        framed.extend_from_slice(&packet);
                        stream.write_all(&framed).unwrap();
                    }
                }
            });
        }
    }

    /// The packets that answer `query`.
    fn respond(&self, query: &[u8], tcp: bool) -> Vec<Vec<u8>> {
        let (name, record_type, question_end) = question(query);
        let type_name = TYPES.iter().find(|t| t.1 == record_type).expect("a type these tests ask").0;
        let transport = if tcp { "tcp" } else { "udp" };
        self.asked.lock().unwrap().push(format!("{name} {type_name} {transport}"));

        let at_name: Vec<_> = self.zone.iter().filter(|row| row.0 == name).collect();
        let of_type = |t: &'static str| at_name.iter().filter(move |row| row.1 == t || row.1 == "*");
        let mut response = Response::default();
        let mut packets = Vec::new();
        for (_, _, value) in of_type(type_name) {
            let (verb, rest) = value.split_once(' ').unwrap_or((value, ""));
            let answer = |value: &str| record(&name, type_name, value);
            match verb {
                "!SERVFAIL" => response.code = 2,
                "!REFUSED" => response.code = 5,
                "!SILENT" => return packets,
                "!GARBAGE" => return vec![[&query[..2], b"\xff\xff garbage"].concat()],
                // Only TCP gives the records; UDP says that there is more.
                "!TC" if !tcp => response.truncated = true,
                "!TC" => response.answers.push(answer(rest)),
                "!TC-ALWAYS" => response.truncated = true,
                // Someone who guessed the port but not the id is quicker than the server.
                "!FORGED" => {
                    let forged = Response { answers: vec![answer("192.0.2.66")], ..Response::default() };
                    let mut packet = self.encode(query, question_end, &forged);
                    packet[0] ^= 1;
                    packets.push(packet);
                    response.answers.push(answer(rest));
                }
                "!GATE" => {
                    let open = self.gate.0.lock().unwrap();
                    drop(self.gate.1.wait_while(open, |open| !*open).unwrap());
                    response.answers.push(answer(rest));
                }
                "!REFERRAL" => response.authority.push(Record {
                    owner: "example".into(),
                    record_type: NS,
                    data: wire_name("ns.elsewhere.example"),
                }),
                _ => response.answers.push(answer(value)),
            }
        }
        if response.answers.is_empty() && response.code == 0 && !response.truncated {
            // As a recursive server does, the alias with what it leads to.
            let mut owner = name.clone();
            while let Some((_, _, target)) = self.zone.iter().find(|row| row.0 == owner && row.1 == "CNAME") {
                response.answers.push(record(&owner, "CNAME", target));
                owner = (*target).to_owned();
                let records = self.zone.iter().filter(|row| row.0 == owner && row.1 == type_name);
                response.answers.extend(records.map(|row| record(&owner, type_name, row.2)));
            }
            if response.answers.is_empty() && at_name.is_empty() {
                response.code = 3;
            }
        }
        if response.answers.is_empty() && matches!(response.code, 0 | 3) && response.authority.is_empty() {
            response.authority.push(start_of_authority());
        }
        packets.push(self.encode(query, question_end, &response));
        packets
    }

    fn encode(&self, query: &[u8], question_end: usize, response: &Response) -> Vec<u8> {
        let flags = 0x8180 | u16::from(response.code) | if response.truncated { 0x0200 } else { 0 };
        let mut out = query[..2].to_vec();
        for field in [flags, 1, response.answers.len() as u16, response.authority.len() as u16, 0] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&query[12..question_end]);
        for record in response.answers.iter().chain(&response.authority) {
            out.extend_from_slice(&wire_name(&record.owner));
            out.extend_from_slice(&record.record_type.to_be_bytes());
            out.extend_from_slice(&1u16.to_be_bytes());
            out.extend_from_slice(&self.ttl.to_be_bytes());
            out.extend_from_slice(&(record.data.len() as u16).to_be_bytes());
            out.extend_from_slice(&record.data);
        }
        out
    }
}

/// Name, type and end of the question.
fn question(query: &[u8]) -> (String, u16, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let len = usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..at + 1 + len].to_ascii_lowercase()).unwrap());
        at += 1 + len;
    }
    (labels.join("."), u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5)
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

fn record(owner: &str, type_name: &str, value: &str) -> Record {
    let data = match type_name {
        "A" => value.parse::<Ipv4Addr>().unwrap().octets().to_vec(),
        "AAAA" => value.parse::<Ipv6Addr>().unwrap().octets().to_vec(),
        "MX" => {
            let (preference, host) = value.split_once(' ').unwrap();
            let mut data = preference.parse::<u16>().unwrap().to_be_bytes().to_vec();
            data.extend_from_slice(&wire_name(host));
            data
        }
        _ => wire_name(value),
    };
    let record_type = TYPES.iter().find(|t| t.0 == type_name).unwrap().1;
    Record { owner: owner.to_owned(), record_type, data }
}

/// What makes an absence worth remembering (RFC 2308 §3).
fn start_of_authority() -> Record {
    let mut data = [wire_name("ns.example"), wire_name("hostmaster.example")].concat();
    for field in [1u32, 3600, 600, 86_400, 300] {
        data.extend_from_slice(&field.to_be_bytes());
    }
    Record { owner: "example".into(), record_type: SOA, data }
}
