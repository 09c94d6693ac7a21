//! A message in memory.
//!
//! Owns: [`Message`], what deliveries work from, and its share of the memory for bodies read back.
//! Promises: the share is given back when the last user lets go. Must not: be the only copy of anything.
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::ring::Block;
use crate::spool::StoredMessage;

/// A message in memory: envelope and body (trace headers in front) in the stored form.
pub struct Message {
    pub id: MessageId,
    pub envelope: Envelope,
    pub body: Block,
    /// Attempts so far, as far as this process knows.
    pub attempts: Cell<u8>,
    /// The last answer about each recipient that waits, for an operator who asks and for the bounce.
    pub last_replies: RefCell<Vec<(u16, Reply)>>,
    /// What it takes of the memory for bodies read back; none if it never left the memory.
    _loaded: Option<Loaded>,
}

/// A share of [`super::home::HomeConfig::load_bytes`], given back when dropped.
pub struct Loaded {
    bytes: u64,
    total: Rc<Cell<u64>>,
}

impl Loaded {
    /// Takes `bytes` of what `total` counts.
    pub fn new(bytes: u64, total: &Rc<Cell<u64>>) -> Loaded {
        total.set(total.get() + bytes);
        Loaded { bytes, total: total.clone() }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

impl Message {
    /// A message that was read back, after `attempts`.
    pub fn read_back(stored: StoredMessage, attempts: u8, loaded: Loaded) -> Rc<Message> {
        Rc::new(Message {
            id: stored.id,
            envelope: stored.envelope,
            body: stored.body.into(),
            attempts: Cell::new(attempts),
            last_replies: RefCell::default(),
            _loaded: Some(loaded),
        })
    }

    pub fn new(id: MessageId, envelope: Envelope, body: Block) -> Rc<Message> {
        Rc::new(Message {
            id,
            envelope,
            body,
            attempts: Cell::new(0),
            last_replies: RefCell::default(),
            _loaded: None,
        })
    }

    /// Keeps what was last said of recipients that are tried again.
    pub fn remember(&self, replies: &[(u16, Reply)]) {
        let mut last = self.last_replies.borrow_mut();
        last.retain(|(known, _)| !replies.iter().any(|(r, _)| r == known));
        last.extend(replies.iter().cloned());
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the message is gone")]
    Gone,
    #[error("the message has a field this version does not understand; it is held")]
    Held,
    #[error("reading the segment failed: {0}")]
    Io(std::io::ErrorKind),
    #[error("the stored message is damaged: {0}")]
    Damaged(String),
}
