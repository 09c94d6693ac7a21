//! What workers say to each other, and the outboxes it waits in.
//!
//! Owns: [`Post`] and [`Outboxes`]. Promises: a send never blocks; posts to one worker arrive in the
//! order they were sent; what cannot be handed over at once waits in the outbox, whose growth is
//! bounded by the callers: mail is only accepted while [`Outboxes::has_room`], and answers exist only
//! for work that was handed out. Must not: interpret a post.
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use super::signal::Signal;
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::reply::Reply;
use crate::ring::MailboxSender;
use crate::schedule::{Action, ConnId, Entry, Policies, PoolMessage, SourceSet, Verdict, Waiting};

/// An event for a shard, owned, so that it can cross threads.
#[derive(Debug)]
pub enum ShardEvent {
    Enqueue {
        destination: Domain,
        entry: Entry,
        waiting: Waiting,
    },
    Want {
        conn: ConnId,
        room: u8,
    },
    Finished {
        conn: ConnId,
        entry: Entry,
        verdict: Verdict,
    },
    Deferred {
        conn: ConnId,
        entry: Entry,
        recipients_left: u16,
        verdict: Verdict,
    },
    Returned {
        conn: ConnId,
        entry: Entry,
    },
    ConnectFailed {
        conn: ConnId,
        permanent: bool,
        verdict: Verdict,
        why: Arc<Reply>,
    },
    ConnectPutOff {
        conn: ConnId,
    },
    Closed {
        conn: ConnId,
    },
    Retry {
        destination: Option<Domain>,
    },
    Suspend {
        destination: Domain,
        until: Option<WallTime>,
    },
    Resume {
        destination: Domain,
    },
    Policies(Arc<Policies>),
    /// The hosts of a connection are found.
    Resolved {
        conn: ConnId,
        hosts: Option<u64>,
        provider: u16,
        sources: Option<SourceSet>,
    },
    /// From another shard.
    Pool(PoolMessage),
    Learnt {
        destination: Domain,
    },
}

/// Runs on the worker that receives it.
pub type Call = Box<dyn FnOnce(&Rc<Worker>) + Send>;

/// One thing said to a worker.
pub enum Post {
    /// For the receiver's shard.
    Shard(ShardEvent),
    /// From shard `shard`, for one of the receiver's homes.
    Action { shard: u8, action: Action, why: Option<Arc<Reply>> },
    /// From the control plane: runs on the worker.
    Call(Call),
    /// A write to the spool failed on the sender.
    Fault,
    /// Stop accepting, finish what is in flight.
    Drain,
    /// Leave now; what is in flight is dropped and found again by recovery.
    Stop,
}

/// Posts of one turn, handed over together.
pub type Batch = Vec<Post>;

/// One outbox per worker; the own one is not used.
pub struct Outboxes {
    boxes: Vec<RefCell<Batch>>,
    senders: Vec<MailboxSender<Batch>>,
    pub flush: Signal,
}

impl Outboxes {
    pub fn new(senders: Vec<MailboxSender<Batch>>) -> Outboxes {
        let boxes = senders.iter().map(|_| RefCell::default()).collect();
        Outboxes { boxes, senders, flush: Signal::default() }
    }

    pub fn push(&self, to: usize, post: Post) {
        self.boxes[to].borrow_mut().push(post);
        self.flush.raise();
    }

    /// Whether new mail may add to the outboxes.
    pub fn has_room(&self) -> bool {
        self.boxes.iter().all(|b| b.borrow().len() < limits::OUTBOX_POSTS)
    }

    /// Whether what was handed over is being worked off: no mailbox is more than a little filled.
    pub fn are_light(&self) -> bool {
        self.senders.iter().all(|sender| sender.len() <= limits::REQUEUE_BACKLOG)
    }

    /// Whether nothing waits to be handed over.
    pub fn is_empty(&self) -> bool {
        self.boxes.iter().all(|b| b.borrow().is_empty())
    }

    /// Hands over what waits; false if a mailbox was full and some of it still waits.
    pub fn flush_now(&self) -> bool {
        let mut all = true;
        for (outbox, sender) in self.boxes.iter().zip(&self.senders) {
            if outbox.borrow().is_empty() {
                continue;
            }
            // The next turn's is about as large.
            let room = outbox.borrow().len();
            let batch = outbox.replace(Vec::with_capacity(room));
            if let Err(refused) = sender.try_send(batch) {
                *outbox.borrow_mut() = refused;
                all = false;
            }
        }
        all
    }
}
