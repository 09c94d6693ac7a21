//! What the connections of one thread work with, and how they account for messages.
//!
//! Owns: [`Desk`], and the address of each recipient. Promises: both protocols count alike: a message given
//! out ends as accepted, rejected, unknown or given back. Must not: know a protocol.
use crate::clock::Rng;
use crate::limits;
use crate::load::plan::{Message, Next, Plan, Supply};
use crate::load::stats::Stats;
use crate::stamp;

/// Shared by the connections of a thread.
pub struct Desk {
    pub plan: Plan,
    pub supply: Supply,
    pub stats: Stats,
    /// Names of deliveries acknowledged since this was last written; kept only with `keeps_log`.
    pub acked: Vec<u8>,
    pub keeps_log: bool,
    /// The same of deliveries that were refused when the whole message was there.
    pub refused: Vec<u8>,
    pub keeps_refused: bool,
}

impl Desk {
    /// The next message for a connection that has begun so many.
    pub fn next(&mut self, begun: u64, now_us: u64) -> Next {
        if begun >= self.plan.messages_per_connection {
            return Next::Done;
        }
        let next = self.supply.next(now_us);
        // One given back was counted when it was first begun.
        if let Next::Message(Message { intended_us: Some(intended_us), is_again: false, .. }) = next {
            self.stats.begun(intended_us, now_us);
        }
        next
    }
    /// Ends the account at `now_us`: what was due and never begun has waited until then, and so have those
    /// that were given back.
    pub fn close(&mut self, now_us: u64) {
        let end_us = self.supply.end_us(now_us);
        self.stats.is_cut = self.supply.has_more(end_us);
        let overdue_us = end_us.saturating_sub(limits::LATE.as_micros() as u64);
        while let Some(intended_us) = self.supply.skip_due(overdue_us) {
            self.stats.begun(intended_us, end_us);
            self.stats.took(intended_us, end_us);
            self.stats.not_begun += 1;
        }
        for message in self.supply.take_returned() {
            self.stats.unsent += 1;
            message.intended_us.into_iter().for_each(|intended_us| self.stats.took(intended_us, end_us));
        }
    }
    /// The server has accepted a message for these recipients.
    pub fn accept(&mut self, message: Message, begun_us: u64, taken: impl Iterator<Item = u32>, now_us: u64) {
        let stats = &mut self.stats;
        let bytes = self.plan.size_of(message.number);
        stats.accepted += 1;
        stats.bytes += bytes;
        if now_us < stats.warmup_us {
            stats.warmup_accepted += 1;
            stats.warmup_bytes += bytes;
        }
        stats.took(begun_us, now_us);
        stats.last_accept_us = now_us;
        for recipient in taken {
            stats.acknowledged.insert(slot(message, recipient, &self.plan));
            if self.keeps_log {
                let plan = &self.plan;
                stamp::push_delivery(plan.run, message.number, recipient, plan.recipients, &mut self.acked);
                self.acked.push(b'\n');
            }
        }
    }
    /// The server has refused a message that it had taken these recipients for.
    pub fn refuse(&mut self, message: Message, taken: impl Iterator<Item = u32>) {
        self.stats.rejected += 1;
        let plan = &self.plan;
        for recipient in taken.take_while(|_| self.keeps_refused) {
            stamp::push_delivery(plan.run, message.number, recipient, plan.recipients, &mut self.refused);
            self.refused.push(b'\n');
        }
    }
    /// Whether the server has accepted a message for these recipients will never be known.
    pub fn give_up(&mut self, message: Message, recipients: impl Iterator<Item = u32>, now_us: u64) {
        self.stats.unknown += 1;
        // Left out, it would be missing among the slow ones.
        message.intended_us.into_iter().for_each(|intended_us| self.stats.took(intended_us, now_us));
        for recipient in recipients {
            self.stats.unresolved.insert(slot(message, recipient, &self.plan));
        }
    }
}

/// The address of a recipient of message `number`.
pub fn push_recipient(number: u64, recipient: u32, plan: &Plan, out: &mut Vec<u8>) {
    out.push(b'r');
    stamp::push_decimal(u64::from(recipient), out);
    let delivery = number.wrapping_mul(u64::from(plan.recipients)) + u64::from(recipient);
    if let Some(mailboxes) = plan.mailboxes {
        out.push(b'-');
        let random = Rng::new(plan.seed ^ delivery.wrapping_mul(0xBF58_476D_1CE4_E5B9)).next_u64();
        stamp::push_decimal(random % u64::from(mailboxes), out);
    }
    out.push(b'@');
    plan.domains.push(delivery, out);
}

fn slot(message: Message, recipient: u32, plan: &Plan) -> u64 {
    message.number * u64::from(plan.recipients) + u64::from(recipient)
}
