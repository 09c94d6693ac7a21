//! What the disk has damaged, set aside for people to look at.
//!
//! Owns: `SPOOL/quarantine`: for each damaged place the raw bytes as they were read (`NAME.bin`) and a
//! text that says where they lay and why they are there (`NAME.txt`). Promises: bytes that were saved once
//! are not saved again; the directory stays within `limits::QUARANTINE_FILES` and
//! `limits::QUARANTINE_BYTES`; failing to save never stops the server. Must not: judge, or touch the log.
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::spool_dir::{SegmentFiles, quarantine_path};
use crate::limits;
use crate::spool::{Damage, FileIndex, Finding, ReadFault, SegmentSource};

/// Bytes read for a damaged record whose length nobody knows: the largest that a record can have.
const RECORD_BYTES: usize = limits::COMMIT_BUFFER_BYTES;

/// A damaged piece of a log.
pub struct Piece {
    pub log: u16,
    /// Names the place or the message: letters, digits and dashes.
    pub name: String,
    /// What is known of it, for people.
    pub why: String,
    pub bytes: Vec<u8>,
}

impl Piece {
    /// What recovery found damaged, with its bytes; `None` for a finding that has none.
    pub fn of_finding(log: u16, dir: &Path, finding: &Finding) -> Option<Piece> {
        let Finding::Damaged { file, offset, damage } = finding else { return None };
        let bytes = match damage {
            Damage::Frame(bytes) => bytes.clone(),
            Damage::Fragment(_) | Damage::Record(_) => read_at_most(dir, *file, *offset).unwrap_or_default(),
        };
        let name = format!("seg-{:06}-{offset:010}", file.0);
        Some(Piece { log, name, why: finding.to_string(), bytes })
    }

    /// Saves it, or says on the log why not. Blocks the thread.
    pub fn save(self, spool: &Path) {
        let name = format!("log-{:04}-{}-{:08x}", self.log, self.name, checksum(&self.bytes));
        match write(&quarantine_path(spool), &name, &self) {
            Ok(Saved::Now(path)) => {
                tracing::error!(log = self.log, saved = %path.display(), "damage on the disk: {}", self.why);
            }
            Ok(Saved::Before) => {
                tracing::error!(log = self.log, "damage on the disk, known before: {}", self.why)
            }
            Ok(Saved::Full) => tracing::error!(
                log = self.log,
                "damage on the disk: {}; its bytes are not saved, because SPOOL/quarantine is full: look at \
                 what is there and empty it",
                self.why
            ),
            Err(error) => {
                tracing::error!(log = self.log, %error, "damage on the disk: {}; its bytes could not be saved", self.why);
            }
        }
    }
}

enum Saved {
    Now(PathBuf),
    Before,
    Full,
}

/// Tells damaged bytes apart; not a promise of their integrity.
fn checksum(bytes: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(bytes) as u32
}

/// What can be read of a damaged record; zeros stand for the rest.
fn read_at_most(dir: &Path, file: FileIndex, offset: u32) -> Result<Vec<u8>, ReadFault> {
    let mut source = SegmentFiles::new(dir.to_owned());
    let left = source.bytes(file).map_err(ReadFault::Failed)?.saturating_sub(offset.into());
    let mut bytes = vec![0; (left as usize).min(RECORD_BYTES)];
    source.read_around(file, offset.into(), &mut bytes)?;
    Ok(bytes)
}

fn write(dir: &Path, name: &str, piece: &Piece) -> io::Result<Saved> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(format!("{name}.bin"));
    if path.exists() {
        return Ok(Saved::Before);
    }
    let (mut files, mut bytes) = (0, piece.bytes.len() as u64);
    for entry in fs::read_dir(dir)? {
        files += 1;
        bytes += entry?.metadata().map_or(0, |m| m.len());
    }
    if files + 2 > limits::QUARANTINE_FILES || bytes > limits::QUARANTINE_BYTES {
        return Ok(Saved::Full);
    }
    let create =
        |path: &Path| fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let text = format!("log {}\n{}\n{} bytes\n", piece.log, piece.why, piece.bytes.len());
    create(&dir.join(format!("{name}.txt")))?.write_all(text.as_bytes())?;
    create(&path)?.write_all(&piece.bytes)?;
    Ok(Saved::Now(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(n: u32) -> Piece {
        let why = "segment 1 is damaged at byte 4096".to_owned();
        Piece { log: 3, name: "seg-000001-0000004096".into(), why, bytes: n.to_le_bytes().to_vec() }
    }

    fn names(spool: &Path) -> Vec<String> {
        let entries = fs::read_dir(quarantine_path(spool)).expect("there");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("read").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_piece_is_saved_once_with_its_reason() {
        let spool = tempfile::tempdir().expect("a temporary directory");
        piece(1).save(spool.path());
        piece(1).save(spool.path());
        let names = names(spool.path());
        assert_eq!(names.len(), 2, "{names:?}");
        let dir = quarantine_path(spool.path());
        assert_eq!(fs::read(dir.join(&names[0])).expect("there"), 1u32.to_le_bytes());
        let text = fs::read_to_string(dir.join(&names[1])).expect("there");
        assert!(text.contains("damaged at byte 4096") && text.contains("log 3"), "{text}");
    }

    #[test]
    fn it_never_holds_more_than_its_bound() {
        let spool = tempfile::tempdir().expect("a temporary directory");
        for n in 0..limits::QUARANTINE_FILES as u32 {
            piece(n).save(spool.path());
        }
        assert_eq!(names(spool.path()).len(), limits::QUARANTINE_FILES);
    }

    #[test]
    fn a_place_that_cannot_be_written_stops_nobody() {
        let spool = tempfile::tempdir().expect("a temporary directory");
        fs::write(quarantine_path(spool.path()), "a file in its place").expect("written");
        piece(1).save(spool.path());
        piece(2).save(Path::new("/proc/no/such/place"));
    }
}
