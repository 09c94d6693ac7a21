//! Dialogues against the session alone.
//!
//! Owns: the run of a dialogue with its bytes split in a given way. Promises: what is compared is all that
//! happened. Must not: open sockets.
use ringpost::mail::address::Domain;
use ringpost::mail::envelope::{BodyForm, BodyKind, Envelope, Recipient, Return};
use ringpost::smtp::server::{Access, Goodbye, Verdict};

use crate::check::{self, Seen};
use crate::dialogue::{Dialogue, DriverWord, End, HOSTNAME, Settings, Store, Turn};
use crate::driver::{self, Driver, Happening, Message, Rules};

/// How the bytes of a turn reach the session.
#[derive(Clone, Copy, Debug)]
pub enum Split {
    Whole,
    /// Cut before this byte of the dialogue.
    At(usize),
    Bytes,
}

/// Everything that happened, turn by turn.
pub fn run(dialogue: &Dialogue, split: Split) -> Vec<Vec<Happening>> {
    let mut driver = Driver::new(rules(&dialogue.settings));
    let mut sent = 0;
    let mut turns = Vec::new();
    for turn in &dialogue.turns {
        for piece in pieces(&turn.client, sent, split) {
            driver.feed(piece);
        }
        sent += turn.client.len();
        if let Some(word) = turn.driver {
            driver.say_goodbye(match word {
                DriverWord::TimedOut => Goodbye::TimedOut,
                DriverWord::Stopping => Goodbye::Stopping,
            });
        }
        turns.push(driver.take());
    }
    turns
}

/// The pieces of a turn whose first byte is byte `start` of the dialogue.
fn pieces(client: &[u8], start: usize, split: Split) -> Vec<&[u8]> {
    match split {
        Split::Whole => vec![client],
        Split::At(at) => {
            let (before, after) = client.split_at(at.saturating_sub(start).min(client.len()));
            vec![before, after]
        }
        Split::Bytes => client.chunks(1).collect(),
    }
}

fn rules(settings: &Settings) -> Rules {
    Rules {
        hostname: HOSTNAME,
        may_relay: settings.may_relay,
        max_message_bytes: settings.max_message_bytes,
        max_recipients: settings.max_recipients,
        access: Access {
            starttls: settings.tls,
            mechanisms: if settings.users { vec!["PLAIN"] } else { vec![] },
            submission: settings.submission,
            local_domains: settings
                .local_domain
                .iter()
                .map(|domain| Domain::parse(domain.as_bytes()).expect("a domain"))
                .collect(),
            ..Access::default()
        },
        secure: false,
        xclient: false,
        verdict: match settings.store {
            Store::Ok => driver::accepting(),
            Store::Full => Verdict::NoRoom,
            Store::Broken => Verdict::Failed,
        },
    }
}

/// Compares what happened with what the dialogue says.
pub fn compare(dialogue: &Dialogue, happened: &[Vec<Happening>]) -> Result<(), String> {
    for (at, (turn, happened)) in dialogue.turns.iter().zip(happened).enumerate() {
        compare_turn(turn, happened).map_err(|why| format!("turn {at}: {why}"))?;
    }
    Ok(())
}

fn compare_turn(turn: &Turn, happened: &[Happening]) -> Result<(), String> {
    let mut replies = Vec::new();
    let mut accepted = Vec::new();
    let mut closed = false;
    for happening in happened {
        match happening {
            Happening::Replies(bytes) => replies.extend_from_slice(bytes),
            Happening::Message(message, true) => accepted.push(message),
            Happening::Closed => closed = true,
            Happening::Message(_, false)
            | Happening::BodyStarts
            | Happening::BodyRefused
            | Happening::BodyWithdrawn
            | Happening::StartTls => {}
        }
    }
    check::replies(&turn.replies, &replies)?;
    // A driver that says goodbye closes of itself.
    if turn.driver.is_none() && closed != (turn.ends == Some(End::Close)) {
        return Err(format!("the session says close: {closed}"));
    }
    if accepted.len() != turn.messages.len() {
        return Err(format!("{} messages instead of {}", accepted.len(), turn.messages.len()));
    }
    for (expected, message) in turn.messages.iter().zip(accepted) {
        check::message(expected, &seen(message))?;
    }
    Ok(())
}

fn seen(message: &Message) -> Seen<'_> {
    Seen {
        sender: message.envelope.reverse_path.as_ref().map_or("", |address| address.as_str()),
        recipients: message.envelope.recipients.iter().map(|r| r.address.to_string()).collect(),
        kind: Some(match message.envelope.body_kind {
            BodyKind::SevenBit => "7BIT",
            BodyKind::EightBit => "8BITMIME",
            BodyKind::Binary => "BINARYMIME",
        }),
        mail: mail_parameters(&message.envelope),
        rcpt: message.envelope.recipients.iter().map(rcpt_parameters).collect(),
        body: &message.body,
        is_stuffed: message.envelope.body_form == BodyForm::DotStuffed,
    }
}

/// The parameters that MAIL of this envelope would have, beside SIZE and BODY.
fn mail_parameters(envelope: &Envelope) -> String {
    let mut words = Vec::new();
    words.extend(envelope.smtp_utf8.then(|| "SMTPUTF8".to_string()));
    words.extend(
        envelope.ret.map(|ret| if ret == Return::Full { "RET=FULL" } else { "RET=HDRS" }.to_string()),
    );
    words.extend(envelope.envid.as_ref().map(|envid| format!("ENVID={envid}")));
    words.join(" ")
}

fn rcpt_parameters(recipient: &Recipient) -> String {
    let mut words = Vec::new();
    if let Some(notify) = recipient.notify {
        let all = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")];
        let on: Vec<&str> = all.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        words.push(format!("NOTIFY={}", if on.is_empty() { "NEVER".into() } else { on.join(",") }));
    }
    words.extend(recipient.original.as_ref().map(|original| format!("ORCPT={original}")));
    words.join(" ")
}
