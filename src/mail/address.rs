//! Mail addresses of the envelope (RFC 5321 §4.1.2, §4.1.3).
//!
//! Owns: [`Domain`] and [`Address`], both valid by construction. Promises: domains are lower case, so
//! equal domains are equal bytes; a local part is kept exactly as the client wrote it, quotes
//! included, because only the final host may interpret it (RFC 5321 §2.3.11). Must not: parse whole
//! commands (that is `smtp::command`) or headers.
use std::fmt;

/// A domain name in A-label form, lower case, or an address literal with its brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

/// A mailbox: local part as written (quoted form kept) and domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    text: Box<str>,
    /// Index of the `@`; equal to `text.len()` for the domainless `Postmaster` (RFC 5321 §4.5.1).
    at: u16,
}

/// MAIL FROM: the null path `<>` or an address.
pub type ReversePath = Option<Address>;

#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum AddressError {
    #[error("the local part is empty, too long or has characters that need quotes")]
    LocalPart,
    #[error("the domain is empty, too long or has characters outside A-Z, 0-9, hyphen and dot")]
    Domain,
    #[error("the address literal is not an IPv4 or IPv6 address in brackets")]
    Literal,
    #[error("an address has the form local@domain")]
    Form,
}

// CONTRACT: Domain::{parse(&[u8]) -> Result, as_str, is_literal, literal_ip() -> Option<IpAddr>, from_ip}; Address::{parse(&[u8]) (local@domain without brackets),
// as_str, local(&self) -> &str, domain(&self) -> &Domain}
impl Domain {
    pub fn parse(text: &[u8]) -> Result<Domain, AddressError> {
        let _ = text;
        unimplemented!()
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl Address {
    pub fn parse(text: &[u8]) -> Result<Address, AddressError> {
        let _ = text;
        unimplemented!()
    }
    pub fn as_str(&self) -> &str {
        &self.text
    }
    pub fn domain(&self) -> &Domain {
        let _ = self.at;
        unimplemented!()
    }
}
impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
