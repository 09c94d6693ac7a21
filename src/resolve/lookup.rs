//! From a question to its answer (RFC 5321 §5.1, RFC 7505, RFC 2308).
//!
//! Owns: the sequence of DNS questions behind one [`Query`] and the reading of what comes back.
//! Promises: a name is missing only if a server said so; everything else is temporary. At most
//! `limits::DNS_QUESTIONS` questions of all lookups are under way. Must not: keep answers (the
//! resolver's cache does).
use std::net::IpAddr;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Answer, Query, ResolvedHost};
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::text::printable;

/// All lookups: the resolver with its cache, and the bound on its questions.
pub(super) struct Lookups {
    /// Asks two servers at once and believes the first that says anything.
    all: TokioResolver,
    /// The same servers one by one, if there are several: where the quickest of them only says that it
    /// cannot or will not answer, another may still know.
    each: Vec<TokioResolver>,
    questions: Semaphore,
}

/// What one question brought.
enum Found {
    Records(Vec<RData>),
    /// The name exists without such a record (NODATA).
    Nothing,
    /// NXDOMAIN.
    NoName,
    /// Not known now, and why.
    Unknown(String),
}

/// Where a host is.
enum Addresses {
    At(Vec<IpAddr>),
    Missing,
    /// Not known now, and why.
    Unknown(String),
}

/// What the MX records of a domain say.
#[derive(Debug, PartialEq, Eq)]
enum MxSet {
    /// There are none.
    Absent,
    /// Only the root: no mail, please (RFC 7505 §3).
    Null,
    /// By preference, each host once. Empty if none has a name that a host can have.
    Hosts(Vec<(u16, Domain)>),
}

impl Lookups {
    pub(super) fn new(all: TokioResolver, each: Vec<TokioResolver>) -> Lookups {
        Lookups { all, each, questions: Semaphore::new(limits::DNS_QUESTIONS) }
    }

    /// The answer to `query`, within `limits::DNS_LOOKUP_WAIT`.
    pub(super) async fn answer(self: &Arc<Self>, query: &Query) -> Answer {
        let (Query::Mail(domain) | Query::Host(domain)) = query;
        if let Some(address) = literal(domain) {
            return Answer::Hosts(vec![ResolvedHost {
                preference: 0,
                name: domain.clone(),
                addresses: vec![address],
            }]);
        }
        let work = async {
            match query {
                Query::Mail(_) => self.mail(domain).await,
                Query::Host(_) => self.host(domain).await,
            }
        };
        match timeout(limits::DNS_LOOKUP_WAIT, work).await {
            Ok(answer) => answer,
            Err(_) => Answer::Temporary(format!("DNS gave no answer in time for {}", shown(domain))),
        }
    }

    async fn mail(self: &Arc<Self>, domain: &Domain) -> Answer {
        match self.records(domain, RecordType::MX).await {
            Found::NoName => Answer::NoSuchDomain,
            Found::Unknown(cause) => Answer::Temporary(cause),
            Found::Nothing => self.host(domain).await,
            Found::Records(records) => match mx_set(&records) {
                MxSet::Absent => self.host(domain).await,
                MxSet::Null => Answer::NullMx,
                MxSet::Hosts(hosts) => self.locate(hosts).await,
            },
        }
    }

    /// One host by its name, which is also the implicit MX of a domain without MX.
    async fn host(&self, name: &Domain) -> Answer {
        match self.addresses(name).await {
            Addresses::At(addresses) => {
                Answer::Hosts(vec![ResolvedHost { preference: 0, name: name.clone(), addresses }])
            }
            Addresses::Missing => Answer::NoSuchDomain,
            Addresses::Unknown(cause) => Answer::Temporary(cause),
        }
    }

    /// The addresses of all MX hosts at once. A host that has none is left out; one whose addresses are
    /// not known now stays, so that the caller can tell a short list from a list cut short.
    async fn locate(self: &Arc<Self>, hosts: Vec<(u16, Domain)>) -> Answer {
        let mut lookups = JoinSet::new();
        for (place, (preference, name)) in hosts.into_iter().take(limits::MX_HOSTS_RESOLVED).enumerate() {
            let lookups_of_all = Arc::clone(self);
            lookups.spawn(async move {
                let addresses = lookups_of_all.addresses(&name).await;
                (place, preference, name, addresses)
            });
        }
        let mut results = lookups.join_all().await;
        results.sort_unstable_by_key(|(place, ..)| *place);

        let mut found = Vec::with_capacity(results.len());
        let mut first_cause = None;
        for (_, preference, name, addresses) in results {
            match addresses {
                Addresses::At(addresses) => found.push(ResolvedHost { preference, name, addresses }),
                Addresses::Missing => {}
                Addresses::Unknown(cause) => {
                    first_cause.get_or_insert(cause);
                    found.push(ResolvedHost { preference, name, addresses: Vec::new() });
                }
            }
        }
        if found.iter().any(|host| !host.addresses.is_empty()) {
            Answer::Hosts(found)
        } else {
            first_cause.map_or(Answer::NoUsableHost, Answer::Temporary)
        }
    }

    async fn addresses(&self, name: &Domain) -> Addresses {
        let (v6, v4) = tokio::join!(self.records(name, RecordType::AAAA), self.records(name, RecordType::A));
        let mut cause = None;
        let families = [v6, v4].map(|found| match found {
            Found::Records(records) => records.iter().filter_map(RData::ip_addr).collect(),
            Found::Nothing | Found::NoName => Vec::new(),
            Found::Unknown(why) => {
                cause.get_or_insert(why);
                Vec::new()
            }
        });
        let [v6, v4]: &[Vec<IpAddr>; 2] = &families;
        let addresses = alternate(v6, v4);
        match cause {
            _ if !addresses.is_empty() => Addresses::At(addresses),
            Some(cause) => Addresses::Unknown(cause),
            None => Addresses::Missing,
        }
    }

    /// One question. CNAMEs are followed (RFC 5321 §5.1 allows one in place of the domain).
    async fn records(&self, name: &Domain, record_type: RecordType) -> Found {
        // The final dot makes it absolute. A name that DNS cannot carry has nothing in it.
        let Ok(absolute) = Name::from_ascii(format!("{}.", name.as_str().trim_end_matches('.'))) else {
            return Found::NoName;
        };
        let _turn = self.questions.acquire().await.expect("the semaphore is never closed");
        let first = match question(&self.all, &absolute, record_type).await {
            Ok(found) => return found,
            Err(error) => error,
        };
        // On silence all servers have been tried already.
        if matches!(first, NetError::Dns(_)) {
            for server in &self.each {
                if let Ok(found) = question(server, &absolute, record_type).await {
                    return found;
                }
            }
        }
        Found::Unknown(cause(&first, record_type, name))
    }
}

/// One question to one resolver; an error if it does not know.
async fn question(dns: &TokioResolver, name: &Name, record_type: RecordType) -> Result<Found, NetError> {
    match dns.lookup(name.clone(), record_type).await {
        Ok(answer) => Ok(Found::Records(answer.answers().iter().map(|r| r.data.clone()).collect())),
        Err(error) => absence(&error).ok_or(error),
    }
}

/// Whether a server said that the record or the name is not there.
fn absence(error: &NetError) -> Option<Found> {
    let NetError::Dns(DnsError::NoRecordsFound(said)) = error else { return None };
    // An empty answer that only points elsewhere is from a server that does not resolve for us
    // (RFC 2308 §2.2): it knows nothing of the name.
    let referral = said.ns.is_some() && said.soa.is_none();
    match said.response_code {
        ResponseCode::NXDomain => Some(Found::NoName),
        ResponseCode::NoError if !referral => Some(Found::Nothing),
        _ => None,
    }
}

/// Why a question was not answered, for people.
fn cause(error: &NetError, record_type: RecordType, name: &Domain) -> String {
    let why = match error {
        NetError::Timeout => "no answer in time".to_owned(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the server said: {code}"),
        NetError::Dns(DnsError::NoRecordsFound(said)) if said.response_code == ResponseCode::NoError => {
            "the server does not resolve names for us".to_owned()
        }
        NetError::Dns(DnsError::NoRecordsFound(said)) => {
            format!("the server said: {}", said.response_code)
        }
        other => other.to_string(),
    };
    printable(format!("DNS lookup of {record_type} {} failed: {why}", name.as_str()).as_bytes())
}

fn shown(domain: &Domain) -> String {
    printable(domain.as_str().as_bytes())
}

/// The address inside an address literal (RFC 5321 §4.1.3), which is not a matter for DNS.
fn literal(domain: &Domain) -> Option<IpAddr> {
    let inner = domain.as_str().strip_prefix('[')?.strip_suffix(']')?;
    match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => inner[5..].parse().map(IpAddr::V6).ok(),
        _ => inner.parse().map(IpAddr::V4).ok(),
    }
}

/// Reads the MX records among `records`.
fn mx_set(records: &[RData]) -> MxSet {
    let mut any = false;
    let mut hosts: Vec<(u16, Domain)> = Vec::new();
    let mut unusable = false;
    for record in records {
        let RData::MX(mx) = record else { continue };
        any = true;
        // The root beside other hosts is a mistake (RFC 7505 §3) and names no host.
        if mx.exchange.is_root() {
            continue;
        }
        match Domain::parse(mx.exchange.to_ascii().trim_end_matches('.').as_bytes()) {
            Ok(name) => hosts.push((mx.preference, name)),
            Err(_) => unusable = true,
        }
    }
    if !any {
        return MxSet::Absent;
    }
    if hosts.is_empty() && !unusable {
        return MxSet::Null;
    }
    hosts.sort_by_key(|(preference, _)| *preference);
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|(_, name)| seen.insert(name.clone()));
    MxSet::Hosts(hosts)
}

/// Families in turn, IPv6 first, at most `limits::ADDRESSES_RESOLVED`, each once.
fn alternate(v6: &[IpAddr], v4: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for i in 0..v6.len().max(v4.len()) {
        for &address in [v6.get(i), v4.get(i)].into_iter().flatten() {
            if addresses.len() < limits::ADDRESSES_RESOLVED && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}
