//! Real messages to send: a message file, an mbox file, or a directory of messages.
//!
//! Owns: reading them into memory, with CRLF line ends. Promises: bounded by number and bytes, files of any
//! size included; what is left out is told; the same path gives the same order. Must not: change what a
//! message says.
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::limits;

/// What was read.
#[derive(Debug, Default)]
pub struct Corpus {
    pub messages: Vec<Vec<u8>>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
    bytes: u64,
    most_bytes: u64,
}

/// Reads the messages at `path`, `most_bytes` of them at most: a maildir (its `cur` and `new`), a directory
/// of message files, an mbox file (its first line begins with `From `), or a file with one message.
pub fn read(path: &Path, most_bytes: u64) -> anyhow::Result<Corpus> {
    let mut corpus = Corpus { most_bytes, ..Corpus::default() };
    for file in files(path, &mut corpus.warnings)? {
        let what = || format!("cannot read {}", file.display());
        let mut reader = BufReader::new(File::open(&file).with_context(what)?);
        let is_mbox = reader.fill_buf().with_context(what)?.starts_with(b"From ");
        let goes_on = match is_mbox {
            true => mbox(&mut reader, &mut corpus).with_context(what)?,
            false => {
                let mut text = Vec::new();
                reader.take(most_bytes + 1).read_to_end(&mut text).with_context(what)?;
                corpus.take(&text)
            }
        };
        if !goes_on {
            corpus.warnings.push(format!(
                "{} is larger than a run takes: its first {} messages ({} bytes) are sent, the others are not",
                path.display(),
                corpus.messages.len(),
                corpus.bytes
            ));
            break;
        }
    }
    ensure!(!corpus.messages.is_empty(), "{} holds no message that can be sent", path.display());
    Ok(corpus)
}

impl Corpus {
    /// Adds a message; false where there is no room for it.
    fn take(&mut self, text: &[u8]) -> bool {
        if text.is_empty() {
            return true;
        }
        let message = with_crlf(text);
        self.bytes += message.len() as u64;
        if self.messages.len() == limits::CORPUS_MESSAGES || self.bytes > self.most_bytes {
            self.bytes -= message.len() as u64;
            return false;
        }
        self.messages.push(message);
        true
    }
}

/// The files to read, by name.
fn files(path: &Path, warnings: &mut Vec<String>) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let parts = [path.join("cur"), path.join("new")];
    let dirs = if parts.iter().any(|dir| dir.is_dir()) { parts.to_vec() } else { vec![path.to_owned()] };
    let (mut files, mut others) = (Vec::new(), 0);
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            // A link is what it leads to.
            match path.is_file() {
                true => files.push(path),
                false => others += 1,
            }
        }
    }
    if others > 0 {
        warnings.push(format!("{others} entries of {} are no files, and are left out", path.display()));
    }
    files.sort();
    Ok(files)
}

/// Takes the messages of an mbox (RFC 4155), `>From ` unquoted (the mboxrd variant); false where there was
/// no room for all. The blank line before a `From ` line, and at the end, belongs to the mbox.
fn mbox(reader: &mut impl BufRead, corpus: &mut Corpus) -> std::io::Result<bool> {
    let (mut line, mut message) = (Vec::new(), Vec::new());
    // A blank line is held back until it is known what follows. The first line needs none before it.
    let (mut blank, mut is_behind_blank): (&[u8], bool) = (b"", true);
    loop {
        line.clear();
        let is_end = reader.by_ref().take(corpus.most_bytes + 1).read_until(b'\n', &mut line)? == 0;
        if is_end || (is_behind_blank && line.starts_with(b"From ")) {
            let has_room = corpus.take(&message);
            if is_end || !has_room {
                return Ok(has_room);
            }
            message.clear();
            is_behind_blank = false;
            blank = b"";
            continue;
        }
        message.extend_from_slice(blank);
        blank = match &line[..] {
            b"\n" => b"\n",
            b"\r\n" => b"\r\n",
            _ => b"",
        };
        let quotes = line.iter().take_while(|&&c| c == b'>').count();
        let is_quoted = quotes > 0 && line[quotes..].starts_with(b"From ");
        is_behind_blank = !blank.is_empty();
        if !is_behind_blank {
            message.extend_from_slice(if is_quoted { &line[1..] } else { &line });
        }
        if message.len() as u64 > corpus.most_bytes {
            return Ok(false);
        }
    }
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
        let read = |path: &str| super::read(&dir.join(path), 1000).map(|corpus| corpus.messages);
        assert_eq!(read("box").unwrap(), want);
        assert_eq!(read("box/new").unwrap(), want[1..]);
        assert_eq!(read("box/new/2").unwrap(), want[1..]);
        let text =
            "From a@b Thu\nSubject: a\n\nx\n>From here\nFrom within\n\n\nFrom c@d Fri\nSubject: b\n\ny\n\n";
        std::fs::write(dir.join("mbox"), text).unwrap();
        let messages = read("mbox").unwrap();
        // Of two blank lines one is the message's own.
        assert_eq!(messages[0], b"Subject: a\r\n\r\nx\r\nFrom here\r\nFrom within\r\n\r\n");
        assert_eq!(messages[1..], want[1..]);
        assert!(read("nothing").is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_left_out_is_told() {
        let dir = std::env::temp_dir().join(format!("ringpost-corpus-more-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("box/sub")).unwrap();
        std::fs::write(dir.join("message"), "Subject: linked\n\nx\n").unwrap();
        std::os::unix::fs::symlink(dir.join("message"), dir.join("box/link")).unwrap();
        let corpus = read(&dir.join("box"), 1000).unwrap();
        assert_eq!(corpus.messages, [b"Subject: linked\r\n\r\nx\r\n"]);
        assert!(corpus.warnings[0].contains("1 entries"), "{:?}", corpus.warnings);
        // More bytes than there is room for, in an mbox and in files.
        std::fs::write(dir.join("mbox"), "From a\nSubject: a\n\nx\n\n".repeat(100)).unwrap();
        let corpus = read(&dir.join("mbox"), 100).unwrap();
        assert!(corpus.messages.len() == 5 && corpus.warnings[0].contains("first 5 messages"), "{corpus:?}");
        (0..9).for_each(|n| std::fs::write(dir.join(format!("box/{n}")), "Subject: a\n\nx\n").unwrap());
        let corpus = read(&dir.join("box"), 100).unwrap();
        assert!(corpus.messages.len() == 5 && corpus.warnings.len() == 2, "{corpus:?}");
        std::fs::write(dir.join("large"), "a\n".repeat(100)).unwrap();
        assert!(read(&dir.join("large"), 100).unwrap_err().to_string().contains("that can be sent"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
