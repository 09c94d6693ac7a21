//! Allocations on the way of a message: the server runs inside the test, its source and sink outside.
//!
//! Owns: the bound on what one message from end of data to recorded delivery may allocate once the server is
//! warm. Promises: what source and sink allocate is not counted, and the bound is one a change of a single
//! allocation per message breaks. Must not: look at time.
mod common;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost::config::{Effective, System};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const WARM_UP: u64 = 3_000;
const MESSAGES: u64 = 6_000;
/// Allocations per message in steady state: the message itself, its list of recipients, and the words of
/// the peer that took it; beside them a few per group, turn and second, which are shared by many.
const MOST: f64 = 3.5;

fn free_port() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    socket.local_addr().expect("bound")
}

fn start_server(spool: &std::path::Path, listen: SocketAddr, sink: SocketAddr) {
    let mut flags = BTreeMap::new();
    flags.insert("listen", vec![listen.to_string()]);
    flags.insert("hostname", vec!["mta.test".to_string()]);
    flags.insert("route", vec![format!("*={sink}")]);
    flags.insert("spool", vec![spool.display().to_string()]);
    flags.insert("workers", vec!["1".to_string()]);
    let (effective, problems) = Effective::gather(flags, &|_| None, None, &System::ask());
    assert!(problems.is_empty(), "{problems:?}");
    let config = effective.config().expect("the settings are good");
    std::thread::spawn(move || ringpost::worker::serve(config).expect("the server runs"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(listen).is_err() {
        assert!(Instant::now() < deadline, "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sink(address: SocketAddr, messages: u64) -> Child {
    let listen = address.to_string();
    let child = Command::new(common::BINARY)
        .args(["sink", "--listen", &listen, "--messages", &messages.to_string(), "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "the sink does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.expect("the sink starts")
}

fn relay(server: SocketAddr, address: SocketAddr, messages: u64) -> u64 {
    let mut sink = sink(address, messages);
    let (to, count) = (server.to_string(), messages.to_string());
    let mut load = Command::new(common::BINARY)
        .args(["load", "--to", &to, "--messages", &count, "--connections", "32", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the load source starts");
    let before = dhat::HeapStats::get().total_blocks;
    assert!(load.wait().expect("waited").success(), "all was accepted");
    assert!(sink.wait().expect("waited").success(), "all arrived once");
    dhat::HeapStats::get().total_blocks - before
}

#[test]
fn a_message_allocates_next_to_nothing() {
    let profiler = match std::env::var_os("RINGPOST_HEAP_PROFILE") {
        // Says where each allocation comes from, for the viewer of dhat.
        Some(path) => dhat::Profiler::builder().file_name(std::path::PathBuf::from(path)).build(),
        None => dhat::Profiler::builder().testing().build(),
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (server, receiver) = (free_port(), free_port());
    start_server(&dir.path().join("spool"), server, receiver);
    relay(server, receiver, WARM_UP);
    let allocated = relay(server, receiver, MESSAGES);
    let each = allocated as f64 / MESSAGES as f64;
    println!("{each:.2} allocations per message");
    assert!(each <= MOST, "{each:.2} allocations per message, more than {MOST}");
    drop(profiler);
}
