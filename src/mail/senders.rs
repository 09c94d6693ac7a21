//! Sets of reverse-paths: whom somebody may send as.
//!
//! Owns: [`Senders`] and its text form. Promises: a domain stands for its own addresses only, not for
//! those of its subdomains; the null path is in every set, for replies that must not be replied to.
//! Must not: know users.
use super::address::{Address, Domain, ReversePath};

/// A set of reverse-paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Senders {
    /// Every one.
    All,
    /// Those of these domains, and these addresses.
    Of { domains: Vec<Domain>, addresses: Vec<Address> },
}

impl Senders {
    /// Reads `*`, or addresses and domains with commas between them.
    pub fn parse(text: &str) -> Result<Senders, String> {
        if text == "*" {
            return Ok(Senders::All);
        }
        let (mut domains, mut addresses) = (Vec::new(), Vec::new());
        for part in text.split(',') {
            if part.contains('@') {
                addresses
                    .push(Address::parse_utf8(part.as_bytes()).map_err(|why| format!("{part:?}: {why}"))?);
            } else {
                domains.push(Domain::parse_utf8(part.as_bytes()).map_err(|why| format!("{part:?}: {why}"))?);
            }
        }
        Ok(Senders::Of { domains, addresses })
    }

    /// One address alone.
    pub fn only(address: Address) -> Senders {
        Senders::Of { domains: Vec::new(), addresses: vec![address] }
    }

    /// Whether the path is in the set. Local parts are compared without regard to the case of ASCII
    /// letters: here they are names that an operator wrote down, not mailboxes of another host.
    pub fn allows(&self, path: &ReversePath) -> bool {
        match (self, path) {
            (Senders::All, _) | (_, None) => true,
            (Senders::Of { domains, addresses }, Some(path)) => {
                domains.contains(path.domain())
                    || addresses.iter().any(|own| own.as_str().eq_ignore_ascii_case(path.as_str()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership() {
        let of = |text: &str| Senders::parse(text).unwrap();
        for (set, path, is_in) in [
            ("*", "a@b.test", true),
            ("*", "", true),
            ("b.test", "", true),
            ("b.test", "a@B.Test", true),
            ("b.test", "a@x.b.test", false),
            ("a@b.test", "A@b.test", true),
            ("a@b.test", "c@b.test", false),
            ("a@b.test,c.test", "x@c.test", true),
            ("a@b.test,c.test", "x@b.test", false),
            ("j\u{fc}rgen@b.test", "j\u{fc}rgen@b.test", true),
            ("j\u{fc}rgen@b.test", "jurgen@b.test", false),
            ("b\u{fc}cher.test", "a@xn--bcher-kva.test", true),
            ("a@b\u{fc}cher.test", "a@xn--bcher-kva.test", true),
        ] {
            let path = (!path.is_empty()).then(|| Address::parse_utf8(path.as_bytes()).unwrap());
            assert_eq!(of(set).allows(&path), is_in, "{set} {path:?}");
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["", "a@", "@b", "b..test", "*,b.test", "a@b.test,", "a b"] {
            assert!(Senders::parse(text).is_err(), "{text}");
        }
    }
}
