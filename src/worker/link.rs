//! An outbound connection as bytes, plain or through TLS.
//!
//! Owns: [`Link`], the socket, the TLS state above it and the bytes read but not yet used. Promises:
//! the session above sees plain bytes only; every wait has the bound the caller gives. Must not: know
//! SMTP.
use std::io;
use std::time::Duration;

use crate::limits;
use crate::ring::{Posted, Stream};
use crate::tls::{ClientTls, TlsStream};

pub struct Link {
    stream: Stream,
    tls: Option<TlsStream>,
    /// Plain bytes; `plain[start..]` is not yet consumed.
    plain: Vec<u8>,
    start: usize,
    /// Ciphertext on its way in or out; empty between calls.
    cipher: Vec<u8>,
    /// A send nobody has waited for, and an empty buffer to write the next into.
    posted: Option<Posted>,
    spare: Vec<u8>,
}

impl Link {
    pub fn new(stream: Stream) -> Link {
        Link {
            stream,
            tls: None,
            plain: Vec::with_capacity(limits::LINK_BUFFER_BYTES),
            start: 0,
            cipher: Vec::new(),
            posted: None,
            spare: Vec::new(),
        }
    }

    pub fn input(&self) -> &[u8] {
        &self.plain[self.start..]
    }

    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.plain.len() {
            self.plain.clear();
            self.start = 0;
        }
    }

    /// Protocol and cipher, once TLS is up.
    pub fn tls_description(&self) -> Option<String> {
        self.tls.as_ref().and_then(TlsStream::description)
    }

    /// Sends all of `out` and clears it.
    pub async fn send(&mut self, out: &mut Vec<u8>, wait: Duration) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        self.settle(wait).await?;
        let Some(tls) = &mut self.tls else {
            let (result, mut buffer) = self.stream.write_all(std::mem::take(out), wait).await;
            buffer.clear();
            *out = buffer;
            return result;
        };
        tls.send(out).map_err(io::Error::other)?;
        out.clear();
        self.send_cipher(wait).await
    }

    /// Has all of `out` sent and clears it, without waiting for it to be taken; that is found out at the
    /// next call, or by a read that fails.
    pub async fn post(&mut self, out: &mut Vec<u8>, wait: Duration) -> io::Result<()> {
        if self.tls.is_some() || out.is_empty() {
            return self.send(out, wait).await;
        }
        self.settle(wait).await?;
        let spare = std::mem::take(&mut self.spare);
        self.posted = Some(self.stream.post(std::mem::replace(out, spare))?);
        Ok(())
    }

    async fn settle(&mut self, wait: Duration) -> io::Result<()> {
        let Some(posted) = self.posted.take() else { return Ok(()) };
        let (result, mut buffer) = posted.settle(wait).await;
        buffer.clear();
        self.spare = buffer;
        result
    }

    async fn send_cipher(&mut self, wait: Duration) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut cipher = std::mem::take(&mut self.cipher);
        tls.take_output(&mut cipher);
        if cipher.is_empty() {
            return Ok(());
        }
        let (result, mut cipher) = self.stream.write_all(cipher, wait).await;
        cipher.clear();
        self.cipher = cipher;
        result
    }

    /// Reads more plain bytes behind what is there. `Ok(0)`: the peer has closed.
    pub async fn receive(&mut self, wait: Duration) -> io::Result<usize> {
        if self.start > 0 {
            self.plain.drain(..self.start);
            self.start = 0;
        }
        if self.tls.is_none() {
            if self.plain.len() == self.plain.capacity() {
                self.plain.reserve(limits::LINK_BUFFER_BYTES);
            }
            let (result, plain) = self.stream.read(std::mem::take(&mut self.plain), wait).await;
            self.plain = plain;
            return result;
        }
        loop {
            let before = self.plain.len();
            if self.receive_cipher(wait).await? == 0 {
                return Ok(0);
            }
            if self.plain.len() > before {
                return Ok(self.plain.len() - before);
            }
        }
    }

    async fn receive_cipher(&mut self, wait: Duration) -> io::Result<usize> {
        let mut cipher = std::mem::take(&mut self.cipher);
        cipher.reserve(limits::LINK_BUFFER_BYTES);
        let (result, mut cipher) = self.stream.read(cipher, wait).await;
        let read = result?;
        let tls = self.tls.as_mut().expect("the caller has looked");
        let received = tls.receive(&cipher, &mut self.plain);
        cipher.clear();
        self.cipher = cipher;
        // Handshake answers and alerts go out whatever came of the input.
        let sent = self.send_cipher(wait).await;
        received.map_err(io::Error::other)?;
        sent?;
        Ok(read)
    }

    /// Does the handshake; what was read in plain text before it is dropped (RFC 3207 §4.2).
    pub async fn start_tls(&mut self, tls: &ClientTls, name: &str, wait: Duration) -> io::Result<()> {
        self.plain.clear();
        self.start = 0;
        self.tls = Some(tls.connect(name).map_err(io::Error::other)?);
        self.send_cipher(wait).await?;
        while self.tls.as_ref().is_some_and(TlsStream::is_handshaking) {
            if self.receive_cipher(wait).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed during the TLS handshake"));
            }
        }
        self.send_cipher(wait).await
    }

    /// Waits until the peer says or closes something. Safe to drop.
    pub async fn readable(&self, wait: Duration) -> io::Result<()> {
        self.stream.readable(wait).await
    }

    pub async fn close(mut self) {
        drop(self.posted.take());
        if let Some(tls) = &mut self.tls {
            tls.close();
            let _ = self.send_cipher(limits::QUIT_WAIT).await;
        }
        self.stream.close().await;
    }
}
