//! What the control plane shows of the queue.
//!
//! Owns: the JSON of the API and of `--json`. Promises: field names stay; texts from outside were
//! cleaned before they came here (`mail::text`). Must not: read the spool or ask the scheduler.
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::WallTime;
use crate::mail::id::MessageId;

/// A time as RFC 3339 text, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub WallTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0.0) * 1_000).ok();
        // A time past the year 9999 has no such text; it comes from a bad clock only.
        f.write_str(&time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| "never".into()))
    }
}

impl FromStr for Timestamp {
    type Err = time::error::Parse;
    fn from_str(text: &str) -> Result<Timestamp, time::error::Parse> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339)?.unix_timestamp_nanos();
        Ok(Timestamp(WallTime(u64::try_from(nanos / 1_000).unwrap_or_default())))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// [`MessageId`] as its text.
mod id_text {
    use super::*;

    pub fn serialize<S: Serializer>(id: &MessageId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MessageId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a message or a recipient waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For a free connection to its destination.
    Ready,
    /// For the time of its next attempt.
    Deferred,
    /// For the answer of its destination.
    InFlight,
    /// For an operator.
    Held,
    /// For its bounce: an operator returns it.
    Failing,
    /// For nothing: delivered.
    Delivered,
    /// For nothing: given up.
    Failed,
    /// For nothing: removed by an operator.
    Removed,
    /// For nothing: the disk damaged it.
    Quarantined,
    /// For nothing; how it ended is not on record.
    Finished,
}

impl State {
    const ALL: [State; 10] = [
        State::Ready,
        State::Deferred,
        State::InFlight,
        State::Held,
        State::Failing,
        State::Delivered,
        State::Failed,
        State::Removed,
        State::Quarantined,
        State::Finished,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Deferred => "deferred",
            State::InFlight => "in-flight",
            State::Held => "held",
            State::Failing => "failing",
            State::Delivered => "delivered",
            State::Failed => "failed",
            State::Removed => "removed",
            State::Quarantined => "quarantined",
            State::Finished => "finished",
        }
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<State, String> {
        let known = || State::ALL.map(State::as_str).join(", ");
        State::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("write one of {}", known()))
    }
}

/// One destination with queued mail. Counts are of messages (a message with several recipients there
/// counts once).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationView {
    pub destination: String,
    pub ready: u64,
    pub deferred: u64,
    pub in_flight: u64,
    /// Connections to it, those being opened included.
    pub connections: u32,
    /// The earliest next attempt, if nothing is ready.
    pub next_attempt: Option<Timestamp>,
    /// Set while the destination as a whole backs off after failed connections.
    pub backoff_until: Option<Timestamp>,
}

/// One queued message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageView {
    #[serde(with = "id_text")]
    pub id: MessageId,
    pub received: Timestamp,
    /// Empty: the null reverse-path.
    pub sender: String,
    /// The user who submitted it; none for mail that came without a login.
    #[serde(default)]
    pub user: Option<String>,
    /// Bytes in the spool.
    pub bytes: u64,
    pub recipients: u32,
    /// Recipients not finished.
    pub pending: u32,
    pub state: State,
    pub next_attempt: Option<Timestamp>,
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecipientView {
    pub address: String,
    pub destination: String,
    pub state: State,
    pub attempts: u32,
    pub next_attempt: Option<Timestamp>,
    /// The last answer about it, a peer's or one made here.
    pub last_reply: Option<String>,
    /// Of the operator who holds, fails or has moved it.
    pub reason: Option<String>,
}

/// One message in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageDetail {
    #[serde(flatten)]
    pub message: MessageView,
    /// The client it came from; none for mail made here.
    pub client: Option<IpAddr>,
    /// When it is returned to its sender if not delivered.
    pub expires: Option<Timestamp>,
    pub recipient_list: Vec<RecipientView>,
}

/// A destination that an operator has suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspensionView {
    pub destination: String,
    pub since: Timestamp,
    /// It ends then by itself.
    pub until: Option<Timestamp>,
    pub reason: String,
}

/// Answer of a resumption: whether it was suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    pub resumed: bool,
}

/// One thing that holds mail back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    /// What kind: retry, message-rate, connections, suspended, held, …
    pub gate: String,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// In words.
    pub detail: String,
    /// An operator's, where one did it.
    pub reason: Option<String>,
}

/// One recipient of a message and what holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryView {
    pub recipient: String,
    /// The destination it waits for.
    pub destination: String,
    pub state: State,
    pub attempts: u32,
    pub last_reply: Option<String>,
    pub gates: Vec<GateView>,
}

/// Why a message is not moving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyMessage {
    #[serde(with = "id_text")]
    pub id: MessageId,
    pub deliveries: Vec<DeliveryView>,
}

/// Why mail for a destination is not moving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyDestination {
    pub destination: String,
    /// Deliveries that operators hold.
    pub held: u64,
    /// None: nothing waits there, and nothing is known of it.
    pub queued: Option<DestinationView>,
    pub suspension: Option<SuspensionView>,
    pub gates: Vec<GateView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (us, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_700_000_000_000_000, "2023-11-14T22:13:20Z"),
            (1_700_000_000_123_456, "2023-11-14T22:13:20.123456Z"),
        ] {
            assert_eq!(Timestamp(WallTime(us)).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(WallTime(us))));
        }
        assert_eq!(Timestamp(WallTime(u64::MAX)).to_string(), "never");
    }

    #[test]
    fn states_have_one_text() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::json!(state), state.as_str());
        }
        assert!("lost".parse::<State>().is_err_and(|e| e.contains("in-flight")));
    }

    #[test]
    fn a_message_in_full_reads_back() {
        let detail = MessageDetail {
            message: MessageView {
                id: MessageId(77),
                received: Timestamp(WallTime(1_000_000)),
                sender: String::new(),
                user: Some("alice".into()),
                bytes: 4096,
                recipients: 2,
                pending: 1,
                state: State::InFlight,
                next_attempt: None,
            },
            client: None,
            expires: Some(Timestamp(WallTime(2_000_000))),
            recipient_list: vec![],
        };
        let json = serde_json::to_value(&detail).expect("JSON");
        assert_eq!(json["id"], MessageId(77).to_string());
        assert_eq!(json["state"], "in-flight");
        assert_eq!(serde_json::from_value::<MessageDetail>(json).expect("JSON"), detail);
    }
}
