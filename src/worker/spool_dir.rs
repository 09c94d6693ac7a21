//! The spool directory: lock, identity, and the logs in it.
//!
//! Owns: `SPOOL/lock` (one process), `SPOOL/identity` (version, id, checksum secret; two copies) and the
//! names of logs and segments. Promises: a directory that is not a ringpost spool is never touched; a
//! spool of another version is refused; permissions are 0700 and 0600. Must not: read or write
//! segments' content.
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::clock;
use crate::limits;
use crate::ring::{self, FileLock};
use crate::spool::{FileIndex, ReadFault, SegmentSource, SpoolIdentity};

const IDENTITY: &str = "identity";
const IDENTITY_COPY: &str = "identity.copy";
const LOCK: &str = "lock";
/// Extension of a log directory that is being removed.
const RETIRED: &str = "retired";
const VERSION: u32 = 1;

/// A spool that this process owns.
pub struct SpoolDir {
    pub path: PathBuf,
    pub identity: SpoolIdentity,
    /// Held as long as the process lives.
    _lock: FileLock,
}

impl SpoolDir {
    /// Makes the directory if it is not there, so that checks can look at its file system.
    pub fn make(path: &Path) -> anyhow::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!(
                "cannot make the spool directory {}; make it or name another with --spool",
                path.display()
            )
        })
    }

    /// Takes the lock and reads, or on first use writes, the identity.
    pub fn open(path: &Path) -> anyhow::Result<SpoolDir> {
        let shown = path.display();
        if !path.join(IDENTITY).exists() && !path.join(IDENTITY_COPY).exists() {
            refuse_foreign(path)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("spool {shown}: cannot set its permissions to 0700; is it yours?"))?;
        let lock_path = path.join(LOCK);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("spool {shown} is not writable; check its owner and mount"))?;
        let Some(lock) = FileLock::try_lock(&lock_path).with_context(|| format!("locking spool {shown}"))?
        else {
            bail!("spool {shown} is in use by another process; stop it first or name another with --spool");
        };
        let identity = match read_identity(path)? {
            Some(identity) => identity,
            None => write_identity(path)?,
        };
        remove_retired(path);
        Ok(SpoolDir { path: path.to_path_buf(), identity, _lock: lock })
    }

    pub fn log_path(&self, log: u16) -> PathBuf {
        log_path(&self.path, log)
    }

    /// Numbers of the logs that have a directory, rising.
    pub fn logs(&self) -> io::Result<Vec<u16>> {
        logs_in(&self.path)
    }
}

pub fn log_path(spool: &Path, log: u16) -> PathBuf {
    spool.join(format!("log-{log:04}"))
}

/// Removes a log in which nothing is wanted any more, all of it or nothing: with a part of its segments
/// gone, messages would come back whose outcomes were in that part.
pub fn retire_log(log: &Path) -> io::Result<()> {
    let retired = log.with_extension(RETIRED);
    fs::rename(log, &retired)?;
    crate::ring::sync_directory(log.parent().unwrap_or(Path::new(".")))?;
    fs::remove_dir_all(&retired)
}

/// Finishes what a crash left of [`retire_log`].
fn remove_retired(spool: &Path) {
    let entries = fs::read_dir(spool).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == RETIRED)) {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(dir = %path.display(), %error, "what is left of a retired log cannot be removed");
        }
    }
}

pub fn segment_path(log: &Path, file: FileIndex) -> PathBuf {
    log.join(format!("seg-{:06}", file.0))
}

/// Numbers of the logs in a spool that have a directory, rising.
pub fn logs_in(spool: &Path) -> io::Result<Vec<u16>> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(spool)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|n| n.strip_prefix("log-")).and_then(|n| n.parse().ok())
        {
            logs.push(number);
        }
    }
    logs.sort_unstable();
    Ok(logs)
}

/// Where raw bytes of damaged records are kept.
pub fn quarantine_path(spool: &Path) -> PathBuf {
    spool.join("quarantine")
}

/// A line for each copy of the identity that is missing or unreadable.
pub fn damaged_identities(spool: &Path) -> Vec<String> {
    let judge = |name: &str| match fs::read_to_string(spool.join(name)) {
        Ok(text) => parse_identity(&text).err().map(|why| format!("{name}: {why}")),
        Err(error) => Some(format!("{name}: {error}")),
    };
    [IDENTITY, IDENTITY_COPY].into_iter().filter_map(judge).collect()
}

/// The identity of the spool at `path`, read and nothing else.
pub fn identity_of(path: &Path) -> anyhow::Result<SpoolIdentity> {
    read_identity(path)?.with_context(|| {
        format!("{} is not a ringpost spool: it has no identity; name one with --spool", path.display())
    })
}

/// A directory with anything in it but a spool is somebody else's.
fn refuse_foreign(path: &Path) -> anyhow::Result<()> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot read the spool {}", path.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        if name != LOCK && name != "lost+found" {
            bail!(
                "{} is not a ringpost spool and is not empty (it has {}); name an empty or new directory",
                path.display(),
                name.to_string_lossy()
            );
        }
    }
    Ok(())
}

fn read_identity(path: &Path) -> anyhow::Result<Option<SpoolIdentity>> {
    let mut damaged = None;
    let mut found = false;
    for name in [IDENTITY, IDENTITY_COPY] {
        match fs::read_to_string(path.join(name)) {
            Ok(text) => {
                found = true;
                match parse_identity(&text) {
                    Ok(identity) => return Ok(Some(identity)),
                    Err(why) => damaged = Some(why),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("reading {}; check its owner", path.join(name).display()));
            }
        }
    }
    match damaged {
        Some(why) => bail!("spool {}: {why}", path.display()),
        None if found => unreachable!("a file that was read is parsed or damaged"),
        None => Ok(None),
    }
}

/// `ringpost-spool VERSION` / `id HEX` / `secret HEX` / `check HEX`, one to a line.
fn parse_identity(text: &str) -> Result<SpoolIdentity, String> {
    let mut version = None;
    let mut values = [None; 3];
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "ringpost-spool" => version = value.parse::<u32>().ok(),
            "id" => values[0] = u64::from_str_radix(value, 16).ok(),
            "secret" => values[1] = u64::from_str_radix(value, 16).ok(),
            "check" => values[2] = u64::from_str_radix(value, 16).ok(),
            _ => {}
        }
    }
    match version {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!("made by another version (format {other}, this program reads {VERSION})"));
        }
        None => return Err("its identity file is damaged".into()),
    }
    match values {
        [Some(id), Some(secret), Some(check)] if check == identity_check(id, secret) => {
            Ok(SpoolIdentity { id, secret })
        }
        _ => Err("its identity file is damaged".into()),
    }
}

fn identity_check(id: u64, secret: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&id.to_le_bytes(), secret)
}

fn write_identity(path: &Path) -> anyhow::Result<SpoolIdentity> {
    let identity = SpoolIdentity { id: clock::secret_u64(), secret: clock::secret_u64() };
    let text = format!(
        "ringpost-spool {VERSION}\nid {:016x}\nsecret {:016x}\ncheck {:016x}\n",
        identity.id,
        identity.secret,
        identity_check(identity.id, identity.secret)
    );
    for name in [IDENTITY_COPY, IDENTITY] {
        let target = path.join(name);
        let fresh = path.join(format!("{name}.new"));
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)
            .with_context(|| format!("writing {}; is the spool writable?", fresh.display()))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, &target)?;
    }
    ring::sync_directory(path)?;
    Ok(identity)
}

/// A log's segments as recovery reads them: plain buffered reads, nothing is written.
pub struct SegmentFiles {
    dir: PathBuf,
}

impl SegmentFiles {
    pub fn new(dir: PathBuf) -> SegmentFiles {
        SegmentFiles { dir }
    }

    /// Reads what can be read, and puts zeros for the blocks that cannot.
    pub fn read_around(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        match self.read_at(file, offset, buf) {
            Err(ReadFault::Damaged(_)) => {}
            other => return other,
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let block = limits::BLOCK_BYTES - at as usize % limits::BLOCK_BYTES;
            let (piece, behind) = rest.split_at_mut(block.min(rest.len()));
            match self.read_at(file, at, piece) {
                Err(ReadFault::Damaged(_)) => piece.fill(0),
                other => other?,
            }
            at += piece.len() as u64;
            rest = behind;
        }
        Ok(())
    }
}

impl SegmentSource for SegmentFiles {
    fn files(&mut self) -> io::Result<Vec<FileIndex>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some(number) =
                name.to_str().and_then(|n| n.strip_prefix("seg-")).and_then(|n| n.parse().ok())
            {
                files.push(FileIndex(number));
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    fn bytes(&mut self, file: FileIndex) -> io::Result<u64> {
        Ok(fs::metadata(segment_path(&self.dir, file))?.len())
    }

    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        let opened = fs::File::open(segment_path(&self.dir, file)).map_err(ReadFault::Failed)?;
        opened.read_exact_at(buf, offset).map_err(|error| match ring::is_medium_error(&error) {
            true => ReadFault::Damaged(error),
            false => ReadFault::Failed(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("thesis.txt"), "years of work").expect("written");
        let error = SpoolDir::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("not a ringpost spool"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing was added");
    }

    #[test]
    fn a_log_that_was_being_removed_does_not_come_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let spool = SpoolDir::open(dir.path()).expect("opened");
        for log in [0, 1] {
            fs::create_dir(spool.log_path(log)).expect("made");
            fs::write(segment_path(&spool.log_path(log), FileIndex(0)), "segment").expect("written");
        }
        retire_log(&spool.log_path(1)).expect("removed");
        assert_eq!(spool.logs().expect("readable"), [0]);
        // Killed in the middle.
        let half = dir.path().join("log-0001.retired");
        fs::create_dir(&half).expect("it is gone");
        fs::write(segment_path(&half, FileIndex(0)), "segment").expect("written");
        assert_eq!(spool.logs().expect("readable"), [0]);
        drop(spool);
        let spool = SpoolDir::open(dir.path()).expect("opened");
        assert!(!half.exists(), "the rest is removed at the next start");
        assert_eq!(spool.logs().expect("readable"), [0]);
    }

    #[test]
    fn the_identity_lasts_and_survives_the_loss_of_one_copy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("spool");
        SpoolDir::make(&path).expect("made");
        let first = SpoolDir::open(&path).expect("opened").identity;
        for name in [IDENTITY, IDENTITY_COPY] {
            let text = fs::read_to_string(path.join(name)).expect("there");
            fs::write(path.join(name), "ringpost-spool 1\nid 0\n").expect("damaged");
            assert_eq!(SpoolDir::open(&path).expect("opened").identity, first, "without {name}");
            fs::write(path.join(name), text).expect("mended");
        }
    }

    #[test]
    fn one_process_at_a_time_and_no_other_version() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let held = SpoolDir::open(dir.path()).expect("opened");
        let error = SpoolDir::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("in use"), "{error}");
        drop(held);
        let text = fs::read_to_string(dir.path().join(IDENTITY)).expect("there");
        for name in [IDENTITY, IDENTITY_COPY] {
            fs::write(dir.path().join(name), text.replace("spool 1", "spool 2")).expect("written");
        }
        let error = SpoolDir::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("another version"), "{error}");
    }
}
