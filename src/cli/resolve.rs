//! `ringpost resolve`: where a domain's mail would go, and under which limits.
//!
//! Owns: its output. Promises: route, DNS answer and limits are found by the same code that `serve` uses;
//! each value says which section or setting it comes from. Must not: need a running server, or connect to
//! a mail host.
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;

use super::output::{self, Table};
use super::settings::SettingArgs;
use crate::config::{Config, Line};
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::text::printable;
use crate::resolve::{Answer, Query, ResolveConfig, Resolver};
use crate::route::Route;

#[derive(clap::Args)]
pub struct ResolveArgs {
    /// The domain
    domain: String,
    #[command(flatten)]
    settings: SettingArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// All that is known of a destination.
#[derive(Debug, PartialEq, Serialize)]
struct Resolved {
    destination: String,
    route: String,
    /// Mail hosts in the order of preference; empty for a fixed address.
    hosts: Vec<Host>,
    /// Why there are none.
    failure: Option<String>,
    provider: Option<String>,
    /// What holds for the destination.
    limits: Vec<Line>,
    /// What holds for the local addresses that it may come from.
    source_limits: Vec<Line>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Host {
    preference: u16,
    name: String,
    addresses: Vec<String>,
}

/// Asks DNS and prints what applies. Ends with 1 if mail could not be delivered now.
pub fn run(args: ResolveArgs) -> anyhow::Result<ExitCode> {
    let domain = Domain::parse(args.domain.as_bytes()).with_context(|| {
        format!(
            "{} is not a domain: write a name, or an address in brackets",
            printable(args.domain.as_bytes())
        )
    })?;
    let (effective, problems) = args.settings.load()?;
    let config = effective.config().map_err(|found| anyhow::anyhow!("{}", found[0]))?;
    if let Some(problem) = problems.first() {
        bail!("{problem}");
    }
    let (route, answer) = follow(&config, &domain)?;
    let resolved = describe(&config, &domain, route, answer.as_deref());
    if args.json {
        output::json(&resolved)?
    } else {
        output::text(&show(&resolved))?
    }
    Ok(if resolved.failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The route in words, and what DNS says of it where it must be asked.
fn follow(config: &Config, domain: &Domain) -> anyhow::Result<(String, Option<Arc<Answer>>)> {
    let (route, query) = match config.routes.lookup(domain) {
        Route::Fixed(address) => (format!("the address {address}"), None),
        Route::Literal(ip) => (format!("the address {ip}, port {}", config.mx_port), None),
        Route::Host(name, port) => (format!("the host {name}, port {port}"), Some(Query::Host(name))),
        Route::Mx(name) => (format!("the MX of {name}, port {}", config.mx_port), Some(Query::Mail(name))),
    };
    let Some(query) = query else { return Ok((route, None)) };
    let resolver =
        Resolver::start(ResolveConfig { servers: config.dns.clone(), ..ResolveConfig::default() })?;
    let (tell, told) = std::sync::mpsc::channel();
    let reply = Box::new(move |answer| drop(tell.send(answer)));
    if resolver.ask(query, reply).is_err() {
        bail!("the question could not be put to DNS");
    }
    let answer =
        told.recv_timeout(2 * limits::DNS_LOOKUP_WAIT).context("DNS does not answer: check --dns")?;
    Ok((route, Some(answer)))
}

fn describe(config: &Config, domain: &Domain, route: String, answer: Option<&Answer>) -> Resolved {
    let found = match answer {
        Some(Answer::Hosts(hosts)) => &hosts[..],
        _ => &[],
    };
    let rules = &config.rules;
    let number = rules.provider_of(found.iter().map(|host| (host.preference, host.name.as_str())));
    let provider = rules.provider(number);
    let addresses = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect();
    let limits = rules.explain(rules.rule_of(domain), number, &config.knobs());
    let allowed = rules.knobs(rules.rule_of(domain), number).sources;
    let sources = config.sources.iter().map(|source| source.address);
    let sources = sources.filter(|own| allowed.as_ref().is_none_or(|list| list.contains(own)));
    Resolved {
        destination: domain.to_string(),
        route,
        hosts: found
            .iter()
            .map(|host| Host {
                preference: host.preference,
                name: host.name.to_string(),
                addresses: addresses(&host.addresses),
            })
            .collect(),
        failure: answer.and_then(Answer::failure).map(|reply| reply.to_string()),
        provider: provider.map(|provider| provider.name.clone()),
        limits,
        source_limits: sources.flat_map(|source| rules.explain_source(source)).collect(),
    }
}

fn show(resolved: &Resolved) -> String {
    let mut out = format!("{}: by {}\n", resolved.destination, resolved.route);
    for host in &resolved.hosts {
        let _ = writeln!(out, "  {:>5} {} ({})", host.preference, host.name, host.addresses.join(", "));
    }
    if let Some(failure) = &resolved.failure {
        let _ = writeln!(out, "  no host: {}", printable(failure.as_bytes()));
    }
    let provider = resolved.provider.as_ref().map_or("none that is known", |name| name);
    let _ = writeln!(out, "provider: {}\n", printable(provider.as_bytes()));
    let mut table = Table::new(&["limit", "value", "from"]);
    for line in resolved.limits.iter().chain(&resolved.source_limits) {
        table.row([line.key.to_owned(), line.value.clone(), line.from.clone()]);
    }
    out + &table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Effective, Given, System};
    use crate::resolve::ResolvedHost;

    fn config(text: &str) -> Config {
        let system = System { hostname: "mta.test".into(), cores: 1, memory_bytes: 1 << 30 };
        let (effective, problems) =
            Effective::gather(Given::new(), &|_| None, Some(("r.toml", text)), &system);
        assert_eq!(problems, []);
        effective.config().expect("valid")
    }

    fn domain(name: &str) -> Domain {
        Domain::parse(name.as_bytes()).expect("a domain")
    }

    #[test]
    fn every_value_says_where_it_comes_from() {
        let config = config(
            "[source.\"192.0.2.1\"]\nehlo-name = \"out.test\"\nconnections = 7\n[destination.\"a.test\"]\nmax-age = \"1d\"\n[provider.google]\n\
             message-rate = \"50/s\"\n",
        );
        let hosts = vec![
            ResolvedHost {
                preference: 5,
                name: domain("aspmx.l.google.com"),
                addresses: vec!["192.0.2.9".parse().expect("an address")],
            },
            ResolvedHost { preference: 10, name: domain("backup.test"), addresses: vec![] },
        ];
        let resolved =
            describe(&config, &domain("a.test"), "the MX of a.test".into(), Some(&Answer::Hosts(hosts)));
        assert_eq!((resolved.provider.as_deref(), &resolved.failure), (Some("google"), &None));
        let text = show(&resolved);
        for line in [
            "a.test: by the MX of a.test",
            "5 aspmx.l.google.com (192.0.2.9)",
            "provider: google",
            "max-age                  1d                         [destination.\"a.test\"]",
            "connections              20                         [provider.google]",
            "message-rate             50/s                       [provider.google]",
            "connections 7 [source.\"192.0.2.1\"]",
        ] {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeezed(&text).contains(&squeezed(line)), "{line}\n{text}");
        }
        let json = serde_json::to_value(&resolved).expect("JSON");
        assert_eq!(json["hosts"][0]["addresses"][0], "192.0.2.9");
    }

    #[test]
    fn what_cannot_be_delivered_is_said() {
        let resolved =
            describe(&config(""), &domain("a.test"), "the MX of a.test".into(), Some(&Answer::NullMx));
        assert_eq!(resolved.failure.as_deref(), Some("556 5.1.10 the domain accepts no mail (null MX)"));
        assert!(show(&resolved).contains("no host: 556"), "{}", show(&resolved));
    }
}
