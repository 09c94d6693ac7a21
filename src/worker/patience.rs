//! How long a client may take.
//!
//! Owns: [`Patience`], the deadline of what the session waits for. Promises: silence and a trickle both end:
//! a command has its wait from the first byte to its end, however its bytes are spread, and a body has to
//! come at a least rate in all (RFC 5321 §4.5.3.2). Pure: time comes in. Must not: know sockets or replies.
use std::time::Duration;

use crate::clock::Tick;
use crate::limits;

/// The waits that hold for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// For a whole command.
    pub command: Duration,
    /// For the next bytes of a body.
    pub data: Duration,
}

/// What a session waits for, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    waits: Waits,
    since: Tick,
    /// Bytes of the body since then, while one comes.
    body_bytes: Option<u64>,
}

impl Patience {
    /// Waits for a command from now on.
    pub fn new(waits: Waits, now: Tick) -> Patience {
        Patience { waits, since: now, body_bytes: None }
    }

    /// The client has done something whole: a command was answered, or a message.
    pub fn renew(&mut self, now: Tick) {
        (self.since, self.body_bytes) = (now, None);
    }

    /// So many bytes more of a body have come, refused or not.
    pub fn body(&mut self, bytes: usize, now: Tick) {
        match &mut self.body_bytes {
            Some(all) => {
                *all += bytes as u64;
                // What was earned in one wait is not kept for a trickle later.
                if *all >= limits::LEAST_BODY_BYTES_PER_SEC * self.waits.data.as_secs().max(1) {
                    (self.since, *all) = (now, 0);
                }
            }
            None => (self.since, self.body_bytes) = (now, Some(bytes as u64)),
        }
    }

    /// The client was kept waiting for so long: that is not held against it.
    pub fn forgive(&mut self, waited: Duration) {
        self.since = self.since.saturating_add(waited);
    }

    /// How long the client may be silent now; zero where its time is over.
    pub fn left(&self, now: Tick) -> Duration {
        let (silence, all) = match self.body_bytes {
            None => (self.waits.command, self.waits.command),
            Some(bytes) => {
                let earned = Duration::from_secs(bytes / limits::LEAST_BODY_BYTES_PER_SEC);
                (self.waits.data, self.waits.data.saturating_add(earned))
            }
        };
        silence.min(all.saturating_sub(now.since(self.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { command: Duration::from_secs(300), data: Duration::from_secs(180) };

    fn at(sec: u64) -> Tick {
        Tick(sec * 1_000_000)
    }

    #[test]
    fn a_trickle_of_a_command_is_no_progress() {
        let mut patience = Patience::new(WAITS, at(10));
        assert_eq!(patience.left(at(10)).as_secs(), 300);
        assert_eq!(patience.left(at(250)).as_secs(), 60);
        assert_eq!(patience.left(at(310)), Duration::ZERO);
        patience.forgive(Duration::from_secs(5));
        assert_eq!(patience.left(at(310)).as_secs(), 5);
        patience.renew(at(311));
        assert_eq!(patience.left(at(312)).as_secs(), 299);
    }

    #[test]
    fn a_body_must_come_at_a_least_rate() {
        let rate = limits::LEAST_BODY_BYTES_PER_SEC;
        let mut patience = Patience::new(WAITS, at(0));
        // The wait of the body begins with it, not with the command before.
        patience.body(0, at(250));
        assert_eq!(patience.left(at(300)).as_secs(), 130);
        // A byte now and then earns nothing.
        (1..100).for_each(|n| patience.body(1, at(300 + n)));
        assert_eq!(patience.left(at(430)), Duration::ZERO);
        // A hundred seconds' worth earn a hundred seconds.
        let mut patience = Patience::new(WAITS, at(0));
        patience.body(100 * rate as usize, at(0));
        assert_eq!(patience.left(at(270)).as_secs(), 10);
        // However much has come, silence is no longer than the wait for a block.
        patience.body(1_000_000 * rate as usize, at(280));
        assert_eq!(patience.left(at(280)).as_secs(), 180);
        (281..400).for_each(|n| patience.body(1, at(n)));
        assert_eq!(patience.left(at(460)), Duration::ZERO, "a burst does not pay for a trickle");
        patience.renew(at(300));
        assert_eq!(patience.left(at(300)).as_secs(), 300);
    }
}
