//! The server session driven in memory.
//!
//! Owns: what a driver must do around the sans-IO session (keep the unconsumed rest, take the body, answer
//! for the message), and the record of what happened. Promises: the record depends on the bytes that were
//! fed and not on how they were split, or the session is at fault; the bounds that the session promises
//! are checked at every step. Must not: know dialogues; the fuzz targets use it as well.
use std::sync::Arc;

use ringpost::limits;
use ringpost::mail::envelope::{BodyForm, BodyKind, Envelope};
use ringpost::mail::id::MessageId;
use ringpost::mail::senders::Senders;
use ringpost::mail::trace;
use ringpost::smtp::sasl::AuthSaid;
use ringpost::smtp::server::{
    Access, AuthAnswer, Goodbye, Login, Peer, ServerConfig, ServerSession, Step, Verdict,
};

/// One thing that happened, in the order of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Reply bytes; neighbours are joined.
    Replies(Vec<u8>),
    BodyStarts,
    /// The message was complete; whether the driver took it.
    Message(Box<Message>, bool),
    BodyRefused,
    /// The client took a body back.
    BodyWithdrawn,
    /// The channel was protected.
    StartTls,
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub envelope: Envelope,
    pub declared_bytes: u64,
    /// In the envelope's form.
    pub body: Vec<u8>,
}

/// What a server is told, and whether it can store.
#[derive(Clone, Debug)]
pub struct Rules {
    pub hostname: &'static str,
    pub may_relay: bool,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub access: Access,
    /// The channel is protected from the start.
    pub secure: bool,
    /// Whether the peer may say for whom it speaks.
    pub xclient: bool,
    /// The answer to a message that is no loop.
    pub verdict: Verdict,
}

pub struct Driver {
    session: ServerSession,
    rules: Rules,
    /// What the session has not consumed.
    rest: Vec<u8>,
    /// The body that is being received.
    message: Option<Message>,
    happened: Vec<Happening>,
}

/// The longest reply: EHLO's, each line of which has at most 512 bytes.
const LONGEST_REPLY: usize = 16 * 512;

impl Driver {
    /// A session that has just greeted.
    pub fn new(rules: Rules) -> Driver {
        let config = ServerConfig {
            hostname: rules.hostname.into(),
            max_message_bytes: rules.max_message_bytes,
            max_recipients: rules.max_recipients,
            access: rules.access.clone(),
            ..ServerConfig::default()
        };
        let peer = Peer { xclient: rules.xclient, ..Peer::new([127, 0, 0, 1].into(), rules.may_relay) };
        let mut session = ServerSession::new(Arc::new(config), peer);
        if rules.secure {
            session.tls_started(true);
        }
        let mut driver = Driver { session, rules, rest: Vec::new(), message: None, happened: Vec::new() };
        let mut replies = Vec::new();
        driver.session.greet(&mut replies);
        driver.replied(replies);
        driver
    }

    /// What happened since the last call.
    pub fn take(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happened)
    }

    /// The driver ends the session.
    pub fn say_goodbye(&mut self, why: Goodbye) {
        let mut replies = Vec::new();
        self.session.say_goodbye(why, &mut replies);
        self.replied(replies);
        self.feed(b"");
    }

    /// Gives the session `bytes` behind what it left, and does what it asks until it asks for more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.rest);
        let mut at = 0;
        let mut replies = Vec::new();
        loop {
            let (consumed, step) = self.session.step(&input[at..], &mut replies);
            assert!(consumed <= input.len() - at, "more consumed than there is");
            assert!(
                replies.len() <= limits::REPLY_BYTES + LONGEST_REPLY,
                "{} bytes of replies",
                replies.len()
            );
            let full = replies.len() > limits::REPLY_BYTES;
            self.replied(std::mem::take(&mut replies));
            let from = at;
            at += consumed;
            match step {
                Step::More if full => {}
                Step::More => {
                    self.rest = input[at..].to_vec();
                    assert!(self.rest.len() < limits::COMMAND_LINE_BYTES, "{} bytes left", self.rest.len());
                    return;
                }
                Step::BodyStarts => self.body_starts(),
                Step::Body(range) => {
                    assert!(range.end <= consumed && !range.is_empty(), "{range:?} of {consumed}");
                    let message = self.message.as_mut().expect("Body follows BodyStarts");
                    message.body.extend_from_slice(&input[from + range.start..from + range.end]);
                    assert!(
                        message.body.len() as u64 <= self.rules.max_message_bytes,
                        "the body grew too large"
                    );
                }
                Step::BodyEnds => self.body_ends(),
                Step::BodyRefused => {
                    self.message.take().expect("BodyRefused comes once per body");
                    self.happened.push(Happening::BodyRefused);
                }
                Step::BodyWithdrawn => {
                    self.message.take().expect("only a body that has begun is withdrawn");
                    self.happened.push(Happening::BodyWithdrawn);
                }
                Step::StartTls => {
                    self.happened.push(Happening::StartTls);
                    self.session.tls_started(true);
                    // What was sent behind the command is thrown away.
                    return;
                }
                Step::Auth(said) => {
                    let answer = answer_auth(said);
                    self.session.answer_auth(answer, &mut replies);
                }
                Step::AuthEnds => {}
                Step::Xclient(said) => {
                    let addr = said.addr.unwrap_or([127, 0, 0, 1].into());
                    let peer = Peer { xclient: true, ..Peer::new(addr, false) };
                    self.session.set_peer(peer, &said, &mut replies);
                }
                Step::MayMail => self.session.admit_mail(true, &mut replies),
                Step::Close => {
                    if self.happened.last() != Some(&Happening::Closed) {
                        self.happened.push(Happening::Closed);
                    }
                    return;
                }
            }
        }
    }

    fn replied(&mut self, replies: Vec<u8>) {
        match self.happened.last_mut() {
            _ if replies.is_empty() => {}
            Some(Happening::Replies(before)) => before.extend_from_slice(&replies),
            _ => self.happened.push(Happening::Replies(replies)),
        }
    }

    fn body_starts(&mut self) {
        assert!(self.session.in_body() && self.message.is_none());
        let transaction = self.session.transaction();
        let recipients = transaction.envelope.recipients.len();
        assert!((1..=self.rules.max_recipients).contains(&recipients), "{recipients} recipients");
        let (envelope, declared_bytes) = (transaction.envelope.clone(), transaction.declared_bytes);
        self.message = Some(Message { envelope, declared_bytes, body: Vec::new() });
        self.happened.push(Happening::BodyStarts);
    }

    fn body_ends(&mut self) {
        assert!(!self.session.in_body());
        let message = self.message.take().expect("BodyEnds follows BodyStarts");
        let transaction = self.session.take_transaction();
        assert_eq!(transaction.envelope, message.envelope, "the envelope changed under the body");
        check_form(&message);
        // The server's own header will be one more.
        let verdict = if trace::count_received(&message.body) + 1 > limits::RECEIVED_HOPS {
            Verdict::Loop
        } else {
            self.rules.verdict.clone()
        };
        let accepted = matches!(verdict, Verdict::Accepted(_));
        let mut replies = Vec::new();
        self.session.finish(verdict, &mut replies);
        self.happened.push(Happening::Message(Box::new(message), accepted));
        self.replied(replies);
    }
}

/// What a message that is taken promises to every later hop. Text has whole lines that end in CRLF, no
/// other CR or LF, no NUL, and no line that is a lone dot; only the last line of a raw one may lack its
/// end, which it gets when it goes by DATA. Binary data goes by BDAT and may hold anything.
fn check_form(message: &Message) {
    let (body, envelope) = (&message.body, &message.envelope);
    if envelope.body_kind == BodyKind::Binary {
        assert_eq!(envelope.body_form, BodyForm::Raw, "binary data came by DATA");
        return;
    }
    assert!(!body.contains(&0), "a NUL was taken");
    let bare = body.iter().enumerate().any(|(at, b)| match b {
        b'\r' => body.get(at + 1) != Some(&b'\n'),
        b'\n' => at == 0 || body[at - 1] != b'\r',
        _ => false,
    });
    assert!(!bare, "a bare CR or LF was taken");
    if envelope.body_form == BodyForm::DotStuffed {
        assert!(body.is_empty() || body.ends_with(b"\r\n"), "the last line does not end");
        assert!(!body.split(|b| *b == b'\n').any(|line| line == b".\r"), "a lone dot was taken");
    }
}

/// The answer of a driver that knows one user, `user` with the password `secret`, and what PLAIN says.
fn answer_auth(said: AuthSaid) -> AuthAnswer {
    let message = match said {
        AuthSaid::Begin(_, None) => return AuthAnswer::Challenge(Vec::new()),
        AuthSaid::Begin(_, Some(message)) | AuthSaid::Response(message) => message,
    };
    match message.bytes() {
        b"\0user\0secret" => AuthAnswer::Success(Login {
            user: "user".into(),
            senders: Arc::new(Senders::All),
            counted: false,
        }),
        bytes if bytes.iter().filter(|b| **b == 0).count() == 2 => AuthAnswer::Wrong,
        _ => AuthAnswer::Malformed,
    }
}

/// The verdict for a server that stores what it gets.
pub fn accepting() -> Verdict {
    Verdict::Accepted(MessageId(1))
}
