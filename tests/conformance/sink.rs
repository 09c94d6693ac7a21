//! The next hop: takes every message and keeps its bytes.
//!
//! Owns: a receiver that offers every extension the server knows and knows a message by the id in its first
//! Received header.
//! Promises: nothing of a message is changed, whatever bytes it holds. Must not: use the server's code.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What arrived of one message, over all its deliveries.
#[derive(Clone, Debug, Default)]
pub struct Arrived {
    pub sender: String,
    /// In the order of arrival.
    pub recipients: Vec<String>,
    /// `BODY=` of MAIL.
    pub kind: Option<String>,
    /// The other parameters of MAIL but SIZE, and those of each RCPT.
    pub mail: String,
    pub rcpt: Vec<String>,
    /// The Received header in front, unfolded and without its name.
    pub trace: String,
    /// What follows it.
    pub body: Vec<u8>,
    /// Whether it came by DATA, with dots doubled.
    pub is_stuffed: bool,
}

type Kept = BTreeMap<String, Arrived>;

pub struct Sink {
    pub addr: SocketAddr,
    kept: Arc<(Mutex<Kept>, Condvar)>,
}

/// Longest wait for a message.
const WAIT: Duration = Duration::from_secs(30);

impl Sink {
    pub fn start() -> Sink {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let kept = Arc::new((Mutex::new(Kept::new()), Condvar::new()));
        let shared = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = shared.clone();
                std::thread::spawn(move || receive(stream, &kept));
            }
        });
        Sink { addr, kept }
    }

    /// The message `id` once it has arrived for `recipients` recipients; what there is of it otherwise.
    pub fn wait_for(&self, id: &str, recipients: usize) -> Option<Arrived> {
        let (kept, changed) = &*self.kept;
        let guard = kept.lock().expect("not poisoned");
        let enough = |kept: &mut Kept| kept.get(id).is_none_or(|m| m.recipients.len() < recipients);
        let (kept, _) = changed.wait_timeout_while(guard, WAIT, enough).expect("not poisoned");
        kept.get(id).cloned()
    }

    /// The ids of all that arrived.
    pub fn ids(&self) -> Vec<String> {
        self.kept.0.lock().expect("not poisoned").keys().cloned().collect()
    }
}

/// Serves one connection until it ends.
fn receive(stream: TcpStream, kept: &(Mutex<Kept>, Condvar)) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    let mut say = |text: &str| writer.write_all(text.as_bytes()).ok();
    say("220 sink.test ESMTP\r\n")?;
    let mut message = Arrived::default();
    loop {
        let line = String::from_utf8(read_line(&mut reader)?).ok()?;
        let verb = line.get(..4)?.to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => say(
                "250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n\
                 250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n",
            )?,
            "MAIL" => {
                let given = parameters(&line)?;
                let kind = given.iter().find_map(|word| word.strip_prefix("BODY=")).map(Into::into);
                let rest = given.into_iter().filter(|w| !w.starts_with("BODY=") && !w.starts_with("SIZE="));
                let mail = rest.collect::<Vec<_>>().join(" ");
                message = Arrived { sender: path(&line)?, kind, mail, ..Arrived::default() };
                say("250 2.1.0 ok\r\n")?;
            }
            "RCPT" => {
                message.recipients.push(path(&line)?);
                message.rcpt.push(parameters(&line)?.join(" "));
                say("250 2.1.5 ok\r\n")?;
            }
            "DATA" => {
                say("354 go on\r\n")?;
                let mut data = Vec::new();
                loop {
                    let line = read_line(&mut reader)?;
                    if line == b".\r\n" {
                        break;
                    }
                    data.extend_from_slice(&line);
                }
                message.is_stuffed = true;
                keep(std::mem::take(&mut message), &data, kept);
                say("250 2.0.0 taken\r\n")?;
            }
            "BDAT" => {
                let bytes = line.strip_suffix(" LAST\r\n")?.strip_prefix("BDAT ")?.parse().ok()?;
                let mut data = vec![0; bytes];
                reader.read_exact(&mut data).ok()?;
                keep(std::mem::take(&mut message), &data, kept);
                say("250 2.0.0 taken\r\n")?;
            }
            "QUIT" => return say("221 2.0.0 bye\r\n"),
            _ => say("250 2.0.0 ok\r\n")?,
        }
    }
}

fn read_line(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok().filter(|bytes| *bytes > 0)?;
    Some(line)
}

/// What stands between the first `<` and the last `>`: a quoted local part may hold either.
fn path(line: &str) -> Option<String> {
    Some(line[line.find('<')? + 1..line.rfind('>')?].to_string())
}

/// The words behind the path.
fn parameters(line: &str) -> Option<Vec<&str>> {
    Some(line[line.rfind('>')? + 1..].split_whitespace().collect())
}

/// Files a message under the id in its first header. Deliveries of one message to several domains differ
/// in their recipients alone.
fn keep(mut message: Arrived, data: &[u8], kept: &(Mutex<Kept>, Condvar)) {
    let mut end = 0;
    let mut trace = String::new();
    for line in data.split_inclusive(|b| *b == b'\n') {
        if end > 0 && !matches!(line[0], b' ' | b'\t') {
            break;
        }
        end += line.len();
        trace.push_str(String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']));
    }
    message.trace = trace.strip_prefix("Received: ").unwrap_or("").replace('\t', " ");
    message.body = data[end..].to_vec();
    let id = message.trace.split(" id ").nth(1).and_then(|rest| rest.split([' ', ';']).next());
    let id = id.unwrap_or("a message without a trace header").to_string();
    let (kept, changed) = kept;
    let mut kept = kept.lock().expect("not poisoned");
    match kept.get_mut(&id) {
        Some(before) => {
            assert!(before.body == message.body && before.sender == message.sender, "{id}: copies differ");
            before.recipients.append(&mut message.recipients);
            before.rcpt.append(&mut message.rcpt);
        }
        None => {
            kept.insert(id, message);
        }
    }
    changed.notify_all();
}
