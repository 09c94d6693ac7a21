//! The stamp: the header line that makes a message of the load source recognisable.
//!
//! Owns: its text, `X-Ringpost-Load: <run>-<number> <sent µs> <checksum> <recipients>`, fixed in
//! width so that it is patched in place, and the names of deliveries in logs and reports. Promises:
//! a stamp it wrote is read back unchanged; anything else is no stamp. The checksum covers the line
//! itself and everything behind it, dots unstuffed: trace headers are put in front, so a server has
//! no reason to change what follows. Must not: know SMTP.
use xxhash_rust::xxh3::Xxh3;

/// Name of the header field, with the separator.
pub const FIELD: &[u8] = b"X-Ringpost-Load: ";
/// Characters of `<run>-<number>`.
pub const NAME_BYTES: usize = 8 + 1 + 12;
/// Characters of the whole line without its CRLF: 78, the length RFC 5322 §2.1.1 recommends.
pub const LINE_BYTES: usize = FIELD.len() + NAME_BYTES + 1 + 16 + 1 + 16 + 1 + 5;

/// Where in the line the checksum stands.
const CHECKSUM_AT: usize = FIELD.len() + NAME_BYTES + 1 + 16 + 1;

/// What the stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Identity of the run, different for each.
    pub run: u32,
    /// Number of the message within its run, from 0 without gaps.
    pub number: u64,
    /// Wall time of sending in microseconds since 1970; of the intended sending under a fixed rate.
    pub sent_us: u64,
    /// XXH3 of the line without this field, and of all bytes behind the line.
    pub checksum: u64,
    /// Recipients of the message, at least 1.
    pub recipients: u32,
}

impl Stamp {
    /// Writes the line, without CRLF, over `line`, which must be [`LINE_BYTES`] long.
    pub fn write(&self, line: &mut [u8]) {
        let (field, rest) = line.split_at_mut(FIELD.len());
        field.copy_from_slice(FIELD);
        write_name(self.run, self.number, &mut rest[..NAME_BYTES]);
        let rest = &mut rest[NAME_BYTES..];
        rest[0] = b' ';
        write_decimal(self.sent_us, &mut rest[1..17]);
        rest[17] = b' ';
        write_hex(self.checksum, &mut rest[18..34]);
        rest[34] = b' ';
        write_decimal(u64::from(self.recipients), &mut rest[35..40]);
    }
    /// Reads a header line, without CRLF. None if it is not a stamp.
    pub fn parse(line: &[u8]) -> Option<Stamp> {
        if line.len() != LINE_BYTES {
            return None;
        }
        let rest = line.strip_prefix(FIELD)?;
        if rest[8] != b'-' || [rest[21], rest[38], rest[55]] != [b' '; 3] {
            return None;
        }
        let stamp = Stamp {
            run: read(&rest[..8], 16)? as u32,
            number: read(&rest[9..21], 10)?,
            sent_us: read(&rest[22..38], 10)?,
            checksum: read(&rest[39..55], 16)?,
            recipients: read(&rest[56..61], 10)? as u32,
        };
        (stamp.recipients > 0).then_some(stamp)
    }
}

/// Begins the checksum of a message with its stamp's `line`: all of it but the checksum field.
pub fn begin_checksum(line: &[u8], hash: &mut Xxh3) {
    hash.reset();
    hash.update(&line[..CHECKSUM_AT]);
    hash.update(&line[CHECKSUM_AT + 16..]);
}

/// Writes `<run>-<number>` over `text`, which must be [`NAME_BYTES`] long.
pub fn write_name(run: u32, number: u64, text: &mut [u8]) {
    write_hex(u64::from(run), &mut text[..8]);
    text[8] = b'-';
    write_decimal(number, &mut text[9..]);
}

/// Appends the name of one delivery: `<run>-<number>`, and `/<recipient>` where a message has
/// several. Logs of source and sink name deliveries alike, so that they can be compared by line.
pub fn push_delivery(run: u32, number: u64, recipient: u32, recipients: u32, text: &mut Vec<u8>) {
    let start = text.len();
    text.resize(start + NAME_BYTES, 0);
    write_name(run, number, &mut text[start..]);
    if recipients > 1 {
        text.push(b'/');
        push_decimal(u64::from(recipient), text);
    }
}

/// Appends a number in decimal without leading zeros.
pub fn push_decimal(number: u64, text: &mut Vec<u8>) {
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let start = text.len();
    text.resize(start + digits, 0);
    write_decimal(number, &mut text[start..]);
}

fn write_decimal(mut number: u64, text: &mut [u8]) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn write_hex(mut number: u64, text: &mut [u8]) {
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

fn read(text: &[u8], base: u32) -> Option<u64> {
    text.iter().try_fold(0u64, |number, &c| {
        let digit = char::from(c).to_digit(base)?;
        number.checked_mul(u64::from(base))?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: 0xdead_0001,
        number: 4711,
        sent_us: 1_763_925_600_123_456,
        checksum: 0xfeed_face_cafe_beef,
        recipients: 3,
    };

    fn line() -> Vec<u8> {
        let mut line = vec![0; LINE_BYTES];
        STAMP.write(&mut line);
        line
    }

    #[test]
    fn text_form() {
        let want = "X-Ringpost-Load: dead0001-000000004711 1763925600123456 feedfacecafebeef 00003";
        assert_eq!(String::from_utf8(line()).unwrap(), want);
        assert_eq!(want.len(), 78);
        assert_eq!(Stamp::parse(want.as_bytes()), Some(STAMP));
    }

    #[test]
    fn anything_else_is_no_stamp() {
        let good = line();
        assert_eq!(Stamp::parse(&good[..good.len() - 1]), None);
        // Each separator and digit matters: put a letter outside every alphabet in its place.
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = b'z';
            assert_eq!(Stamp::parse(&bad), None, "at {at}");
        }
        let mut nobody = good.clone();
        nobody[LINE_BYTES - 1] = b'0';
        assert_eq!(Stamp::parse(&nobody), None);
    }

    #[test]
    fn delivery_names() {
        let mut text = Vec::new();
        push_delivery(10, 7, 0, 1, &mut text);
        text.push(b' ');
        push_delivery(10, 7, 12, 20, &mut text);
        assert_eq!(text, b"0000000a-000000000007 0000000a-000000000007/12");
    }
}
