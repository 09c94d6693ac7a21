//! TLS of the sink: certificates made when it starts.
//!
//! Owns: a server configuration for each kind of certificate. Promises: keys are new for each sink
//! and never written. Must not: be trusted by anybody.
use std::sync::Arc;

use anyhow::Context;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, crypto::aws_lc_rs};

use crate::sink::model::Certificate;

/// A configuration that shows `certificate`.
pub fn config(certificate: Certificate) -> anyhow::Result<Arc<ServerConfig>> {
    let names = match certificate {
        Certificate::WrongName => vec!["elsewhere.invalid".to_owned()],
        _ => ["*.test", "*.hosts.test", "sink.ringpost.invalid", "localhost"].map(String::from).to_vec(),
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "ringpost sink");
    if certificate == Certificate::Expired {
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
    }
    let key = KeyPair::generate()?;
    let signed = params.self_signed(&key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!(error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], key)
        .context("the certificate of the sink")?;
    Ok(Arc::new(config))
}

/// The TLS of one connection. Replies it holds back are bounded by those to one read.
pub fn connection(config: &Arc<ServerConfig>) -> Result<Box<ServerConnection>, rustls::Error> {
    let mut connection = ServerConnection::new(config.clone())?;
    connection.set_buffer_limit(None);
    Ok(Box::new(connection))
}
