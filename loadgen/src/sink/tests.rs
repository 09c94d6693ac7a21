//! The sink against clients that do what the load source would not.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::*;
use crate::message::Template;
use crate::progress::Silent;

fn sink() -> SinkHandle {
    Sink::start(&SinkArgs::new("127.0.0.1:0".parse().unwrap())).unwrap()
}

/// Sends messages as they are given, in wire form, over one connection that the sink ends.
fn send(addr: SocketAddr, messages: &[Vec<u8>]) {
    let mut socket = TcpStream::connect(addr).unwrap();
    let mut replies = BufReader::new(socket.try_clone().unwrap());
    let mut reply = String::new();
    let mut expect = |code: &str| {
        reply.clear();
        replies.read_line(&mut reply).unwrap();
        assert!(reply.starts_with(code), "{reply}");
    };
    expect("220");
    for message in messages {
        for (command, code) in [("MAIL FROM:<a@b>", "250"), ("RCPT TO:<r0@b>", "250"), ("DATA", "354")] {
            socket.write_all(format!("{command}\r\n").as_bytes()).unwrap();
            expect(code);
        }
        socket.write_all(message).unwrap();
        expect("250");
    }
    socket.write_all(b"QUIT\r\n").unwrap();
    expect("221");
    assert_eq!(replies.read(&mut [0]).unwrap(), 0);
}

fn messages(numbers: &[u64]) -> Vec<Vec<u8>> {
    let mut template = Template::new(0xabc, 1, "a@b", 5000, 1).unwrap();
    numbers.iter().map(|&number| template.patched(number, crate::clock::wall_us()).clone()).collect()
}

#[test]
fn duplicates_are_seen() {
    let sink = sink();
    send(sink.addr(), &messages(&[0, 1, 2, 1]));
    send(sink.addr(), &messages(&[2]));
    let report = sink.stop().unwrap();
    assert_eq!((report.messages, report.unique, report.duplicates, report.corrupt), (5, 3, 2, 0));
    assert_eq!(report.runs[0].duplicate_examples, ["00000abc-000000000001", "00000abc-000000000002"]);
    assert_eq!(report.runs[0].arrived.0, [(0, 2)]);
}

#[test]
fn a_tampered_body_is_corrupt() {
    let mut tampered = messages(&[0, 1, 2]);
    let at = tampered[1].len() - 20;
    tampered[1][at] ^= 1;
    // A stuffed dot that was not removed on the way.
    let dot = memchr::memmem::find(&tampered[2], b"\r\n..").unwrap();
    tampered[2].insert(dot + 2, b'.');
    let sink = sink();
    send(sink.addr(), &tampered);
    let report = sink.stop().unwrap();
    assert_eq!((report.unique, report.corrupt, report.foreign), (3, 2, 0));
    assert_eq!(report.runs[0].corrupt_examples, ["00000abc-000000000001", "00000abc-000000000002"]);
}

#[test]
fn other_mail_is_foreign() {
    let sink = sink();
    send(sink.addr(), &[b"Subject: hello\r\n\r\nhello\r\n.\r\n".to_vec()]);
    let report = sink.stop().unwrap();
    assert_eq!((report.messages, report.foreign, report.unique), (1, 1, 0));
    assert!(report.runs.is_empty());
}

#[test]
fn the_counters_follow() {
    let sink = sink();
    assert_eq!(sink.quiet_for(), None);
    send(sink.addr(), &messages(&[0, 1]));
    let counters = sink.counters();
    assert_eq!((counters.messages, counters.unique, counters.connections), (2, 2, 1));
    assert!(sink.quiet_for().is_some() && sink.is_running());
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let sink = sink();
    let mut socket = TcpStream::connect(sink.addr()).unwrap();
    socket.set_nonblocking(true).unwrap();
    // Each EHLO is answered with twenty times its size: the sink must stop taking them.
    let batch = b"EHLO x\r\n".repeat(8192);
    let (mut sent, mut refusals) = (0u64, 0);
    while refusals < 50 && sent < 1 << 30 {
        match socket.write(&batch) {
            Ok(written) => (sent, refusals) = (sent + written as u64, 0),
            Err(_) => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    assert_eq!(refusals, 50, "the sink took {sent} bytes");
    // Others are served all the while.
    send(sink.addr(), &messages(&[0]));
    assert_eq!(sink.stop().unwrap().unique, 1);
}

#[test]
fn a_sink_may_end_by_itself() {
    for change in [(|args| args.messages = Some(3)) as fn(&mut SinkArgs), |args| {
        args.quiet_exit = Some(Duration::from_millis(200))
    }] {
        let mut args = SinkArgs::new("127.0.0.1:0".parse().unwrap());
        change(&mut args);
        let (tell, told) = std::sync::mpsc::channel();
        let sink = std::thread::spawn(move || run_sink(&args, &Silent, |addrs| tell.send(addrs[0]).unwrap()));
        send(told.recv().unwrap(), &messages(&[0, 1, 2]));
        assert_eq!(sink.join().unwrap().unwrap().unique, 3);
    }
}

#[test]
fn a_taken_address_is_named() {
    let first = sink();
    let Err(error) = Sink::start(&SinkArgs::new(first.addr())) else { panic!("two sinks on one address") };
    assert!(format!("{error:#}").contains(&first.addr().to_string()), "{error:#}");
}

#[test]
fn the_command_line_has_the_defaults_of_new() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        sink: SinkArgs,
    }
    let line = <Line as clap::Parser>::try_parse_from(["sink"]).unwrap();
    assert_eq!(format!("{:?}", line.sink), format!("{:?}", SinkArgs::new("127.0.0.1:2526".parse().unwrap())));
}
