//! What a worker counts.
//!
//! Owns: plain counters, one set per worker, touched by its thread alone. Promises: counting costs an
//! addition and shares no cache line with another thread. Must not: be read from another thread except
//! by a call that runs on the worker itself.
use std::cell::{Cell, RefCell};

use hdrhistogram::Histogram;

#[derive(Default)]
pub struct Count(Cell<u64>);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }
    pub fn sub(&self, n: u64) {
        self.0.set(self.0.get().saturating_sub(n));
    }
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Every field's meaning is the one published for the counter of that name in `control::Counters`.
pub struct Counters {
    pub connections: Count,
    pub refused_connections: Count,
    pub sessions_open: Count,
    pub early_talkers: Count,
    pub tls_handshakes: Count,
    pub tls_resumed: Count,
    pub tls_failures: Count,
    pub logins: Count,
    pub failed_logins: Count,
    pub busy_logins: Count,
    pub accepted: Count,
    pub accepted_recipients: Count,
    pub accepted_bytes: Count,
    pub rejected_permanently: Count,
    pub rejected_temporarily: Count,
    pub delivered: Count,
    pub delivered_bytes: Count,
    pub deferred: Count,
    pub failed: Count,
    pub expired: Count,
    pub removed: Count,
    pub bounces: Count,
    pub outbound_total: Count,
    pub connect_failures: Count,
    pub outbound_open: Count,
    pub dns_busy: Count,
    pub damaged: Count,
    /// Microseconds from a group's submission to its completion.
    pub commit_us: RefCell<Histogram<u64>>,
    /// Bytes of a group.
    pub group_bytes: RefCell<Histogram<u64>>,
}

/// Longest value the histograms tell apart; larger ones count as this.
const HIGHEST: u64 = 600_000_000;

impl Default for Counters {
    fn default() -> Counters {
        let histogram =
            || RefCell::new(Histogram::new_with_bounds(1, HIGHEST, 3).expect("the bounds are valid"));
        Counters {
            connections: Count::default(),
            refused_connections: Count::default(),
            sessions_open: Count::default(),
            early_talkers: Count::default(),
            tls_handshakes: Count::default(),
            tls_resumed: Count::default(),
            tls_failures: Count::default(),
            logins: Count::default(),
            failed_logins: Count::default(),
            busy_logins: Count::default(),
            accepted: Count::default(),
            accepted_recipients: Count::default(),
            accepted_bytes: Count::default(),
            rejected_permanently: Count::default(),
            rejected_temporarily: Count::default(),
            delivered: Count::default(),
            delivered_bytes: Count::default(),
            deferred: Count::default(),
            failed: Count::default(),
            expired: Count::default(),
            removed: Count::default(),
            bounces: Count::default(),
            outbound_total: Count::default(),
            connect_failures: Count::default(),
            outbound_open: Count::default(),
            dns_busy: Count::default(),
            damaged: Count::default(),
            commit_us: histogram(),
            group_bytes: histogram(),
        }
    }
}
