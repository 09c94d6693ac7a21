//! Bodies whole, cut and damaged, against a plain reference reader.
//!
//! Owns: the smuggling sequences that must not end a body. Promises: nothing outside tests. Must not:
//! use the scanner it checks as its own reference.
use super::*;
use crate::clock::Rng;

/// What a client sends after 354 and what it comes to: the data kept, the fault, and the bytes left.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    kept: Vec<u8>,
    fault: Option<Fault>,
    /// Bytes behind the end of data; none if data did not end.
    rest: Option<usize>,
}

/// Feeds `input` so that the reader first sees the bytes before each of `cuts`, then all of them.
fn read(input: &[u8], cuts: &[usize], max_bytes: u64) -> Outcome {
    let mut reader = BodyReader::new(max_bytes);
    let mut outcome = Outcome { kept: Vec::new(), fault: None, rest: None };
    let mut at = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        loop {
            match reader.next(&input[at..end]) {
                Piece::Unclear => {
                    assert!(end - at <= 2, "more was held back than may be");
                    break;
                }
                Piece::Text(bytes) => {
                    if outcome.fault.is_none() {
                        outcome.kept.extend_from_slice(&input[at..at + bytes]);
                    }
                    at += bytes;
                }
                Piece::End(bytes) => {
                    outcome.rest = Some(input.len() - at - bytes);
                    return outcome;
                }
                Piece::Fault(fault) => {
                    assert_eq!(outcome.fault.replace(fault), None);
                    outcome.kept.clear();
                }
                Piece::Endless => panic!("nothing here is that long"),
            }
        }
    }
    outcome
}

/// [`read`] in one piece, checked to be the same when cut once anywhere and when fed byte by byte.
fn read_all_ways(input: &[u8], max_bytes: u64) -> Outcome {
    let whole = read(input, &[], max_bytes);
    for cut in 0..=input.len() {
        assert_eq!(
            read(input, &[cut], max_bytes),
            whole,
            "cut at {cut} of {:?}",
            input.escape_ascii().to_string()
        );
    }
    let every: Vec<usize> = (0..input.len()).collect();
    assert_eq!(read(input, &every, max_bytes), whole, "byte by byte");
    whole
}

#[test]
fn data_that_ends() {
    let table: [(&[u8], &[u8], usize); 9] = [
        (b".\r\n", b"", 0),
        (b".\r\nQUIT\r\n", b"", 6),
        (b"a\r\n.\r\n", b"a\r\n", 0),
        (b"\r\n.\r\n", b"\r\n", 0),
        (b"..\r\n.\r\nX", b"..\r\n", 1),
        (b".a\r\n..\r\n.b.\r\n.\r\n", b".a\r\n..\r\n.b.\r\n", 0),
        (b"a\r\n\r\n.\r\n.\r\n", b"a\r\n\r\n", 3),
        (b"a.\r\n.\r\n", b"a.\r\n", 0),
        (b"\xff\x01\r\n.\r\n", b"\xff\x01\r\n", 0),
    ];
    for (input, kept, rest) in table {
        let expected = Outcome { kept: kept.to_vec(), fault: None, rest: Some(rest) };
        assert_eq!(read_all_ways(input, 1000), expected, "{}", input.escape_ascii());
    }
}

/// Every way known to end data for one server and not for another (smuggling) ends none here.
#[test]
fn what_looks_like_an_end_and_is_none() {
    use Fault::{BareCr, BareLf};
    let table: [(&[u8], Fault); 16] = [
        (b"\n.\n", BareLf),
        (b"\n.\r\n", BareLf),
        (b"\r\n.\n", BareLf),
        (b"\r.\r", BareCr),
        (b"\r.\r\n", BareCr),
        (b"\r\n.\r", BareCr),
        (b"\r\n.\r\r\n", BareCr),
        (b"\r\r\n.\r\r\n", BareCr),
        (b"\n\n.\n\n", BareLf),
        (b"\r\n.\0\r\n", Fault::Nul),
        (b"\r\n\0.\r\n", Fault::Nul),
        (b"\n\r.\n\r", BareLf),
        (b"\n\r.\r\n", BareLf),
        (b"\r\n.\n\r", BareLf),
        (b".\n", BareLf),
        (b".\r", BareCr),
    ];
    for (end, fault) in table {
        for start in [&b""[..], b"Subject: x\r\n\r\na"] {
            let input = [start, end, b"MAIL FROM:<evil@example>\r\nmore\r\n"].concat();
            let expected = Outcome { kept: Vec::new(), fault: Some(fault), rest: None };
            assert_eq!(read_all_ways(&input, 1000), expected, "{}", input.escape_ascii());
            // The true end is still found, at its place.
            let input = [&input, &b".\r\nQUIT\r\n"[..]].concat();
            let expected = Outcome { rest: Some(6), ..expected };
            assert_eq!(read_all_ways(&input, 1000), expected, "{}", input.escape_ascii());
        }
    }
}

#[test]
fn size_counts_every_byte_before_the_dot() {
    let input = b"12345\r\n.\r\n";
    assert_eq!(read_all_ways(input, 7).fault, None);
    let refused = read_all_ways(input, 6);
    assert_eq!((refused.fault, refused.rest), (Some(Fault::TooLarge), Some(0)));
    // The first fault counts.
    assert_eq!(read_all_ways(b"12\n345678\r\n.\r\n", 5).fault, Some(Fault::BareLf));
    assert_eq!(read_all_ways(b"12345678\n9\r\n.\r\n", 5).fault, Some(Fault::TooLarge));
}

#[test]
fn long_lines() {
    let limit = limits::TEXT_LINE_BYTES;
    for (text_bytes, fault) in [(limit - 2, None), (limit - 1, Some(Fault::LongLine))] {
        let line = [&vec![b'x'; text_bytes][..], b"\r\n"].concat();
        for input in [
            [&line[..], b".\r\n"].concat(),
            [b"first\r\n", &line[..], b"last\r\n.\r\n"].concat(),
            [&b"a\r\n".repeat(limit)[..], &line, b".\r\n"].concat(),
        ] {
            for cuts in [&[][..], &[1], &[limit], &[limit - 1, limit + 1], &[10, 11, 12, limit + 1]] {
                let outcome = read(&input, cuts, u64::MAX);
                assert_eq!(
                    (outcome.fault, outcome.rest),
                    (fault, Some(0)),
                    "{text_bytes} bytes, cuts {cuts:?}"
                );
            }
        }
    }
}

#[test]
fn refused_data_has_an_end() {
    let mut reader = BodyReader::new(10);
    let block = vec![b'x'; 1024 * 1024];
    assert_eq!(reader.next(&block), Piece::Fault(Fault::TooLarge));
    let blocks = (0..).take_while(|_| reader.next(&block) == Piece::Text(block.len())).count() as u64;
    assert_eq!(blocks, limits::REFUSED_BODY_BYTES / block.len() as u64 + 1);
    assert_eq!(reader.next(&block), Piece::Endless);
}

/// The plain definition: every byte looked at, one after the other.
fn reference(input: &[u8], max_bytes: u64) -> Outcome {
    let body = if input.starts_with(b".\r\n") {
        Some(0)
    } else {
        input.windows(5).position(|w| w == b"\r\n.\r\n").map(|at| at + 2)
    };
    // Without an end the last bytes may be held back: a CR, or a dot that may be the last.
    let certain = body.unwrap_or_else(|| match input {
        [b'.'] | [b'.', b'\r'] => 0,
        _ if input.ends_with(b"\r\n.\r") => input.len() - 2,
        _ if input.ends_with(b"\r\n.") || input.ends_with(b"\r") => input.len() - 1,
        _ => input.len(),
    });
    let text = &input[..certain];
    let fault = BodyReader::new(max_bytes).first_fault(text);
    let kept = if fault.is_some() { Vec::new() } else { text.to_vec() };
    Outcome { kept, fault, rest: body.map(|at| input.len() - at - 3) }
}

#[test]
fn random_data_is_read_as_defined() {
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..30_000 {
        // Mostly line ends and dots, so that every sequence of them comes up.
        let input: Vec<u8> = (0..rng.below(40))
            .flat_map(|_| match rng.below(16) {
                0 => &b"\r"[..],
                1 => b"\n",
                2..6 => b"\r\n",
                6..9 => b".",
                9 => b"\0",
                _ => b"abcdefghi",
            })
            .copied()
            .collect();
        let max_bytes = if rng.below(4) == 0 { rng.below(100) } else { 1000 };
        let expected = reference(&input, max_bytes);
        let mut cuts: Vec<usize> =
            (0..rng.below(6)).map(|_| rng.below(input.len() as u64 + 1) as usize).collect();
        cuts.sort_unstable();
        for cuts in [&[][..], &cuts] {
            let got = read(&input, cuts, max_bytes);
            assert_eq!(got, expected, "{} cut at {cuts:?}, limit {max_bytes}", input.escape_ascii());
        }
    }
}

#[test]
fn the_vector_check_agrees_with_the_bytes() {
    // A fault at every place of texts around the vector widths.
    for length in 1..150 {
        for at in 0..length {
            for (bad, fault) in [(b'\r', Fault::BareCr), (b'\n', Fault::BareLf), (0, Fault::Nul)] {
                let mut text = vec![b'x'; length];
                text[at] = bad;
                assert_eq!(BodyReader::new(1000).find_fault(&text), Some(fault), "{bad} at {at} of {length}");
            }
        }
        assert_eq!(BodyReader::new(1000).find_fault(&b"\r\n".repeat(length)), None);
    }
}
