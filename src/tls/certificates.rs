//! The server's certificates, and which of them a client is shown.
//!
//! Owns: reading the PEM pairs and the choice by server name (SNI, RFC 6066 §3) and by the signatures a
//! client understands. Promises: with one pair every client gets it; a name that no certificate has is
//! no reason to refuse a client: mail clients often send none or a wrong one. Must not: read files.
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::server::PemPair;

#[derive(Debug)]
pub struct Certificates(Vec<Arc<CertifiedKey>>);

impl Certificates {
    /// Reads the pairs and checks that each belongs together.
    pub fn from_pem(pairs: &[PemPair<'_>], provider: &CryptoProvider) -> Result<Certificates, TlsError> {
        if pairs.is_empty() {
            return Err(TlsError("there is no certificate".into()));
        }
        let read = |(at, pair): (usize, &PemPair<'_>)| match read(pair, provider) {
            Ok(key) => Ok(Arc::new(key)),
            Err(why) if pairs.len() == 1 => Err(TlsError(why)),
            Err(why) => Err(TlsError(format!("pair {}: {why}", at + 1))),
        };
        Ok(Certificates(pairs.iter().enumerate().map(read).collect::<Result<_, _>>()?))
    }

    /// The certificates that have this name, in order.
    fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<CertifiedKey>> {
        let name = ServerName::try_from(name.to_owned()).ok();
        self.0.iter().filter(move |pair| match (&name, pair.cert.first()) {
            (Some(name), Some(own)) => {
                ParsedCertificate::try_from(own).is_ok_and(|own| verify_server_name(&own, name).is_ok())
            }
            _ => false,
        })
    }

    /// What a client that sent this name may be shown.
    fn candidates(&self, name: Option<&str>) -> Vec<&Arc<CertifiedKey>> {
        let named: Vec<_> = name.into_iter().flat_map(|name| self.named(name)).collect();
        if named.is_empty() { self.0.iter().collect() } else { named }
    }

    /// The hash of the certificate shown to a client that sent this name (RFC 5929 §4.1), if only one
    /// comes into question.
    pub fn end_point(&self, name: Option<&str>) -> Option<Vec<u8>> {
        let [only] = self.candidates(name)[..] else { return None };
        let own = only.cert.first()?;
        Some(digest::digest(hash_of_signature(own), own).as_ref().to_vec())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |pair: &&&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        let candidates =
            if let [only] = &self.0[..] { vec![only] } else { self.candidates(hello.server_name()) };
        candidates.iter().find(usable).or(candidates.first()).map(|pair| Arc::clone(pair))
    }
}

fn read(pair: &PemPair<'_>, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = CertificateDer::pem_slice_iter(pair.chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("the certificate chain is not PEM: {e}"))?;
    if chain.is_empty() {
        return Err("the certificate chain holds no CERTIFICATE block".into());
    }
    let key = PrivateKeyDer::from_pem_slice(pair.key)
        .map_err(|e| format!("the private key is not a PEM key: {e}"))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| format!("certificate and private key cannot be used: {e}"))
}

/// The hash of a certificate's signature algorithm, where it names SHA-384 or SHA-512; SHA-256 stands for
/// older and unknown ones (RFC 5929 §4.1).
///
/// A certificate ends in its signature algorithm and the signature itself (RFC 5280 §4.1), and the
/// algorithms that are in use differ in the last bytes of their object identifier.
fn hash_of_signature(certificate: &[u8]) -> &'static digest::Algorithm {
    const SHA384: [&[u8]; 2] =
        [b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03", b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c"];
    const SHA512: [&[u8]; 2] =
        [b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x04", b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d"];
    // The algorithm stands twice; its first place, inside what is signed, comes before any foreign text.
    let head = &certificate[..certificate.len().min(SIGNATURE_ALGORITHM_BYTES)];
    let names = |oids: [&[u8]; 2]| oids.iter().any(|oid| memchr::memmem::find(head, oid).is_some());
    if names(SHA384) {
        &digest::SHA384
    } else if names(SHA512) {
        &digest::SHA512
    } else {
        &digest::SHA256
    }
}

/// Two lengths, the version, a serial number of at most 22 bytes (RFC 5280 §4.1.2.2) and the algorithm.
const SIGNATURE_ALGORITHM_BYTES: usize = 4 + 4 + 5 + 22 + 15;
