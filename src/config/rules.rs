//! Which limits hold for which destination.
//!
//! Owns: [`Rules`], the sections of the configuration about destinations and providers, and which of them
//! speaks first: the section of the domain, the longest `*.` section above it, the section of the provider
//! its MX hosts belong to, then the settings for all. Promises: each key
//! comes from the first section that names it; finding a domain's section costs one hash probe for each
//! label. Must not: read TOML (`sections`), ask DNS or count anything.
use std::collections::HashMap;
use std::net::IpAddr;

use super::knobs::{KEYS, Knobs};
use super::streams::StreamSection;
use crate::mail::address::Domain;
use crate::schedule::Rule;

/// A provider: whoever runs these MX hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provider {
    pub name: String,
    /// `mx.example.com`, or `*.example.com` for every name below it.
    pub match_mx: Vec<String>,
    pub knobs: Knobs,
    /// Every key of it is as it was shipped.
    pub shipped: bool,
}

/// See the module. `Default` has no sections at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// By pattern as written, in the order of the file; the rule of a destination is its place here
    /// plus one, 0 for none.
    pub(super) destinations: Vec<(String, Knobs)>,
    pub(super) by_pattern: HashMap<String, u16>,
    /// A provider's number is its place here plus one, 0 for none.
    pub(super) providers: Vec<Provider>,
    pub(super) by_mx: HashMap<String, u16>,
    /// Limits of local addresses.
    pub(super) sources: Vec<(IpAddr, Knobs)>,
    pub(super) streams: Vec<StreamSection>,
    /// The operator's reply rules, in the order they are tried.
    pub(super) replies: Vec<Rule>,
}

/// One key as it holds for a destination.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Line {
    pub key: &'static str,
    pub value: String,
    /// The section or setting it comes from.
    pub from: String,
}

impl Rules {
    /// The rule of a domain by its name alone.
    pub fn rule_of(&self, domain: &Domain) -> u16 {
        find(&self.by_pattern, domain.as_str())
    }

    /// The provider of a domain by its MX hosts (preference and name), or 0: of those with the best
    /// preference, that of the first name in alphabetical order which belongs to one.
    pub fn provider_of<'a>(&self, hosts: impl Iterator<Item = (u16, &'a str)> + Clone) -> u16 {
        let best = hosts.clone().map(|(preference, _)| preference).min();
        let names = hosts.filter(|(preference, _)| Some(*preference) == best).map(|(_, name)| name);
        let known = names.map(|name| (name, find(&self.by_mx, name))).filter(|(_, provider)| *provider > 0);
        known.min().map_or(0, |(_, provider)| provider)
    }

    /// What a local address may do; none where nothing is said of it.
    pub fn source(&self, address: IpAddr) -> Option<&Knobs> {
        self.sources.iter().find(|(own, _)| *own == address).map(|(_, knobs)| knobs)
    }

    pub fn streams(&self) -> &[StreamSection] {
        &self.streams
    }

    /// What the operator orders on refusals, before what is shipped.
    pub fn replies(&self) -> &[Rule] {
        &self.replies
    }

    /// What holds for a local address, by key.
    pub fn explain_source(&self, address: IpAddr) -> Vec<Line> {
        let from = format!("[source.\"{address}\"]");
        let lines = self.source(address).into_iter().flat_map(Knobs::lines);
        lines.map(|(key, value)| Line { key, value, from: from.clone() }).collect()
    }

    /// The local addresses that have a section.
    pub fn limited_sources(&self) -> impl Iterator<Item = IpAddr> {
        self.sources.iter().map(|(address, _)| *address)
    }

    /// The local addresses that sections name for their destinations.
    pub fn source_lists(&self) -> impl Iterator<Item = &[IpAddr]> {
        let all = self.destinations.iter().map(|(_, knobs)| knobs);
        let all = all.chain(self.providers.iter().map(|provider| &provider.knobs));
        all.filter_map(|knobs| knobs.sources.as_deref())
    }

    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// That of the number; none for 0.
    pub fn provider(&self, number: u16) -> Option<&Provider> {
        self.providers.get(usize::from(number).checked_sub(1)?)
    }

    /// Sections about destinations.
    pub fn rules(&self) -> usize {
        self.destinations.len()
    }

    /// The sections that speak for a destination, the first to be asked first.
    fn layers(&self, rule: u16, provider: u16) -> Vec<(String, &Knobs)> {
        let mut layers = Vec::new();
        if let Some((pattern, knobs)) =
            usize::from(rule).checked_sub(1).and_then(|at| self.destinations.get(at))
        {
            layers.push((format!("[destination.\"{pattern}\"]"), knobs));
            // A wider pattern fills in what the narrower one leaves out.
            let mut rest = pattern.as_str();
            while let Some((_, above)) = rest.trim_start_matches("*.").split_once('.') {
                let wider = format!("*.{above}");
                if let Some(at) = self.by_pattern.get(&wider).filter(|at| **at != rule) {
                    let (pattern, knobs) = &self.destinations[usize::from(*at) - 1];
                    layers.push((format!("[destination.\"{pattern}\"]"), knobs));
                }
                rest = above;
            }
        }
        if let Some(provider) = self.provider(provider) {
            let shipped = if provider.shipped { ", as shipped" } else { "" };
            layers.push((format!("[provider.{}]{shipped}", provider.name), &provider.knobs));
        }
        layers
    }

    /// What holds for a rule and a provider; what no section names is left out.
    pub fn knobs(&self, rule: u16, provider: u16) -> Knobs {
        self.layers(rule, provider).into_iter().fold(Knobs::default(), |knobs, (_, below)| knobs.over(below))
    }

    /// Each key with its value and where it comes from; `settings` are those for all destinations.
    pub fn explain(&self, rule: u16, provider: u16, settings: &Knobs) -> Vec<Line> {
        let layers = self.layers(rule, provider);
        KEYS.iter()
            .filter_map(|key| {
                let section = layers.iter().find_map(|(from, knobs)| Some((key.show(knobs)?, from.clone())));
                let setting = || Some((key.show(settings)?, "settings".to_owned()));
                let (value, from) = section.or_else(setting)?;
                Some(Line { key: key.name, value, from })
            })
            .collect()
    }
}

/// The number of the most specific pattern that takes `name`, or 0.
fn find(patterns: &HashMap<String, u16>, name: &str) -> u16 {
    if patterns.is_empty() {
        return 0;
    }
    if let Some(number) = patterns.get(name) {
        return *number;
    }
    if name.starts_with('[') {
        return 0;
    }
    let mut pattern = String::with_capacity(name.len() + 1);
    for (dot, _) in name.match_indices('.') {
        pattern.clear();
        pattern.push('*');
        pattern.push_str(&name[dot..]);
        if let Some(number) = patterns.get(&pattern) {
            return *number;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::super::sections;
    use super::*;

    fn rules(text: &str) -> Rules {
        let table = text.parse::<toml::Table>().expect("TOML");
        let (rules, problems) = sections::read("r.toml", &table, false);
        assert_eq!(problems, []);
        rules
    }

    fn domain(name: &str) -> Domain {
        Domain::parse(name.as_bytes()).expect("a domain")
    }

    const EXAMPLE: &str = r#"
        [destination."a.example.com"]
        connections = 1
        [destination."*.example.com"]
        connections = 2
        message-rate = "10/s"
        [destination."*.com"]
        max-age = "1d"
        [provider.big]
        match-mx = ["*.big.example", "mx.small.example"]
        connections = 7
        messages-per-connection = 20
        [provider.other]
        match-mx = ["*.other.example"]
    "#;

    #[test]
    fn the_most_specific_section_speaks_first_and_wider_ones_fill_in() {
        let rules = rules(EXAMPLE);
        let settings = Knobs { connections: Some(20), ..Knobs::default() };
        for (name, provider, expected) in [
            (
                "a.example.com",
                0,
                "connections=1 [destination.\"a.example.com\"]; message-rate=10/s [destination.\"*.example.com\"]; \
                 max-age=1d [destination.\"*.com\"]",
            ),
            (
                "x.y.example.com",
                1,
                "connections=2 [destination.\"*.example.com\"]; message-rate=10/s [destination.\"*.example.com\"]; \
                 messages-per-connection=20 [provider.big]; max-age=1d [destination.\"*.com\"]",
            ),
            ("example.com", 0, "connections=20 settings; max-age=1d [destination.\"*.com\"]"),
            ("other.org", 1, "connections=7 [provider.big]; messages-per-connection=20 [provider.big]"),
            ("other.org", 0, "connections=20 settings"),
            ("[192.0.2.1]", 0, "connections=20 settings"),
        ] {
            let lines = rules.explain(rules.rule_of(&domain(name)), provider, &settings);
            let shown: Vec<_> = lines.iter().map(|l| format!("{}={} {}", l.key, l.value, l.from)).collect();
            assert_eq!(shown.join("; "), expected, "{name}");
        }
    }

    #[test]
    fn providers_are_known_by_their_mx_hosts() {
        let rules = rules(EXAMPLE);
        for (hosts, provider) in [
            (vec![(5, "mx1.big.example")], 1),
            (vec![(5, "a.b.big.example")], 1),
            (vec![(5, "big.example")], 0),
            (vec![(5, "mx.small.example")], 1),
            (vec![(5, "not.small.example"), (5, "m.other.example")], 2),
            (vec![(5, "z.big.example"), (5, "a.other.example")], 2),
            (vec![(5, "a.other.example"), (5, "z.big.example")], 2),
            (vec![(5, "filter.example"), (9, "z.big.example")], 0),
            (vec![(9, "a.other.example"), (5, "z.big.example")], 1),
            (vec![], 0),
        ] {
            assert_eq!(rules.provider_of(hosts.iter().copied()), provider, "{hosts:?}");
        }
    }
}
