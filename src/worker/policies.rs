//! From the configuration to what the scheduler keeps to.
//!
//! Owns: the numbering of policies by rule and provider. Promises: every rule has a policy with every
//! provider, so that the policy of a destination is found by arithmetic once its rule and its provider
//! are known. Must not: read sections (`config` does) or count anything (the scheduler does).
use std::net::IpAddr;
use std::sync::Arc;

use super::PartLimit;
use super::providers::Providers;
use super::streams::Streams;
use crate::config::{Config, Knobs, Rules, Source};
use crate::limits;
use crate::mail::address::Domain;
use crate::route::MxHost;
use crate::schedule::{Limits, Policies, Policy, PolicyId, ProviderPolicy, Sources, StreamPolicy};

/// The policies of the configuration.
pub fn policies(config: &Config, known: &Arc<Providers>, names: &Streams) -> Policies {
    let rules = &config.rules;
    let settings = config.knobs();
    let (rule_count, provider_count) = (rules.rules() as u16, rules.providers().len() as u16);
    let each = (0..=rule_count).flat_map(|rule| (0..=provider_count).map(move |provider| (rule, provider)));
    let list = each.map(|(rule, provider)| policy(&rules.knobs(rule, provider).over(&settings))).collect();
    let (by_name, known) = (rules.clone(), known.clone());
    Policies {
        list,
        by_name: Arc::new(move |domain| policy_of(&by_name, domain, known.get(domain))),
        // Domains that share their MX hosts share what is allowed to one of them; those of a provider that is
        // known by a section share what the section says.
        sites: vec![limits_of(&settings)],
        providers: (0..=provider_count).map(|number| provider_policy(rules, number)).collect(),
        sources: sources(config),
        streams: streams(config, names),
        server: Limits {
            connections: config.total_connections.unwrap_or(u32::MAX),
            connection_rate: None,
            message_rate: config.total_rate,
        },
    }
}

/// The local addresses of one family that mail may leave from, in the order of their turns: all, or those of
/// them that are `allowed`.
pub fn sources_of(known: &[Source], allowed: Option<&[IpAddr]>, v4: bool) -> Vec<Source> {
    let fits = |source: &&Source| {
        source.address.is_ipv4() == v4 && allowed.is_none_or(|list| list.contains(&source.address))
    };
    known.iter().filter(fits).cloned().collect()
}

fn provider_policy(rules: &Rules, number: u16) -> ProviderPolicy {
    rules.provider(number).map_or_else(ProviderPolicy::default, |provider| ProviderPolicy {
        name: provider.name.as_str().into(),
        limits: limits_of(&rules.knobs(0, number)),
    })
}

/// The limits of all local addresses, and the sets of them that a section or its absence lets be used.
fn sources(config: &Config) -> Sources {
    let mut sources = Sources::default();
    for source in &config.sources {
        let knobs = config.rules.source(source.address);
        sources.limit(source.address, knobs.map_or(Limits::NONE, limits_of));
    }
    let mut lists: Vec<Option<&[IpAddr]>> = config.rules.source_lists().map(Some).collect();
    lists.push(None);
    for (allowed, v4) in lists.into_iter().flat_map(|allowed| [(allowed, true), (allowed, false)]) {
        let addresses: Vec<IpAddr> =
            sources_of(&config.sources, allowed, v4).iter().map(|source| source.address).collect();
        if !addresses.is_empty() {
            sources.add(&addresses);
        }
    }
    sources
}

/// What is ordered for each stream, by its number.
fn streams(config: &Config, names: &Streams) -> Vec<StreamPolicy> {
    let mut all = Vec::new();
    for section in config.rules.streams() {
        let Some(number) = names.number(&section.name) else {
            tracing::warn!(
                stream = section.name,
                "more streams have had mail than are told apart: its section counts after a new start"
            );
            continue;
        };
        let number = usize::from(number);
        if all.len() <= number {
            all.resize(number + 1, StreamPolicy::default());
        }
        let (name, limits) = (section.name.as_str().into(), limits_of(&section.knobs));
        all[number] = StreamPolicy { name, weight: section.weight, limits };
    }
    all
}

/// How many recipients of a domain go into one transaction. A function of the name alone, and of what is
/// configured when the server starts.
pub fn part_limit(config: &Config) -> PartLimit {
    let (rules, settings) = (config.rules.clone(), config.knobs());
    let of_rule = |rule| rules.knobs(rule, 0).over(&settings).recipients_per_message;
    let most: Vec<usize> =
        (0..=rules.rules() as u16).map(|rule| of_rule(rule).unwrap_or(u16::MAX).into()).collect();
    Arc::new(move |domain| most[usize::from(rules.rule_of(domain))])
}

/// The policy of a destination whose provider is known; 0 for none.
pub fn policy_of(rules: &Rules, domain: &Domain, provider: u16) -> PolicyId {
    rules.rule_of(domain) * (rules.providers().len() as u16 + 1) + provider
}

/// The provider that runs the best of these hosts; 0 for none that is known.
pub fn provider_of(rules: &Rules, hosts: &[MxHost]) -> u16 {
    rules.provider_of(hosts.iter().map(|host| (host.preference, host.name.as_str())))
}

fn policy(knobs: &Knobs) -> Policy {
    Policy {
        limits: limits_of(knobs),
        messages_per_connection: knobs.messages_per_connection.unwrap_or(u32::MAX),
        recipients_per_message: knobs.recipients_per_message.unwrap_or(u16::MAX),
        retry_schedule: knobs.retry_schedule.clone().unwrap_or_default(),
        max_age: knobs.max_age.unwrap_or(limits::DEFAULT_MAX_AGE),
        delay_warning: knobs.delay_warning.filter(|after| !after.is_zero()),
        adaptive: knobs.adaptive.unwrap_or(true),
    }
}

fn limits_of(knobs: &Knobs) -> Limits {
    Limits {
        connections: knobs.connections.unwrap_or(u32::MAX),
        connection_rate: knobs.connection_rate,
        message_rate: knobs.message_rate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Effective, Given, System};

    #[test]
    fn every_rule_has_a_policy_with_every_provider() {
        let system = System { hostname: "mta.test".into(), cores: 1, memory_bytes: 1 << 30 };
        let text = "provider-defaults = false\nsource = [\"192.0.2.1,a.test\", \"192.0.2.2,b.test\"]\n\
                    destination-connections = 9\n[destination.\"a.test\"]\nconnections = 1\n\
                    [destination.\"b.test\"]\nmax-age = \"1h\"\nrecipients-per-message = 7\n[provider.x]\nmatch-mx = \"*.x.test\"\nconnections = 2\n\
                    [provider.y]\nmatch-mx = \"*.y.test\"\nmessages-per-connection = 3\n";
        let (effective, problems) =
            Effective::gather(Given::new(), &|_| None, Some(("r.toml", text)), &system);
        assert_eq!(problems, []);
        let config = effective.config().expect("valid");
        let known = Arc::<Providers>::default();
        let policies = policies(&config, &known, &Streams::default());
        let rules = &config.rules;
        assert_eq!(policies.list.len(), 9);
        let domain = |name: &str| Domain::parse(name.as_bytes()).expect("a domain");
        let host = |preference, name: &str| MxHost { preference, name: domain(name), addresses: vec![] };
        for (name, hosts, connections, messages, hours) in [
            ("a.test", vec![], 1, 1_000, 120),
            ("a.test", vec![host(5, "m.x.test")], 1, 1_000, 120),
            ("b.test", vec![host(5, "m.x.test")], 2, 1_000, 1),
            ("c.test", vec![host(5, "m.x.test")], 2, 1_000, 120),
            ("c.test", vec![host(5, "m.other.test"), host(9, "m.x.test")], 9, 1_000, 120),
            ("c.test", vec![host(5, "m.y.test"), host(5, "a.other.test")], 9, 3, 120),
        ] {
            let provider = provider_of(rules, &hosts);
            let policy = policies.get(policy_of(rules, &domain(name), provider));
            let found =
                (policy.limits.connections, policy.messages_per_connection, policy.max_age.as_secs() / 3600);
            assert_eq!(found, (connections, messages, hours), "{name} {hosts:?}");
        }
        let names: Vec<_> = policies.providers.iter().map(|p| (&*p.name, p.limits.connections)).collect();
        assert_eq!(names, [("", u32::MAX), ("x", 2), ("y", u32::MAX)]);
        let parts = part_limit(&config);
        assert_eq!([parts(&domain("b.test")), parts(&domain("c.test"))], [7, 100]);
        known.learn(&domain("c.test"), 2);
        assert_eq!(
            policies.get(policies.of(&domain("c.test"))).messages_per_connection,
            3,
            "as DNS has said"
        );
    }
}
