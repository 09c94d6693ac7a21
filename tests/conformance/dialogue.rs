//! Dialogue files as values.
//!
//! Owns: the format that `README.md` beside this file describes. Promises: a file that does not follow it
//! is an error that names the line, never a dialogue that tests less than it seems to. Must not: know how
//! dialogues are run.
use std::collections::BTreeSet;
use std::path::Path;

/// What the server is told before a dialogue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settings {
    pub may_relay: bool,
    /// A domain whose mail is taken from everyone.
    pub local_domain: Option<String>,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub store: Store,
    /// The server has a certificate.
    pub tls: bool,
    /// The server knows `user`, whose password is `secret`.
    pub users: bool,
    /// The client speaks to a port for message submission.
    pub submission: bool,
}

/// What becomes of messages whose body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    Ok,
    Full,
    Broken,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            may_relay: true,
            local_domain: None,
            max_message_bytes: 1 << 20,
            max_recipients: 1000,
            store: Store::Ok,
            tls: false,
            users: false,
            submission: false,
        }
    }
}

/// The name that the server under test calls itself.
pub const HOSTNAME: &str = "mta.test";

#[derive(Clone, Debug)]
pub struct Dialogue {
    pub name: String,
    /// `file:line`, for messages about failures.
    pub place: String,
    pub settings: Settings,
    pub turns: Vec<Turn>,
}

/// What the client sends at once, and what comes of it.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    pub client: Vec<u8>,
    pub driver: Option<DriverWord>,
    pub replies: Vec<ExpectedReply>,
    pub messages: Vec<ExpectedMessage>,
    pub ends: Option<End>,
    /// The TLS handshake follows the replies.
    pub handshake: bool,
}

/// Why the driver ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverWord {
    TimedOut,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Close,
    Hangup,
}

#[derive(Clone, Debug, Default)]
pub struct ExpectedReply {
    /// Whole lines in order; more may follow them if `open`.
    pub lines: Vec<Pattern>,
    pub open: bool,
    /// Texts that some line, and that no line, has behind its code.
    pub some: Vec<Pattern>,
    pub none: Vec<Pattern>,
}

#[derive(Clone, Debug)]
pub struct ExpectedMessage {
    /// Empty for the null path.
    pub sender: String,
    pub recipients: Vec<String>,
    pub kind: String,
    /// Parameters of MAIL beside SIZE and BODY, and of each RCPT; not looked at if none are given.
    pub mail: Option<String>,
    pub rcpt: Vec<String>,
    pub body: Option<Vec<u8>>,
    pub trace: Option<Pattern>,
}

/// A text with wildcards.
#[derive(Clone, Debug)]
pub struct Pattern(Vec<Glob>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Glob {
    Byte(u8),
    One,
    Any,
}

impl Pattern {
    /// Whether all of `text` fits.
    pub fn fits(&self, text: &[u8]) -> bool {
        // The usual backtracking to the last `*`: linear but for pathological patterns.
        let (mut at, mut from, mut star) = (0, 0, None);
        while from < text.len() {
            match self.0.get(at) {
                Some(Glob::Any) => {
                    star = Some((at, from));
                    at += 1;
                }
                Some(Glob::One) => (at, from) = (at + 1, from + 1),
                Some(Glob::Byte(byte)) if *byte == text[from] => (at, from) = (at + 1, from + 1),
                _ => match star {
                    Some((star_at, star_from)) => {
                        star = Some((star_at, star_from + 1));
                        (at, from) = (star_at + 1, star_from + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0[at..].iter().all(|glob| *glob == Glob::Any)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for glob in &self.0 {
            match glob {
                Glob::Byte(byte) => write!(f, "{}", byte.escape_ascii())?,
                Glob::One => f.write_str("?")?,
                Glob::Any => f.write_str("*")?,
            }
        }
        Ok(())
    }
}

impl ExpectedReply {
    fn line(text: &str) -> ExpectedReply {
        ExpectedReply { lines: vec![pattern(text).expect("a constant")], ..ExpectedReply::default() }
    }

    /// Whether `reply`, whole lines without CRLF, is what is expected.
    pub fn fits(&self, reply: &[&[u8]]) -> bool {
        let enough =
            if self.open { reply.len() >= self.lines.len() } else { reply.len() == self.lines.len() };
        let has = |pattern: &Pattern| reply.iter().any(|line| line.len() >= 4 && pattern.fits(&line[4..]));
        enough
            && self.lines.iter().zip(reply).all(|(pattern, line)| pattern.fits(line))
            && self.some.iter().all(has)
            && !self.none.iter().any(has)
    }
}

impl std::fmt::Display for ExpectedReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = self.lines.iter().map(|line| format!("{line}"));
        let some = self.some.iter().map(|text| format!("S+ {text}"));
        let none = self.none.iter().map(|text| format!("S- {text}"));
        let open = self.open.then(|| "S...".to_string());
        f.write_str(&lines.chain(some).chain(none).chain(open).collect::<Vec<_>>().join(" / "))
    }
}

/// Every dialogue of every `.smtp` file in `dir`.
pub fn load(dir: &Path) -> Vec<Dialogue> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "smtp"))
        .collect();
    files.sort();
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for path in files {
        let file = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("text");
        for dialogue in parse(&file, &text).unwrap_or_else(|error| panic!("{error}")) {
            assert!(names.insert(dialogue.name.clone()), "{}: a second {}", dialogue.place, dialogue.name);
            all.push(dialogue);
        }
    }
    all
}

/// The dialogues of one file.
pub fn parse(file: &str, text: &str) -> Result<Vec<Dialogue>, String> {
    let mut all: Vec<Dialogue> = Vec::new();
    let mut reader = Reader::default();
    // Whether the comment that says what a dialogue shows is still to come.
    let mut untitled = false;
    for (number, line) in text.lines().enumerate() {
        let place = format!("{file}:{}", number + 1);
        let error = |why: &str| format!("{place}: {why}: {line}");
        if let Some(name) = line.strip_prefix("== ") {
            if untitled {
                return Err(error("the dialogue before says not what it shows"));
            }
            if let Some(last) = all.last_mut() {
                (last.settings, last.turns) = std::mem::take(&mut reader).finish().map_err(|e| error(&e))?;
            }
            if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
                return Err(error("a name has lower-case letters, digits and hyphens"));
            }
            let (settings, turns) = Default::default();
            all.push(Dialogue { name: name.to_string(), place, settings, turns });
            untitled = true;
        } else if line.starts_with('#') {
            untitled = untitled && !(line.starts_with("# §") && line.contains('"'));
        } else if !line.trim().is_empty() {
            if untitled || all.is_empty() {
                return Err(error("a dialogue begins with its name and a comment that says what it shows"));
            }
            reader.read(line).map_err(|why| error(&why))?;
        }
    }
    if let Some(last) = all.last_mut() {
        (last.settings, last.turns) = reader.finish().map_err(|why| format!("{file}: {why}"))?;
    }
    Ok(all)
}

/// Reads the lines of one dialogue.
#[derive(Default)]
struct Reader {
    settings: Settings,
    turns: Vec<Turn>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "set" => return self.set(rest),
            "hello" => {
                self.client_turn().client = b"EHLO client.test\r\n".to_vec();
                self.expect(ExpectedReply { open: true, ..ExpectedReply::line("250-mta.test*") });
            }
            "envelope" => {
                let turn = self.client_turn();
                turn.client = b"MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@rcpt.test>\r\n".to_vec();
                self.expect(ExpectedReply::line("250 2.1.0 *"));
                self.expect(ExpectedReply::line("250 2.1.5 *"));
            }
            "data" => {
                self.client_turn().client = b"DATA\r\n".to_vec();
                self.expect(ExpectedReply::line("354 *"));
            }
            "C:" => {
                let bytes = line_bytes(rest)?;
                self.client_turn().client.extend_from_slice(&bytes);
            }
            "S:" => self.reply_line(rest, 1)?,
            "S" => {
                let (count, rest) = rest
                    .strip_prefix('x')
                    .and_then(|rest| rest.split_once(": "))
                    .ok_or("a count looks like `S x3: `")?;
                self.reply_line(rest, count.parse().map_err(|_| "a count is a number")?)?;
            }
            "S..." => self.last_reply()?.open = true,
            "S+" => {
                let reply = self.last_reply()?;
                reply.open = true;
                reply.some.push(pattern(rest)?);
            }
            "S-" => {
                let reply = self.last_reply()?;
                reply.open = true;
                reply.none.push(pattern(rest)?);
            }
            "D:" => {
                self.turns.push(Turn { driver: Some(driver_word(rest)?), ..Turn::default() });
            }
            "close" => self.last_turn()?.ends = Some(End::Close),
            "hangup" => {
                let turn = self.last_turn()?;
                turn.ends = Some(End::Hangup);
            }
            "starttls" => {
                self.client_turn().client = b"STARTTLS\r\n".to_vec();
                self.expect(ExpectedReply::line("220 2.0.0 *"));
                self.last_turn()?.handshake = true;
            }
            "message" => self.last_turn()?.messages.push(ExpectedMessage::default()),
            _ => return self.describe(word, rest),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(Settings, Vec<Turn>), String> {
        let Some(first) = self.turns.first() else {
            return Err("a dialogue without a turn".into());
        };
        if !first.client.is_empty() || first.driver.is_some() {
            let greeting = ExpectedReply::line("220 mta.test *");
            self.turns.insert(0, Turn { replies: vec![greeting], ..Turn::default() });
        }
        let last = self.turns.len() - 1;
        for (at, turn) in self.turns.iter().enumerate() {
            if turn.ends.is_some() && at != last {
                return Err("nothing comes behind the end of the connection".into());
            }
            if turn.handshake && !self.settings.tls {
                return Err("`starttls` wants `set tls = yes`".into());
            }
            if turn.ends == Some(End::Hangup) && !turn.messages.is_empty() {
                return Err("what is sent at a hang-up completes no message".into());
            }
        }
        Ok((self.settings, self.turns))
    }

    fn set(&mut self, rest: &str) -> Result<(), String> {
        if !self.turns.is_empty() {
            return Err("settings come first".into());
        }
        let (key, value) = rest.split_once(" = ").ok_or("a setting looks like `set key = value`")?;
        let number = || value.parse::<u64>().map_err(|_| "the value is no number".to_string());
        match (key, value) {
            ("relay", "yes") => self.settings.may_relay = true,
            ("relay", "no") => self.settings.may_relay = false,
            ("store", "ok") => self.settings.store = Store::Ok,
            ("store", "full") => self.settings.store = Store::Full,
            ("store", "broken") => self.settings.store = Store::Broken,
            ("tls", "yes") => self.settings.tls = true,
            ("users", "yes") => (self.settings.tls, self.settings.users) = (true, true),
            ("port", "submission") => {
                (self.settings.tls, self.settings.users, self.settings.submission) = (true, true, true);
            }
            ("local-domain", _) => self.settings.local_domain = Some(value.to_string()),
            ("max-message-size", _) => self.settings.max_message_bytes = number()?,
            ("max-recipients", _) => self.settings.max_recipients = number()? as usize,
            _ => return Err("there is no such setting".into()),
        }
        Ok(())
    }

    /// The turn that client bytes belong to: the last, unless it was answered already.
    fn client_turn(&mut self) -> &mut Turn {
        let speaks =
            |turn: &Turn| turn.replies.is_empty() && turn.driver.is_none() && turn.messages.is_empty();
        if !self.turns.last().is_some_and(speaks) {
            self.turns.push(Turn::default());
        }
        self.turns.last_mut().expect("there is one now")
    }

    fn last_turn(&mut self) -> Result<&mut Turn, String> {
        self.turns.last_mut().ok_or("a turn comes first".into())
    }

    fn last_reply(&mut self) -> Result<&mut ExpectedReply, String> {
        self.last_turn()?.replies.last_mut().ok_or("a line of the reply comes first".into())
    }

    fn expect(&mut self, reply: ExpectedReply) {
        if self.turns.is_empty() {
            self.turns.push(Turn::default());
        }
        self.turns.last_mut().expect("there is one").replies.push(reply);
    }

    /// A line with a hyphen is continued by the next one.
    fn reply_line(&mut self, text: &str, count: usize) -> Result<(), String> {
        let line = pattern(text)?;
        if !matches!(text.as_bytes(), [b'0'..=b'9' | b'?', _, _, b' ' | b'-', ..]) {
            return Err("a reply begins with three digits".into());
        }
        if let Some(last) = self.turns.last_mut().and_then(|turn| turn.replies.last_mut()) {
            let goes_on = last.lines.last().is_some_and(|line| line.0.get(3) == Some(&Glob::Byte(b'-')));
            if goes_on && !last.open {
                last.lines.push(line);
                return Ok(());
            }
        }
        for _ in 0..count {
            self.expect(ExpectedReply { lines: vec![line.clone()], ..ExpectedReply::default() });
        }
        Ok(())
    }

    /// A line that describes a message.
    fn describe(&mut self, word: &str, rest: &str) -> Result<(), String> {
        let message = self.last_turn()?.messages.last_mut().ok_or("no such line")?;
        match word {
            "sender:" => message.sender = rest.to_string(),
            "recipient:" => message.recipients.push(rest.to_string()),
            "kind:" => message.kind = rest.to_string(),
            "mail:" => message.mail = Some(rest.to_string()),
            "rcpt:" => message.rcpt.push(rest.to_string()),
            "body:" => message.body.get_or_insert_default().extend_from_slice(&line_bytes(rest)?),
            "trace:" => message.trace = Some(pattern(rest)?),
            _ => return Err("no such line".into()),
        }
        Ok(())
    }
}

impl Default for ExpectedMessage {
    fn default() -> ExpectedMessage {
        let (sender, kind) = ("a@sender.test".to_string(), "7BIT".to_string());
        let (recipients, rcpt) = (Vec::new(), Vec::new());
        ExpectedMessage { sender, recipients, kind, mail: None, rcpt, body: None, trace: None }
    }
}

impl ExpectedMessage {
    /// The recipients, in order.
    pub fn recipients(&self) -> Vec<String> {
        if self.recipients.is_empty() { vec!["b@rcpt.test".to_string()] } else { self.recipients.clone() }
    }
}

fn driver_word(word: &str) -> Result<DriverWord, String> {
    match word {
        "timed-out" => Ok(DriverWord::TimedOut),
        "stopping" => Ok(DriverWord::Stopping),
        _ => Err("the driver has no such word".into()),
    }
}

/// A line of the client or of a body: its bytes, with CRLF unless it ends in a lone backslash.
fn line_bytes(text: &str) -> Result<Vec<u8>, String> {
    let backslashes = text.bytes().rev().take_while(|b| *b == b'\\').count();
    let (text, end): (&str, &[u8]) =
        if backslashes % 2 == 1 { (&text[..text.len() - 1], b"") } else { (text, b"\r\n") };
    let mut bytes = Vec::new();
    unescape(text.as_bytes(), 0, &mut |byte, _| bytes.push(byte))?;
    bytes.extend_from_slice(end);
    Ok(bytes)
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let mut globs = Vec::new();
    unescape(text.as_bytes(), 0, &mut |byte, escaped| {
        globs.push(match byte {
            b'*' if !escaped => Glob::Any,
            b'?' if !escaped => Glob::One,
            _ => Glob::Byte(byte),
        });
    })?;
    Ok(Pattern(globs))
}

/// Gives the bytes that `text` stands for to `take`, each with whether it was escaped. `count` is what
/// `\#` stands for.
fn unescape(text: &[u8], count: usize, take: &mut dyn FnMut(u8, bool)) -> Result<(), String> {
    let mut at = 0;
    while at < text.len() {
        if text[at] != b'\\' {
            take(text[at], false);
            at += 1;
            continue;
        }
        let escape = *text.get(at + 1).ok_or("a backslash at the end")?;
        at += 2;
        match escape {
            b'r' => take(b'\r', true),
            b'n' => take(b'\n', true),
            b't' => take(b'\t', true),
            b's' => take(b' ', true),
            b'0' => take(0, true),
            b'\\' | b'*' | b'?' => take(escape, true),
            b'#' => count.to_string().bytes().for_each(|b| take(b, true)),
            b'x' => {
                let digits = text.get(at..at + 2).and_then(|d| std::str::from_utf8(d).ok());
                let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
                take(byte.ok_or("\\x wants two hexadecimal digits")?, true);
                at += 2;
            }
            b'{' => {
                let end = at + text[at..].iter().position(|b| *b == b'}').ok_or("\\{ wants a }")?;
                let inner = std::str::from_utf8(&text[at..end]).map_err(|_| "a repetition is UTF-8")?;
                let (times, inner) = inner.split_once(' ').ok_or("a repetition looks like \\{3 text}")?;
                for n in 1..=times.parse().map_err(|_| "a repetition begins with a number")? {
                    unescape(inner.as_bytes(), n, take)?;
                }
                at = end + 1;
            }
            _ => return Err(format!("there is no escape \\{}", char::from(escape))),
        }
    }
    Ok(())
}
