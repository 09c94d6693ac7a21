//! How receivers behave: what a file of models may say.
//!
//! Owns: [`Model`] and reading it from TOML, the shipped providers included. Promises: a key that
//! does not exist, a model that does not, a reply that is none, are errors that name the place. Must
//! not: decide about mail (`world` does).
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::Deserialize;

use crate::size::parse_duration;

/// Models of large providers, by name.
const PROVIDERS: &str = include_str!("../../models/providers.toml");

/// What a receiver does about TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TlsVariant {
    /// Not offered.
    #[default]
    None,
    /// STARTTLS is offered (RFC 3207).
    Offered,
    /// MAIL is refused before STARTTLS.
    Required,
    /// STARTTLS is offered and then answered with 454.
    Refused,
    /// STARTTLS is answered with 220 and then with something that is no TLS.
    Broken,
    /// TLS from the first byte (RFC 8314).
    Implicit,
}

/// The certificate a receiver shows; nobody has signed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certificate {
    /// For every name below `test`.
    #[default]
    SelfSigned,
    /// The same, whose time is over.
    Expired,
    /// For a name nobody asked for.
    WrongName,
}

/// A time as text: `500ms`, `10s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Span).map_err(serde::de::Error::custom)
    }
}

impl Span {
    pub fn us(self) -> u64 {
        self.0.as_micros() as u64
    }
}

/// How one receiver behaves. Zero switches a limit off; shares are between 0 and 1. A reply that
/// begins with 421 closes the connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// What follows 220.
    pub banner: Arc<str>,
    /// Connections from one client address at the same time.
    pub connections_per_client: u32,
    pub too_many_connections: Arc<str>,
    pub messages_per_connection: u32,
    pub too_many_messages: Arc<str>,
    /// Messages from one client address, as a bucket of `burst` that fills at this rate.
    pub messages_per_second: f64,
    pub burst: u32,
    pub rate_limited: Arc<str>,
    pub recipients_per_message: u32,
    pub too_many_recipients: Arc<str>,
    /// For how long a new triplet of client network, sender and recipient is put off.
    pub greylist: Span,
    pub greylisted: Arc<str>,
    /// Of every `outage_every`, the last `outage_for` answer MAIL with `outage`.
    pub outage_every: Span,
    pub outage_for: Span,
    pub outage: Arc<str>,
    /// Share of recipients put off by chance.
    pub tempfail_share: f64,
    pub tempfail: Arc<str>,
    /// Share of addresses that do not exist: always the same ones.
    pub unknown_share: f64,
    pub unknown: Arc<str>,
    /// Addresses that do not exist, in full or as `local-part@`.
    pub unknown_addresses: Vec<String>,
    pub banner_delay: Span,
    /// Before the replies to MAIL and RCPT, for each of them.
    pub reply_delay: Span,
    /// Before the final reply to a message.
    pub data_delay: Span,
    /// Share of messages behind whose end the connection is cut without a reply.
    pub drop_share: f64,
    pub tls: TlsVariant,
    pub certificate: Certificate,
    pub pipelining: bool,
    pub chunking: bool,
    /// AUTH is offered, and any name and password will do.
    pub auth: bool,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            banner: "sink.ringpost.invalid ESMTP ringpost sink".into(),
            connections_per_client: 0,
            too_many_connections: "421 4.7.0 too many connections from your address".into(),
            messages_per_connection: 0,
            too_many_messages: "421 4.7.0 too many messages on this connection".into(),
            messages_per_second: 0.0,
            burst: 1,
            rate_limited: "451 4.7.1 too much mail from your address, try again later".into(),
            recipients_per_message: 0,
            too_many_recipients: "452 4.5.3 too many recipients".into(),
            greylist: Span::default(),
            greylisted: "451 4.7.1 greylisted, try again later".into(),
            outage_every: Span::default(),
            outage_for: Span::default(),
            outage: "451 4.3.2 system not accepting mail".into(),
            tempfail_share: 0.0,
            tempfail: "451 4.3.0 try again later".into(),
            unknown_share: 0.0,
            unknown: "550 5.1.1 no such user".into(),
            unknown_addresses: Vec::new(),
            banner_delay: Span::default(),
            reply_delay: Span::default(),
            data_delay: Span::default(),
            drop_share: 0.0,
            tls: TlsVariant::None,
            certificate: Certificate::SelfSigned,
            pipelining: true,
            chunking: false,
            auth: false,
        }
    }
}

impl Model {
    /// Fails where a value makes no sense.
    pub fn check(&self) -> anyhow::Result<()> {
        for (name, share) in [
            ("tempfail_share", self.tempfail_share),
            ("unknown_share", self.unknown_share),
            ("drop_share", self.drop_share),
        ] {
            ensure!((0.0..=1.0).contains(&share), "{name} = {share} is not between 0 and 1");
        }
        ensure!(
            self.messages_per_second >= 0.0 && self.burst > 0,
            "messages_per_second and burst must be positive"
        );
        ensure!(self.outage_for.0 <= self.outage_every.0, "outage_for is longer than outage_every");
        let is_line = self.banner.bytes().all(|c| c.is_ascii_graphic() || c == b' ');
        ensure!(is_line && !self.banner.is_empty(), "banner = {:?} is not one line of ASCII", self.banner);
        for (name, reply) in [
            ("too_many_connections", &self.too_many_connections),
            ("too_many_messages", &self.too_many_messages),
            ("rate_limited", &self.rate_limited),
            ("too_many_recipients", &self.too_many_recipients),
            ("greylisted", &self.greylisted),
            ("outage", &self.outage),
            ("tempfail", &self.tempfail),
            ("unknown", &self.unknown),
        ] {
            ensure!(is_refusal(reply), "{name} = {reply:?} is no reply: write a code 4xx or 5xx and a text");
        }
        Ok(())
    }
}

/// Lines of one code, all but the last with a hyphen behind it.
fn is_refusal(reply: &str) -> bool {
    let code = reply.get(..3).unwrap_or_default();
    let last = reply.lines().count().saturating_sub(1);
    let is_line = |(index, line): (usize, &str)| {
        let mark = if index == last { " " } else { "-" };
        line.is_ascii() && line.strip_prefix(code).is_some_and(|rest| rest.starts_with(mark))
    };
    matches!(code.as_bytes(), [b'4' | b'5', b'0'..=b'9', b'0'..=b'9'])
        && reply.lines().enumerate().all(is_line)
}

/// A receiver as the file describes it.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: String,
    /// Domains it receives for.
    pub domains: Vec<String>,
    /// Its weight when generated domains (`--domains`) are shared out.
    pub share: f64,
    /// How many addresses it listens on.
    pub hosts: u32,
    pub model: Model,
}

/// Reads a file of receivers.
pub fn read(path: &Path) -> anyhow::Result<Vec<Described>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// The shipped models as text, with their comments.
pub fn shipped() -> &'static str {
    PROVIDERS
}

fn parse(text: &str) -> anyhow::Result<Vec<Described>> {
    let mut file: toml::Table = text.parse()?;
    let shipped: toml::Table = PROVIDERS.parse().context("the shipped models")?;
    let Some(toml::Value::Array(receivers)) = file.remove("receiver") else {
        bail!("there is no [[receiver]]");
    };
    if let Some(key) = file.keys().next() {
        bail!("'{key}' is not known here; receivers are written as [[receiver]]");
    }
    let described = receivers.into_iter().enumerate().map(|(index, value)| {
        let place = format!("receiver {}", index + 1);
        let toml::Value::Table(table) = value else { bail!("{place} is no table") };
        describe(table, &shipped, index).context(place)
    });
    described.collect()
}

fn describe(mut table: toml::Table, shipped: &toml::Table, index: usize) -> anyhow::Result<Described> {
    let mut take = |key: &str| table.remove(key);
    let (base, name, domains) = (take("model"), take("name"), take("domains"));
    let (share, hosts) = (take("share"), take("hosts"));
    let base = base.map(String::deserialize_value).transpose().context("model")?;
    let mut merged = match &base {
        None => toml::Table::new(),
        Some(base) => shipped.get(base).and_then(toml::Value::as_table).cloned().ok_or_else(|| {
            let names: Vec<&str> = shipped.keys().map(String::as_str).collect();
            anyhow!("there is no model '{base}'; there are {}", names.join(", "))
        })?,
    };
    merged.extend(table);
    let model: Model = merged.try_into()?;
    model.check()?;
    let share = share.map_or(Ok(0.0), f64::deserialize_value).context("share")?;
    let hosts = hosts.map_or(Ok(1), u32::deserialize_value).context("hosts")?;
    ensure!(share >= 0.0 && hosts > 0, "share and hosts must be positive");
    let name = name.map(String::deserialize_value).transpose().context("name")?;
    let name = name.or(base).unwrap_or_else(|| format!("receiver{}", index + 1));
    let is_label =
        name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') && (1..=40).contains(&name.len());
    ensure!(is_label, "'{name}' is no name: write letters, digits and hyphens");
    Ok(Described {
        name: format!("{name}-{index}"),
        domains: domains.map_or(Ok(Vec::new()), Vec::<String>::deserialize_value).context("domains")?,
        share,
        hosts,
        model,
    })
}

/// One value of a table as what it should be.
trait DeserializeValue: Sized {
    fn deserialize_value(value: toml::Value) -> anyhow::Result<Self>;
}

impl<T: for<'de> Deserialize<'de>> DeserializeValue for T {
    fn deserialize_value(value: toml::Value) -> anyhow::Result<T> {
        Ok(value.try_into()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_models_are_valid() {
        let shipped: toml::Table = PROVIDERS.parse().unwrap();
        assert!(shipped.len() >= 5);
        for name in shipped.keys() {
            let receivers = parse(&format!("[[receiver]]\nmodel = \"{name}\"")).unwrap();
            assert_eq!(receivers[0].name, format!("{name}-0"));
        }
    }

    #[test]
    fn every_key_is_documented_with_what_holds_without_it() {
        // The parser names the keys it knows when it meets another.
        let error = format!("{:#}", parse("[[receiver]]\nnot_a_key = 1").unwrap_err());
        let known = error.split("expected one of").nth(1).expect("a list of keys");
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(keys.len() > 25 && keys.contains(&"certificate"), "{error}");
        let readme = include_str!("../../README.md");
        for key in keys.iter().copied().chain(["model", "name", "domains", "share", "hosts"]) {
            let line = format!("#   {key} = ");
            assert!(
                shipped().lines().any(|text| text.starts_with(&line)),
                "--print-models says nothing of {key}"
            );
            assert!(readme.contains(&format!("`{key}")), "loadgen/README.md says nothing of {key}");
        }
        // What the comments say is the default is one.
        let list = shipped().lines().skip_while(|line| !line.contains("may say"));
        let keys = list.filter_map(|line| line.strip_prefix("#   ")).filter_map(|line| {
            let (key, rest) = line.split_once(" = ")?;
            let value = if rest.starts_with('"') {
                rest.split_inclusive('"').take(2).collect()
            } else {
                rest.split(' ').next()?.to_owned()
            };
            let is_of_model = !["model", "name"].contains(&key);
            is_of_model.then(|| format!("{key} = {value}\n"))
        });
        let stated = parse(&("[[receiver]]\n".to_owned() + &keys.collect::<String>())).unwrap().remove(0);
        assert_eq!(format!("{:?}", stated.model), format!("{:?}", Model::default()));
        assert_eq!((stated.domains.len(), stated.share, stated.hosts), (0, 0.0, 1));
    }

    #[test]
    fn own_keys_override_the_model() {
        let text = "[[receiver]]\nmodel = \"gmail\"\nname = \"g\"\nburst = 7\nhosts = 3\nshare = 0.5\n\
            domains = [\"a.test\"]\ntls = \"implicit\"\ndata_delay = \"2s\"\n[[receiver]]\n";
        let receivers = parse(text).unwrap();
        let (gmail, plain) = (&receivers[0], &receivers[1]);
        assert_eq!((gmail.model.burst, gmail.hosts, gmail.share, gmail.domains.len()), (7, 3, 0.5, 1));
        assert_eq!((gmail.model.tls, gmail.model.data_delay.us()), (TlsVariant::Implicit, 2_000_000));
        assert!(gmail.model.rate_limited.starts_with("421 4.7.28"));
        assert_eq!((plain.name.as_str(), plain.model.connections_per_client), ("receiver2-1", 0));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("", "no [[receiver]]"),
            ("x = 1\n[[receiver]]", "'x'"),
            ("[[receiver]]\nmodel = \"gmial\"", "there are"),
            ("[[receiver]]\nbrust = 1", "brust"),
            ("[[receiver]]\ndrop_share = 2.0", "drop_share"),
            ("[[receiver]]\ntempfail = \"later\"", "is no reply"),
            ("[[receiver]]\nunknown = \"550-a\\n551 b\"", "is no reply"),
            ("[[receiver]]\nbanner = \"a\\r\\n250 b\"", "is not one line"),
            ("[[receiver]]\ngreylist = \"soon\"", "is not a time"),
            ("[[receiver]]\nname = \"a b\"", "is no name"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(want), "{text:?}: {error}");
        }
    }
}
