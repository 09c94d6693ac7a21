//! Files past the page cache, their locks, and the preparation of segments.
//!
//! Owns: [`DirectFile`], [`FileLock`], [`prepare_segment`]. Promises: a write is whole or an error; with
//! [`Sync::Data`] it is on the medium when it completes, because the file was opened with `O_DSYNC` (the
//! writes of tokio-uring carry no flag of their own); a lock lives as long as any request in flight on the
//! file. Must not: know what is in a file.
//!
//! # Locks and a killed process
//!
//! Writes that were handed to the kernel may still reach the device after their process was killed. The
//! lock (`flock`) belongs to the open file description, and a request in flight holds a reference to that
//! description; so a lock taken here is free only when no earlier process can write to the file any more.
//! Recovery waits for it with [`FileLock::lock_or_wait`].
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::buffer::{ALIGN, AlignedBuf};
use super::op::Op;

/// Bytes of zeros in memory while a segment is prepared, and how often they are written in one call.
const ZERO_FILL_BYTES: usize = 1024 * 1024;
const ZERO_FILL_PIECES: usize = 16;
/// Pause between two attempts to lock a file that somebody holds.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// Largest read of [`DirectFile::read_exact_at`]: more is not read at once, but in parts by the caller.
pub const READ_BYTES: usize = 64 * 1024 * 1024;

/// What a completed write has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// The medium (`O_DSYNC`).
    Data,
    /// The device or the page cache.
    None,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenFile {
    pub sync: Sync,
    /// Past the page cache (`O_DIRECT`). tmpfs does not have it.
    pub direct: bool,
    pub write: bool,
    /// Take the file's lock, and hold it as long as the file is open or requests are in flight.
    pub lock: bool,
}

/// An open file; clones share it. Belongs to the worker that opened it.
#[derive(Clone, Debug)]
pub struct DirectFile(Rc<Open>);

#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    direct: bool,
}

impl DirectFile {
    /// Opens an existing file.
    ///
    /// Errors: those of `open(2)` (`InvalidInput` where `direct` is not supported), and `WouldBlock` where
    /// `lock` was asked for and the file is locked.
    pub fn open(path: &Path, options: OpenFile) -> io::Result<DirectFile> {
        let mut flags = OFlags::empty();
        if options.direct {
            flags |= OFlags::DIRECT;
        }
        if options.sync == Sync::Data {
            flags |= OFlags::DSYNC;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(options.write)
            .custom_flags(flags.bits() as i32)
            .open(path)?;
        if options.lock {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        }
        Ok(DirectFile(Rc::new(Open { fd: file.into(), direct: options.direct })))
    }

    /// Writes `buf[..bytes]` at `offset`. With `direct`, `bytes` and `offset` must be multiples of the
    /// file system's direct-I/O alignment.
    ///
    /// A write that is not whole is an error (`WriteZero`), and final: what it left is unknown.
    pub async fn write_at(&self, buf: AlignedBuf, bytes: usize, offset: u64) -> (io::Result<()>, AlignedBuf) {
        let entry = self.write_entry(&buf[..bytes], buf.registered_index(), offset);
        // SAFETY: the entry points into the buffer's memory, which does not move with `buf`; buffer and
        // descriptor are owned by the operation.
        let (result, (_, buf)) = unsafe { Op::submit((self.0.clone(), buf), entry) }.await;
        (whole(result, bytes), buf)
    }

    fn write_entry(&self, bytes: &[u8], registered: Option<u16>, offset: u64) -> squeue::Entry {
        let fd = Fd(self.0.fd.as_raw_fd());
        match registered {
            Some(index) => {
                opcode::WriteFixed::new(fd, bytes.as_ptr(), bytes.len() as u32, index).offset(offset).build()
            }
            None => opcode::Write::new(fd, bytes.as_ptr(), bytes.len() as u32).offset(offset).build(),
        }
    }

    /// Reads `bytes` at `offset` into the front of `buf`; fewer only at the end of the file. With `direct`,
    /// both must be multiples of the direct-I/O alignment.
    pub async fn read_at(
        &self,
        mut buf: AlignedBuf,
        bytes: usize,
        offset: u64,
    ) -> (io::Result<usize>, AlignedBuf) {
        let mut done = 0;
        while done < bytes {
            let into = &mut buf[done..bytes];
            let (fd, ptr, len) = (Fd(self.0.fd.as_raw_fd()), into.as_mut_ptr(), into.len() as u32);
            let at = offset + done as u64;
            let entry = match buf.registered_index() {
                Some(index) => opcode::ReadFixed::new(fd, ptr, len, index).offset(at).build(),
                None => opcode::Read::new(fd, ptr, len).offset(at).build(),
            };
            // SAFETY: the entry points into the buffer's memory, which does not move with `buf`; buffer
            // and descriptor are owned by the operation, the buffer exclusively.
            let (result, (_, back)) = unsafe { Op::submit((self.0.clone(), buf), entry) }.await;
            buf = back;
            match result {
                Ok(0) => break,
                Ok(n) => {
                    done += n as usize;
                    if self.0.direct && !done.is_multiple_of(512) {
                        break; // a direct read stops in the middle of a block only at the end of the file
                    }
                }
                Err(e) => return (Err(e), buf),
            }
        }
        (Ok(done), buf)
    }

    /// Reads exactly the given range, whatever its alignment.
    ///
    /// Errors: `UnexpectedEof` where the file is shorter, `InvalidInput` above [`READ_BYTES`].
    pub async fn read_exact_at(&self, offset: u64, bytes: usize) -> io::Result<FileBytes> {
        if bytes > READ_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too much to be read at once"));
        }
        let ahead = (offset % ALIGN as u64) as usize;
        let aligned = (ahead + bytes).next_multiple_of(ALIGN);
        let (result, buf) = self.read_at(AlignedBuf::zeroed(aligned), aligned, offset - ahead as u64).await;
        if result? < ahead + bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(FileBytes { buf, range: ahead..ahead + bytes })
    }

    /// An error (`NotFound`) if the file has no name any more: nobody will find what is written to it.
    pub fn must_have_name(&self) -> io::Result<()> {
        match rustix::fs::fstat(&self.0.fd)?.st_nlink {
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "the file was deleted")),
            _ => Ok(()),
        }
    }

    /// The file's length.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.0.fd)?.st_size as u64)
    }

    /// The flags the kernel has for the open file.
    pub fn flags(&self) -> io::Result<OFlags> {
        Ok(rustix::fs::fcntl_getfl(&self.0.fd)?)
    }
}

fn whole(result: io::Result<u32>, bytes: usize) -> io::Result<()> {
    match result {
        Ok(n) if n as usize == bytes => Ok(()),
        Ok(n) => {
            Err(io::Error::new(io::ErrorKind::WriteZero, format!("wrote {n} of {bytes} bytes to a file")))
        }
        Err(e) => Err(e),
    }
}

/// Bytes read from a file, inside the aligned buffer they were read into.
#[derive(Debug)]
pub struct FileBytes {
    buf: AlignedBuf,
    range: Range<usize>,
}

impl FileBytes {
    /// The buffer and where the bytes lie in it.
    pub fn into_parts(self) -> (AlignedBuf, Range<usize>) {
        (self.buf, self.range)
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

/// The exclusive lock of a file, held until dropped.
#[derive(Debug)]
pub struct FileLock(#[allow(dead_code)] File);

impl FileLock {
    /// Takes the lock; `None` where somebody holds it.
    pub fn try_lock(path: &Path) -> io::Result<Option<FileLock>> {
        let file = OpenOptions::new().read(true).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(FileLock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the lock, waiting for it at most `wait` (`TimedOut`). Blocks the thread.
    pub fn lock_or_wait(path: &Path, wait: Duration) -> io::Result<FileLock> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_lock(path)? {
                return Ok(lock);
            }
            if start.elapsed() >= wait {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOCK_RETRY.min(wait));
        }
    }
}

/// Why a file could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Unprepared {
    /// It could not be begun, for want of room, memory, descriptors or a free name: nothing is said of what was written.
    #[error("{0}")]
    Wanting(io::Error),
    /// A write or a sync has failed, and may have been that of another file: nothing that is in flight on
    /// the file system can be trusted.
    #[error("{0}")]
    Fault(io::Error),
}

impl Unprepared {
    /// What an error means that came before anything was written.
    pub fn before_writing(error: io::Error) -> Unprepared {
        use rustix::io::Errno;
        let wanting = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::WOULDBLOCK,
            Errno::EXIST,
        ];
        match Errno::from_io_error(&error).is_some_and(|e| wanting.contains(&e)) {
            true => Unprepared::Wanting(error),
            false => Unprepared::Fault(error),
        }
    }
}

/// Creates the file `path` with `bytes` zeros, on the medium with its directory entry. Blocks the thread:
/// call it through [`blocking`](super::blocking).
///
/// The zeros are really written: space that is only allocated costs each later write a conversion of
/// metadata. The file gets its name when it is complete, so an interrupted preparation leaves only a file
/// ending in `.new`, which the next one replaces. An existing `path` is an error (`AlreadyExists`).
pub fn prepare_segment(path: &Path, bytes: u64) -> Result<(), Unprepared> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let unfinished = Path::new(&name);
    let filled = fill(unfinished, bytes).and_then(|()| {
        // A hard link, unlike a rename, refuses to replace what is there.
        std::fs::hard_link(unfinished, path).map_err(Unprepared::before_writing)
    });
    let removed = std::fs::remove_file(unfinished);
    filled?;
    removed.map_err(Unprepared::before_writing)?;
    sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(Unprepared::Fault)
}

fn fill(path: &Path, bytes: u64) -> Result<(), Unprepared> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(Unprepared::before_writing)?;
    let is_allocated = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => true,
        // Where the file system cannot allocate ahead, writing does it.
        Err(rustix::io::Errno::OPNOTSUPP) => false,
        Err(e) => return Err(Unprepared::before_writing(e.into())),
    };
    let zeros = AlignedBuf::zeroed(ZERO_FILL_BYTES);
    // Past the page cache nothing is copied: the device fetches the same page of zeros again and again.
    let direct = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    let written = match direct.and_then(|direct| write_zeros(&direct, bytes, &zeros)) {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => write_zeros(&file, bytes, &zeros),
        other => other,
    };
    // Of room that was had before there is no want: the device has failed.
    written.map_err(if is_allocated { Unprepared::Fault } else { Unprepared::before_writing })?;
    file.sync_all().map_err(Unprepared::Fault)
}

/// Many pieces to one call: the device is kept busy, and the file system converts few, large extents.
fn write_zeros(file: &File, bytes: u64, zeros: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let mut left = bytes - done;
        let pieces: Vec<IoSlice<'_>> = (0..ZERO_FILL_PIECES)
            .map_while(|_| {
                let piece = &zeros[..left.min(zeros.len() as u64) as usize];
                left -= piece.len() as u64;
                (!piece.is_empty()).then(|| IoSlice::new(piece))
            })
            .collect();
        match rustix::io::pwritev(file, &pieces, done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Waits until the directory's entries are on the medium. Blocks the thread.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// Waits until all that was written so far to the files of `dir`'s file system is on the medium, whoever
/// wrote it; `newest` is one of them. Blocks the thread.
///
/// Two calls, because each alone leaves something out: `syncfs` writes what is dirty, but a file system
/// that finds nothing dirty (XFS) does not ask the device to empty its cache, where direct writes may still
/// lie; `fsync` of any one file does. One by one, a thousand files would cost a thousand flushes.
pub fn sync_file_system(dir: &Path, newest: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(dir)?)?;
    File::open(newest)?.sync_all()
}

/// Has the next read of the file come from the medium, as far as its pages are clean.
pub fn drop_cached(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fadvise(File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// Whether an error of a read says that the medium does not give back what stood there, or the file system
/// not where it stands: what was asked for is damaged, and its neighbours may not be. Buffered reads know
/// `EIO` only; direct ones pass on what the device says.
pub fn is_medium_error(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::UCLEAN, Errno::BADMSG];
    error.raw_os_error().is_some_and(|number| known.iter().any(|known| known.raw_os_error() == number))
}

/// Whether a direct write of `block` bytes works in `dir`, found by trying.
pub(super) fn direct_write_works(dir: &Path, block: usize) -> io::Result<bool> {
    let probe = dir.join(format!(".direct-{}", std::process::id()));
    let result = (|| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(&probe)?;
        let buf = AlignedBuf::zeroed(block);
        file.write_all_at(&buf[..block], 0)
    })();
    let _ = std::fs::remove_file(&probe);
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
