//! Quoted-printable (RFC 2045 §6.7), for header lines that are not fit for the wire.
//!
//! Owns: the encoding of one line. Promises: lines of at most 76 printable characters that survive
//! any mail system: none ends in white space, none begins with a dot. Must not: decode.

/// Longest encoded line, its soft line break included.
const LINE_BYTES: usize = 76;

/// Appends `line`, which has no line end of its own, with a CRLF.
pub(super) fn append_line(out: &mut Vec<u8>, line: &[u8]) {
    let mut column = 0;
    for (i, &byte) in line.iter().enumerate() {
        let last = i + 1 == line.len();
        let literal = match byte {
            b'=' => false,
            // A dot that begins a line would have to be doubled.
            b'.' => column > 0 && column + 1 < LINE_BYTES,
            b'\t' | b' ' => !last,
            _ => matches!(byte, b'!'..=b'~'),
        };
        let width = if literal { 1 } else { 3 };
        // The last character of a soft-broken line is the "=".
        if column + width > LINE_BYTES - usize::from(!last) {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        if literal {
            out.push(byte);
        } else {
            out.push(b'=');
            out.extend([byte >> 4, byte & 15].map(|nibble| b"0123456789ABCDEF"[usize::from(nibble)]));
        }
        column += width;
    }
    out.extend_from_slice(b"\r\n");
}
