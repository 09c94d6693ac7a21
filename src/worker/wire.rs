//! An inbound connection as bytes, plain or through TLS.
//!
//! Owns: [`Wire`], the socket and the TLS state above it. Promises: the session above sees plain bytes
//! only; without TLS a read or write is the socket's own, with nothing added to it; with TLS no more is
//! decrypted than there is room for; every wait has the bound the caller gives. Must not: know SMTP.
use std::io;
use std::time::{Duration, Instant};

use crate::limits;
use crate::ring::{AlignedBuf, Posted, Stream};
use crate::tls::{self, ServerTls, TlsStream};

pub struct Wire {
    stream: Stream,
    tls: Option<Box<Layer>>,
    /// A send nobody has waited for.
    posted: Option<Posted>,
}

/// TLS above the socket.
struct Layer {
    tls: TlsStream,
    /// Ciphertext that was read; `cipher[start..]` is not yet decrypted.
    cipher: Vec<u8>,
    start: usize,
    /// The last read filled its buffer: more comes than commands.
    busy: bool,
    /// The peer has said that nothing follows.
    closed: bool,
}

impl Wire {
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, tls: None, posted: None }
    }

    /// As [`Stream::read`], of plain bytes.
    pub async fn read(&mut self, buf: Vec<u8>, wait: Duration) -> (io::Result<usize>, Vec<u8>) {
        let Some(layer) = &mut self.tls else { return self.stream.read(buf, wait).await };
        let mut buf = buf;
        let start = buf.len();
        buf.resize(buf.capacity(), 0);
        let result = Box::pin(layer.read(&self.stream, &mut buf[start..], wait)).await;
        buf.truncate(start + result.as_ref().map_or(0, |read| *read));
        (result, buf)
    }

    /// As [`Stream::read_aligned`], of plain bytes.
    pub async fn read_aligned(
        &mut self,
        buf: AlignedBuf,
        from: usize,
        wait: Duration,
    ) -> (io::Result<usize>, AlignedBuf) {
        let Some(layer) = &mut self.tls else { return self.stream.read_aligned(buf, from, wait).await };
        let mut buf = buf;
        let result = Box::pin(layer.read(&self.stream, &mut buf[from..], wait)).await;
        (result, buf)
    }

    /// Has all of `buf` sent, without waiting for it to be taken where there is no TLS: that is found out at the
    /// next call. Gives back a buffer for the next bytes, which may hold old ones.
    pub async fn post(&mut self, buf: Vec<u8>, wait: Duration) -> (io::Result<()>, Vec<u8>) {
        if self.tls.is_some() {
            return self.write_all(buf, wait).await;
        }
        let (settled, spare) = self.settle(wait).await;
        if settled.is_err() {
            return (settled, spare);
        }
        match self.stream.post(buf) {
            Ok(posted) => {
                self.posted = Some(posted);
                (Ok(()), spare)
            }
            Err(error) => (Err(error), spare),
        }
    }

    /// Waits for what was posted; gives its buffer back.
    pub async fn settle(&mut self, wait: Duration) -> (io::Result<()>, Vec<u8>) {
        match self.posted.take() {
            Some(posted) => posted.settle(wait).await,
            None => (Ok(()), Vec::new()),
        }
    }

    /// As [`Stream::write_all`].
    pub async fn write_all(&mut self, buf: Vec<u8>, wait: Duration) -> (io::Result<()>, Vec<u8>) {
        let (settled, _) = self.settle(wait).await;
        if settled.is_err() {
            return (settled, buf);
        }
        let Some(layer) = &mut self.tls else { return self.stream.write_all(buf, wait).await };
        let result = match layer.tls.send(&buf) {
            Ok(()) => Box::pin(layer.flush(&self.stream, wait)).await,
            Err(error) => Err(io::Error::other(error)),
        };
        (result, buf)
    }

    /// Waits for the peer to send or close something, with no buffer tied up.
    pub async fn readable(&mut self, wait: Duration) -> io::Result<()> {
        if let Some(layer) = &mut self.tls {
            if layer.closed || layer.start < layer.cipher.len() {
                return Ok(());
            }
            layer.cipher = Vec::new();
            layer.start = 0;
        }
        self.stream.readable(wait).await
    }

    /// Does the server's side of the handshake, all of it within `wait`. `early` is what was read of it.
    pub async fn start_tls(
        &mut self,
        config: &ServerTls,
        early: Vec<u8>,
        wait: Duration,
    ) -> io::Result<tls::Session> {
        self.settle(wait).await.0?;
        let deadline = Instant::now() + wait;
        let tls = config.accept().map_err(io::Error::other)?;
        let mut layer = Layer { tls, cipher: early, start: 0, busy: false, closed: false };
        while layer.tls.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            layer.receive(&self.stream, left).await?;
            // One that says something and closes right behind its handshake is heard.
            if layer.closed && layer.tls.is_handshaking() {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the client closed during the handshake",
                ));
            }
        }
        layer.flush(&self.stream, limits::REPLY_WRITE_WAIT).await?;
        let session =
            config.session(&layer.tls).ok_or_else(|| io::Error::other("the handshake has no end"))?;
        self.tls = Some(Box::new(layer));
        Ok(session)
    }

    /// Tells the peer that nothing more will be said (close_notify), if there is TLS to say it in.
    pub async fn end(&mut self) {
        // Whether the peer took the last of it makes no difference any more; the send goes on.
        drop(self.posted.take());
        if let Some(layer) = &mut self.tls {
            layer.tls.close();
            // The connection is closed next, whether the peer still takes this or not.
            let _ = layer.flush(&self.stream, limits::GOODBYE_WAIT).await;
        }
    }
}

impl Layer {
    /// Fills `out` with what is decrypted, or waits for more. 0 at the end.
    async fn read(&mut self, stream: &Stream, out: &mut [u8], wait: Duration) -> io::Result<usize> {
        loop {
            let read = self.tls.read(out);
            if read > 0 || self.closed {
                return Ok(read);
            }
            self.receive(stream, wait).await?;
        }
    }

    /// Decrypts a step further; reads from the socket where nothing is left. Call it only when all that
    /// was decrypted has been taken.
    async fn receive(&mut self, stream: &Stream, wait: Duration) -> io::Result<()> {
        if self.start == self.cipher.len() {
            self.start = 0;
            self.cipher.clear();
            let room = if self.busy { limits::TLS_READ_BYTES } else { limits::TLS_IDLE_READ_BYTES };
            if self.cipher.capacity() > room {
                self.cipher = Vec::new();
            }
            self.cipher.reserve_exact(room);
            let (result, cipher) = stream.read(std::mem::take(&mut self.cipher), wait).await;
            self.cipher = cipher;
            let read = result?;
            self.busy = read == self.cipher.capacity();
            if read == 0 {
                self.closed = true;
                return Ok(());
            }
        }
        let fed = self.tls.feed(&self.cipher[self.start..]);
        // Handshake answers and alerts go out whatever came of the input.
        let sent = self.flush(stream, limits::REPLY_WRITE_WAIT).await;
        let (taken, closed) = fed.map_err(io::Error::other)?;
        // A write that timed out is no silence: what was cut off cannot be mended.
        sent.map_err(io::Error::other)?;
        self.start += taken;
        self.closed = closed;
        Ok(())
    }

    async fn flush(&mut self, stream: &Stream, wait: Duration) -> io::Result<()> {
        if !self.tls.has_output() {
            return Ok(());
        }
        let mut out = Vec::new();
        self.tls.take_output(&mut out);
        stream.write_all(out, wait).await.0
    }
}
