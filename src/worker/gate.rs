//! How many sessions there are, over all workers.
//!
//! Owns: the limits on connections in all and per address (`--max-connections`,
//! `--max-connections-per-ip`). Promises: a place that was given is given back when its guard is
//! dropped, and memory is held only for addresses that are connected. Must not: be asked more than once
//! per connection: it is shared between threads.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::limits;

pub struct Gate {
    max: usize,
    max_per_ip: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
    total: AtomicUsize,
}

/// A place in the gate, given back when dropped.
pub struct Admitted<'a> {
    gate: &'a Gate,
    from: IpAddr,
}

impl Gate {
    pub fn new(max: usize, max_per_ip: usize) -> Arc<Gate> {
        Arc::new(Gate { max, max_per_ip, open: Default::default(), total: Default::default() })
    }

    /// Whether so many places are taken that those who only sit there should go.
    pub fn is_crowded(&self) -> bool {
        self.total.load(Relaxed) * 100 > self.max * limits::CROWDED_PERCENT
    }

    /// A place for one more session from `from`, if the limits allow it. Loopback is exempt from the
    /// limit per address: it is us.
    pub fn admit(&self, from: IpAddr) -> Option<Admitted<'_>> {
        let from = from.to_canonical();
        if self.total.fetch_add(1, Relaxed) >= self.max {
            self.total.fetch_sub(1, Relaxed);
            return None;
        }
        if !from.is_loopback() {
            let mut open = self.open.lock().expect("no thread panics while it holds this lock");
            let count = open.entry(from).or_insert(0);
            if *count >= self.max_per_ip {
                self.total.fetch_sub(1, Relaxed);
                return None;
            }
            *count += 1;
        }
        Some(Admitted { gate: self, from })
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.gate.total.fetch_sub(1, Relaxed);
        if !self.from.is_loopback() {
            let mut open = self.gate.open.lock().expect("no thread panics while it holds this lock");
            if let Some(count) = open.get_mut(&self.from) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&self.from);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_counts_and_forgets() {
        let gate = Gate::new(3, 1);
        let far: IpAddr = "192.0.2.1".parse().expect("an address");
        let near: IpAddr = "127.0.0.1".parse().expect("an address");
        let first = gate.admit(far).expect("the first");
        assert!(gate.admit(far).is_none(), "one per address");
        let _near = (gate.admit(near).expect("loopback"), gate.admit(near).expect("loopback is exempt"));
        assert!(gate.admit(near).is_none(), "three in all");
        assert!(gate.is_crowded());
        drop(first);
        assert!(!gate.is_crowded(), "two of three are not nine in ten");
        assert!(gate.admit(far).is_some());
        assert!(gate.open.lock().expect("not poisoned").is_empty());
    }
}
