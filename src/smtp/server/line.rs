//! Command lines on the wire (RFC 5321 §2.3.8).
//!
//! Owns: where a line ends and when it is too long. Promises: nothing but CRLF ends a line; no more than
//! [`limits::COMMAND_LINE_BYTES`] are looked at. Must not: know what a line says.
use crate::limits;

pub(super) const CRLF: &[u8] = b"\r\n";

/// What the input holds of a command line.
pub(super) enum Line<'a> {
    /// A line without its CRLF.
    Whole(&'a [u8]),
    Partial,
    /// More than [`limits::COMMAND_LINE_BYTES`] without a CRLF.
    TooLong,
}

/// The line that `input` begins with. Only CRLF ends it: what else may look like a line end belongs to it.
pub(super) fn next_line(input: &[u8]) -> Line<'_> {
    let window = &input[..input.len().min(limits::COMMAND_LINE_BYTES)];
    match memchr::memchr_iter(b'\n', window).find(|&at| at > 0 && window[at - 1] == b'\r') {
        Some(end) => Line::Whole(&input[..end - 1]),
        None if window.len() == limits::COMMAND_LINE_BYTES => Line::TooLong,
        None => Line::Partial,
    }
}

/// How much of `input` belongs to a line that is dropped, and whether the line ended there. A last CR is
/// left for the next call, which may begin with its LF.
pub(super) fn skip_line(input: &[u8]) -> (usize, bool) {
    match memchr::memmem::find(input, CRLF) {
        Some(at) => (at + CRLF.len(), true),
        None => (input.len() - usize::from(input.ends_with(b"\r")), false),
    }
}
