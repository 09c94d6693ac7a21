//! The message that `send` was given, made fit to be sent.
//!
//! Owns: what is read from its header and changed in it. Promises: lines end in CRLF, a header that
//! is not ended by an empty line is ended by one, Bcc and Resent-Bcc go, From comes where there is
//! none; nothing else changes. Must not: know how it is sent.
use std::borrow::Cow;
use std::ops::Range;

use anyhow::{Context, ensure};

use super::{header, lines, mailboxes};

/// A message on its way out.
pub struct Letter {
    bytes: Vec<u8>,
}

impl Letter {
    pub fn new(text: &[u8]) -> Letter {
        let mut bytes = lines::with_crlf(Cow::Borrowed(text)).into_owned();
        // What is no field begins the body.
        let end = fields(&bytes).last().map_or(0, |field| field.range.end);
        if !bytes[end..].starts_with(b"\r\n") {
            let ended = end == 0 || bytes[..end].ends_with(b"\r\n");
            let gap: &[u8] = if ended { b"\r\n" } else { b"\r\n\r\n" };
            bytes.splice(end..end, gap.iter().copied());
        }
        Letter { bytes }
    }

    /// The addresses in To, Cc and Bcc; of a message that is sent again, in their Resent forms alone.
    pub fn recipients(&self) -> anyhow::Result<Vec<String>> {
        let is_resent = fields(&self.bytes).any(|f| starts_with(f.name, b"resent-"));
        let wanted: [&[u8]; 3] = match is_resent {
            true => [b"resent-to", b"resent-cc", b"resent-bcc"],
            false => [b"to", b"cc", b"bcc"],
        };
        let mut recipients = Vec::new();
        for field in
            fields(&self.bytes).filter(|f| wanted.iter().any(|name| f.name.eq_ignore_ascii_case(name)))
        {
            let name = String::from_utf8_lossy(field.name);
            let value = std::str::from_utf8(field.value).with_context(|| format!("{name}: is no UTF-8"))?;
            recipients.extend(mailboxes::addresses(value).with_context(|| name.into_owned())?);
        }
        Ok(recipients)
    }

    /// Takes out what names blind copies.
    pub fn hide_blind_copies(&mut self) {
        let blind =
            |name: &[u8]| name.eq_ignore_ascii_case(b"bcc") || name.eq_ignore_ascii_case(b"resent-bcc");
        let ranges: Vec<Range<usize>> =
            fields(&self.bytes).filter(|f| blind(f.name)).map(|f| f.range).collect();
        for range in ranges.into_iter().rev() {
            self.bytes.drain(range);
        }
    }

    /// Adds a From field if there is none (RFC 5322 §3.6 demands one). `sender` is an address, or empty.
    pub fn add_from(&mut self, full_name: Option<&str>, sender: &str) -> anyhow::Result<()> {
        if sender.is_empty() || fields(&self.bytes).any(|f| f.name.eq_ignore_ascii_case(b"from")) {
            return Ok(());
        }
        let mut field = b"From: ".to_vec();
        if let Some(name) = full_name {
            ensure!(!name.chars().any(char::is_control), "-F: a name has no control characters");
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            field.extend_from_slice(format!("\"{quoted}\" ").as_bytes());
        }
        field.extend_from_slice(format!("<{sender}>\r\n").as_bytes());
        self.bytes.splice(0..0, field);
        Ok(())
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The fields of the header, which a line that is none ends.
fn fields(message: &[u8]) -> impl Iterator<Item = header::Field<'_>> {
    header::fields(message).take_while(|field| !field.name.is_empty())
}

fn starts_with(name: &[u8], prefix: &[u8]) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(text: &str, name: Option<&str>, sender: &str) -> String {
        let mut letter = Letter::new(text.as_bytes());
        letter.hide_blind_copies();
        letter.add_from(name, sender).expect("a name");
        String::from_utf8(letter.into_bytes()).expect("UTF-8")
    }

    #[test]
    fn what_goes_out() {
        for (text, name, expected) in [
            ("From: x\nTo: b@y.test\n\nhi\n", None, "From: x\r\nTo: b@y.test\r\n\r\nhi\r\n"),
            ("from : x\n\nhi", Some("N"), "from : x\r\n\r\nhi"),
            ("S: x\n\nhi\n", None, "From: <a@x.test>\r\nS: x\r\n\r\nhi\r\n"),
            ("S: x\n\n", Some("A \"B\" \\"), "From: \"A \\\"B\\\" \\\\\" <a@x.test>\r\nS: x\r\n\r\n"),
            ("hello\n", None, "From: <a@x.test>\r\n\r\nhello\r\n"),
            ("S: x\nhello\n", None, "From: <a@x.test>\r\nS: x\r\n\r\nhello\r\n"),
            ("S: x", None, "From: <a@x.test>\r\nS: x\r\n\r\n"),
            ("\nhi\n", None, "From: <a@x.test>\r\n\r\nhi\r\n"),
            (
                "From: x\nBcc: b@y.test,\n c@y.test\nS: x\nbcc:\nResent-BCC: d@y.test\nX-Bcc: e\n\nBcc: f\n",
                None,
                "From: x\r\nS: x\r\nX-Bcc: e\r\n\r\nBcc: f\r\n",
            ),
        ] {
            assert_eq!(sent(text, name, "a@x.test"), expected, "{text:?}");
        }
        assert_eq!(sent("S: x\n\n", None, ""), "S: x\r\n\r\n", "a bounce has no sender to name");
        assert!(Letter::new(b"S: x\n\n").add_from(Some("a\nb"), "a@x.test").is_err());
    }

    #[test]
    fn who_gets_it() {
        for (text, expected) in [
            (
                "To: a@x, B <b@x>\nCC: c@x\nbcc: d@x\nReply-To: e@x\n\nTo: f@x\n",
                &["a@x", "b@x", "c@x", "d@x"][..],
            ),
            ("To: a@x\nResent-To: b@x\nResent-Bcc: c@x\n\n", &["b@x", "c@x"]),
            ("To: a@x,\n\tb@x\nTo: c@x\n\n", &["a@x", "b@x", "c@x"]),
            ("no header\nTo: a@x\n", &[]),
        ] {
            let found = Letter::new(text.as_bytes()).recipients().expect("lists");
            assert_eq!(found, expected, "{text:?}");
        }
        assert!(Letter::new(b"To: a@x, <b@x\n\n").recipients().is_err());
        assert!(Letter::new(b"To: \xff\n\n").recipients().is_err());
    }
}
