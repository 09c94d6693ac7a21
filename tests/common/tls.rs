//! A TLS client and certificates for whole-binary tests.
//!
//! Owns: files with certificates of rcgen, and a client of rustls that believes them. Promises: nothing of
//! the server's own TLS code is used. Must not: outlive its directory.
#![allow(dead_code, reason = "each test binary uses its part of this")]
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::common::Client;

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// An authority and what it signs.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

/// A certificate with its key, as files and as bytes.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let cert = params.self_signed(&key).expect("signed");
        Authority { pem: cert.pem(), der: cert.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// A certificate for `names`, in files called `file` in `dir`. Names that are no host's are
    /// common names only.
    pub fn sign(&self, dir: &Path, file: &str, names: &[&str], rsa: bool) -> Pair {
        let is_host = |name: &&&str| name.contains('.') || **name == "localhost";
        let alternatives: Vec<String> = names.iter().filter(is_host).map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(alternatives).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, names[0]);
        let key = if rsa {
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        } else {
            KeyPair::generate()
        };
        let key = key.expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |extension: &str| dir.join(format!("{file}.{extension}"));
        std::fs::write(path("crt"), cert.pem()).expect("written");
        std::fs::write(path("key"), key.serialize_pem()).expect("written");
        let (cert_path, key_path) = (path("crt"), path("key"));
        Pair { cert: cert_path, key: key_path, der: cert.der().clone(), key_der: key.serialize_der() }
    }

    /// A client that believes this authority.
    pub fn client(
        &self,
        own: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("known versions")
            .with_root_certificates(roots);
        let config = match own {
            Some(own) => {
                let key = PrivateKeyDer::try_from(own.key_der.clone()).expect("a key");
                builder.with_client_auth_cert(vec![own.der.clone()], key).expect("they fit")
            }
            None => builder.with_no_client_auth(),
        };
        Arc::new(config)
    }
}

impl Pair {
    /// The flags that give it to a server.
    pub fn flags(&self) -> [&str; 4] {
        let text = |path: &'static str, value: &Path| (path, value.to_str().expect("UTF-8").to_owned());
        let (cert, key) = (text("--tls-cert", &self.cert), text("--tls-key", &self.key));
        [cert.0, Box::leak(cert.1.into_boxed_str()), key.0, Box::leak(key.1.into_boxed_str())]
    }
}

/// A TLS connection on `tcp` whose handshake is done.
pub fn handshake(tcp: TcpStream, config: &Arc<ClientConfig>, name: &str) -> std::io::Result<TlsStream> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut connection = ClientConnection::new(config.clone(), name).expect("a client");
    let mut tcp = tcp;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(connection, tcp))
}

/// Says EHLO and STARTTLS.
pub fn starttls(addr: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Client<TlsStream> {
    let mut client = Client::connect(addr);
    assert!(client.ask("EHLO client.test").contains("250-STARTTLS\n"));
    assert!(client.ask("STARTTLS").starts_with("220 "));
    Client::on(handshake(client.into_stream(), config, name).expect("a handshake"))
}

/// Connects with TLS from the first byte and takes the greeting.
pub fn connect(addr: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Client<TlsStream> {
    let tcp = TcpStream::connect(addr).expect("connected");
    tcp.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("set");
    let mut client = Client::on(handshake(tcp, config, name).expect("a handshake"));
    assert!(client.reply().starts_with("220 "));
    client
}
