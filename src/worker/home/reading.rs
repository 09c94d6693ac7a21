//! Reading a message back: from memory while it is there, else from its segments.
//!
//! Owns: the cache as others see it, loads in flight and their bound, what happens to a message that
//! cannot be read. Promises: a message read back is verified before its first byte is used; many
//! deliveries of one message share a single copy. Must not: write but through the log.
use std::path::PathBuf;
use std::rc::Rc;

use super::Home;
use crate::limits;
use crate::ring;
use crate::spool::{ReadError, ReadPlan, RecipientState, Refusal, Slot, StoredMessage, decode_message};
use crate::worker::message::{LoadError, Loaded, Message};
use crate::worker::quarantine::Piece;

impl Home {
    /// Keeps the message in memory while there is room, so that it need not be read back.
    pub fn keep(&self, slot: Slot, message: Rc<Message>) {
        self.cache.borrow_mut().insert(slot, message);
    }

    /// The message in the slot, if it is in memory. A slot changes hands: what another message left there
    /// is not it.
    pub fn cached(&self, slot: Slot) -> Option<Rc<Message>> {
        let id = self.log.borrow().live().get(slot)?.id;
        let loaded = || self.loaded.borrow().get(&slot)?.upgrade();
        self.cache.borrow().get(slot).filter(|m| m.id == id).or_else(|| loaded().filter(|m| m.id == id))
    }

    /// See [`Cache::limit`].
    pub fn limit_cache(&self, bytes: usize) {
        self.cache.borrow_mut().limit(bytes);
    }

    pub fn cached_bytes(&self) -> u64 {
        self.cache.borrow().bytes() as u64
    }

    /// The message, from memory or from its segment.
    pub async fn load(self: &Rc<Self>, slot: Slot) -> Result<Rc<Message>, LoadError> {
        // Many bodies read back at once must not fill the memory: those above the bound wait until others
        // have been sent, or until somebody else has read the same one.
        loop {
            if let Some(message) = self.cached(slot) {
                return Ok(message);
            }
            if self.loading_bytes.get() < self.config.load_bytes {
                break;
            }
            ring::sleep(limits::BODY_LOAD_WAIT).await;
        }
        let (stored, held) = match self.read(slot).await {
            Ok(read) => read,
            Err(ReadError::Gone) => return Err(LoadError::Gone),
            Err(ReadError::Io(kind)) => return Err(LoadError::Io(kind)),
            Err(error @ ReadError::Damaged(_)) => {
                self.give_up(slot).await;
                return Err(LoadError::Damaged(error.to_string()));
            }
        };
        let attempts = match self.log.borrow().live().state(slot, 0) {
            Some(RecipientState::Pending { tries, .. }) => tries.attempts(),
            _ => 0,
        };
        if stored.hold.is_some() {
            return Err(LoadError::Held);
        }
        let message = Message::read_back(stored, attempts, held);
        let mut loaded = self.loaded.borrow_mut();
        if loaded.len() >= 2 * limits::OUTBOUND_CONNECTIONS_PER_WORKER {
            loaded.retain(|_, message| message.strong_count() > 0);
        }
        loaded.insert(slot, Rc::downgrade(&message));
        Ok(message)
    }

    /// Reads a message back and verifies it.
    async fn read(self: &Rc<Self>, slot: Slot) -> Result<(StoredMessage, Loaded), ReadError> {
        let plan = self.log.borrow_mut().pin(slot).ok_or(ReadError::Gone)?;
        let bytes: u64 = plan.extents.iter().map(|e| u64::from(e.bytes)).sum();
        let held = Loaded::new(bytes, &self.loading_bytes);
        let result = self.read_plan(&plan).await;
        self.log.borrow_mut().unpin(&plan);
        Ok((result?, held))
    }

    async fn read_plan(&self, plan: &ReadPlan) -> Result<StoredMessage, ReadError> {
        let whole = self.log.borrow().live().is_durable(plan.slot);
        let mut extents = Vec::with_capacity(plan.extents.len());
        for extent in &plan.extents {
            let file = self.files.borrow().get(&extent.file).cloned().ok_or(ReadError::Gone)?;
            let bytes = file
                .read_exact_at(extent.offset.into(), extent.bytes as usize)
                .await
                .map_err(|e| ReadError::Io(e.kind()))?;
            extents.push(bytes);
        }
        let slices: Vec<&[u8]> = extents.iter().map(|e| &**e).collect();
        let decoded = decode_message(plan, &slices, self.config.identity);
        match &decoded {
            // It was still being written: nothing is damaged.
            Err(ReadError::Damaged(_)) if !whole => return Err(ReadError::Gone),
            Err(error @ ReadError::Damaged(_)) => self.set_aside(plan, &slices, error).await,
            _ => {}
        }
        decoded
    }

    /// Keeps the bytes of a message that does not fit its checksums.
    async fn set_aside(&self, plan: &ReadPlan, extents: &[&[u8]], error: &ReadError) {
        self.counters.damaged.add(1);
        let mut why = format!("message {}: {error}; its extents:", plan.id);
        for extent in &plan.extents {
            why += &format!("\nsegment {} byte {}, {} bytes", extent.file.0, extent.offset, extent.bytes);
        }
        let Some(spool) = self.config.dir.parent().map(PathBuf::from) else { return };
        let piece = Piece { log: plan.id.log(), name: plan.id.to_string(), why, bytes: extents.concat() };
        ring::blocking(move || piece.save(&spool)).await;
    }

    /// Records that a message is damaged and ends it, as soon as the log takes the record.
    async fn give_up(&self, slot: Slot) {
        let Some(id) = self.log.borrow().live().get(slot).map(|m| m.id) else { return };
        while self.log.borrow().live().get(slot).is_some_and(|m| m.id == id && m.pending > 0) {
            let appended = self.log.borrow_mut().quarantine(slot, self.clock.now());
            match appended {
                Ok(group) => {
                    group.into_iter().for_each(|group| self.appended(group));
                    tracing::error!(%id, "a queued message is damaged and cannot be delivered: it is quarantined");
                }
                Err(Refusal::Busy) => self.progress.wait().await,
                // It stays queued, and is found again.
                Err(Refusal::NoRoom | Refusal::Unwritable) => return,
            }
        }
    }

    /// Answers the log's wish to copy a message forward.
    pub(super) async fn copy(self: &Rc<Self>, slot: Slot) {
        let read = self.read(slot).await.map(|(stored, _)| stored);
        self.log.borrow_mut().on_copy_read(slot, read);
        let mut damaged = Vec::new();
        self.log.borrow_mut().take_quarantined(&mut damaged);
        for id in damaged {
            tracing::error!(%id, "a message was found damaged on disk and is quarantined");
        }
        self.commit.raise();
        self.pump();
    }
}
