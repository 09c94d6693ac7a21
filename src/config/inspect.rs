//! What the machine says to a configuration that is valid in itself.
//!
//! Owns: the look at files and users that `ringpost check` and `serve` take before anything starts.
//! Promises: it changes nothing; each problem names the setting and the remedy. Must not: replace the
//! checks at start (kernel, descriptors, file system), which the ring layer makes.
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use rustix::fs::{Access, access};

use super::{Config, Problem};
use crate::limits;

/// Everything on this machine that would keep `config` from running.
pub fn inspect(config: &Config) -> Vec<Problem> {
    let looks = [
        spool(&config.spool),
        config.control_token_file.as_deref().map_or(Ok(()), token_file),
        config.event_log.as_deref().filter(|path| *path != Path::new("-")).map_or(Ok(()), event_log),
        config.user.as_deref().map_or(Ok(()), user),
    ];
    let sources = config.sources.iter().map(|s| source(s.address));
    looks.into_iter().chain(sources).filter_map(Result::err).map(Problem).collect()
}

fn spool(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => Err(format!("--spool: {shown} is not a directory: name another one")),
        Ok(_) if access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() => {
            Err(format!("--spool: {shown} is not writable: change its owner (chown), or name another one"))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => parent("--spool", path),
        Err(error) => Err(format!("--spool: {shown}: {error}")),
    }
}

/// A path that does not exist yet needs a directory to be made in.
fn parent(flag: &str, path: &Path) -> Result<(), String> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = parent.display();
    if !parent.is_dir() {
        return Err(format!(
            "{flag}: the directory {shown} does not exist: make it first (mkdir -p {shown})"
        ));
    }
    access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|_| {
        format!(
            "{flag}: the directory {shown} is not writable: change its owner (chown), or name another path"
        )
    })
}

fn token_file(path: &Path) -> Result<(), String> {
    read_token(path).map(drop)
}

/// The token for `--control`: the first line of the file, without surrounding white space. The error
/// names the flag and the remedy.
pub fn read_token(path: &Path) -> Result<String, String> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    let shown = path.display();
    let fail = |error: std::io::Error| format!("--control-token-file: {shown}: {error}");
    let file = fs::File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.permissions().mode() & 0o007 != 0 {
        return Err(format!("--control-token-file: every user can read {shown}: run chmod 600 {shown}"));
    }
    let mut text = String::new();
    file.take(limits::CONTROL_TOKEN_BYTES).read_to_string(&mut text).map_err(fail)?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.len() < limits::CONTROL_TOKEN_LEAST || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "--control-token-file: the first line of {shown} must be {} or more printable characters without spaces: write one with `head -c 24 /dev/urandom | base64 > {shown}`",
            limits::CONTROL_TOKEN_LEAST
        ));
    }
    Ok(token.to_owned())
}

fn event_log(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(format!("--event-log: {shown} is a directory: name a file")),
        Ok(_) if access(path, Access::WRITE_OK).is_err() => Err(format!(
            "--event-log: {shown} is not writable: change its owner (chown), or name another file"
        )),
        Ok(_) => Ok(()),
        Err(_) => parent("--event-log", path),
    }
}

fn source(address: IpAddr) -> Result<(), String> {
    match UdpSocket::bind((address, 0)) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Err(format!(
            "--source: {address} is not an address of this machine: add it to an interface (ip address add), or name another one"
        )),
        _ => Ok(()),
    }
}

fn user(name: &str) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err(format!(
            "--user {name}: only root can become another user: start as root, or leave it out"
        ));
    }
    let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
    if known.lines().any(|line| line.split(':').next() == Some(name)) {
        return Ok(());
    }
    Err(format!("--user {name}: no such user: add it (useradd --system {name}), or name another one"))
}
