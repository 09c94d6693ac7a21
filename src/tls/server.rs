//! The server's side of TLS: certificates, client certificates, and what a finished handshake says.
//!
//! Owns: [`ServerTls`], built from files' contents, and [`Session`], the facts of one connection that
//! traces, events and channel bindings are made of (RFC 5929, RFC 9266). Promises: everything that is
//! wrong with the given PEM is said before a connection is taken; a `ServerTls` never changes: new
//! certificates make a new one, and connections under way keep theirs. Must not: read files.
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls::{ALL_VERSIONS, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::certificates::Certificates;
use super::client_certificate::{self, AskedFor};
use super::{TlsError, TlsStream, provider};

/// A PEM chain, the server's own certificate first, and its PEM private key (PKCS #8, PKCS #1 or SEC 1).
#[derive(Clone, Copy, Debug)]
pub struct PemPair<'a> {
    pub chain: &'a [u8],
    pub key: &'a [u8],
}

/// Server configuration shared by the connections of all listeners. To change certificates, make
/// another and use it for new connections; those under way keep theirs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    clients: Option<Arc<AskedFor>>,
}

/// What a finished handshake says of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// As [`TlsStream::description`].
    pub description: String,
    /// Who the client's certificate says it is, if it gave one that one of our authorities signed.
    /// Printable and bounded.
    pub client: Option<String>,
    pub resumed: bool,
    /// Channel binding `tls-exporter` (RFC 9266 §4): TLS 1.3 only.
    pub exporter: Option<[u8; 32]>,
    /// Channel binding `tls-server-end-point` (RFC 5929 §4), where it is certain which certificate the
    /// client was shown.
    pub end_point: Option<Vec<u8>>,
}

/// The label of RFC 9266 §4.2.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

impl ServerTls {
    /// From one or more pairs. A client that names a server gets the first pair whose certificate has
    /// that name and whose key it can use; others get the first pair they can use. An error says which
    /// pair is wrong, counted from 1, and what about it.
    ///
    /// With `client_ca`, a PEM list of authorities, clients are asked for a certificate. None, or one
    /// of another authority, is let pass: the session then has no [`Session::client`].
    pub fn from_pem(pairs: &[PemPair<'_>], client_ca: Option<&[u8]>) -> Result<ServerTls, TlsError> {
        ServerTls::with_versions(pairs, client_ca, ALL_VERSIONS)
    }

    pub(super) fn with_versions(
        pairs: &[PemPair<'_>],
        client_ca: Option<&[u8]>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<ServerTls, TlsError> {
        let provider = provider();
        let certificates = Arc::new(Certificates::from_pem(pairs, &provider)?);
        let clients = client_ca.map(|pem| AskedFor::from_pem(pem, &provider)).transpose()?.map(Arc::new);
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(TlsError::of)?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(clients.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        // Tickets keep sessions at the client, so that the server keeps none; one is enough for a
        // client that reuses its connection.
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(TlsError::of)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        Ok(ServerTls { config: Arc::new(config), certificates, clients })
    }

    /// Begins the server's side of a connection.
    pub fn accept(&self) -> Result<TlsStream, TlsError> {
        let connection = ServerConnection::new(Arc::clone(&self.config)).map_err(TlsError::of)?;
        Ok(TlsStream::new(connection.into()))
    }

    /// The facts of a connection that [`ServerTls::accept`] of this value began; none before its handshake
    /// has ended.
    pub fn session(&self, stream: &TlsStream) -> Option<Session> {
        let description = stream.description()?;
        let exporter = description
            .starts_with("TLSv1.3")
            .then(|| stream.export_keying_material(EXPORTER_LABEL))
            .flatten();
        let client = self.clients.as_ref().and_then(|clients| {
            let chain = stream.peer_certificates()?;
            clients.verify(chain).then(|| client_certificate::name(chain))
        });
        Some(Session {
            client,
            resumed: stream.is_resumed(),
            exporter,
            end_point: self.certificates.end_point(stream.server_name()),
            description,
        })
    }
}
