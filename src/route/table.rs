//! The operator's `--route PATTERN=TARGET` rules.
//!
//! Owns: their grammar and which one applies. A pattern is a domain, `*.suffix` (every name below
//! `suffix`, not `suffix` itself) or `*`; a target is `1.2.3.4:25`, `[::1]:25`, `host.name:port`,
//! `host.name` (port 25), `mx:other.domain` (the MX of another domain) or `mx` (the MX of the
//! destination itself: an exception to a wider rule). Promises: the most specific pattern wins,
//! exact before longest suffix before `*`, in whatever order they were given; two rules for one
//! pattern are an error; without a match the destination is reached by its MX, an address literal by
//! its address (RFC 5321 §4.1.3). A lookup costs one hash probe for each label. Must not: ask DNS.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::mail::address::Domain;

/// SMTP's port, for a target that names none (RFC 5321 §4.5.4.2).
const SMTP_PORT: u16 = 25;

/// How a destination is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The MX of this domain: the destination itself, or the one its rule names.
    Mx(Domain),
    /// A fixed address.
    Fixed(SocketAddr),
    /// A host name and port: its A/AAAA, no MX.
    Host(Domain, u16),
    /// The destination is an address literal: that address, on the port MX hosts are dialled on.
    Literal(IpAddr),
}

/// A rule that cannot be used, as the operator wrote it, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("route {rule:?}: {why}")]
pub struct RouteError {
    pub rule: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    MxOfItself,
    MxOf(Domain),
    Fixed(SocketAddr),
    Host(Domain, u16),
}

/// Parsed `--route PATTERN=TARGET` options; the most specific pattern wins (exact, then longest
/// `*.suffix`, then `*`). Empty: everything goes by MX.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// By pattern as written, in lower case: `example.com`, `*.example.com`, `*`.
    goals: HashMap<Box<str>, Goal>,
}

impl RouteTable {
    /// Parses the options in the order given. The error names the first rule that is wrong.
    pub fn parse(rules: &[String]) -> Result<RouteTable, RouteError> {
        let mut goals = HashMap::with_capacity(rules.len());
        for rule in rules {
            let wrong = |why: String| RouteError { rule: rule.clone(), why };
            let (pattern, target) =
                rule.split_once('=').ok_or_else(|| wrong("it has the form PATTERN=TARGET".into()))?;
            let pattern = parse_pattern(pattern.trim()).map_err(wrong)?;
            let goal = parse_target(target.trim()).map_err(wrong)?;
            if goals.insert(pattern, goal).is_some() {
                return Err(wrong("there is another rule for the same pattern".into()));
            }
        }
        Ok(RouteTable { goals })
    }

    /// The route of a destination.
    pub fn lookup(&self, destination: &Domain) -> Route {
        match self.find(destination.as_str()) {
            Some(Goal::MxOf(domain)) => Route::Mx(domain.clone()),
            Some(Goal::Fixed(address)) => Route::Fixed(*address),
            Some(Goal::Host(name, port)) => Route::Host(name.clone(), *port),
            Some(Goal::MxOfItself) | None => match literal_ip(destination) {
                Some(ip) => Route::Literal(ip),
                None => Route::Mx(destination.clone()),
            },
        }
    }

    /// The rules that go to an address: pattern and address, by pattern.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        let mut all = Vec::new();
        for (pattern, goal) in &self.goals {
            if let Goal::Fixed(address) = goal {
                all.push((&**pattern, *address));
            }
        }
        all.sort_unstable();
        all.into_iter()
    }

    fn find(&self, name: &str) -> Option<&Goal> {
        if self.goals.is_empty() {
            return None;
        }
        if let Some(goal) = self.goals.get(name) {
            return Some(goal);
        }
        if !name.starts_with('[') {
            let mut pattern = String::with_capacity(name.len() + 1);
            for (dot, _) in name.match_indices('.') {
                pattern.clear();
                pattern.push('*');
                pattern.push_str(&name[dot..]);
                if let Some(goal) = self.goals.get(pattern.as_str()) {
                    return Some(goal);
                }
            }
        }
        self.goals.get("*")
    }
}

/// The address of an address literal, `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
fn literal_ip(domain: &Domain) -> Option<IpAddr> {
    let inside = domain.as_str().strip_prefix('[')?.strip_suffix(']')?;
    match inside.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inside[5..].parse().ok().map(IpAddr::V6),
        _ => inside.parse().ok().map(IpAddr::V4),
    }
}

fn parse_pattern(text: &str) -> Result<Box<str>, String> {
    if text == "*" {
        return Ok("*".into());
    }
    let (star, name) = match text.strip_prefix("*.") {
        Some(suffix) => ("*.", suffix),
        None => ("", text),
    };
    if name.contains('*') {
        return Err(format!("in the pattern {text:?} a star may only be the whole first label"));
    }
    let domain = parse_domain(name)
        .ok_or_else(|| format!("the pattern {text:?} is not a domain, `*.` and a domain, or `*`"))?;
    Ok(format!("{star}{domain}").into())
}

fn parse_target(text: &str) -> Result<Goal, String> {
    if text.is_empty() {
        return Err("the target is empty".into());
    }
    if text.eq_ignore_ascii_case("mx") {
        return Ok(Goal::MxOfItself);
    }
    if let Some((scheme, domain)) = text.split_once(':')
        && scheme.eq_ignore_ascii_case("mx")
    {
        return match parse_domain(domain) {
            Some(domain) if literal_ip(&domain).is_none() => Ok(Goal::MxOf(domain)),
            _ => Err(format!("{domain:?} after `mx:` is not a domain")),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => Err("port 0 cannot be dialled".into()),
            _ => Ok(Goal::Fixed(address)),
        };
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Err(format!("an address needs a port: {}", SocketAddr::new(ip, SMTP_PORT)));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (name, port),
            _ => return Err(format!("{port:?} is not a port")),
        },
        None => (text, SMTP_PORT),
    };
    // A name that ends in a number is a mistyped address, not a host (RFC 3696 §2).
    let last = name.rsplit('.').next().unwrap_or_default();
    match parse_domain(name) {
        Some(name) if !last.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Goal::Host(name, port)),
        _ => Err(format!("{name:?} is not a host name or an address")),
    }
}

/// A name as an operator writes it, in U-labels or A-labels.
fn parse_domain(text: &str) -> Option<Domain> {
    Domain::parse_utf8(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        parse_domain(text).expect("valid")
    }

    fn table(rules: &[&str]) -> Result<RouteTable, RouteError> {
        RouteTable::parse(&rules.iter().map(|rule| (*rule).to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn targets() {
        let fixed = |text: &str| Some(Route::Fixed(text.parse().expect("an address")));
        let cases = [
            ("1.2.3.4:25", fixed("1.2.3.4:25")),
            ("[::1]:2525", fixed("[::1]:2525")),
            (" 127.0.0.1:2526 ", fixed("127.0.0.1:2526")),
            ("Mail.Other.test:26", Some(Route::Host(domain("mail.other.test"), 26))),
            ("mail.other.test", Some(Route::Host(domain("mail.other.test"), 25))),
            ("localhost:2526", Some(Route::Host(domain("localhost"), 2526))),
            ("b\u{fc}cher.test:26", Some(Route::Host(domain("xn--bcher-kva.test"), 26))),
            ("mx:Other.test", Some(Route::Mx(domain("other.test")))),
            ("MX", Some(Route::Mx(domain("a.test")))),
            ("", None),
            ("1.2.3.4", None),
            ("::1", None),
            ("[::1]", None),
            ("1.2.3.4:0", None),
            ("1.2.3.4.5:25", None),
            ("1.2.3:25", None),
            ("host:port", None),
            ("host:70000", None),
            ("host:", None),
            ("mx:", None),
            ("mx:[1.2.3.4]", None),
            ("two words", None),
        ];
        for (target, expected) in cases {
            let found = table(&[&format!("*={target}")]).map(|table| table.lookup(&domain("a.test")));
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{target:?}: {found:?}");
        }
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let rules = ["*=h0", "*.a.test=h1", "*.b.a.test=h2", "Exact.b.a.test=h3", "direct.a.test=mx"];
        let mut reversed = rules;
        reversed.reverse();
        for rules in [rules, reversed] {
            let table = table(&rules).expect("valid");
            for (destination, host) in [
                ("other.test", "h0"),
                ("a.test", "h0"),
                ("x.a.test", "h1"),
                ("y.x.a.test", "h1"),
                ("b.a.test", "h1"),
                ("x.b.a.test", "h2"),
                ("exact.b.a.test", "h3"),
                ("below.exact.b.a.test", "h2"),
                ("[192.0.2.1]", "h0"),
            ] {
                assert_eq!(
                    table.lookup(&domain(destination)),
                    Route::Host(domain(host), 25),
                    "{destination}"
                );
            }
            assert_eq!(table.lookup(&domain("direct.a.test")), Route::Mx(domain("direct.a.test")));
        }
    }

    #[test]
    fn without_a_rule() {
        let none = RouteTable::default();
        assert_eq!(none.lookup(&domain("a.test")), Route::Mx(domain("a.test")));
        assert_eq!(none.lookup(&domain("[192.0.2.1]")), Route::Literal([192, 0, 2, 1].into()));
        let v6 = "2001:db8::1".parse().expect("an address");
        assert_eq!(none.lookup(&domain("[IPv6:2001:db8::1]")), Route::Literal(v6));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (rules, why) in [
            (vec!["example.com"], "it has the form PATTERN=TARGET"),
            (vec!["a.*.test=mx"], "a star may only be the whole first label"),
            (vec!["*a.test=mx"], "a star may only be the whole first label"),
            (vec!["=mx"], "is not a domain"),
            (vec!["a.test=1.2.3.4"], "an address needs a port: 1.2.3.4:25"),
            (vec!["a.test=::1"], "an address needs a port: [::1]:25"),
            (vec!["a.test=host:0"], "\"0\" is not a port"),
            (vec!["a.test=mx", "A.test=h"], "another rule for the same pattern"),
        ] {
            let error = table(&rules).expect_err(why);
            assert!(error.why.contains(why), "{rules:?}: {error}");
            assert_eq!(error.rule, rules[rules.len() - 1]);
        }
    }
}
