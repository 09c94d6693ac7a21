//! One SMTP session of the sink: bytes in, replies and messages out.
//!
//! Owns: the state of one connection (RFC 5321 §4.1). Promises: the same dialogue however the input
//! is split (PIPELINING, RFC 2920, comes with that); what is kept between reads is one command line
//! and one header. Must not: touch sockets or time. It is deliberately its own reading of the RFC: a
//! mistake shared with the server would cancel itself out.
use std::sync::Arc;

use crate::limits;
use crate::sink::content::{Content, Summary};
use crate::sink::dots::Dots;
use crate::sink::model::TlsVariant;

/// What the sink answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Take,
    /// Refuse with this reply; the connection is closed when it begins with 421.
    Refuse(Arc<str>),
    /// Take MAIL and refuse every RCPT with this reply.
    RefuseRecipients(Arc<str>),
}

/// Who decides about and receives the messages of sessions.
pub trait Receiver {
    /// A transaction begins (MAIL).
    fn mail(&mut self, sender: &[u8]) -> Answer;
    /// A recipient, the `count`th that would be taken: never [`Answer::RefuseRecipients`].
    fn rcpt(&mut self, address: &[u8], count: usize) -> Answer;
    /// A message is complete; its 250 is among the replies and not yet sent. `recipients` are the
    /// numbers in recipients of the form `r<number>@…`, none for other recipients. False to take
    /// nothing and cut the connection.
    fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]) -> bool;
}

/// What a session offers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    pub tls: TlsVariant,
    pub has_no_pipelining: bool,
    pub chunking: bool,
    pub auth: bool,
}

enum Phase {
    Command,
    Data,
    /// Inside a chunk (RFC 3030) with so many bytes to come.
    Chunk {
        left: u64,
        is_last: bool,
    },
    /// The answer to a question of AUTH, of which so many follow.
    Auth {
        questions: u8,
    },
    /// QUIT was answered or the client went too far: nothing is read any more.
    Over,
}

/// The sans-IO state of one connection.
pub struct Session {
    phase: Phase,
    line: Vec<u8>,
    features: Features,
    is_encrypted: bool,
    /// The next bytes in either direction are those of TLS; taken note of by the owner of the socket,
    /// who resets it.
    pub begins_tls: bool,
    /// The connection is to be cut without another word.
    pub is_cut: bool,
    transaction: Option<Option<Arc<str>>>,
    /// The message comes in chunks, of which there was one.
    is_chunked: bool,
    recipients: Vec<Option<u32>>,
    dots: Dots,
    content: Content,
}

impl Default for Session {
    fn default() -> Session {
        Session::new(Features::default())
    }
}

impl Session {
    pub fn new(features: Features) -> Session {
        Session {
            phase: Phase::Command,
            line: Vec::new(),
            features,
            is_encrypted: features.tls == TlsVariant::Implicit,
            begins_tls: false,
            is_cut: false,
            transaction: None,
            is_chunked: false,
            recipients: Vec::new(),
            dots: Dots::new(),
            content: Content::new(),
        }
    }
    /// Takes bytes from the client and appends what is to be sent back to `replies`. Returns false
    /// when the session is over: send the replies and close.
    pub fn feed(&mut self, mut input: &[u8], receiver: &mut impl Receiver, replies: &mut Vec<u8>) -> bool {
        while !input.is_empty() {
            match self.phase {
                Phase::Over => return false,
                Phase::Data => {
                    let content = &mut self.content;
                    let Some(used) = self.dots.feed(input, |piece| content.feed(piece)) else { break };
                    input = &input[used..];
                    self.phase = Phase::Command;
                    self.complete(receiver, replies);
                }
                Phase::Chunk { left, is_last } => {
                    let (chunk, rest) = input.split_at(input.len().min(left as usize));
                    input = rest;
                    self.chunk(chunk, left - chunk.len() as u64, is_last, receiver, replies);
                }
                // What stands behind STARTTLS in plain text is not heard (RFC 3207 §4.2).
                _ if self.begins_tls => return true,
                Phase::Command | Phase::Auth { .. } => input = self.take_line(input, receiver, replies),
            }
        }
        !matches!(self.phase, Phase::Over)
    }
    /// Hands a complete message in.
    fn complete(&mut self, receiver: &mut impl Receiver, replies: &mut Vec<u8>) {
        let summary = self.content.finish();
        if receiver.message(&summary, &self.recipients) {
            replies.extend_from_slice(b"250 2.0.0 taken\r\n");
        } else {
            self.is_cut = true;
            self.phase = Phase::Over;
        }
        self.reset();
    }
    /// Takes a piece of a chunk, behind which `left` bytes of it follow.
    fn chunk(
        &mut self,
        piece: &[u8],
        left: u64,
        is_last: bool,
        receiver: &mut impl Receiver,
        replies: &mut Vec<u8>,
    ) {
        let is_valid = self.is_chunked;
        if is_valid {
            self.content.feed(piece);
        }
        self.phase = Phase::Chunk { left, is_last };
        if left > 0 {
            return;
        }
        self.phase = Phase::Command;
        match (is_valid, is_last) {
            (true, true) => self.complete(receiver, replies),
            (true, false) => replies.extend_from_slice(b"250 2.0.0 go on\r\n"),
            (false, _) => {
                replies.extend_from_slice(b"554 5.5.1 no valid recipients\r\n");
                self.reset();
            }
        }
    }
    /// Takes one command line, or the part of it that is there. Returns what follows.
    fn take_line<'a>(
        &mut self,
        input: &'a [u8],
        receiver: &mut impl Receiver,
        replies: &mut Vec<u8>,
    ) -> &'a [u8] {
        let end = memchr::memchr(b'\n', input).map(|at| at + 1);
        let part = &input[..end.unwrap_or(input.len())];
        if self.line.len() + part.len() > limits::LINE_BYTES {
            replies.extend_from_slice(b"500 5.5.2 line too long\r\n");
            self.phase = Phase::Over;
            return &[];
        }
        if end.is_some() && self.line.is_empty() {
            self.command(part, receiver, replies);
        } else {
            self.line.extend_from_slice(part);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.command(&line, receiver, replies);
                self.line = line;
                self.line.clear();
            }
        }
        &input[part.len()..]
    }
    fn command(&mut self, line: &[u8], receiver: &mut impl Receiver, replies: &mut Vec<u8>) {
        let line = line.trim_ascii_end();
        if let Phase::Auth { questions } = self.phase {
            return self.proof(questions, replies);
        }
        let (verb, argument) = line.split_at(line.iter().position(|&c| c == b' ').unwrap_or(line.len()));
        let mut upper = [0u8; 4];
        if verb.len() == 4 {
            upper.copy_from_slice(verb);
            upper.make_ascii_uppercase();
        }
        if self.is_chunked && !matches!(&upper, b"BDAT" | b"RSET" | b"QUIT" | b"NOOP") {
            return replies.extend_from_slice(b"503 5.5.1 more chunks are due\r\n");
        }
        let reply: &[u8] = match &upper {
            b"EHLO" => {
                self.reset();
                return self.ehlo(replies);
            }
            b"HELO" => {
                self.reset();
                b"250 sink.ringpost.invalid\r\n"
            }
            b"MAIL" if self.features.tls == TlsVariant::Required && !self.is_encrypted => {
                b"530 5.7.0 must issue a STARTTLS command first\r\n"
            }
            b"MAIL" if self.transaction.is_some() => b"503 5.5.1 one sender at a time\r\n",
            b"MAIL" => match path(argument, b" FROM:") {
                None => b"501 5.5.4 MAIL FROM:<address>\r\n",
                Some(sender) => match receiver.mail(sender) {
                    Answer::Take => {
                        self.transaction = Some(None);
                        b"250 2.1.0 ok\r\n"
                    }
                    Answer::RefuseRecipients(reply) => {
                        self.transaction = Some(Some(reply));
                        b"250 2.1.0 ok\r\n"
                    }
                    Answer::Refuse(reply) => return self.refuse(&reply, replies),
                },
            },
            b"RCPT" => return self.rcpt(argument, receiver, replies),
            b"BDAT" if self.features.chunking => return self.bdat(argument, receiver, replies),
            b"AUTH" if self.features.auth => return self.auth(argument, replies),
            b"DATA" if self.transaction.is_none() => b"503 5.5.1 MAIL comes first\r\n",
            b"DATA" if self.recipients.is_empty() => b"554 5.5.1 no valid recipients\r\n",
            b"DATA" => {
                self.phase = Phase::Data;
                b"354 go ahead\r\n"
            }
            b"RSET" => {
                self.reset();
                b"250 2.0.0 ok\r\n"
            }
            b"NOOP" => b"250 2.0.0 ok\r\n",
            b"QUIT" => {
                self.phase = Phase::Over;
                b"221 2.0.0 bye\r\n"
            }
            _ if verb.eq_ignore_ascii_case(b"STARTTLS") => return self.starttls(replies),
            _ => b"502 5.5.1 not known here\r\n",
        };
        replies.extend_from_slice(reply);
    }
    fn ehlo(&self, replies: &mut Vec<u8>) {
        let offers = |variants: &[TlsVariant]| variants.contains(&self.features.tls) && !self.is_encrypted;
        let has_starttls =
            offers(&[TlsVariant::Offered, TlsVariant::Required, TlsVariant::Refused, TlsVariant::Broken]);
        replies.extend_from_slice(b"250-sink.ringpost.invalid\r\n");
        for (is_offered, line) in [
            (!self.features.has_no_pipelining, &b"250-PIPELINING\r\n"[..]),
            (self.features.chunking, b"250-CHUNKING\r\n"),
            (has_starttls, b"250-STARTTLS\r\n"),
            (self.features.auth, b"250-AUTH PLAIN LOGIN\r\n"),
        ] {
            if is_offered {
                replies.extend_from_slice(line);
            }
        }
        replies.extend_from_slice(b"250-SIZE\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n");
    }
    fn starttls(&mut self, replies: &mut Vec<u8>) {
        match self.features.tls {
            _ if self.is_encrypted => replies.extend_from_slice(b"503 5.5.1 TLS is active\r\n"),
            TlsVariant::None | TlsVariant::Implicit => {
                replies.extend_from_slice(b"502 5.5.1 not known here\r\n");
            }
            TlsVariant::Refused => replies.extend_from_slice(b"454 4.7.0 TLS not available\r\n"),
            TlsVariant::Broken => {
                replies.extend_from_slice(b"220 2.0.0 go ahead\r\n500 this is no handshake\r\n");
                self.phase = Phase::Over;
            }
            TlsVariant::Offered | TlsVariant::Required => {
                replies.extend_from_slice(b"220 2.0.0 go ahead\r\n");
                (self.begins_tls, self.is_encrypted) = (true, true);
                self.reset();
            }
        }
    }
    /// AUTH (RFC 4954): the mechanisms PLAIN and LOGIN, whose proofs all are good.
    fn auth(&mut self, argument: &[u8], replies: &mut Vec<u8>) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        let has_initial = words.next().is_some();
        let questions = match &mechanism[..] {
            b"PLAIN" => 1,
            b"LOGIN" => 2,
            _ => return replies.extend_from_slice(b"504 5.5.4 mechanism not known here\r\n"),
        };
        self.proof(questions + 1 - u8::from(has_initial), replies);
    }
    /// Asks the next question, the count of which `questions` is one too many; or is satisfied.
    fn proof(&mut self, questions: u8, replies: &mut Vec<u8>) {
        self.phase = match questions {
            0 | 1 => {
                replies.extend_from_slice(b"235 2.7.0 welcome\r\n");
                Phase::Command
            }
            // "Username:" and "Password:" in base64; for PLAIN the text says nothing.
            3 => {
                replies.extend_from_slice(b"334 VXNlcm5hbWU6\r\n");
                Phase::Auth { questions: 2 }
            }
            _ => {
                replies.extend_from_slice(b"334 UGFzc3dvcmQ6\r\n");
                Phase::Auth { questions: questions - 1 }
            }
        };
    }
    fn rcpt(&mut self, argument: &[u8], receiver: &mut impl Receiver, replies: &mut Vec<u8>) {
        let reply: &[u8] = match (&self.transaction, path(argument, b" TO:")) {
            (None, _) => b"503 5.5.1 MAIL comes first\r\n",
            (_, None) => b"501 5.5.4 RCPT TO:<address>\r\n",
            (Some(Some(reply)), _) => {
                let reply = reply.clone();
                return self.refuse(&reply, replies);
            }
            _ if self.recipients.len() >= limits::RECIPIENTS as usize => b"452 4.5.3 too many recipients\r\n",
            (Some(None), Some(path)) => match receiver.rcpt(path, self.recipients.len() + 1) {
                Answer::Refuse(reply) | Answer::RefuseRecipients(reply) => {
                    return self.refuse(&reply, replies);
                }
                Answer::Take => {
                    self.recipients.push(recipient_number(path));
                    b"250 2.1.5 ok\r\n"
                }
            },
        };
        replies.extend_from_slice(reply);
    }
    /// BDAT (RFC 3030): the size of a chunk, and whether it is the last.
    fn bdat(&mut self, argument: &[u8], receiver: &mut impl Receiver, replies: &mut Vec<u8>) {
        let mut words = argument.split(|&c| c == b' ').filter(|word| !word.is_empty());
        let size = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok());
        let is_last = words.next().map(|word| word.eq_ignore_ascii_case(b"LAST"));
        let (Some(left), None | Some(true)) = (size, is_last) else {
            // Where the next command begins cannot be known.
            replies.extend_from_slice(b"501 5.5.4 BDAT size [LAST]\r\n");
            self.phase = Phase::Over;
            return;
        };
        self.is_chunked = !self.recipients.is_empty();
        self.chunk(b"", left, is_last.is_some(), receiver, replies);
    }
    /// Sends a refusal, of one line or more, and closes when it says so.
    fn refuse(&mut self, reply: &str, replies: &mut Vec<u8>) {
        for line in reply.lines() {
            replies.extend_from_slice(line.as_bytes());
            replies.extend_from_slice(b"\r\n");
        }
        if reply.starts_with("421") {
            self.phase = Phase::Over;
        }
    }
    fn reset(&mut self) {
        self.transaction = None;
        self.is_chunked = false;
        self.recipients.clear();
        self.content.reset();
    }
}

/// What stands between the angle brackets behind `keyword`.
fn path<'a>(argument: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let rest = rest.trim_ascii_start().strip_prefix(b"<")?;
    rest.get(..memchr::memchr(b'>', rest)?)
}

/// The number in a recipient of the form `r<number>@…` or `r<number>-<mailbox>@…`.
fn recipient_number(path: &[u8]) -> Option<u32> {
    let local = &path[..memchr::memchr(b'@', path)?];
    let digits = local.strip_prefix(b"r")?;
    let digits = digits.split(|&c| c == b'-').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;
    use crate::message::Template;

    #[derive(Default)]
    struct Desk {
        transactions: u32,
        taken: Vec<(Option<u64>, bool, Vec<Option<u32>>)>,
    }

    impl Receiver for Desk {
        fn mail(&mut self, _: &[u8]) -> Answer {
            self.transactions += 1;
            match self.transactions % 3 {
                1 => Answer::Take,
                2 => Answer::RefuseRecipients("550 no".into()),
                _ => Answer::RefuseRecipients("451 not now".into()),
            }
        }
        fn rcpt(&mut self, address: &[u8], _: usize) -> Answer {
            match address {
                b"full@x" => Answer::Refuse("452-full\n452 really".into()),
                b"closing@x" => Answer::Refuse("421 closing".into()),
                _ => Answer::Take,
            }
        }
        fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]) -> bool {
            self.taken.push((summary.stamp.map(|s| s.number), summary.is_intact, recipients.to_vec()));
            true
        }
    }

    fn talk(parts: &[&[u8]]) -> (String, Desk, bool) {
        talk_with(Features::default(), parts)
    }

    fn talk_with(features: Features, parts: &[&[u8]]) -> (String, Desk, bool) {
        let (mut session, mut desk, mut replies) = (Session::new(features), Desk::default(), Vec::new());
        let is_open = parts.iter().all(|part| session.feed(part, &mut desk, &mut replies));
        (String::from_utf8(replies).unwrap(), desk, is_open)
    }

    fn codes(replies: &str) -> Vec<&str> {
        replies.lines().filter(|line| line.as_bytes()[3] == b' ').map(|line| &line[..3]).collect()
    }

    #[test]
    fn dialogues() {
        let table: [(&str, &[&str]); 10] = [
            ("EHLO x\r\nNOOP\r\nHELO x\r\n", &["250", "250", "250"]),
            ("RCPT TO:<r0@b>\r\nDATA\r\n", &["503", "503"]),
            ("MAIL FROM:<>\r\nMAIL FROM:<>\r\n", &["250", "503"]),
            ("MAIL\r\nMAIL TO:<a>\r\nMAIL FROM:a\r\n", &["501", "501", "501"]),
            ("mail from: <a@b> SIZE=3\r\nrcpt to:<c@d>\r\ndata\r\n.\r\n", &["250", "250", "354", "250"]),
            ("MAIL FROM:<a@b>\r\nRSET\r\nRCPT TO:<c@d>\r\n", &["250", "250", "503"]),
            (
                "MAIL FROM:<>\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<c>\r\nDATA\r\n",
                &["250", "250", "250", "550", "554"],
            ),
            ("BDAT 3 LAST\r\nEXPN\r\n\r\n", &["502", "502", "502"]),
            ("QUIT\r\nNOOP\r\n", &["221"]),
            (
                "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\nQUIT\r\n.\r\nNOOP\r\n",
                &["250", "250", "354", "250", "250"],
            ),
        ];
        for (input, want) in table {
            let whole = talk(&[input.as_bytes()]);
            assert_eq!(codes(&whole.0), want, "{input:?}");
            for at in 0..input.len() {
                let (replies, ..) = talk(&[&input.as_bytes()[..at], &input.as_bytes()[at..]]);
                assert_eq!(replies, whole.0, "{input:?} at {at}");
            }
        }
        assert!(!talk(&[b"QUIT\r\n"]).2);
    }

    #[test]
    fn chunks_and_proofs() {
        let features = Features { chunking: true, auth: true, ..Features::default() };
        let table: [(&str, &[&str]); 7] = [
            ("MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 3\r\na\r\nBDAT 0 LAST\r\nNOOP\r\n", &["250"; 5]),
            ("MAIL FROM:<a>\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", &["250", "554", "250"]),
            (
                "MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 1\r\nxDATA\r\nRSET\r\n",
                &["250", "250", "250", "503", "250"],
            ),
            ("BDAT many\r\nNOOP\r\n", &["501"]),
            ("AUTH PLAIN AHUAcA==\r\nNOOP\r\n", &["235", "250"]),
            (
                "AUTH PLAIN\r\nAHUAcA==\r\nAUTH LOGIN\r\ndQ==\r\ncA==\r\n",
                &["334", "235", "334", "334", "235"],
            ),
            ("MAIL FROM:<a>\r\nRCPT TO:<full@x>\r\nRCPT TO:<closing@x>\r\nNOOP\r\n", &["250", "452", "421"]),
        ];
        for (input, want) in table {
            let whole = talk_with(features, &[input.as_bytes()]);
            assert_eq!(codes(&whole.0), want, "{input:?}");
            for at in 0..input.len() {
                let parts = [&input.as_bytes()[..at], &input.as_bytes()[at..]];
                let (replies, desk, _) = talk_with(features, &parts);
                assert_eq!(
                    (replies, desk.taken),
                    (whole.0.clone(), whole.1.taken.clone()),
                    "{input:?} at {at}"
                );
            }
        }
    }

    #[test]
    fn tls_variants() {
        let talk = |tls, text: &str| {
            let replies = talk_with(Features { tls, ..Features::default() }, &[text.as_bytes()]).0;
            codes(&replies).join(" ")
        };
        let text = "MAIL FROM:<a>\r\nSTARTTLS\r\nNOOP\r\n";
        for (variant, want) in [
            (TlsVariant::None, "250 502 250"),
            (TlsVariant::Refused, "250 454 250"),
            // What follows STARTTLS in plain text is not heard.
            (TlsVariant::Offered, "250 220"),
            (TlsVariant::Required, "530 220"),
            (TlsVariant::Broken, "250 220 500"),
            (TlsVariant::Implicit, "250 503 250"),
        ] {
            assert_eq!(talk(variant, text), want, "{variant:?}");
        }
    }

    #[test]
    fn a_line_without_end_ends_the_session() {
        let long = vec![b'a'; limits::LINE_BYTES + 1];
        for parts in [vec![&long[..]], long.chunks(1000).collect()] {
            let (replies, _, is_open) = talk(&parts);
            assert_eq!((codes(&replies), is_open), (vec!["500"], false));
        }
    }

    #[test]
    fn messages_survive_random_splits() {
        let seed = crate::clock::wall_us();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut template = Template::new(1, 2, "a@b", 2500, seed).unwrap();
        let mut wire = b"EHLO x\r\n".to_vec();
        for number in 0..6 {
            wire.extend_from_slice(b"MAIL FROM:<a@b>\r\nRCPT TO:<r0@b>\r\nRCPT TO:<r1@b>\r\n");
            // The desk takes one in three: the others get no DATA, as a client without pipelining.
            if number % 3 == 0 {
                wire.extend_from_slice(b"DATA\r\n");
                wire.extend_from_slice(template.patched(number, 1));
            }
            wire.extend_from_slice(b"RSET\r\n");
        }
        let want = talk(&[&wire]);
        let both = vec![Some(0), Some(1)];
        assert_eq!(want.1.taken, [(Some(0), true, both.clone()), (Some(3), true, both)]);
        for _ in 0..300 {
            let (mut parts, mut rest) = (Vec::new(), &wire[..]);
            let most = 1 + rng.below(1000);
            while !rest.is_empty() {
                let (part, tail) = rest.split_at((1 + rng.below(most) as usize).min(rest.len()));
                parts.push(part);
                rest = tail;
            }
            let got = talk(&parts);
            assert_eq!((got.0, got.1.taken), (want.0.clone(), want.1.taken.clone()));
        }
    }

    #[test]
    fn recipient_numbers() {
        let table: [(&[u8], Option<u32>); 7] = [
            (b"r0@x", Some(0)),
            (b"r12-345@x", Some(12)),
            (b"r123@x", Some(123)),
            (b"r@x", None),
            (b"bob@x", None),
            (b"r1", None),
            (b"r99999999999@x", None),
        ];
        for (path, want) in table {
            assert_eq!(recipient_number(path), want, "{path:?}");
        }
    }
}
