//! Connections over loopback.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::super::op::settled;
use super::super::{Listener, blocking, operations_in_flight, sleep, spawn, test_run, yield_turn};
use super::*;
use crate::clock::Rng;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(60);

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn listener() -> (Listener, SocketAddr) {
    let bound = Listener::bind(any_port()).expect("binds");
    let addr = bound.local_addr().expect("bound");
    (Listener::from_std(bound).expect("taken over"), addr)
}

/// A stream and its peer as an ordinary socket.
async fn pair() -> (Stream, TcpStream) {
    let plain = TcpListener::bind(any_port()).expect("binds");
    let addr = plain.local_addr().expect("bound");
    let stream = Stream::connect(addr, None, LONG).await.expect("connects");
    let (peer, _) = plain.accept().expect("is there");
    (stream, peer)
}

#[test]
fn echo_whatever_the_splits() {
    test_run(async {
        let (listener, addr) = listener();
        let server = spawn(async move {
            let (stream, peer) = listener.accept().await.expect("accepts");
            assert_eq!(stream.peer_addr().expect("known"), peer);
            let mut buf = Vec::with_capacity(700);
            loop {
                let (result, filled) = stream.read(buf, LONG).await;
                if result.expect("reads") == 0 {
                    break;
                }
                let (result, back) = stream.write_all(filled, LONG).await;
                result.expect("writes");
                buf = back;
                buf.clear();
            }
            stream.close().await;
        });
        let client = Stream::connect(addr, Some(Ipv4Addr::LOCALHOST.into()), LONG).await.expect("connects");
        assert_eq!(client.peer_addr().expect("known"), addr);
        let seed = 11;
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let sent: Vec<u8> = (0..rng.below(3000) + 1).map(|n| (n as u8) ^ 0x5a).collect();
            let (result, sent) = client.write_all(sent, LONG).await;
            result.expect("writes");
            let mut got = Vec::with_capacity(sent.len());
            while got.len() < sent.len() {
                let (result, back) = client.read(got, LONG).await;
                assert_ne!(result.expect("reads"), 0);
                got = back;
            }
            assert!(got == sent);
        }
        assert!(client.close_after_peer(LONG).await, "the server closes after us");
        server.join().await;
    });
}

#[test]
fn pieces_go_out_in_order_also_through_a_full_socket() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let shared: Arc<[u8]> = (0..3_000_000u32).map(|n| (n >> 3) as u8).collect();
        let mut buffer = AlignedBuf::zeroed(8192);
        buffer.fill(7);
        let mut pieces = vec![
            Piece::Static(b"DATA\r\n"),
            Piece::Owned(Vec::new()),
            Piece::Shared(shared.clone(), 10..2_900_000),
            Piece::Buffer(Arc::new(buffer), 1..5000),
        ];
        pieces.extend((0..3 * MAX_PIECES).map(|n| Piece::Owned(vec![n as u8; 3])));
        let expected: Vec<u8> = pieces.iter().flat_map(|p| p.bytes().to_vec()).collect();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).expect("reads");
            got
        });
        let (result, back) = stream.write_pieces(pieces, LONG).await;
        result.expect("writes");
        assert_eq!(back.len(), 4 + 3 * MAX_PIECES);
        stream.close().await;
        assert!(blocking(move || reader.join().expect("ends")).await == expected);
    });
}

#[test]
fn a_read_that_timed_out_swallows_nothing() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        for round in 0..3u8 {
            let start = Instant::now();
            let (result, buf) = stream.read(Vec::with_capacity(64), SHORT).await;
            assert_eq!(result.expect_err("nothing came").kind(), io::ErrorKind::TimedOut);
            assert!(start.elapsed() >= SHORT);
            assert_eq!(operations_in_flight(), 0, "the kernel has let go");
            peer.write_all(&[round; 5]).expect("writes");
            let (result, buf) = stream.read(buf, LONG).await;
            assert_eq!((result.expect("reads"), &buf[..]), (5, &[round; 5][..]));
        }
        let aligned = AlignedBuf::zeroed(4096);
        let (result, aligned) = stream.read_aligned(aligned, 100, SHORT).await;
        assert_eq!(result.expect_err("nothing came").kind(), io::ErrorKind::TimedOut);
        peer.write_all(b"headroom").expect("writes");
        let (result, aligned) = stream.read_aligned(aligned, 100, LONG).await;
        assert_eq!((result.expect("reads"), &aligned[98..110]), (8, &b"\0\0headroom\0\0"[..]));
    });
}

#[test]
fn a_read_timing_out_leaves_the_write_beside_it_alone() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let writer = stream.clone();
        // Larger than any socket buffer: it waits for the peer.
        let task = spawn(async move {
            let (result, _) = writer.write_all(vec![1; 16 << 20], LONG).await;
            result.expect("writes all of it");
            writer.close().await;
        });
        let (result, _) = stream.read(Vec::with_capacity(64), SHORT).await;
        assert_eq!(result.expect_err("nothing came").kind(), io::ErrorKind::TimedOut);
        let total = blocking(move || std::io::copy(&mut peer, &mut std::io::sink()).expect("reads")).await;
        assert_eq!(total, 16 << 20);
        task.join().await;
    });
}

#[test]
fn a_write_nobody_takes_times_out() {
    test_run(async {
        let (stream, peer) = pair().await;
        let (result, back) = stream.write_all(vec![1; 64 << 20], SHORT).await;
        assert_eq!(result.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
        assert_eq!(back.len(), 64 << 20);
        drop(peer);
        stream.close().await;
        assert_eq!(operations_in_flight(), 0);
    });
}

#[test]
fn interrupt_ends_the_wait_and_loses_nothing() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        stream.interrupt(); // nobody waits: no effect
        for _ in 0..20 {
            let other = stream.clone();
            let task = spawn(async move {
                yield_turn().await;
                other.interrupt();
            });
            let (result, buf) = stream.read(Vec::with_capacity(64), LONG).await;
            assert_eq!(result.expect_err("interrupted").kind(), io::ErrorKind::Interrupted);
            assert!(buf.is_empty());
            task.join().await;
            peer.write_all(b"x").expect("writes");
            let (result, _) = stream.read(buf, LONG).await;
            assert_eq!(result.expect("reads"), 1);
        }
        let other = stream.clone();
        spawn(async move { other.interrupt() });
        assert_eq!(stream.readable(LONG).await.expect_err("interrupted").kind(), io::ErrorKind::Interrupted);
        assert_eq!(stream.readable(SHORT).await.expect_err("quiet").kind(), io::ErrorKind::TimedOut);
        peer.write_all(b"y").expect("writes");
        stream.readable(LONG).await.expect("readable");
        stream.readable(LONG).await.expect("still: nothing was taken");
    });
}

#[test]
fn a_dropped_read_kills_the_connection_instead_of_swallowing() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let reader = stream.clone();
        let task = spawn(async move {
            let _ = reader.read(Vec::with_capacity(64), LONG).await;
        });
        settled().await;
        task.abort();
        task.join().await;
        let end = blocking(move || peer.read(&mut [0; 8]).expect("reads")).await;
        assert_eq!(end, 0, "the peer sees the end although a handle is alive");
        let (result, _) = stream.read(Vec::with_capacity(64), LONG).await;
        assert_eq!(result.expect_err("dead").kind(), io::ErrorKind::ConnectionAborted);
        assert!(stream.write_all(vec![1], LONG).await.0.is_err());
        stream.close().await;
        assert_eq!(operations_in_flight(), 0);
    });
}

#[test]
fn a_dropped_readable_leaves_the_connection_usable() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let waiting = stream.clone();
        let task = spawn(async move {
            let _ = waiting.readable(LONG).await;
        });
        settled().await;
        task.abort();
        task.join().await;
        peer.write_all(b"still here").expect("writes");
        let (result, _) = stream.read(Vec::with_capacity(64), LONG).await;
        assert_eq!(result.expect("reads"), 10);
        stream.close().await;
        assert_eq!(operations_in_flight(), 0);
    });
}

#[test]
fn close_ends_what_other_handles_wait_for() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let reader = stream.clone();
        let task = spawn(async move {
            let (result, _) = reader.read(Vec::with_capacity(64), LONG).await;
            assert!(matches!(result, Ok(0) | Err(_)));
            let (result, _) = reader.read(Vec::with_capacity(64), LONG).await;
            assert!(result.is_err(), "closed for all handles");
        });
        settled().await;
        stream.close().await;
        task.join().await;
        assert_eq!(blocking(move || peer.read(&mut [0; 8]).expect("reads")).await, 0);
    });
}

#[test]
fn a_buffer_without_room_is_refused() {
    test_run(async {
        let (stream, _peer) = pair().await;
        let (result, _) = stream.read(Vec::new(), LONG).await;
        assert_eq!(result.expect_err("no room").kind(), io::ErrorKind::InvalidInput);
        let (result, buf) = stream.write_all(Vec::new(), LONG).await;
        assert!(result.is_ok() && buf.is_empty());
    });
}

#[test]
fn accepting_ends_when_the_listener_closes_and_loses_nothing_when_dropped() {
    test_run(async {
        let (listener, addr) = listener();
        for _ in 0..2 {
            let waiting = listener.clone();
            let task = spawn(async move {
                let _ = waiting.accept().await;
            });
            settled().await;
            task.abort();
            task.join().await;
        }
        let client = blocking(move || TcpStream::connect(addr).expect("connects")).await;
        let (stream, peer) = listener.accept().await.expect("the connection was not taken by a dead wait");
        assert_eq!(peer, client.local_addr().expect("known"));
        assert!(SockRef::from(stream.0.fd.borrow().as_ref().expect("open")).tcp_nodelay().expect("known"));
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let waiting = listener.clone();
                spawn(async move {
                    let error = waiting.accept().await.expect_err("closed");
                    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
                })
            })
            .collect();
        settled().await;
        listener.close();
        for task in tasks {
            task.join().await;
        }
        assert!(listener.accept().await.is_err());
        drop(listener);
        let refused = Stream::connect(addr, None, LONG).await.expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn many_connections_at_once_and_a_second_listener_on_the_port() {
    test_run(async {
        let (listener, addr) = listener();
        let second = Listener::from_std(Listener::bind(addr).expect("the port is shared")).expect("ok");
        let serve = |listener: Listener| {
            spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    spawn(async move {
                        let (result, buf) = stream.read(Vec::with_capacity(8), LONG).await;
                        result.expect("reads");
                        stream.write_all(buf, LONG).await.0.expect("writes");
                        stream.close().await;
                    });
                }
            })
        };
        let servers = [serve(listener.clone()), serve(second.clone())];
        let clients: Vec<_> = (0..100u8)
            .map(|n| {
                spawn(async move {
                    let stream = Stream::connect(addr, None, LONG).await.expect("connects");
                    stream.write_all(vec![n], LONG).await.0.expect("writes");
                    let (result, buf) = stream.read(Vec::with_capacity(8), LONG).await;
                    assert_eq!((result.expect("reads"), buf[0]), (1, n));
                    stream.close().await;
                })
            })
            .collect();
        for client in clients {
            client.join().await;
        }
        listener.close();
        second.close();
        for server in servers {
            server.join().await;
        }
    });
}

#[test]
fn connecting_to_where_nobody_answers_times_out() {
    test_run(async {
        // A queue of one, filled: the kernel drops further connection requests.
        let socket = NewSocket::new(Domain::IPV4, Type::STREAM, None).expect("made");
        socket.bind(&any_port().into()).expect("binds");
        socket.listen(0).expect("listens");
        let addr = socket.local_addr().expect("bound").as_socket().expect("an address");
        let mut kept = Vec::new();
        let error = loop {
            match Stream::connect(addr, None, SHORT).await {
                Ok(stream) => kept.push(stream),
                Err(error) => break error,
            }
            assert!(kept.len() < 100, "the queue is short");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(operations_in_flight(), 0);
        // And dropped in the middle.
        let task = spawn(async move {
            let _ = Stream::connect(addr, None, LONG).await;
        });
        settled().await;
        assert_eq!(operations_in_flight(), 1);
        task.abort();
        task.join().await;
        while operations_in_flight() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn ipv6_listens_for_ipv6_only() {
    let Ok(six) = Listener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))) else { return };
    let port = six.local_addr().expect("bound").port();
    Listener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).expect("IPv4 is free");
    test_run(async {
        let source = Some(IpAddr::from(Ipv6Addr::LOCALHOST));
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let stream = Stream::connect(to, source, LONG).await.expect("connects");
        assert_eq!(stream.local_addr().expect("known").ip(), Ipv6Addr::LOCALHOST);
    });
}

#[test]
fn a_runtime_ends_with_reads_in_flight() {
    for _ in 0..3 {
        test_run(async {
            let (stream, peer) = pair().await;
            spawn(async move {
                let _peer = peer;
                let _ = stream.read(Vec::with_capacity(1 << 16), LONG).await;
            });
            settled().await;
        });
        assert_eq!(operations_in_flight(), 0);
    }
}

#[test]
fn a_posted_send_goes_on_by_itself_and_gives_its_buffer_back() {
    test_run(async {
        let (stream, mut peer) = pair().await;
        let answered = std::thread::spawn(move || {
            let mut got = [0; 5];
            peer.read_exact(&mut got).expect("reads");
            peer.write_all(&got).expect("writes");
            peer
        });
        let posted = stream.post(b"hello".to_vec()).expect("open");
        let (read, buf) = stream.read(Vec::with_capacity(10), LONG).await;
        assert_eq!((read.expect("reads"), &buf[..]), (5, &b"hello"[..]));
        let (sent, buf) = posted.settle(LONG).await;
        sent.expect("sent");
        assert_eq!(buf, b"hello");
        let peer = answered.join().expect("the peer ends well");

        // Nobody reads: the send ends at its deadline.
        let posted = stream.post(vec![7; 64 << 20]).expect("open");
        let (sent, buf) = posted.settle(SHORT).await;
        assert_eq!(sent.expect_err("never taken").kind(), io::ErrorKind::TimedOut);
        assert_eq!(buf.len(), 64 << 20);

        // A send that nobody settles is finished all the same.
        let (second, mut other) = pair().await;
        drop(second.post(b"bye".to_vec()).expect("open"));
        settled().await;
        second.close().await;
        let rest = blocking(move || {
            let mut rest = Vec::new();
            other.read_to_end(&mut rest).expect("reads");
            rest
        });
        assert_eq!(rest.await, b"bye");
        stream.close().await;
        drop(peer);
    });
}
