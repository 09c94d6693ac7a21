//! One connection of the source, in either protocol.
//!
//! Owns: the choice between SMTP and HTTP, which is one for a whole run. Promises: the thread that has the
//! sockets sees no difference. Must not: know either.
use crate::load::desk::Desk;
use crate::load::http::HttpSession;
use crate::load::session::{Ending, Outgoing, Session};

/// The state of a connection.
pub enum Talk {
    Smtp(Box<Session>),
    Http(HttpSession),
}

impl Talk {
    /// One that is not open.
    pub fn new(is_http: bool) -> Talk {
        if is_http { Talk::Http(HttpSession::default()) } else { Talk::Smtp(Box::new(Session::new())) }
    }
    /// See [`Session::open`].
    pub fn open(&mut self, now_us: u64, is_encrypted: bool) {
        match self {
            Talk::Smtp(session) => session.open(now_us, is_encrypted),
            Talk::Http(session) => session.open(now_us),
        }
    }
    /// The socket is connected. In SMTP the server speaks first.
    pub fn connected(&mut self, now_us: u64, desk: &mut Desk) {
        if let Talk::Http(session) = self {
            session.connected(now_us, desk);
        }
    }
    /// See [`Session::is_idle`].
    pub fn is_idle(&self) -> bool {
        match self {
            Talk::Smtp(session) => session.is_idle(),
            Talk::Http(session) => session.is_idle(),
        }
    }
    /// Nothing would be missing if the server closed the connection.
    pub fn is_leaving(&self) -> bool {
        match self {
            Talk::Smtp(session) => session.is_leaving(),
            Talk::Http(session) => session.is_idle() || session.is_over(),
        }
    }
    /// The connection is to be closed from this side.
    pub fn is_over(&self) -> bool {
        matches!(self, Talk::Http(session) if session.is_over())
    }
    /// See [`Session::feed`].
    pub fn feed(&mut self, input: &[u8], now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        match self {
            Talk::Smtp(session) => session.feed(input, now_us, desk),
            Talk::Http(session) => session.feed(input, now_us, desk),
        }
    }
    /// See [`Session::begin`].
    pub fn begin(&mut self, now_us: u64, desk: &mut Desk) {
        match self {
            Talk::Smtp(session) => session.begin(now_us, desk),
            Talk::Http(session) => session.begin(now_us, desk),
        }
    }
    /// See [`Session::end`].
    pub fn end(&mut self, now_us: u64, desk: &mut Desk) {
        match self {
            Talk::Smtp(session) => session.end(now_us, desk),
            Talk::Http(session) => session.end(now_us, desk),
        }
    }
    /// What is to be written.
    pub fn out(&mut self) -> &mut Outgoing {
        match self {
            Talk::Smtp(session) => &mut session.out,
            Talk::Http(session) => &mut session.out,
        }
    }
    /// See [`Session::was_fruitful`].
    pub fn was_fruitful(&self) -> bool {
        match self {
            Talk::Smtp(session) => session.was_fruitful,
            Talk::Http(session) => session.was_fruitful,
        }
    }
    /// Whether a TLS handshake is to begin now; says so once.
    pub fn takes_up_tls(&mut self) -> bool {
        match self {
            Talk::Smtp(session) => std::mem::take(&mut session.begins_tls),
            Talk::Http(_) => false,
        }
    }
}
