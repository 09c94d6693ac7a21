//! Message data as DATA carries it: where it ends, and what may not be in it (RFC 5321 §4.1.1.4, §4.5.2).
//!
//! Owns: the search for the end of data and the checks on the way. Promises: data ends at CRLF.CRLF and
//! nowhere else, whatever stands before it, so that no two servers can disagree about where a message
//! ends (RFC 5321 §2.3.8 and §4.1.1.4 forbid any other line end); the verdict on a body is the same
//! however its bytes were split; clean data is read at about the speed of memory, for it is compared
//! by vector operations alone, and bytes are looked at singly only to name a fault. Must not: remove
//! dot-stuffing or copy anything.
use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::limits;

mod chunk;
mod stuff;
pub use chunk::ChunkReader;
pub use stuff::DotStuffer;

/// Searching for this costs its set-up once, not once per block.
static END_OF_DATA: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n.\r\n"));

/// Why message data cannot be taken. The first fault in the order of the bytes counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A CR that no LF follows.
    BareCr,
    /// An LF that no CR precedes.
    BareLf,
    /// A NUL. RFC 5322 §4 allows none to be sent, and much that reads mail ends its text there.
    Nul,
    /// A line of more than [`limits::TEXT_LINE_BYTES`].
    LongLine,
    /// More data than the server takes. What is counted are the bytes of the wire, doubled dots included.
    TooLarge,
}

impl Fault {
    /// The reply line that answers the end of the refused data. For line ends `5.6.11` is the code that
    /// receivers which check them are known to answer with; the other codes are RFC 3463's.
    pub fn reply(self) -> &'static str {
        match self {
            Fault::BareCr => "550 5.6.11 Message refused: a CR without LF (lines must end in CRLF)\r\n",
            Fault::BareLf => "550 5.6.11 Message refused: an LF without CR (lines must end in CRLF)\r\n",
            Fault::Nul => "550 5.6.0 Message refused: it holds a NUL\r\n",
            Fault::LongLine => "550 5.6.0 Message refused: a line is too long\r\n",
            Fault::TooLarge => "552 5.3.4 Message refused: it is larger than the limit\r\n",
        }
    }
}

/// What the next bytes of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Nothing can be said before more bytes have come. At most two are held back by this.
    Unclear,
    /// This many bytes are data.
    Text(usize),
    /// This many bytes are the dot line behind the data.
    End(usize),
    /// The data cannot be taken: nothing is consumed, and from here on Text is what is to be dropped.
    Fault(Fault),
    /// More than [`limits::REFUSED_BODY_BYTES`] came behind a fault.
    Endless,
}

/// Reads one message's data.
#[derive(Clone, Debug)]
pub struct BodyReader {
    max_bytes: u64,
    /// Bytes of data so far; from a fault on, bytes dropped.
    bytes: u64,
    /// Bytes so far of the line that is being read. Data is never cut between CR and LF, so 0 means that
    /// the last two bytes were CRLF or that nothing has come yet.
    line_bytes: usize,
    fault: Option<Fault>,
}

impl BodyReader {
    /// For a message of at most `max_bytes`.
    pub fn new(max_bytes: u64) -> BodyReader {
        BodyReader { max_bytes, bytes: 0, line_bytes: 0, fault: None }
    }

    /// The fault that was found, if one was.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Says what `input` begins with. What is not consumed must stand at the start of the next `input`.
    pub fn next(&mut self, input: &[u8]) -> Piece {
        if self.line_bytes == 0 {
            if input.starts_with(b".\r\n") {
                return Piece::End(3);
            }
            if matches!(input, b"." | b".\r") {
                return Piece::Unclear;
            }
        }
        let text = &input[..text_bytes(input)];
        if text.is_empty() {
            return Piece::Unclear;
        }
        if self.fault.is_none() {
            self.fault = self.find_fault(text);
            if let Some(fault) = self.fault {
                self.bytes = 0;
                return Piece::Fault(fault);
            }
        } else if self.bytes > limits::REFUSED_BODY_BYTES {
            return Piece::Endless;
        }
        self.bytes += text.len() as u64;
        self.line_bytes = bytes_of_last_line(self.line_bytes, text);
        Piece::Text(text.len())
    }

    /// The first fault of `text`, found without looking at single bytes if there is none.
    fn find_fault(&self, text: &[u8]) -> Option<Fault> {
        let clean = lines_end_well(text)
            && self.bytes + text.len() as u64 <= self.max_bytes
            && !has_long_line(self.line_bytes, text);
        if clean { None } else { self.first_fault(text) }
    }

    /// The definition of a fault, byte by byte. A CR at the end of `text` is one as well: it would have been
    /// held back if anything but another CR came behind it.
    fn first_fault(&self, text: &[u8]) -> Option<Fault> {
        let (mut bytes, mut line_bytes, mut last) = (self.bytes, self.line_bytes, 0);
        for &b in text {
            bytes += 1;
            line_bytes += 1;
            if let Some(fault) = fault_of(last, b, line_bytes, bytes, self.max_bytes) {
                return Some(fault);
            }
            if b == b'\n' {
                line_bytes = 0;
            }
            last = b;
        }
        (last == b'\r').then_some(Fault::BareCr)
    }
}

/// What is wrong with `b`, which stands behind `last` as byte number `bytes` of the data and
/// `line_bytes` of its line.
fn fault_of(last: u8, b: u8, line_bytes: usize, bytes: u64, max_bytes: u64) -> Option<Fault> {
    if (last == b'\r') != (b == b'\n') {
        Some(if b == b'\n' { Fault::BareLf } else { Fault::BareCr })
    } else if b == 0 {
        Some(Fault::Nul)
    } else if line_bytes > limits::TEXT_LINE_BYTES {
        Some(Fault::LongLine)
    } else if bytes > max_bytes {
        Some(Fault::TooLarge)
    } else {
        None
    }
}

/// How many bytes of `input` are data without doubt: up to and with the CRLF before an end of data, else
/// up to what may turn out to be a part of one or the first half of a line end.
fn text_bytes(input: &[u8]) -> usize {
    if let Some(at) = END_OF_DATA.find(input) {
        return at + 2;
    }
    let held_back = if input.ends_with(b"\r\n.\r") {
        2
    } else if input.ends_with(b"\r\n.") || input.ends_with(b"\r") {
        1
    } else {
        0
    };
    input.len() - held_back
}

/// Whether every CR stands before an LF, every LF behind a CR, and no byte is NUL. One pass without branches, which the compiler turns into vector code.
fn lines_end_well(text: &[u8]) -> bool {
    let (Some(first), Some(last)) = (text.first(), text.last()) else {
        return true;
    };
    let mut bad = u8::from(*first == b'\n' || matches!(*last, b'\r' | 0));
    for (a, b) in text.iter().zip(&text[1..]) {
        bad |= u8::from((*a == b'\r') != (*b == b'\n')) | u8::from(*a == 0);
    }
    bad == 0
}

/// Whether a line within `text`, the first of which already has `line_bytes` before it, is too long.
/// Looks for a line end where the line must have ended at the latest, so most lines are never seen.
fn has_long_line(mut line_bytes: usize, mut text: &[u8]) -> bool {
    while line_bytes + text.len() > limits::TEXT_LINE_BYTES {
        match memchr::memrchr(b'\n', &text[..limits::TEXT_LINE_BYTES - line_bytes]) {
            Some(end) => text = &text[end + 1..],
            None => return true,
        }
        line_bytes = 0;
    }
    false
}

/// Length of the unfinished line after `text`, which began `before` bytes into a line; 0 only behind a
/// CRLF. (A bare LF, which only dropped data can hold, begins no line: a dot behind it ends nothing.)
fn bytes_of_last_line(before: usize, text: &[u8]) -> usize {
    if text.ends_with(b"\r\n") {
        return 0;
    }
    match memchr::memrchr(b'\n', text) {
        Some(end) => (text.len() - end - 1).max(1),
        None => before + text.len(),
    }
}

#[cfg(test)]
mod tests;
