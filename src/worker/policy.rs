//! From the configuration to what the scheduler is ordered.
//!
//! Owns: the making of [`Policies`]. Promises: every limit of the configuration is in it, with defaults
//! filled in. Must not: be asked for each message.
use crate::config::Config;
use crate::schedule::{Limits, Policies, Policy};

/// The policies of the configuration.
pub fn policies(config: &Config) -> Policies {
    Policies::one(Policy {
        limits: Limits {
            connections: config.destination_connections,
            connection_rate: None,
            message_rate: config.destination_rate,
        },
        messages_per_connection: config.messages_per_connection,
        recipients_per_message: config.recipients_per_message,
        retry_schedule: config.retry_schedule.clone(),
        max_age: config.max_age,
        delay_warning: None,
        adaptive: true,
    })
}
