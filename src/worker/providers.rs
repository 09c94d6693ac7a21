//! Which provider runs a destination's mail, as DNS has last said.
//!
//! Owns: [`Providers`], shared by all workers. Promises: bounded (`limits::PROVIDERS_KNOWN`): when it is
//! full all is forgotten and learnt again. Must not: ask DNS.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits;
use crate::mail::address::Domain;

/// The provider of each destination that has one.
#[derive(Default)]
pub struct Providers {
    table: Mutex<HashMap<Domain, u16>>,
}

impl Providers {
    fn table(&self) -> MutexGuard<'_, HashMap<Domain, u16>> {
        // A panic elsewhere ends the process, so the lock cannot be poisoned.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the destination's provider; 0: none that is known.
    pub fn get(&self, destination: &Domain) -> u16 {
        self.table().get(destination).copied().unwrap_or(0)
    }

    /// DNS has said who it is. True if that is news.
    pub fn learn(&self, destination: &Domain, provider: u16) -> bool {
        let mut table = self.table();
        let known = table.get(destination).copied().unwrap_or(0);
        if known == provider {
            return false;
        }
        if table.len() >= limits::PROVIDERS_KNOWN {
            table.clear();
        }
        match provider {
            0 => drop(table.remove(destination)),
            _ => drop(table.insert(destination.clone(), provider)),
        }
        true
    }

    /// Providers have other numbers now.
    pub fn forget(&self) {
        self.table().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_is_news_once() {
        let domain = |name: &str| Domain::parse(name.as_bytes()).expect("a domain");
        let (a, providers) = (domain("a.test"), Providers::default());
        for (provider, news) in [(0, false), (3, true), (3, false), (4, true), (0, true), (0, false)] {
            assert_eq!(providers.learn(&a, provider), news, "{provider}");
            assert_eq!(providers.get(&a), provider);
        }
        for n in 0..limits::PROVIDERS_KNOWN + 5 {
            assert!(providers.learn(&domain(&format!("d{n}.test")), 1));
            assert!(providers.table().len() <= limits::PROVIDERS_KNOWN);
        }
        providers.forget();
        assert_eq!(providers.get(&domain("d100004.test")), 0);
    }
}
