//! One TLS connection as a value: ciphertext in, plaintext out, and back.
//!
//! Owns: [`TlsStream`]. Promises: every byte given to [`TlsStream::receive`] is consumed; after an
//! error the alert that tells the peer is still there to be taken. Must not: keep plaintext: what is
//! decrypted goes to the caller at once.
use std::io::{BufRead, Read, Write};

use rustls::pki_types::CertificateDer;
use rustls::{Connection, HandshakeKind, ProtocolVersion};

use super::TlsError;
use crate::limits;

/// One TLS connection. Feed ciphertext, take plaintext; feed plaintext, take ciphertext.
pub struct TlsStream {
    connection: Connection,
    /// close_notify is queued or sent: nothing may follow it (RFC 8446 §6.1).
    closing: bool,
}

impl TlsStream {
    pub(super) fn new(mut connection: Connection) -> TlsStream {
        connection.set_buffer_limit(Some(limits::TLS_UNSENT_BYTES));
        TlsStream { connection, closing: false }
    }

    /// Takes all of `input` (ciphertext); appends decrypted bytes to `plain`. After an error, what
    /// [`TlsStream::take_output`] yields (the alert) should still be sent. Returns true once the peer
    /// has sent close_notify; what follows that is ignored. A connection that ends without it may
    /// have been cut by someone else.
    pub fn receive(&mut self, mut input: &[u8], plain: &mut Vec<u8>) -> Result<bool, TlsError> {
        let mut closed = false;
        while !input.is_empty() && !closed {
            self.connection.read_tls(&mut input).map_err(TlsError::of)?;
            let state = self.connection.process_new_packets();
            self.drain_plaintext(plain);
            closed = state.map_err(TlsError::of)?.peer_has_closed();
        }
        Ok(closed)
    }

    /// Takes what it can of `input` (ciphertext) in one step; returns how much that was, and whether the
    /// peer has sent close_notify. Call it with the rest only when [`TlsStream::read`] has no more. What
    /// was said of [`TlsStream::receive`] about errors and closing is true here as well.
    pub fn feed(&mut self, mut input: &[u8]) -> Result<(usize, bool), TlsError> {
        let before = input.len();
        self.connection.read_tls(&mut input).map_err(TlsError::of)?;
        let state = self.connection.process_new_packets().map_err(TlsError::of)?;
        Ok((before - input.len(), state.peer_has_closed()))
    }

    /// Moves decrypted bytes into `out`; 0 when there are none (or `out` is empty).
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        // "Not now" and "closed" both mean that there is nothing.
        self.connection.reader().read(out).unwrap_or(0)
    }

    /// What was decrypted, even when an error follows it in the same bytes. The reader reports "not
    /// now" where there is no more.
    fn drain_plaintext(&mut self, plain: &mut Vec<u8>) {
        let mut reader = self.connection.reader();
        while let Ok(chunk) = reader.fill_buf()
            && !chunk.is_empty()
        {
            let len = chunk.len();
            plain.extend_from_slice(chunk);
            reader.consume(len);
        }
    }

    /// Encrypts `plain`; the ciphertext comes from [`TlsStream::take_output`]. Before the handshake is
    /// over it is kept and sent then. More than `limits::TLS_UNSENT_BYTES` not yet taken is an
    /// error that ends the connection, as is sending after [`TlsStream::close`].
    pub fn send(&mut self, plain: &[u8]) -> Result<(), TlsError> {
        if self.closing {
            return Err(TlsError("nothing can be sent after close_notify".into()));
        }
        let full = |_| TlsError("more waits to be sent than the connection may hold".into());
        self.connection.writer().write_all(plain).map_err(full)
    }

    /// Appends pending ciphertext (handshake, records, alerts) to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a Vec takes every byte");
        }
    }

    /// Whether there is anything for [`TlsStream::take_output`].
    pub fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// True until both sides have proved that they share keys.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the handshake continued an earlier session (RFC 8446 §2.2) instead of a full one.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Queues close_notify.
    pub fn close(&mut self) {
        self.closing = true;
        self.connection.send_close_notify();
    }

    /// Protocol and cipher for events, e.g. `TLSv1.3 TLS_AES_256_GCM_SHA384`; none before the handshake
    /// ends. The cipher has its name in the IANA registry.
    pub fn description(&self) -> Option<String> {
        if self.is_handshaking() {
            return None;
        }
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            other => other.as_str()?,
        };
        let suite = self.connection.negotiated_cipher_suite()?.suite();
        Some(format!("{version} {}", suite.as_str()?.replacen("TLS13_", "TLS_", 1)))
    }

    /// The peer's certificates, its own first, once it has shown any.
    pub(super) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }

    /// The server name the client asked for; none on the client's side.
    pub(super) fn server_name(&self) -> Option<&str> {
        match &self.connection {
            Connection::Server(server) => server.server_name(),
            Connection::Client(_) => None,
        }
    }

    /// Bytes that only the two ends of this connection can compute (RFC 8446 §7.5).
    pub(super) fn export_keying_material(&self, label: &[u8]) -> Option<[u8; 32]> {
        self.connection.export_keying_material([0; 32], label, Some(&[])).ok()
    }
}
