//! A DNS server for the sink's domains: MX and A, over UDP and TCP (RFC 1035).
//!
//! Owns: two threads at one address. Promises: every question gets an answer of bounded size; what
//! is not a domain or host of the sink, nor above one, does not exist; that something is not there can be
//! kept for as long as an answer (RFC 2308); a packet that is no question is dropped.
//! Must not: ask anybody.
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;

use crate::limits;
use crate::sink::Shared;
use crate::sink::world::World;

const A: u16 = 1;
const SOA: u16 = 6;
const MX: u16 = 15;
const ANY: u16 = 255;
const OPT: u16 = 41;
const IN: u16 = 1;
const NXDOMAIN: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
/// Seconds a resolver may keep an answer.
const TTL: u32 = 300;

/// Binds `addr` for both transports, and gives back where they are.
pub fn bind(addr: SocketAddr) -> anyhow::Result<(UdpSocket, TcpListener, SocketAddr)> {
    let what = || format!("cannot listen on {addr} for DNS");
    let udp = UdpSocket::bind(addr).with_context(what)?;
    let addr = udp.local_addr()?;
    let tcp = TcpListener::bind(addr).with_context(what)?;
    udp.set_read_timeout(Some(limits::SINK_SLEEP))?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp, addr))
}

/// Answers over UDP until the sink stops.
pub fn serve_udp(socket: &UdpSocket, shared: &Arc<Shared>) {
    let mut packet = [0; limits::DNS_BYTES];
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut packet) else { continue };
        if let (Some(world), true) = (&shared.world, length > 0)
            && let Some(reply) = answer(world, &packet[..length])
        {
            // A client that is gone needs no answer.
            let _ = socket.send_to(&reply, client);
        }
    }
}

/// Answers over TCP, one client after the other, until the sink stops.
pub fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => drop(serve_client(socket, shared)),
            Err(_) => std::thread::sleep(limits::SINK_SLEEP),
        }
    }
}

fn serve_client(mut socket: std::net::TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(limits::DNS_CLIENT_WAIT))?;
    socket.set_write_timeout(Some(limits::DNS_CLIENT_WAIT))?;
    loop {
        let mut length = [0; 2];
        socket.read_exact(&mut length)?;
        let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
        socket.read_exact(&mut packet)?;
        let Some(reply) = shared.world.as_ref().and_then(|world| answer(world, &packet)) else {
            return Ok(());
        };
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        socket.write_all(&framed)?;
    }
}

/// The reply to a packet; none where it is no question.
fn answer(world: &World, packet: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let flags = word(2)?;
    let is_question = flags & 0x8000 == 0 && word(4)? == 1;
    if !is_question {
        return None;
    }
    let (name, behind_name) = read_name(packet)?;
    let (kind, class) = (word(behind_name)?, word(behind_name + 2)?);
    let question = &packet[12..behind_name + 4];
    let mut records = Records { text: Vec::new(), answers: 0, authorities: 0, additional: 0 };
    let code =
        if flags & 0x7800 != 0 || class != IN { NOT_IMPLEMENTED } else { records.fill(world, &name, kind) };
    if code != NOT_IMPLEMENTED && records.answers == 0 {
        records.deny();
    }
    // A client that speaks EDNS (RFC 6891) is told how much is taken here.
    let has_edns = word(10)? > 0 && packet.len() >= behind_name + 4 + 11 && word(behind_name + 5)? == OPT;
    if has_edns {
        records.text.push(0);
        for value in [OPT, limits::DNS_BYTES as u16, 0, 0, 0] {
            records.text.extend_from_slice(&value.to_be_bytes());
        }
        records.additional += 1;
    }
    let mut reply = packet[..2].to_vec();
    // An authoritative reply; recursion is as desired, and is not needed.
    reply.extend_from_slice(&[0x84 | (flags >> 8) as u8 & 0x01, 0x80 | code]);
    for count in [1, records.answers, records.authorities, records.additional] {
        reply.extend_from_slice(&count.to_be_bytes());
    }
    reply.extend_from_slice(question);
    reply.extend_from_slice(&records.text);
    Some(reply)
}

/// Records behind the question, which stands at offset 12.
struct Records {
    text: Vec<u8>,
    answers: u16,
    authorities: u16,
    additional: u16,
}

impl Records {
    /// Adds what is known of `name`; returns the response code.
    fn fill(&mut self, world: &World, name: &[u8], kind: u16) -> u8 {
        if let Some(address) = world.host(name) {
            if kind == A || kind == ANY {
                self.push(&[0xC0, 12], A, &address.octets());
                self.answers += 1;
            }
            return 0;
        }
        let Some(exchangers) = world.exchangers(name) else {
            return if world.has_below(name) { 0 } else { NXDOMAIN };
        };
        if kind == MX || kind == ANY {
            for (index, (host, _)) in exchangers.iter().enumerate() {
                let mut data = (10 * (index as u16 + 1)).to_be_bytes().to_vec();
                write_name(host, &mut data);
                self.push(&[0xC0, 12], MX, &data);
                self.answers += 1;
            }
            for (host, address) in &exchangers {
                let mut name = Vec::new();
                write_name(host, &mut name);
                self.push(&name, A, &address.octets());
                self.additional += 1;
            }
        }
        0
    }
    /// Says for how long it may be remembered that nothing was found: all names here are of one zone, the root.
    fn deny(&mut self) {
        let mut data = Vec::new();
        write_name("sink.ringpost.invalid", &mut data);
        write_name("postmaster.ringpost.invalid", &mut data);
        for number in [1, TTL, TTL, TTL, TTL] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        self.push(&[0], SOA, &data);
        self.authorities += 1;
    }
    fn push(&mut self, name: &[u8], kind: u16, data: &[u8]) {
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(&kind.to_be_bytes());
        self.text.extend_from_slice(&IN.to_be_bytes());
        self.text.extend_from_slice(&TTL.to_be_bytes());
        self.text.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.text.extend_from_slice(data);
    }
}

/// The name of the question, in lower case with dots, and where it ends. A question has no pointers.
fn read_name(packet: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || name.len() + length > 254 {
            return None;
        }
        if !name.is_empty() {
            name.push(b'.');
        }
        name.extend(packet.get(at..at + length)?.iter().map(u8::to_ascii_lowercase));
        at += length;
    }
}

fn write_name(name: &str, text: &mut Vec<u8>) {
    for label in name.split('.') {
        text.push(label.len() as u8);
        text.extend_from_slice(label.as_bytes());
    }
    text.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::model::{Described, Model};

    fn world() -> World {
        let all = Described {
            name: "all".into(),
            domains: vec!["Mail.Test".into()],
            share: 0.0,
            hosts: 4,
            model: Model::default(),
        };
        World::new(vec![all], 100, "127.1.0.1".parse().unwrap()).unwrap()
    }

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        write_name(name, &mut packet);
        packet.extend_from_slice(&[0, kind as u8, 0, 1]);
        packet
    }

    #[test]
    fn domains_have_exchangers_and_hosts_have_addresses() {
        let world = world();
        let reply = answer(&world, &question("D5.test", MX)).unwrap();
        assert_eq!(reply[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 2]);
        assert!(memchr::memmem::find(&reply, b"\x03mx1\x03all\x05hosts\x04test\x00").is_some());
        assert!(memchr::memmem::find(&reply, &[127, 1, 0, 2]).is_some());
        let reply = answer(&world, &question("mx3.all.hosts.test", A)).unwrap();
        assert_eq!((reply[7], &reply[reply.len() - 4..]), (1, &[127, 1, 0, 4][..]));
        for (name, kind, code, answers) in [
            ("mail.test", MX, 0, 2),
            ("d99.test", 28, 0, 0),
            ("d100.test", MX, NXDOMAIN, 0),
            // What has names below it exists.
            ("test", A, 0, 0),
            ("hosts.test", MX, 0, 0),
            ("all.hosts.test", MX, 0, 0),
            ("mx9.all.hosts.test", A, NXDOMAIN, 0),
            ("l.test", A, NXDOMAIN, 0),
            ("est", A, NXDOMAIN, 0),
        ] {
            let reply = answer(&world, &question(name, kind)).unwrap();
            assert_eq!((reply[3] & 15, reply[7]), (code, answers), "{name}");
            assert_eq!(u32::from(reply[9]), u32::from(answers == 0), "{name}: who says so, and for how long");
        }
    }

    #[test]
    fn anything_may_be_sent() {
        let world = world();
        let good = question("d5.test", MX);
        (0..good.len()).for_each(|length| assert_eq!(answer(&world, &good[..length]), None, "{length}"));
        let seed = crate::clock::wall_us();
        println!("seed {seed}");
        let mut rng = crate::clock::Rng::new(seed);
        for _ in 0..20_000 {
            let mut bad = good.clone();
            let at = rng.below(bad.len() as u64) as usize;
            bad[at] = rng.next_u64() as u8;
            let _ = answer(&world, &bad);
        }
    }
}
