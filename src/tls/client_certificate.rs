//! Client certificates: asked for, never demanded.
//!
//! Owns: the verifier that lets every client finish its handshake, the judgement afterwards, and the name
//! a certificate gives its owner. Promises: a client always proves that it holds the key of what it
//! shows; a certificate counts only if one of our authorities signed it and it is in its time. Must not:
//! decide what a client may do.
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::TlsError;
use crate::limits;
use crate::mail::text::printable;

/// Lets clients pass whatever they show: servers of other people present certificates of all kinds as
/// soon as they are asked, and their mail must not fail for it.
#[derive(Debug)]
pub struct AskedFor(Arc<dyn ClientCertVerifier>);

impl AskedFor {
    /// From a PEM list of authorities.
    pub fn from_pem(pem: &[u8], provider: &Arc<CryptoProvider>) -> Result<AskedFor, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(pem) {
            let authority =
                authority.map_err(|e| TlsError(format!("the client authorities are not PEM: {e}")))?;
            roots.add(authority).map_err(|e| TlsError(format!("a client authority cannot be used: {e}")))?;
        }
        if roots.is_empty() {
            return Err(TlsError("the client authorities hold no CERTIFICATE block".into()));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::of)?;
        Ok(AskedFor(verifier))
    }

    /// Whether one of the authorities vouches for this chain, now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, rest)) = chain.split_first() else { return false };
        self.0.verify_client_cert(own, rest, UnixTime::now()).is_ok()
    }
}

impl ClientCertVerifier for AskedFor {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _own: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Whom a certificate is for: its first DNS name, else the common name of its subject, else its SHA-256
/// fingerprint.
pub fn name(chain: &[CertificateDer<'_>]) -> String {
    let Some(own) = chain.first() else { return String::new() };
    let parsed = webpki::EndEntityCert::try_from(own).ok();
    let dns = parsed.as_ref().and_then(|own| own.valid_dns_names().next().map(str::to_owned));
    let common = || parsed.as_ref().and_then(|own| common_name(own.subject()));
    let name = dns.or_else(common).unwrap_or_else(|| fingerprint(own));
    printable(&name.as_bytes()[..name.len().min(limits::DOMAIN_BYTES)])
}

/// The common name (2.5.4.3) in a subject in DER.
fn common_name(subject: &[u8]) -> Option<String> {
    const COMMON_NAME: &[u8] = b"\x06\x03\x55\x04\x03";
    let after = memchr::memmem::find(subject, COMMON_NAME)? + COMMON_NAME.len();
    let [_type, len, rest @ ..] = subject.get(after..)? else { return None };
    // Longer names have a length of more than one byte; they may be 64 characters (RFC 5280 A.1).
    let name = rest.get(..usize::from(*len)).filter(|name| !name.is_empty() && *len < 0x80)?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn fingerprint(certificate: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, certificate);
    hash.as_ref().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
