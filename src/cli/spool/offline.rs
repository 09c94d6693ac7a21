//! A spool as a reader without a server sees it.
//!
//! Owns: [`OfflineSpool`] and [`OfflineLog`]: recovery and the read path over plain files. Promises:
//! files are only opened for reading; a writer at work beside it is waited out, not disturbed. Must
//! not: write, lock or sync anything.
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::view::DamageView;
use crate::limits;
use crate::mail::envelope::BodyForm;
use crate::spool::{
    Finding, LiveMessage, LogConfig, ReadError, ReadFault, Reading, RecoveredLog, RecoveryError,
    SegmentSource, Slot, SpoolIdentity, StoredMessage, decode_message, recover,
};
use crate::worker::spool_dir::{self, SegmentFiles, log_path};

pub struct OfflineSpool {
    path: PathBuf,
    pub identity: SpoolIdentity,
}

impl OfflineSpool {
    pub fn open(path: &Path) -> anyhow::Result<OfflineSpool> {
        let identity = spool_dir::identity_of(path)?;
        Ok(OfflineSpool { path: path.to_owned(), identity })
    }

    pub fn logs(&self) -> anyhow::Result<Vec<u16>> {
        spool_dir::logs_in(&self.path).with_context(|| format!("reading {}", self.path.display()))
    }

    /// What is wrong with the spool as a whole: a copy of its identity is unreadable.
    pub fn damage(&self) -> Vec<DamageView> {
        spool_dir::damaged_identities(&self.path).into_iter().map(DamageView::of_file).collect()
    }

    pub fn quarantined_files(&self) -> u64 {
        let entries = std::fs::read_dir(spool_dir::quarantine_path(&self.path));
        entries.map_or(0, |entries| {
            entries.flatten().filter(|e| e.path().extension() == Some("bin".as_ref())).count()
        }) as u64
    }

    /// Reads a log. A segment that a running server deletes or starts to use meanwhile makes the reading
    /// fail; it is then begun anew, a few times.
    pub fn read_log(&self, number: u16, reading: Reading) -> Result<OfflineLog, RecoveryError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_log(number, reading) {
                Ok(log) => return Ok(log),
                Err(RecoveryError::Io { .. } | RecoveryError::Twice(..))
                    if tries < limits::OFFLINE_READ_TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn try_log(&self, number: u16, reading: Reading) -> Result<OfflineLog, RecoveryError> {
        let config = LogConfig {
            identity: self.identity,
            log: number,
            // Neither matters to a reader: groups stand on multiples of the smallest block at least, and
            // no file is made.
            segment_bytes: limits::MAX_SEGMENT_BYTES as u32,
            block_bytes: limits::BLOCK_BYTES as u32,
            max_segments: u32::MAX,
            slack_segments: 2,
            commits_in_flight: 1,
        };
        let mut source = SegmentFiles::new(log_path(&self.path, number));
        let (recovered, findings) = recover(&config, &mut source, reading)?;
        Ok(OfflineLog { config, source, recovered, findings })
    }
}

/// One log, recovered in memory.
pub struct OfflineLog {
    pub config: LogConfig,
    source: SegmentFiles,
    pub recovered: RecoveredLog,
    pub findings: Vec<Finding>,
}

impl OfflineLog {
    /// The unfinished messages, oldest first.
    pub fn messages(&self) -> Vec<LiveMessage> {
        let mut messages: Vec<_> = self.recovered.live().iter().collect();
        messages.sort_unstable_by_key(|m| m.id);
        messages
    }

    /// Bytes of all segment files.
    pub fn file_bytes(&mut self) -> io::Result<u64> {
        let files = self.source.files()?;
        files.into_iter().map(|file| self.source.bytes(file)).sum()
    }

    /// Reads a message and verifies it.
    pub fn read(&mut self, slot: Slot) -> Result<StoredMessage, ReadError> {
        let plan = self.recovered.read_plan(slot, &self.config).ok_or(ReadError::Gone)?;
        let mut extents = Vec::with_capacity(plan.extents.len());
        for extent in &plan.extents {
            let mut bytes = vec![0; extent.bytes as usize];
            self.source.read_at(extent.file, extent.offset.into(), &mut bytes).map_err(
                |(ReadFault::Damaged(error) | ReadFault::Failed(error))| ReadError::Io(error.kind()),
            )?;
            extents.push(bytes);
        }
        let slices: Vec<&[u8]> = extents.iter().map(|bytes| &bytes[..]).collect();
        decode_message(&plan, &slices, self.config.identity)
    }
}

/// The message as a file: as its author wrote it, the trace headers in front, dots not doubled.
pub fn as_file(stored: &StoredMessage) -> Vec<u8> {
    match stored.envelope.body_form {
        BodyForm::Raw => stored.body.clone(),
        BodyForm::DotStuffed => unstuffed(&stored.body),
    }
}

/// Takes the first dot from each line that begins with one (RFC 5321 §4.5.2).
fn unstuffed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    for line in body.split_inclusive(|&b| b == b'\n') {
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    out
}

/// The value of a header field of a message in file form, unfolded; the first if there are several.
pub fn header(file: &[u8], name: &str) -> Option<String> {
    let mut value: Option<Vec<u8>> = None;
    for line in file.split_inclusive(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match (&mut value, line.first()) {
            (_, None) => break,
            (Some(value), Some(b' ' | b'\t')) => value.extend_from_slice(line),
            (Some(_), _) => break,
            (None, _) => {
                let after = line
                    .split_at_checked(name.len())
                    .filter(|(own, _)| own.eq_ignore_ascii_case(name.as_bytes()));
                value = after
                    .and_then(|(_, rest)| rest.strip_prefix(b":"))
                    .map(|rest| rest.trim_ascii_start().to_vec());
            }
        }
    }
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_taken_once_and_only_at_the_start_of_lines() {
        for (stuffed, plain) in [
            ("", ""),
            ("a\r\n", "a\r\n"),
            ("..\r\n", ".\r\n"),
            ("...a\r\nb.\r\n..", "..a\r\nb.\r\n."),
            ("a\r\n..b..\r\n\r\n..c\r\n", "a\r\n.b..\r\n\r\n.c\r\n"),
        ] {
            assert_eq!(unstuffed(stuffed.as_bytes()), plain.as_bytes(), "{stuffed:?}");
        }
    }

    #[test]
    fn headers_are_found_unfolded_and_above_the_body_only() {
        let file = b"Received: x\r\n\tby y\r\nSUBJECT: one\r\n two\r\nEmpty:\r\n\r\nHidden: no\r\n";
        for (name, value) in [
            ("subject", Some("one two")),
            ("Received", Some("x\tby y")),
            ("Empty", Some("")),
            ("Sub", None),
            ("Hidden", None),
        ] {
            assert_eq!(header(file, name).as_deref(), value, "{name}");
        }
    }
}
