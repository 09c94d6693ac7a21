//! Keyed checksums.
//!
//! Owns: how every checksum of the log is made. Promises: a checksum depends on the spool's secret, the
//! log, the generation, what it covers (its [`Domain`]) and where it stands, so bytes that were written
//! elsewhere, earlier, or by a sender into a body never verify. Must not: be taken for authentication;
//! XXH3 keeps out accidents and senders who cannot see the key, not somebody who can write the disk.
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Generation, SpoolIdentity};

/// What a checksum covers. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Domain {
    Segment = 0x9A3C_51E7_0000_0001,
    Group = 0xC1D8_0F25_0000_0002,
    Directory = 0x5E7B_92A4_0000_0003,
    Frame = 0xE84F_6D13_0000_0004,
    Seal = 0x3D96_B8F1_0000_0005,
    Index = 0x7AC4_1E5D_0000_0006,
}

/// The key of one generation of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    /// `xxh3_64(secret ‖ log ‖ generation)`, each little-endian.
    pub(super) fn derive(identity: SpoolIdentity, log: u16, generation: Generation) -> Key {
        let mut material = [0u8; 14];
        material[..8].copy_from_slice(&identity.secret.to_le_bytes());
        material[8..10].copy_from_slice(&log.to_le_bytes());
        material[10..].copy_from_slice(&generation.0.to_le_bytes());
        Key(xxh3_64(&material))
    }

    /// Checksum of `bytes` that stand at `offset` of the segment.
    pub(super) fn sum(self, domain: Domain, offset: u32, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.0 ^ domain as u64 ^ (u64::from(offset) << 16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ingredient_changes_the_checksum() {
        let identity = SpoolIdentity { id: 1, secret: 2 };
        let base = Key::derive(identity, 3, Generation(4));
        let sums = [
            base.sum(Domain::Frame, 4096, b"bytes"),
            base.sum(Domain::Frame, 4096, b"byteS"),
            base.sum(Domain::Frame, 8192, b"bytes"),
            base.sum(Domain::Group, 4096, b"bytes"),
            Key::derive(identity, 3, Generation(5)).sum(Domain::Frame, 4096, b"bytes"),
            Key::derive(identity, 4, Generation(4)).sum(Domain::Frame, 4096, b"bytes"),
            Key::derive(SpoolIdentity { id: 1, secret: 3 }, 3, Generation(4)).sum(
                Domain::Frame,
                4096,
                b"bytes",
            ),
        ];
        for (i, a) in sums.iter().enumerate() {
            assert!(sums[i + 1..].iter().all(|b| a != b), "{i}");
        }
    }
}
