//! The loop of the DNS thread.
//!
//! Owns: the lookups in flight and who waits for each. Promises: equal questions in flight cost one
//! lookup; at most `limits::DNS_LOOKUPS` lookups and `limits::DNS_QUEUE` waiting replies are held, and
//! past either the queue fills instead. Must not: know what a lookup does.
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Answer, Query, Reply};
use crate::limits;

/// A question on its way to the thread.
pub(super) struct Asked {
    pub(super) query: Query,
    pub(super) reply: Reply,
}

/// Runs until the queue is closed and everything taken from it is answered. `answer` looks one
/// question up, in bounded time.
pub(super) async fn run<F>(mut queue: mpsc::Receiver<Asked>, answer: impl Fn(Query) -> F)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let mut waiting: HashMap<Query, Vec<Reply>> = HashMap::new();
    let mut replies_held = 0;
    let mut lookups = JoinSet::new();
    let mut open = true;
    loop {
        let room = lookups.len() < limits::DNS_LOOKUPS && replies_held < limits::DNS_QUEUE;
        tokio::select! {
            Some(done) = lookups.join_next(), if !lookups.is_empty() => {
                // A lookup is never cancelled; if it panicked, so does the thread.
                let (query, answer): (Query, Answer) =
                    done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                let answer = Arc::new(answer);
                let replies = waiting.remove(&query).expect("a lookup has someone who waits");
                replies_held -= replies.len();
                for reply in replies {
                    reply(Arc::clone(&answer));
                }
            }
            asked = queue.recv(), if open && room => match asked {
                Some(Asked { query, reply }) => {
                    replies_held += 1;
                    if let Some(others) = waiting.get_mut(&query) {
                        others.push(reply);
                    } else {
                        waiting.insert(query.clone(), vec![reply]);
                        let lookup = answer(query.clone());
                        lookups.spawn(async move { (query, lookup.await) });
                    }
                }
                None => open = false,
            },
            else => return,
        }
    }
}
