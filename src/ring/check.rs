//! Start-up checks: what the server needs of the machine, and what to do where it is missing.
//!
//! Owns: [`start_up_checks`]. Promises: each failure is a value whose text names the remedy; the only
//! change made is that the soft limit of open files is raised to the hard one. Must not: exit or print.
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statfs, statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use super::buffer::ALIGN;
use super::file::direct_write_works;
use super::runtime::RING_ENTRIES;

/// Fewest open files the server starts with: listeners, logs, and some hundred connections.
const LEAST_DESCRIPTORS: u64 = 512;
/// `TMPFS_MAGIC` of statfs(2).
const TMPFS: i64 = 0x0102_1994;
/// `RAMFS_MAGIC` of statfs(2).
const RAMFS: i64 = 0x8584_58f6;

/// What is to be checked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Accepted mail has to survive power loss: the spool must lie on a disk.
    pub durable: bool,
    /// Bytes of buffers that are to be registered with the kernel, over all workers.
    pub locked_bytes: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Open files allowed, after the limit was raised.
    pub descriptors: u64,
    /// Bytes of memory that may be locked; `None` without a limit.
    pub memlock: Option<u64>,
    /// Whether `locked_bytes` fits (root is not bound by the limit).
    pub memlock_suffices: bool,
    /// The alignment of direct I/O in the spool, bytes; `None` where it has no direct I/O.
    pub direct_block: Option<usize>,
    /// The spool lies in memory (tmpfs, ramfs).
    pub memory_file_system: bool,
}

/// Why the server cannot start here, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(
        "io_uring is switched off by the system (kernel.io_uring_disabled = {0}): set it to 0 with \
         `sysctl -w kernel.io_uring_disabled=0`, or to 1 and put the server's group into kernel.io_uring_group"
    )]
    RingDisabled(String),
    #[error(
        "io_uring is refused ({0}): a seccomp filter or security module forbids it; containers need a \
         profile that allows io_uring_setup, io_uring_enter and io_uring_register (Docker: \
         --security-opt seccomp=PROFILE; systemd: add them to SystemCallFilter=)"
    )]
    RingRefused(io::Error),
    #[error("this kernel has no io_uring: run Linux 6.1 or later with CONFIG_IO_URING")]
    RingMissing,
    #[error("this kernel's io_uring is too old: run Linux 6.1 or later")]
    RingTooOld,
    #[error(
        "the ring cannot be made ({0}): there is not enough memory or there are too few descriptors for \
         its queues; raise the memory limit of the service (MemoryMax=, LimitMEMLOCK= in systemd)"
    )]
    Ring(io::Error),
    #[error(
        "only {0} files may be open, at least {LEAST_DESCRIPTORS} are needed: raise the limit (`ulimit -Hn`, \
         LimitNOFILE= in systemd)"
    )]
    Descriptors(u64),
    #[error("the spool directory {path} cannot be examined: {error}; create it, owned by the server's user")]
    Spool { path: PathBuf, error: io::Error },
    #[error(
        "the spool {0} lies in memory (tmpfs or ramfs), where accepted mail does not survive power loss: \
         put it on a disk with --spool DIR, or accept that with --durability memory"
    )]
    SpoolInMemory(PathBuf),
    #[error(
        "direct I/O in the spool {path} wants blocks of {block} bytes, which is not supported (at most \
         {ALIGN}): put the spool on a disk with smaller sectors"
    )]
    Block { path: PathBuf, block: usize },
}

/// Checks the kernel, the limits and the spool's file system. `spool` must exist.
pub fn start_up_checks(spool: &Path, wanted: Wanted) -> Result<Checked, CheckError> {
    check_ring()?;
    let descriptors = raise_descriptors()?;
    let memlock = getrlimit(Resource::Memlock).current;
    let memory_file_system = in_memory(spool)?;
    if memory_file_system && wanted.durable {
        return Err(CheckError::SpoolInMemory(spool.to_owned()));
    }
    Ok(Checked {
        descriptors,
        memlock,
        memlock_suffices: rustix::process::geteuid().is_root()
            || memlock.is_none_or(|limit| limit >= wanted.locked_bytes),
        direct_block: direct_block(spool)?,
        memory_file_system,
    })
}

/// Makes a ring as the workers do, and drops it.
fn check_ring() -> Result<(), CheckError> {
    let built = tokio_uring::uring_builder().setup_coop_taskrun().setup_single_issuer().build(RING_ENTRIES);
    let error = match built {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(explain(error, disabled.trim()))
}

fn explain(error: io::Error, disabled: &str) -> CheckError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => CheckError::RingMissing,
        Some(Errno::INVAL) => CheckError::RingTooOld,
        Some(Errno::PERM | Errno::ACCESS) if matches!(disabled, "1" | "2") => {
            CheckError::RingDisabled(disabled.to_owned())
        }
        Some(Errno::PERM | Errno::ACCESS) => CheckError::RingRefused(error),
        _ => CheckError::Ring(error),
    }
}

/// Raises the soft limit of open files to the hard one.
fn raise_descriptors() -> Result<u64, CheckError> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wish = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Where it cannot be raised the limit stands as it is, and is judged below.
        if setrlimit(Resource::Nofile, wish).is_ok() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    let current = limit.current.unwrap_or(u64::MAX);
    if current < LEAST_DESCRIPTORS { Err(CheckError::Descriptors(current)) } else { Ok(current) }
}

fn in_memory(spool: &Path) -> Result<bool, CheckError> {
    let found = statfs(spool).map_err(|e| CheckError::Spool { path: spool.to_owned(), error: e.into() })?;
    Ok(matches!(found.f_type as i64, TMPFS | RAMFS))
}

/// The alignment of direct I/O for files of `spool`, told by the kernel or found by trying.
fn direct_block(spool: &Path) -> Result<Option<usize>, CheckError> {
    let fail = |error: io::Error| CheckError::Spool { path: spool.to_owned(), error };
    // The kernel tells for files only, so it is asked about one made for the purpose.
    let probe = spool.join(format!(".align-{}", std::process::id()));
    let told = std::fs::File::create(&probe)
        .and_then(|_| Ok(statx(CWD, &probe, AtFlags::empty(), StatxFlags::DIOALIGN)?));
    let _ = std::fs::remove_file(&probe);
    let told = match told {
        Ok(told) => told,
        Err(e) if e.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
            return tried_block(spool).map_err(fail);
        }
        Err(e) => return Err(fail(e)),
    };
    if told.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return tried_block(spool).map_err(fail);
    }
    match told.stx_dio_offset_align.max(told.stx_dio_mem_align) as usize {
        0 => Ok(None),
        block if block > ALIGN => Err(CheckError::Block { path: spool.to_owned(), block }),
        block => Ok(Some(block)),
    }
}

fn tried_block(spool: &Path) -> io::Result<Option<usize>> {
    for block in [512, ALIGN] {
        if direct_write_works(spool, block)? {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { durable: true, locked_bytes: 1 << 20 };

    #[test]
    fn a_disk_passes() {
        let dir = tempfile::tempdir_in(".").expect("a directory on a disk");
        let checked = start_up_checks(dir.path(), WANTED).expect("passes here");
        assert!(checked.descriptors >= LEAST_DESCRIPTORS);
        assert_eq!(getrlimit(Resource::Nofile).current, getrlimit(Resource::Nofile).maximum);
        if !checked.memory_file_system {
            let block = checked.direct_block.expect("disks have direct I/O");
            assert!(block.is_power_of_two() && block <= ALIGN);
            assert_eq!(tried_block(dir.path()).expect("can be tried").map(|b| b <= ALIGN), Some(true));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
    }

    #[test]
    fn memory_is_refused_for_durable_mail_only() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let error = start_up_checks(dir.path(), WANTED).expect_err("not durable");
        assert!(error.to_string().contains("--durability memory"), "{error}");
        let checked = start_up_checks(dir.path(), Wanted { durable: false, ..WANTED }).expect("allowed");
        assert!(checked.memory_file_system);
    }

    #[test]
    fn failures_name_the_remedy() {
        let os = |e: Errno| io::Error::from_raw_os_error(e.raw_os_error());
        let cases = [
            (explain(os(Errno::NOSYS), ""), "CONFIG_IO_URING"),
            (explain(os(Errno::PERM), "2"), "sysctl -w kernel.io_uring_disabled=0"),
            (explain(os(Errno::PERM), "0"), "seccomp"),
            (explain(os(Errno::INVAL), "0"), "6.1"),
            (explain(os(Errno::NOMEM), "0"), "MEMLOCK"),
            (CheckError::Descriptors(64), "LimitNOFILE="),
        ];
        for (error, remedy) in cases {
            assert!(error.to_string().contains(remedy), "{error}");
        }
        let missing = start_up_checks(Path::new("/does/not/exist"), WANTED).expect_err("not there");
        assert!(matches!(missing, CheckError::Spool { .. }), "{missing}");
    }
}
