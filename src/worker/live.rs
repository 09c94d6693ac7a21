//! The part of the configuration that may change while the server runs.
//!
//! Owns: [`Live`], what is in force on a worker, and what SIGHUP does to it. Promises: a configuration that
//! is wrong changes nothing and is complained of; what needs a new start to change is named. Must not:
//! open or close listeners, logs or the spool.
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::policies::policies;
use super::post::{Batch, Post};
use crate::config::{Config, Problem};
use crate::limits;
use crate::ring::MailboxSender;
use crate::schedule::{Event, Policies, RuleSet};

/// Makes the configuration anew, from the same flags, environment and file.
pub type Reread = dyn Fn() -> Result<Config, Vec<Problem>>;

/// What is in force on a worker.
pub struct Live {
    /// Of it counts what [`fixed`] does not name.
    pub config: Config,
    pub policies: Arc<Policies>,
    /// The longest pause between two attempts that any policy knows.
    pub longest_retry: Duration,
    /// What follows from a receiver's refusals.
    pub rules: RuleSet,
    /// Streams whose mail is urgent.
    transactional: HashSet<Box<str>>,
}

impl Live {
    pub fn new(config: Config, policies: Arc<Policies>) -> Rc<Live> {
        let pauses = policies.list.iter().flat_map(|policy| &policy.retry_schedule);
        let longest_retry = pauses.max().copied().unwrap_or_default();
        let rules = RuleSet::new(config.rules.replies().to_vec());
        let sections = config.rules.streams().iter().filter(|section| section.transactional);
        let named = config.transactional_streams.iter().chain(sections.map(|section| &section.name));
        let transactional = named.map(|name| name.as_str().into()).collect();
        Rc::new(Live { config, policies, longest_retry, rules, transactional })
    }

    /// Whether mail of the stream goes before that of others.
    pub fn is_transactional(&self, stream: &str) -> bool {
        self.transactional.contains(stream)
    }
}

/// Settings that differ and are in force only after a new start.
fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("listen", old.listen != new.listen),
        ("hostname", old.hostname != new.hostname),
        ("spool", old.spool != new.spool),
        ("workers", old.workers != new.workers),
        ("durability", old.durability != new.durability),
        ("segment-size", old.segment_bytes != new.segment_bytes),
        ("spool-limit", old.spool_limit_bytes != new.spool_limit_bytes),
        ("memory-limit", old.memory_limit_bytes != new.memory_limit_bytes),
        ("relay-from", old.relay_from != new.relay_from),
        ("dns", old.dns != new.dns),
        ("max-message-size", old.max_message_bytes != new.max_message_bytes),
        ("max-recipients", old.max_recipients != new.max_recipients),
        ("the limits of clients", old.client_limits != new.client_limits),
        ("greet-pause", old.greet_pause != new.greet_pause),
        ("submission", old.submission != new.submission),
        ("submissions", old.submissions != new.submissions),
        ("local-domain", old.local_domains != new.local_domains),
        ("postmaster", old.postmaster != new.postmaster),
        ("tls-cert", old.tls_pairs != new.tls_pairs),
        ("tls-client-ca", old.tls_client_ca != new.tls_client_ca),
        ("auth-file", old.auth_file != new.auth_file),
        ("proxy-from", old.proxy_from != new.proxy_from),
        ("xclient-from", old.xclient_from != new.xclient_from),
        ("stream-header", old.stream_header != new.stream_header),
        ("user", old.user != new.user),
        ("control", old.control != new.control),
        ("control-token-file", old.control_token_file != new.control_token_file),
        ("event-log", old.event_log != new.event_log),
        ("shutdown-grace", old.shutdown_grace != new.shutdown_grace),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Reads the configuration again and hands it to every worker.
pub fn reload(shared: &Shared, workers: &[MailboxSender<Batch>], reread: &Reread) {
    let config = match reread() {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| tracing::error!("reload: {problem}"));
            tracing::error!("reload: the configuration stays as it was");
            return;
        }
    };
    config.warnings().iter().for_each(|warning| tracing::warn!("reload: {warning}"));
    let fixed = fixed(&shared.config, &config);
    if !fixed.is_empty() {
        tracing::warn!("reload: these change with the next start only: {}", fixed.join(", "));
    }
    // Their numbers are those of the new sections.
    shared.providers.forget();
    let policies = Arc::new(policies(&config, &shared.providers, &shared.streams));
    for worker in workers {
        let (config, policies) = (config.clone(), policies.clone());
        let mut batch = vec![Post::Call(Box::new(move |worker| {
            worker.live.replace(Live::new(config, policies.clone()));
            worker.decide(Event::Policies(policies), None);
        }))];
        let mut tries = limits::RELOAD_TRIES;
        while let Err(refused) = worker.try_send(batch) {
            batch = refused;
            tries -= 1;
            if tries == 0 {
                tracing::error!(
                    "reload: a worker takes nothing; it keeps the old configuration: send SIGHUP again"
                );
                break;
            }
            std::thread::sleep(limits::MAILBOX_RETRY_WAIT);
        }
    }
    tracing::info!("reload: the configuration is in force");
}
