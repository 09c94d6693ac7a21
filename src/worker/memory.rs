//! `--memory-limit`: what is given back, and at last refused, when memory runs short.
//!
//! Owns: the look at the process's resident memory and what follows from it. Promises: bodies kept for
//! delivery are given back first, and only when none is left is new mail refused (452); what was accepted
//! is not touched. Buffers are bounded beforehand, by shares of the limit. Must not: count allocations.
use std::rc::Rc;

use super::Worker;
use crate::limits;
use crate::ring;

/// How the memory in use stands to the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pressure {
    None,
    /// Give back what can be read again.
    Tight,
    /// Take nothing more.
    Full,
}

fn pressure(resident: u64, limit: u64) -> Pressure {
    let tight = limit / 100 * limits::MEMORY_TIGHT_PERCENT;
    match resident {
        r if r >= limit => Pressure::Full,
        r if r >= tight => Pressure::Tight,
        _ => Pressure::None,
    }
}

/// A part of the limit, between bounds: of a buffer pool, say.
pub fn share(limit: u64, parts: u64, least: u64, most: u64) -> u64 {
    (limit / parts).clamp(least, most)
}

impl Worker {
    /// The task that keeps the worker within its part of the memory.
    pub(super) async fn run_memory(self: Rc<Self>) {
        let mut collected = ring::now();
        loop {
            ring::sleep(limits::MEMORY_CHECK_WAIT).await;
            self.bodies.trim();
            if ring::now().since(collected) >= limits::HEAP_COLLECT_WAIT {
                ring::collect_heap();
                collected = ring::now();
            }
            self.mind_memory(ring::resident_bytes());
        }
    }

    fn mind_memory(&self, resident: u64) {
        let pressure = pressure(resident, self.shared.config.memory_limit_bytes);
        let had_bodies = self.own_homes().any(|home| home.cached_bytes() > 0);
        for home in self.own_homes() {
            match pressure {
                Pressure::None => home.limit_cache(home.config.cache_bytes),
                // In steps: the allocator needs a moment to give it back.
                Pressure::Tight => home.limit_cache(home.cached_bytes() as usize / 2),
                Pressure::Full => home.limit_cache(0),
            }
        }
        // The allocator gives back what was freed a moment later: one look proves nothing.
        let full = if pressure == Pressure::Full && !had_bodies { self.memory_full.get() + 1 } else { 0 };
        self.memory_full.set(full);
        let short = full >= limits::MEMORY_FULL_LOOKS;
        if short != self.memory_short.replace(short) {
            let limit = self.shared.config.memory_limit_bytes;
            if short {
                tracing::warn!(resident, limit, "--memory-limit is reached: new mail is refused for now");
            } else {
                tracing::info!(resident, limit, "there is memory again: new mail is taken");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_go_before_mail_is_refused() {
        for (resident, wanted) in [
            (0, Pressure::None),
            (849, Pressure::None),
            (850, Pressure::Tight),
            (999, Pressure::Tight),
            (1000, Pressure::Full),
            (u64::MAX, Pressure::Full),
        ] {
            assert_eq!(pressure(resident, 1000), wanted, "{resident}");
        }
    }

    #[test]
    fn shares_stay_within_their_bounds() {
        assert_eq!(
            (share(1000, 4, 10, 500), share(1000, 4, 300, 500), share(1000, 4, 10, 200)),
            (250, 300, 200)
        );
    }
}
