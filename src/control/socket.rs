//! `SPOOL/control.sock`: where local commands find their server.
//!
//! Owns: binding it, connecting to it, removing it. Promises: its mode is 0600 from the moment it
//! exists, and it works however long the spool's path is: `sun_path` ends at 107 bytes, so the socket
//! is named through `/proc/self/fd/N` of the opened directory. Must not: speak HTTP.
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, open, unlinkat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, listen, socket_with,
};

use crate::limits;

/// Name of the socket within the spool directory.
pub const NAME: &str = "control.sock";

/// A short name of the socket, good while the directory stays open.
fn short_path(spool: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let directory = open(spool, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()));
    Ok((directory, path))
}

/// Binds the socket and listens, replacing one that a dead server left behind. The caller holds the
/// spool's lock. The listener does not block.
pub fn bind(spool: &Path) -> io::Result<UnixListener> {
    let (directory, path) = short_path(spool)?;
    match unlinkat(&directory, NAME, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, so there is no moment at which it is wider.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind_to(&socket, &SocketAddrUnix::new(&path)?)?;
    listen(&socket, limits::CONTROL_CONNECTIONS as i32)?;
    Ok(socket.into())
}

/// Connects to the server of that spool.
pub fn connect(spool: &Path) -> io::Result<UnixStream> {
    let (_directory, path) = short_path(spool)?;
    UnixStream::connect(path)
}

/// Removes the socket. That it is gone already, or the whole spool is, does not matter.
pub fn remove(spool: &Path) {
    if let Ok((directory, _)) = short_path(spool) {
        let _ = unlinkat(directory, NAME, AtFlags::empty());
    }
}
