//! rustls as bytes-to-bytes, between ring and session. Sans-IO.
//!
//! CONTRACT (to be kept by whoever fills this in)
use std::sync::Arc;

/// Client configuration shared by all outbound connections: TLS 1.2+, opportunistic (the certificate
/// is not verified: RFC 7435; verification arrives with TLS policy).
#[derive(Clone)]
pub struct ClientTls {
    _private: Arc<()>,
}

/// One TLS connection. Feed ciphertext, take plaintext; feed plaintext, take ciphertext.
pub struct TlsStream {
    _private: (),
}

#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub struct TlsError(pub String);

impl ClientTls {
    pub fn opportunistic() -> ClientTls {
        unimplemented!()
    }
    /// `name` is the MX host name (SNI; left out for an address).
    pub fn connect(&self, name: &str) -> Result<TlsStream, TlsError> {
        let _ = name;
        unimplemented!()
    }
}

impl TlsStream {
    /// Takes all of `input` (ciphertext); appends decrypted bytes to `plain`. After an error, what
    /// [`TlsStream::take_output`] yields (the alert) should still be sent. Returns true once the peer has sent close_notify.
    pub fn receive(&mut self, input: &[u8], plain: &mut Vec<u8>) -> Result<bool, TlsError> {
        let _ = (input, plain);
        unimplemented!()
    }
    /// Encrypts `plain`; the ciphertext comes from `take_output`.
    pub fn send(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        let _ = plain;
        unimplemented!()
    }
    /// Appends pending ciphertext (handshake, records, alerts) to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
    pub fn is_handshaking(&self) -> bool {
        unimplemented!()
    }
    /// Queues close_notify.
    pub fn close(&mut self) {
        unimplemented!()
    }
    /// Protocol and cipher for events, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`; none before the handshake ends.
    pub fn description(&self) -> Option<String> {
        unimplemented!()
    }
}
