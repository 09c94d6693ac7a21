//! The sections of the TOML: destinations and providers.
//!
//! Owns: the way from `[destination."…"]` and `[provider.NAME]` to [`Rules`], the limits shipped for large providers, and what contradicts itself in them. Promises: unknown
//! sections and keys, wrong values and patterns named twice are refused by name; a key of a shipped
//! provider that the file names again is replaced, the others stay. Must not: decide what holds for a
//! destination (`rules`).
use std::net::IpAddr;

use super::knobs::{KEYS, Key, Knobs, Scope};
use super::reply_rules;
use super::rules::{Provider, Rules};
use super::streams::{self, StreamSection};
use super::{Config, Problem, file};
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::text::printable;

/// The limits for large providers that come with this version.
const SHIPPED: &str = include_str!("providers.toml");

/// The sections a file may hold.
pub const SECTIONS: [&str; 4] = ["destination", "provider", "stream", "rule"];

/// The local addresses that `[source."ADDR"]` sections name, as texts of the setting.
pub fn sources(sections: &toml::Table) -> Vec<String> {
    let text = |(address, section): (&String, &toml::Value)| {
        let name = section.get(EHLO_NAME)?.as_str()?;
        address.parse::<IpAddr>().ok().map(|_| format!("{address},{name}"))
    };
    sections.iter().filter_map(text).collect()
}

const EHLO_NAME: &str = "ehlo-name";

/// Reads the sections of `table`; everything else in it is left alone. `shipped`: begin with the limits
/// that come with this version.
pub fn read(path: &str, table: &toml::Table, shipped: bool) -> (Rules, Vec<Problem>) {
    let mut reader = Reader { path, rules: Rules::default(), problems: Vec::new(), shipping: false };
    if shipped {
        let own = SHIPPED.parse::<toml::Table>().expect("the shipped providers are valid TOML");
        reader.shipping = true;
        reader.sections(&own);
        reader.shipping = false;
    }
    reader.sections(table);
    reader.index();
    (reader.rules, reader.problems)
}

struct Reader<'a> {
    path: &'a str,
    rules: Rules,
    problems: Vec<Problem>,
    /// What is read is what was shipped.
    shipping: bool,
}

impl Reader<'_> {
    fn complain(&mut self, section: &str, why: &str) {
        self.problems.push(Problem(format!("{}: {}: {why}", self.path, printable(section.as_bytes()))));
    }

    fn sections(&mut self, table: &toml::Table) {
        for (name, section) in self.named(table, "destination") {
            let shown = format!("[destination.\"{name}\"]");
            let knobs = self.knobs(&shown, &section, Scope::Destination, &[]);
            match pattern(&name) {
                Ok(pattern) => self.rules.destinations.push((pattern, knobs)),
                Err(why) => self.complain(&shown, &why),
            }
        }
        for (name, section) in self.named(table, "provider") {
            self.provider(&name, &section);
        }
        for (name, section) in self.named(table, "stream") {
            let shown = format!("[stream.\"{}\"]", printable(name.as_bytes()));
            let knobs = self.knobs(&shown, &section, Scope::Shared, &streams::KEYS);
            match StreamSection::read(&name, &section, knobs) {
                Ok(stream) => self.rules.streams.push(stream),
                Err(why) => self.complain(&shown, &why),
            }
        }
        self.replies(table);
        if table.get("source").is_some_and(toml::Value::is_table) {
            for (address, section) in self.named(table, "source") {
                self.source(&address, &section);
            }
        }
        if self.rules.destinations.len() > limits::DESTINATION_RULES {
            let most = format!("has more than {} sections", limits::DESTINATION_RULES);
            self.complain("destination", &most);
            self.rules.destinations.truncate(limits::DESTINATION_RULES);
        }
        if self.rules.streams.len() > limits::STREAM_SECTIONS {
            self.complain("stream", &format!("has more than {} sections", limits::STREAM_SECTIONS));
            self.rules.streams.truncate(limits::STREAM_SECTIONS);
        }
        if self.rules.providers.len() > limits::PROVIDERS {
            self.complain("provider", &format!("has more than {} sections", limits::PROVIDERS));
            self.rules.providers.truncate(limits::PROVIDERS);
        }
    }

    /// The sections `[[rule]]`.
    fn replies(&mut self, table: &toml::Table) {
        let list = match table.get("rule") {
            None => return,
            Some(toml::Value::Array(list)) => list,
            Some(_) => return self.complain("\"rule\"", "is a list of sections: write [[rule]]"),
        };
        for (nth, rule) in list.iter().enumerate() {
            let read = match rule {
                toml::Value::Table(rule) => reply_rules::read(rule),
                _ => Err("is not a section: write [[rule]]".into()),
            };
            match read {
                Ok(_) if self.rules.replies.len() == limits::REPLY_RULES => {
                    self.complain(
                        "[[rule]]",
                        &format!("stands there more than {} times", limits::REPLY_RULES),
                    );
                    return;
                }
                Ok(rule) => self.rules.replies.push(rule),
                Err(why) => self.complain(&format!("[[rule]] number {}", nth + 1), &why),
            }
        }
    }

    /// The sections `[kind.NAME]`.
    fn named(&mut self, table: &toml::Table, kind: &str) -> Vec<(String, toml::Table)> {
        let Some(value) = table.get(kind) else { return Vec::new() };
        let Some(sections) = value.as_table() else {
            self.complain(&format!("\"{kind}\""), &format!("is a kind of section: write [{kind}.\"NAME\"]"));
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, section) in sections {
            match section {
                toml::Value::Table(section) => found.push((name.clone(), section.clone())),
                _ => self.complain(
                    &format!("[{kind}]"),
                    &format!("{name:?} is not a section: write [{kind}.\"NAME\"], with quotes around a name with dots"),
                ),
            }
        }
        found
    }

    fn provider(&mut self, name: &str, section: &toml::Table) {
        let shown = format!("[provider.{name}]");
        let knobs = self.knobs(&shown, section, Scope::Provider, &["match-mx"]);
        let match_mx = section.get("match-mx").map(|value| self.patterns(&shown, value));
        let shipped = self.shipping;
        match self.rules.providers.iter_mut().find(|p| p.name == name) {
            Some(known) => {
                known.knobs = knobs.over(&known.knobs);
                known.match_mx = match_mx.unwrap_or_else(|| std::mem::take(&mut known.match_mx));
                known.shipped = false;
            }
            None => {
                if match_mx.is_none() {
                    self.complain(
                        &shown,
                        "has no match-mx: name its MX hosts, as in match-mx = [\"*.example.com\"]",
                    );
                }
                let match_mx = match_mx.unwrap_or_default();
                self.rules.providers.push(Provider { name: name.to_owned(), match_mx, knobs, shipped });
            }
        }
    }

    fn source(&mut self, address: &str, section: &toml::Table) {
        let shown = format!("[source.\"{address}\"]");
        let knobs = self.knobs(&shown, section, Scope::Shared, &[EHLO_NAME]);
        match section.get(EHLO_NAME) {
            Some(toml::Value::String(_)) => {}
            Some(_) => self.complain(&shown, "ehlo-name takes a text in quotes"),
            None => self.complain(&shown, "has no ehlo-name: name the host that greets from there"),
        }
        match address.parse() {
            Ok(address) if self.rules.source(address).is_some() => {
                self.complain(&shown, "stands there twice")
            }
            Ok(address) => self.rules.sources.push((address, knobs)),
            Err(_) => self.complain(&shown, "is not an address: write it as in [source.\"192.0.2.1\"]"),
        }
    }

    fn patterns(&mut self, shown: &str, value: &toml::Value) -> Vec<String> {
        let texts = match value {
            toml::Value::Array(items) => items.iter().map(file::scalar).collect::<Result<Vec<_>, _>>(),
            one => file::scalar(one).map(|text| vec![text]),
        };
        let texts = texts.unwrap_or_else(|why| {
            self.complain(shown, &format!("match-mx {why}"));
            Vec::new()
        });
        let mut patterns = Vec::new();
        for text in texts {
            match pattern(&text) {
                Ok(pattern) => patterns.push(pattern),
                Err(why) => self.complain(shown, &format!("match-mx {why}")),
            }
        }
        patterns
    }

    /// The keys of a section; the caller reads the `others`.
    fn knobs(&mut self, shown: &str, section: &toml::Table, scope: Scope, others: &[&str]) -> Knobs {
        let mut knobs = Knobs::default();
        for (name, value) in section.iter().filter(|(name, _)| !others.contains(&name.as_str())) {
            let Some(key) = Key::find(name).filter(|key| key.scope >= scope) else {
                let known: Vec<_> = KEYS.iter().filter(|k| k.scope >= scope).map(|k| k.name).collect();
                let known = known.into_iter().chain(others.iter().copied()).collect::<Vec<_>>().join(", ");
                self.complain(
                    shown,
                    &format!("\"{}\" is not one of its keys: {known}", printable(name.as_bytes())),
                );
                continue;
            };
            let text = match value {
                toml::Value::Boolean(on) => Ok(on.to_string()),
                toml::Value::Array(items) => {
                    items.iter().map(file::scalar).collect::<Result<Vec<_>, _>>().map(|texts| texts.join(","))
                }
                value => file::scalar(value),
            };
            if let Err(why) = text.and_then(|text| key.set(&mut knobs, &text)) {
                self.complain(shown, &format!("{name} {why}"));
            }
        }
        knobs
    }

    /// Builds the indices; what stands in two sections is an error.
    fn index(&mut self) {
        let destinations = self.rules.destinations.iter().enumerate();
        let patterns: Vec<_> =
            destinations.map(|(n, (pattern, _))| (pattern.clone(), n as u16 + 1)).collect();
        for (pattern, number) in patterns {
            if self.rules.by_pattern.insert(pattern.clone(), number).is_some() {
                self.complain(&format!("[destination.\"{pattern}\"]"), "stands there twice");
            }
        }
        let providers = self.rules.providers.iter().enumerate();
        let patterns: Vec<_> = providers
            .flat_map(|(n, p)| p.match_mx.iter().map(move |pattern| (pattern.clone(), n as u16 + 1)))
            .collect();
        for (pattern, number) in patterns {
            let before = self.rules.by_mx.insert(pattern.clone(), number);
            if let Some(before) = before.filter(|before| *before != number) {
                let names = [before, number].map(|n| self.rules.providers[usize::from(n) - 1].name.clone());
                let why = format!("{pattern:?} also stands in [provider.{}]: leave it in one", names[0]);
                self.complain(&format!("[provider.{}]", names[1]), &format!("match-mx {why}"));
            }
        }
    }
}

/// A domain, or `*.` and a domain, in lower case.
fn pattern(text: &str) -> Result<String, String> {
    let (star, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
    let domain = Domain::parse(name.as_bytes()).ok().filter(|d| star.is_empty() || !d.is_literal());
    match domain {
        Some(domain) => Ok(format!("{star}{domain}")),
        None if text == "*" => {
            Err("\"*\" would be every destination: use the settings for all instead".into())
        }
        None => Err(format!("{:?} is neither a domain nor \"*.\" and a domain", printable(text.as_bytes()))),
    }
}

impl Rules {
    /// The sections of the file as TOML that reads back to the same.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut out = String::new();
        let mut section = |head: String, match_mx: &[String], knobs: &Knobs| {
            out.push_str(&format!("\n{head}\n"));
            if !match_mx.is_empty() {
                let list: Vec<_> = match_mx.iter().map(|p| quoted(p)).collect();
                out.push_str(&format!("match-mx = [{}]\n", list.join(", ")));
            }
            out.push_str(&knobs.to_toml());
        };
        for (pattern, knobs) in &self.destinations {
            section(format!("[destination.{}]", quoted(pattern)), &[], knobs);
        }
        for provider in self.providers.iter().filter(|p| !p.shipped) {
            section(format!("[provider.{}]", quoted(&provider.name)), &provider.match_mx, &provider.knobs);
        }
        self.streams.iter().for_each(|stream| out.push_str(&stream.to_toml()));
        self.replies.iter().for_each(|rule| out.push_str(&reply_rules::to_toml(rule)));
        out
    }

    /// What in the sections contradicts the settings, and so keeps the server from starting.
    pub fn contradictions(&self, config: &Config) -> Vec<Problem> {
        let known = |address| config.sources.iter().any(|source| source.address == address);
        let mut problems = Vec::new();
        for (section, knobs) in self.sections() {
            for address in knobs.sources.iter().flatten().filter(|address| !known(**address)) {
                let why = format!(
                    "{section}: source {address} is none of --source: add it there, with its EHLO name"
                );
                problems.push(Problem(why));
            }
        }
        problems
    }

    /// What in the sections can never come to bear.
    pub fn warnings(&self, settings: &Knobs) -> Vec<String> {
        let mut warnings = Vec::new();
        for (section, knobs) in self.sections() {
            let whole = knobs.clone().over(settings);
            if let (Some(connect), Some(messages), Some(each)) =
                (whole.connection_rate, whole.message_rate, whole.messages_per_connection)
            {
                let per_second = |rate: crate::schedule::Rate| f64::from(rate.count) / rate.per.as_secs_f64();
                if per_second(connect) * f64::from(each) < per_second(messages) {
                    warnings.push(format!(
                        "{section}: message-rate {messages} is never reached: {connect} connections with {each} messages each allow less"
                    ));
                }
            }
            if let (Some(first), Some(age)) =
                (whole.retry_schedule.as_ref().and_then(|s| s.first()), whole.max_age)
                && *first >= age
            {
                warnings.push(format!(
                    "{section}: nothing is tried twice: max-age is over before the first retry"
                ));
            }
            if let (Some(warning), Some(age)) = (knobs.delay_warning, whole.max_age)
                && warning >= age
            {
                warnings.push(format!("{section}: delay-warning has no effect: max-age is over before it"));
            }
        }
        warnings
    }

    fn sections(&self) -> Vec<(String, &Knobs)> {
        let destinations =
            self.destinations.iter().map(|(p, knobs)| (format!("[destination.\"{p}\"]"), knobs));
        let providers = self.providers.iter().map(|p| (format!("[provider.{}]", p.name), &p.knobs));
        destinations.chain(providers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let table = text.parse::<toml::Table>().expect("TOML");
        read("r.toml", &table, false).1.into_iter().map(|p| p.0).collect()
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, complaint) in [
            ("[destination.\"a..b\"]", "r.toml: [destination.\"a..b\"]: \"a..b\" is neither a domain"),
            ("[destination.\"*\"]", "r.toml: [destination.\"*\"]: \"*\" would be every destination"),
            ("[destination]\nconnections = 3", "r.toml: [destination]: \"connections\" is not a section"),
            ("destination = 3", "r.toml: \"destination\": is a kind of section"),
            (
                "[destination.\"a.example\"]\nconections = 3",
                "r.toml: [destination.\"a.example\"]: \"conections\" is not one of its keys: connections, connection-rate",
            ),
            (
                "[destination.\"a.example\"]\nconnections = 0",
                "r.toml: [destination.\"a.example\"]: connections 0 is out of range",
            ),
            (
                "[destination.\"a.example\"]\nmessage-rate = 5",
                "r.toml: [destination.\"a.example\"]: message-rate \"5\" is not a rate",
            ),
            (
                "[destination.\"a.example\"]\n[destination.\"A.example\"]",
                "r.toml: [destination.\"a.example\"]: stands there twice",
            ),
            ("[provider.x]\nconnections = 3", "r.toml: [provider.x]: has no match-mx"),
            (
                "[provider.x]\nmatch-mx = \"a.b\"\nrecipients-per-message = 3",
                "r.toml: [provider.x]: \"recipients-per-message\" is not one",
            ),
            ("[provider.x]\nmatch-mx = [3.5]", "r.toml: [provider.x]: match-mx takes a text"),
            ("[provider.x]\nmatch-mx = [\"*\"]", "r.toml: [provider.x]: match-mx \"*\" would be every"),
            (
                "[provider.x]\nmatch-mx = \"a.b\"\n[provider.y]\nmatch-mx = \"a.b\"",
                "r.toml: [provider.y]: match-mx \"a.b\" also stands in [provider.x]",
            ),
        ] {
            let found = problems(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(complaint), "{text}: {}", found[0]);
        }
    }

    #[test]
    fn the_shipped_providers_are_sound_and_can_be_replaced_key_by_key() {
        let table = "[provider.google]\nconnections = 50".parse().expect("TOML");
        let (rules, problems) = read("r.toml", &table, true);
        assert_eq!(problems, []);
        let google =
            rules.provider(rules.provider_of([(5, "aspmx.l.google.com")].into_iter())).expect("known");
        assert_eq!((google.name.as_str(), google.shipped), ("google", false));
        assert_eq!((google.knobs.connections, google.knobs.messages_per_connection), (Some(50), Some(100)));
        for (host, provider) in [
            ("mta5.am0.yahoodns.net", "yahoo"),
            ("example-com.mail.protection.outlook.com", "microsoft"),
            ("mx01.mail.icloud.com", "apple"),
            ("mx00.gmx.net", "gmx"),
        ] {
            let found = rules.provider(rules.provider_of([(5, host)].into_iter())).expect(host);
            assert_eq!((found.name.as_str(), found.shipped), (provider, true), "{host}");
        }
        assert_eq!(rules.warnings(&Knobs::default()), Vec::<String>::new());
    }

    #[test]
    fn what_is_printed_reads_back_to_the_same() {
        let text = "[destination.\"*.a.example\"]\nconnections = 3\nretry-schedule = [\"1m\", \"2m\"]\n\
                    [provider.\"x y\"]\nmatch-mx = [\"*.b.example\", \"c.example\"]\nmessage-rate = \"5/30s\"\n";
        let read = |text: &str| read("r.toml", &text.parse().expect("TOML"), true);
        let (rules, problems) = read(text);
        assert_eq!(problems, []);
        assert_eq!(read(&rules.to_toml()), (rules, vec![]));
    }

    #[test]
    fn what_cannot_come_to_bear_is_said() {
        let text = "[destination.\"a.example\"]\nconnection-rate = \"1/m\"\nmessage-rate = \"100/s\"\n\
                    messages-per-connection = 10\n[destination.\"b.example\"]\nmax-age = \"1m\"\n\
                    retry-schedule = \"5m\"";
        let (rules, _) = read("r.toml", &text.parse().expect("TOML"), false);
        let warnings = rules.warnings(&Knobs::default());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("100/s is never reached"), "{}", warnings[0]);
        assert!(warnings[1].contains("nothing is tried twice"), "{}", warnings[1]);
    }
}
