//! Message data as BDAT carries it: what may not be in it (RFC 3030 §2, §3).
//!
//! Owns: the checks of data whose length was told beforehand. Promises: text that passes may be relayed by
//! DATA as well, so it is held to the rules of DATA, and the verdict is the same however it was
//! split, within a chunk or into chunks; binary data may hold anything, for it is relayed by BDAT
//! alone. Must not: know where a chunk ends.
use super::{BodyReader, Fault, fault_of};

/// Reads the data of one message's chunks.
#[derive(Clone, Debug)]
pub struct ChunkReader {
    /// Counts and limits. Of text, a CR at the end is counted when what follows it is known.
    text: BodyReader,
    binary: bool,
    /// Whether the last byte was a CR.
    held_cr: bool,
}

impl ChunkReader {
    /// For a message of at most `max_bytes`; `binary` after BODY=BINARYMIME.
    pub fn new(max_bytes: u64, binary: bool) -> ChunkReader {
        ChunkReader { text: BodyReader::new(max_bytes), binary, held_cr: false }
    }

    /// Whether a chunk of `bytes` would make the message too large.
    pub fn exceeds(&self, bytes: u64) -> bool {
        let so_far = self.text.bytes + u64::from(self.held_cr);
        so_far.checked_add(bytes).is_none_or(|all| all > self.text.max_bytes)
    }

    /// Takes the next bytes of the message, which [`ChunkReader::exceeds`] has let pass.
    pub fn take(&mut self, data: &[u8]) -> Result<(), Fault> {
        if self.binary {
            self.text.bytes += data.len() as u64;
            return Ok(());
        }
        let mut rest = data;
        if self.held_cr
            && let Some((first, behind)) = rest.split_first()
        {
            let (line_bytes, bytes) = (self.text.line_bytes + 2, self.text.bytes + 2);
            if let Some(fault) = fault_of(b'\r', *first, line_bytes, bytes, self.text.max_bytes) {
                return Err(fault);
            }
            // It was an LF.
            self.held_cr = false;
            self.text.bytes += 2;
            self.text.line_bytes = 0;
            rest = behind;
        }
        let before_cr = rest.strip_suffix(b"\r");
        let text = before_cr.unwrap_or(rest);
        if let Some(fault) = self.text.find_fault(text) {
            return Err(fault);
        }
        self.text.bytes += text.len() as u64;
        self.text.line_bytes = super::bytes_of_last_line(self.text.line_bytes, text);
        if before_cr.is_some() {
            self.held_cr = true;
            // As a byte it may be one too many, whatever follows it.
            let (line_bytes, bytes) = (self.text.line_bytes + 1, self.text.bytes + 1);
            return fault_of(0, b'\r', line_bytes, bytes, self.text.max_bytes).map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// The message is complete.
    pub fn end(&self) -> Result<(), Fault> {
        if self.held_cr { Err(Fault::BareCr) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    /// The verdict on `data`, given in two pieces.
    fn verdict(data: &[u8], cut: usize, binary: bool) -> Result<(), Fault> {
        let mut reader = ChunkReader::new(1 << 20, binary);
        reader.take(&data[..cut])?;
        reader.take(&data[cut..])?;
        reader.end()
    }

    #[test]
    fn faults_at_every_cut() {
        let line = |bytes: usize| [vec![b'x'; bytes - 2], b"\r\n".to_vec()].concat();
        let (longest, longer) = (line(limits::TEXT_LINE_BYTES), line(limits::TEXT_LINE_BYTES + 1));
        let table: [(&[u8], Result<(), Fault>); 13] = [
            (b"", Ok(())),
            (b"a\r\n.\r\nb\r\n", Ok(())),
            (b"no line end", Ok(())),
            (b"a\r\n\r\n", Ok(())),
            (b"a\r", Err(Fault::BareCr)),
            (b"a\rb", Err(Fault::BareCr)),
            (b"a\r\r\nb", Err(Fault::BareCr)),
            (b"\na", Err(Fault::BareLf)),
            (b"a\nb\r\n", Err(Fault::BareLf)),
            (b"a\r\n\nb", Err(Fault::BareLf)),
            (b"a\0b\n", Err(Fault::Nul)),
            (&longest, Ok(())),
            (&longer, Err(Fault::LongLine)),
        ];
        for (data, expected) in table {
            let step = 1 + data.len() / 50;
            let cuts = (0..data.len()).step_by(step).chain(data.len().saturating_sub(3)..=data.len());
            for cut in cuts {
                assert_eq!(verdict(data, cut, false), expected, "cut at {cut}: {}", data.len());
            }
            assert_eq!(verdict(data, data.len() / 2, true), Ok(()));
        }
    }

    #[test]
    fn the_size_is_bounded_before_a_chunk_comes() {
        let mut reader = ChunkReader::new(10, false);
        assert!(!reader.exceeds(10) && reader.exceeds(11) && reader.exceeds(u64::MAX));
        reader.take(b"1234567\r").unwrap();
        assert!(!reader.exceeds(2) && reader.exceeds(3) && reader.exceeds(u64::MAX));
        reader.take(b"\n0").unwrap();
        assert!(!reader.exceeds(0) && reader.exceeds(1));
    }
}
