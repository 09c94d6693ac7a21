//! What must hold for any bytes from outside.
//!
//! Owns: one function for each fuzz target; each takes arbitrary bytes and panics when something that the
//! code promises is not so. Promises: the same bytes give the same run. Must not: need nightly or a
//! fuzzer; `tests/fuzz_corpus.rs` runs the same functions.
#[path = "../../tests/conformance/driver.rs"]
#[allow(dead_code, reason = "dialogues use the rest")]
mod driver;

mod clients;
mod peer;
mod server;
mod text;

pub use clients::{proxy, sasl};
pub use peer::{client, reply};
pub use server::{body, chunk, session};
pub use text::{address, command, trace};

use ringpost::clock::Rng;

/// A function of this crate and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 10] = [
    ("command", command),
    ("address", address),
    ("body", body),
    ("chunk", chunk),
    ("session", session),
    ("reply", reply),
    ("client", client),
    ("trace", trace),
    ("proxy", proxy),
    ("sasl", sasl),
];

/// Inputs beyond this are cut: what can go wrong goes wrong before, and every run reads them many times.
const INPUT_BYTES: usize = 1 << 17;
/// Inputs up to this are also given byte by byte.
const BYTE_BY_BYTE_BYTES: usize = 4096;

/// Ways to cut `data` into pieces: not at all, three times at random (the same for the same bytes), and at
/// every byte if that is not too many.
fn splits(data: &[u8]) -> Vec<Vec<&[u8]>> {
    let seed =
        data.iter().fold(data.len() as u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut rng = Rng::new(seed);
    let mut all = vec![vec![data]];
    for most in [2, 5, 40] {
        let mut cuts: Vec<usize> =
            (0..1 + rng.below(most)).map(|_| rng.below(data.len() as u64 + 1) as usize).collect();
        cuts.sort_unstable();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([data.len()]);
        all.push(starts.zip(ends).map(|(start, end)| &data[start..end]).collect());
    }
    if data.len() <= BYTE_BY_BYTE_BYTES {
        all.push(data.chunks(1).collect());
    }
    all
}

/// Asserts that `run` makes the same of `data` however it is cut, and returns that.
fn same_for_all_splits<T: PartialEq + std::fmt::Debug>(data: &[u8], run: impl Fn(&[&[u8]]) -> T) -> T {
    let mut splits = splits(data).into_iter();
    let whole = run(&splits.next().expect("the whole is one of them"));
    for pieces in splits {
        let lengths: Vec<usize> = pieces.iter().map(|piece| piece.len()).collect();
        assert_eq!(run(&pieces), whole, "split into {lengths:?}");
    }
    whole
}
