//! One SMTP session of the sink: bytes in, replies and messages out.
//!
//! Owns: the state of one connection (RFC 5321 §4.1). Promises: the same dialogue however the input
//! is split (PIPELINING, RFC 2920, comes with that); what is kept between reads is one command line
//! and one header. Must not: touch sockets or time. It is deliberately its own reading of the RFC: a
//! mistake shared with the server would cancel itself out.
use crate::limits;
use crate::sink::content::{Content, Summary};
use crate::sink::dots::Dots;

/// What the sink does with the recipients of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Take,
    /// 550 to every RCPT.
    Reject,
    /// 451 to every RCPT.
    TempFail,
}

/// Who decides about and receives the messages of sessions.
pub trait Receiver {
    /// A transaction begins (MAIL): what will its recipients be told?
    fn answer(&mut self) -> Answer;
    /// A message is complete; its 250 is among the replies and not yet sent. `recipients` are the
    /// numbers in recipients of the form `r<number>@…`, none for other recipients.
    fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]);
}

enum Phase {
    Command,
    Data,
    /// QUIT was answered or the client went too far: nothing is read any more.
    Over,
}

/// The sans-IO state of one connection.
pub struct Session {
    phase: Phase,
    line: Vec<u8>,
    transaction: Option<Answer>,
    recipients: Vec<Option<u32>>,
    dots: Dots,
    content: Content,
}

/// The first words of a session, to be sent before anything is read.
pub const GREETING: &[u8] = b"220 sink.ringpost.invalid ESMTP ringpost sink\r\n";
const EHLO: &[u8] = b"250-sink.ringpost.invalid\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n\
    250 ENHANCEDSTATUSCODES\r\n";

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

impl Session {
    pub fn new() -> Session {
        Session {
            phase: Phase::Command,
            line: Vec::new(),
            transaction: None,
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
                    let summary = self.content.finish();
                    receiver.message(&summary, &self.recipients);
                    replies.extend_from_slice(b"250 2.0.0 taken\r\n");
                    self.reset();
                    self.phase = Phase::Command;
                }
                Phase::Command => input = self.take_line(input, receiver, replies),
            }
        }
        !matches!(self.phase, Phase::Over)
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
        let (verb, argument) = line.split_at(line.iter().position(|&c| c == b' ').unwrap_or(line.len()));
        let mut upper = [0u8; 4];
        if verb.len() == 4 {
            upper.copy_from_slice(verb);
            upper.make_ascii_uppercase();
        }
        let reply: &[u8] = match &upper {
            b"EHLO" => {
                self.reset();
                EHLO
            }
            b"HELO" => {
                self.reset();
                b"250 sink.ringpost.invalid\r\n"
            }
            b"MAIL" if self.transaction.is_some() => b"503 5.5.1 one sender at a time\r\n",
            b"MAIL" if path(argument, b" FROM:").is_none() => b"501 5.5.4 MAIL FROM:<address>\r\n",
            b"MAIL" => {
                self.transaction = Some(receiver.answer());
                b"250 2.1.0 ok\r\n"
            }
            b"RCPT" => self.rcpt(argument),
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
            _ => b"502 5.5.1 not known here\r\n",
        };
        replies.extend_from_slice(reply);
    }
    fn rcpt(&mut self, argument: &[u8]) -> &'static [u8] {
        let Some(answer) = self.transaction else { return b"503 5.5.1 MAIL comes first\r\n" };
        let Some(path) = path(argument, b" TO:") else { return b"501 5.5.4 RCPT TO:<address>\r\n" };
        match answer {
            Answer::Reject => b"550 5.1.1 refused, as asked\r\n",
            Answer::TempFail => b"451 4.3.0 not now, as asked\r\n",
            Answer::Take if self.recipients.len() >= limits::RECIPIENTS as usize => {
                b"452 4.5.3 too many recipients\r\n"
            }
            Answer::Take => {
                self.recipients.push(recipient_number(path));
                b"250 2.1.5 ok\r\n"
            }
        }
    }
    fn reset(&mut self) {
        self.transaction = None;
        self.recipients.clear();
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

/// The number in a recipient of the form `r<number>@…`.
fn recipient_number(path: &[u8]) -> Option<u32> {
    let local = &path[..memchr::memchr(b'@', path)?];
    let digits = local.strip_prefix(b"r")?;
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
        fn answer(&mut self) -> Answer {
            self.transactions += 1;
            match self.transactions % 3 {
                1 => Answer::Take,
                2 => Answer::Reject,
                _ => Answer::TempFail,
            }
        }
        fn message(&mut self, summary: &Summary, recipients: &[Option<u32>]) {
            self.taken.push((summary.stamp.map(|s| s.number), summary.is_intact, recipients.to_vec()));
        }
    }

    fn talk(parts: &[&[u8]]) -> (String, Desk, bool) {
        let (mut session, mut desk, mut replies) = (Session::new(), Desk::default(), Vec::new());
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
        let table: [(&[u8], Option<u32>); 6] = [
            (b"r0@x", Some(0)),
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
