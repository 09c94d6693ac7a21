//! Real messages to send: a message file, an mbox file, or a directory of messages.
//!
//! Owns: reading them into memory, with CRLF line ends. Promises: bounded by number and bytes;
//! the same path gives the same order. Must not: change what a message says.
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::limits;

/// Reads the messages at `path`: a maildir (its `cur` and `new`), a directory of message files, an
/// mbox file (its first line begins with `From `), or a file with one message.
pub fn read(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut messages = Vec::new();
    let mut bytes = 0;
    let mut take = |message: Vec<u8>| {
        bytes += message.len() as u64;
        if !message.is_empty() && messages.len() < limits::CORPUS_MESSAGES && bytes <= limits::STOCK_BYTES {
            messages.push(message);
        }
    };
    for file in files(path)? {
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if text.starts_with(b"From ") {
            mbox(&text).into_iter().for_each(&mut take);
        } else {
            take(with_crlf(&text));
        }
    }
    ensure!(!messages.is_empty(), "{} holds no message", path.display());
    Ok(messages)
}

/// The files to read, by name.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let parts = [path.join("cur"), path.join("new")];
    let dirs = if parts.iter().any(|dir| dir.is_dir()) { parts.to_vec() } else { vec![path.to_owned()] };
    let mut files = Vec::new();
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files.truncate(limits::CORPUS_MESSAGES);
    Ok(files)
}

/// The messages of an mbox (RFC 4155), `>From ` unquoted (the mboxrd variant).
fn mbox(text: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut message: Vec<u8> = Vec::new();
    let mut is_behind_blank = true;
    for line in text.split_inclusive(|&c| c == b'\n') {
        if is_behind_blank && line.starts_with(b"From ") {
            messages.push(std::mem::take(&mut message));
            is_behind_blank = false;
            continue;
        }
        is_behind_blank = matches!(line, b"\n" | b"\r\n");
        let quotes = line.iter().take_while(|&&c| c == b'>').count();
        let is_quoted = quotes > 0 && line[quotes..].starts_with(b"From ");
        message.extend_from_slice(if is_quoted { &line[1..] } else { line });
    }
    messages.push(message);
    messages.iter().filter(|message| !message.is_empty()).map(|message| with_crlf(message)).collect()
}

/// The same text with CRLF at every line end, and at its end.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(text.len() + text.len() / 32 + 2);
    for line in text.split(|&c| c == b'\n') {
        lines.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        lines.extend_from_slice(b"\r\n");
    }
    if text.is_empty() || text.ends_with(b"\n") {
        lines.truncate(lines.len() - 2);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_every_kind_of_place() {
        let dir = std::env::temp_dir().join(format!("ringpost-corpus-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("box/new")).unwrap();
        std::fs::create_dir_all(dir.join("box/cur")).unwrap();
        std::fs::write(dir.join("box/cur/1:2,S"), "Subject: a\n\nx").unwrap();
        std::fs::write(dir.join("box/new/2"), "Subject: b\r\n\r\ny\r\n").unwrap();
        let want = [b"Subject: a\r\n\r\nx\r\n".to_vec(), b"Subject: b\r\n\r\ny\r\n".to_vec()];
        assert_eq!(read(&dir.join("box")).unwrap(), want);
        assert_eq!(read(&dir.join("box/new")).unwrap(), want[1..]);
        assert_eq!(read(&dir.join("box/new/2")).unwrap(), want[1..]);
        let text =
            "From a@b Thu\nSubject: a\n\nx\n>From here\nFrom within\n\nFrom c@d Fri\nSubject: b\n\ny\n";
        std::fs::write(dir.join("mbox"), text).unwrap();
        let messages = read(&dir.join("mbox")).unwrap();
        assert_eq!(messages[0], b"Subject: a\r\n\r\nx\r\nFrom here\r\nFrom within\r\n\r\n");
        assert_eq!(messages[1], want[1]);
        assert!(read(&dir.join("nothing")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
