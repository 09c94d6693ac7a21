//! Files on a real disk: the directory of the crate, where direct I/O works.
use super::super::op::settled;
use super::super::{BufferPool, spawn, test_run, yield_turn};
use std::io::Write;

use super::*;

const DIRECT: OpenFile = OpenFile { sync: Sync::Data, direct: true, write: true, lock: false };

fn segment(bytes: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir_in(".").expect("a directory on a disk");
    let path = dir.path().join("segment");
    prepare_segment(&path, bytes).expect("a segment is prepared");
    (dir, path)
}

fn fill_with(buf: &mut AlignedBuf, seed: usize) {
    for (n, byte) in buf.iter_mut().enumerate() {
        *byte = (n * 7 + n / 251 + seed) as u8;
    }
}

#[test]
fn direct_writes_come_back_from_registered_and_unregistered_memory() {
    let (_dir, path) = segment(1 << 20);
    test_run(async {
        for register in [false, true] {
            let pool = BufferPool::new(2, 64 * 1024, register);
            let file = DirectFile::open(&path, DIRECT).expect("opens");
            let mut buf = pool.take().expect("free");
            assert_eq!(buf.registered_index().is_some(), pool.is_registered());
            fill_with(&mut buf, register as usize);
            let expected = buf.to_vec();
            let (result, buf) = file.write_at(buf, 64 * 1024, 8192).await;
            result.expect("written");
            drop(buf);
            let (result, back) = file.read_at(pool.take().expect("free"), 64 * 1024, 8192).await;
            assert_eq!(result.expect("read"), 64 * 1024);
            assert!(back[..] == expected[..]);
            for (offset, bytes) in [(8192u64, 10usize), (8193, 5000), (12_000, 4096), (8192 + 65_530, 6)] {
                let got = file.read_exact_at(offset, bytes).await.expect("read");
                let at = offset as usize - 8192;
                assert!(got[..] == expected[at..at + bytes], "{offset} {bytes}");
            }
        }
    });
}

#[test]
fn reads_beyond_the_end_are_told_apart() {
    let (_dir, path) = segment(8192);
    test_run(async {
        let file = DirectFile::open(&path, OpenFile { write: false, ..DIRECT }).expect("opens");
        assert_eq!(file.bytes().expect("known"), 8192);
        let (result, _) = file.read_at(AlignedBuf::zeroed(8192), 8192, 4096).await;
        assert_eq!(result.expect("read"), 4096);
        let error = file.read_exact_at(8000, 200).await.expect_err("too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_write_that_is_not_whole_is_an_error() {
    let (_dir, path) = segment(8192);
    test_run(async {
        // A file opened for reading, and a misaligned direct write.
        let file = DirectFile::open(&path, OpenFile { write: false, ..DIRECT }).expect("opens");
        assert!(file.write_at(AlignedBuf::zeroed(4096), 4096, 0).await.0.is_err());
        let file = DirectFile::open(&path, DIRECT).expect("opens");
        assert!(file.write_at(AlignedBuf::zeroed(4096), 100, 0).await.0.is_err());
    });
    assert_eq!(whole(Ok(512), 4096).expect_err("short").kind(), io::ErrorKind::WriteZero);
}

#[test]
fn the_flags_are_really_set() {
    let (_dir, path) = segment(4096);
    for (sync, direct) in [(Sync::Data, true), (Sync::None, true), (Sync::Data, false), (Sync::None, false)] {
        let file = DirectFile::open(&path, OpenFile { sync, direct, ..DIRECT }).expect("opens");
        let flags = file.flags().expect("known");
        assert_eq!(flags.contains(OFlags::DSYNC), sync == Sync::Data);
        assert_eq!(flags.contains(OFlags::DIRECT), direct);
    }
}

#[test]
fn memory_file_systems_work_without_direct_io() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = dir.path().join("segment");
    prepare_segment(&path, 8192).expect("prepared");
    test_run(async {
        let file = DirectFile::open(&path, OpenFile { direct: false, ..DIRECT }).expect("opens");
        let mut buf = AlignedBuf::zeroed(4096);
        buf[..3].copy_from_slice(b"abc");
        file.write_at(buf, 3, 10).await.0.expect("written");
        assert_eq!(&file.read_exact_at(9, 5).await.expect("read")[..], b"\0abc\0");
    });
}

#[test]
fn a_segment_is_zeroed_private_and_never_replaced() {
    use std::os::unix::fs::MetadataExt;
    let (dir, path) = segment(3 * 1024 * 1024 + 4096);
    let meta = std::fs::metadata(&path).expect("there");
    assert_eq!((meta.len(), meta.mode() & 0o777, meta.nlink()), (3 * 1024 * 1024 + 4096, 0o600, 1));
    assert!(meta.blocks() * 512 >= meta.len(), "no holes");
    assert!(std::fs::read(&path).expect("readable").iter().all(|b| *b == 0));
    std::fs::write(&path, b"mail").expect("written");
    let error = prepare_segment(&path, 4096).expect_err("exists");
    assert!(
        matches!(&error, Unprepared::Wanting(e) if e.kind() == io::ErrorKind::AlreadyExists),
        "{error:?}"
    );
    assert_eq!(std::fs::read(&path).expect("readable"), b"mail");
    // What an interrupted preparation left behind does not get in the way.
    std::fs::write(dir.path().join("next.new"), b"rest").expect("written");
    prepare_segment(&dir.path().join("next"), 4096).expect("prepared");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 2);
}

#[test]
fn want_of_room_is_told_from_a_failing_device() {
    use rustix::io::Errno;
    for errno in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        assert!(matches!(Unprepared::before_writing(errno.into()), Unprepared::Wanting(_)), "{errno}");
    }
    for errno in [Errno::IO, Errno::ROFS, Errno::NOENT, Errno::NXIO, Errno::NODEV] {
        assert!(matches!(Unprepared::before_writing(errno.into()), Unprepared::Fault(_)), "{errno}");
    }
    let (dir, _) = segment(4096);
    let gone = prepare_segment(&dir.path().join("gone/segment"), 4096);
    assert!(matches!(gone, Err(Unprepared::Fault(_))), "{gone:?}");
}

#[test]
fn the_lock_is_exclusive_and_can_be_waited_for() {
    let (_dir, path) = segment(4096);
    let locked = OpenFile { lock: true, ..DIRECT };
    let first = DirectFile::open(&path, locked).expect("opens");
    assert_eq!(DirectFile::open(&path, locked).expect_err("locked").kind(), io::ErrorKind::WouldBlock);
    assert!(FileLock::try_lock(&path).expect("asked").is_none());
    let error = FileLock::lock_or_wait(&path, Duration::from_millis(30)).expect_err("locked");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    DirectFile::open(&path, DIRECT).expect("without the lock it opens");
    let waiter = std::thread::spawn({
        let path = path.clone();
        move || FileLock::lock_or_wait(&path, Duration::from_secs(20))
    });
    drop(first);
    let lock = waiter.join().expect("ends").expect("got the lock");
    assert!(FileLock::try_lock(&path).expect("asked").is_none());
    drop(lock);
    assert!(FileLock::try_lock(&path).expect("asked").is_some());
}

/// The request in flight is a read from a FIFO opened in the same way: a write to a disk cannot be held up
/// for as long as a test wants.
#[test]
fn the_lock_outlives_its_handle_while_a_request_is_in_flight() {
    let dir = tempfile::tempdir_in(".").expect("a directory");
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("a FIFO is made");
    test_run(async {
        let file =
            DirectFile::open(&path, OpenFile { sync: Sync::None, direct: false, write: true, lock: true })
                .expect("opens");
        let mut other = OpenOptions::new().write(true).open(&path).expect("opens");
        let reader = spawn(async move {
            let _ = file.read_at(AlignedBuf::zeroed(4096), 4096, u64::MAX).await;
        });
        settled().await;
        reader.abort();
        yield_turn().await;
        assert!(reader.is_finished(), "the only handle is dropped");
        assert_eq!(super::super::operations_in_flight(), 1);
        let probe = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        let try_lock = || rustix::fs::flock(&probe, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(try_lock(), Err(rustix::io::Errno::WOULDBLOCK), "the request holds the lock");
        other.write_all(b"end").expect("written");
        while super::super::operations_in_flight() > 0 {
            super::super::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(try_lock(), Ok(()), "nothing in flight, nothing locked");
    });
}

#[test]
fn only_what_the_medium_does_not_give_back_counts_as_damaged() {
    use rustix::io::Errno;
    let is_damage = |errno: Errno| is_medium_error(&io::Error::from_raw_os_error(errno.raw_os_error()));
    assert!([Errno::IO, Errno::NODATA, Errno::UCLEAN].into_iter().all(is_damage));
    assert!(![Errno::NOENT, Errno::MFILE, Errno::ACCESS, Errno::NOMEM].into_iter().any(is_damage));
    assert!(!is_medium_error(&io::ErrorKind::UnexpectedEof.into()));
}
