//! rustls as bytes-to-bytes, between ring and session. Sans-IO.
//!
//! Owns: the two configurations, [`ClientTls`] for deliveries and [`ServerTls`] for listeners, and
//! [`TlsStream`], one connection of either. Promises: TLS 1.2 and 1.3 only (RFC 8996); whatever a peer
//! sends gives bytes or an error, never a panic; what waits to be sent is bounded by
//! `limits::TLS_UNSENT_BYTES`. Must not: touch sockets, or decide whether mail may go in the clear
//! when TLS fails (the delivery's policy does).
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{ALL_VERSIONS, ClientConfig, ClientConnection, SupportedProtocolVersion};

use crate::limits;

mod certificates;
mod client_certificate;
mod opportunistic;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use server::{PemPair, ServerTls, Session};
pub use stream::TlsStream;

/// rustls counts what its client remembers in tickets, eight to a host.
const TICKETS_PER_HOST: usize = 8;

/// What rustls found wrong: with the peer's bytes, a certificate, or a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("TLS: {0}")]
pub struct TlsError(pub String);

impl TlsError {
    fn of(error: impl std::fmt::Display) -> TlsError {
        TlsError(error.to_string())
    }
}

/// Client configuration shared by all outbound connections: TLS 1.2+, opportunistic (the certificate
/// is not verified: RFC 7435; verification arrives with TLS policy). Clones share one memory of
/// sessions, so that a second connection to a host resumes the first one's.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// Encrypts to whoever answers: protection against reading along, not against an impostor.
    pub fn opportunistic() -> ClientTls {
        ClientTls::with_versions(ALL_VERSIONS)
    }

    fn with_versions(versions: &[&'static SupportedProtocolVersion]) -> ClientTls {
        let provider = provider();
        let verifier = Arc::new(opportunistic::AcceptAnyone::new(&provider));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("the provider has suites for every version")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(limits::TLS_SESSION_HOSTS * TICKETS_PER_HOST);
        ClientTls { config: Arc::new(config) }
    }

    /// Begins a connection; its first flight waits in [`TlsStream::take_output`].
    ///
    /// `name` is the MX host name, which goes out as SNI (RFC 6066 §3), or an address, with or without
    /// the brackets of a literal, which does not. Any other text is an error.
    pub fn connect(&self, name: &str) -> Result<TlsStream, TlsError> {
        let connection =
            ClientConnection::new(Arc::clone(&self.config), server_name(name)?).map_err(TlsError::of)?;
        Ok(TlsStream::new(connection.into()))
    }
}

/// `name` as rustls wants it: an address is never sent as SNI.
fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    let literal = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let bare = match literal.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => &literal[5..],
        _ => literal,
    };
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(address.into()));
    }
    let host = name.strip_suffix('.').unwrap_or(name);
    ServerName::try_from(host.to_owned()).map_err(TlsError::of)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
