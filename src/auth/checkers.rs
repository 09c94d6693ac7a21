//! The threads that compute password hashes.
//!
//! Owns: a few threads and their bounded queue. Promises: whoever asks never waits to be let in; a storm of
//! logins takes these threads and no other, and what does not fit in the queue is refused at once. Must
//! not: run anything but password checks.
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use tokio::sync::oneshot;

use super::exchange::Attempt;
use super::users::User;
use crate::limits;

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

struct Job {
    attempt: Attempt,
    tell: oneshot::Sender<Option<Arc<User>>>,
}

/// Clones share the threads, which end with the last of them.
#[derive(Clone)]
pub struct Checkers(Sender<Job>);

impl Checkers {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Checkers> {
        let (sender, jobs) = bounded::<Job>(limits::AUTH_QUEUE);
        for n in 0..limits::AUTH_THREADS {
            let jobs = jobs.clone();
            std::thread::Builder::new().name(format!("auth-{n}")).spawn(move || {
                for job in jobs {
                    // Nobody to answer any more: its client has gone. What it cost is saved.
                    if !job.tell.is_closed() {
                        let _ = job.tell.send(job.attempt.check());
                    }
                }
            })?;
        }
        Ok(Checkers(sender))
    }

    /// The user, if the password is right.
    pub async fn check(&self, attempt: Attempt) -> Result<Option<Arc<User>>, Busy> {
        let (tell, told) = oneshot::channel();
        self.0.try_send(Job { attempt, tell }).map_err(|_| Busy)?;
        told.await.map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::users::tests::{SCRAM, users};
    use super::super::{Bindings, Exchange, Mechanism, Next};
    use super::*;

    fn attempt(message: &[u8]) -> Attempt {
        let users = Arc::new(users(&format!("user:{SCRAM} from=*")).unwrap());
        match Exchange::new(Mechanism::Plain, users, Bindings::default()).begin(Some(message)) {
            Next::Check(attempt) => attempt,
            _ => panic!("PLAIN asks for a check"),
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn passwords_are_checked_elsewhere() {
        let checkers = Checkers::start().unwrap();
        let name = |message: &'static [u8]| {
            let checked = runtime().block_on(checkers.check(attempt(message))).unwrap();
            checked.map(|user| user.name.to_string())
        };
        assert_eq!(name(b"\0user\0pencil").as_deref(), Some("user"));
        assert_eq!(name(b"\0user\0pen"), None);
        assert_eq!(name(b"\0stranger\0pencil"), None);
    }

    #[test]
    fn a_full_queue_refuses_at_once() {
        let (sender, jobs) = bounded(1);
        let checkers = Checkers(sender);
        let (tell, _told) = oneshot::channel();
        checkers.0.try_send(Job { attempt: attempt(b"\0user\0pencil"), tell }).map_err(drop).unwrap();
        let busy = runtime().block_on(checkers.check(attempt(b"\0user\0pencil"))).err();
        assert_eq!(busy, Some(Busy));
        drop(jobs);
        assert!(runtime().block_on(checkers.check(attempt(b"\0user\0pencil"))).is_err());
    }
}
