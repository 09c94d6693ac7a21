//! Reclaim while a part of the mail waits for days: disk used for each byte that is still wanted, bytes
//! written for each byte of mail, and what it costs the mail that is delivered at once.
//!
//! Mail of 4 KiB is accepted and delivered in turns; of each hundred messages some are not delivered but
//! wait while `WAIT` others pass, which is days at any usual rate. Segments are of 4 MiB and in memory: what
//! counts here is how many there are, and the CPU. The three numbers are of the second half of the run, when
//! as many messages end their waiting as begin it. `scripts/reclaim.sh` does the same with the whole server
//! and a real disk.
//!
//! `cargo bench --bench reclaim`. Durability: none, there is no disk.
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod driver;

use std::collections::VecDeque;
use std::time::Instant;

use driver::{Driver, InMemory, address, config, envelope};
use ringpost::clock::WallTime;
use ringpost::mail::reply::Reply;
use ringpost::spool::{NewMessage, Outcome, Slot, SpoolIdentity, Tries};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: WallTime = WallTime(1_700_000_000_000_000);
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const BODY_BYTES: usize = 4096;
const MESSAGES: u64 = 2_000_000;
/// Messages that pass while one waits.
const WAIT: u64 = 500_000;
/// Messages accepted in one turn, and delivered in the next.
const TURN: u64 = 16;

struct Measured {
    /// Bytes of segment files for each live byte, at the highest and in the mean.
    highest: f64,
    mean: f64,
    amplification: f64,
    copied: u64,
    micros: f64,
}

fn run(percent: u64) -> Measured {
    let config = config(SpoolIdentity { id: 1, secret: 2 }, 0, SEGMENT_BYTES);
    let disk = InMemory::new(&config);
    let mut driver = Driver::new(config, disk);
    let envelope = envelope(vec![address("recipient.17@d3.test")], NOW);
    let body = vec![b'x'; BODY_BYTES];
    let reply = Reply { code: 250, enhanced: None, text: "0123456789ab queued".into() };
    let delivered = [(0, Outcome::Delivered(reply.clone()))];
    let deferred = [(0, Outcome::Deferred { tries: Tries::new(1, false), next: NOW, reply })];
    let mut waiting: VecDeque<(u64, Slot)> = VecDeque::new();
    let mut fresh: Vec<(u64, Slot)> = Vec::new();
    let (mut highest, mut sum, mut samples) = (0.0f64, 0.0, 0u64);
    let (mut before, mut started) = (driver.log.stats(), Instant::now());
    for nth in 0..MESSAGES {
        if nth == MESSAGES / 2 {
            (before, started) = (driver.log.stats(), Instant::now());
        }
        let id = driver.log.next_id(NOW);
        let new = NewMessage {
            id,
            envelope: &envelope,
            fragments: &[],
            parts: &[&body],
            reports: None,
            kept: false,
        };
        let (slot, _) = driver.insist(|log| log.append_message(&new));
        fresh.push((nth, slot));
        if nth % TURN != TURN - 1 {
            continue;
        }
        driver.turn();
        for (nth, slot) in fresh.drain(..) {
            let waits = nth % 100 < percent;
            let outcome = if waits { &deferred } else { &delivered };
            driver.insist(|log| log.append_outcomes(slot, outcome, NOW));
            if waits {
                waiting.push_back((nth + WAIT, slot));
            }
        }
        while let Some((_, slot)) = waiting.pop_front_if(|(until, _)| *until <= nth) {
            driver.insist(|log| log.append_outcomes(slot, &delivered, NOW));
        }
        driver.turn();
        if nth > MESSAGES / 2 {
            let stats = driver.log.stats();
            let used = driver.disk.files.len() as f64 * SEGMENT_BYTES as f64;
            let factor = used / stats.live_bytes.max(1) as f64;
            (highest, sum, samples) = (highest.max(factor), sum + factor, samples + 1);
        }
    }
    let stats = driver.log.stats();
    Measured {
        highest,
        mean: sum / samples as f64,
        amplification: (stats.bytes_written - before.bytes_written) as f64
            / (stats.mail_bytes - before.mail_bytes) as f64,
        copied: stats.copies - before.copies,
        micros: started.elapsed().as_secs_f64() * 1e6 / (MESSAGES / 2) as f64,
    }
}

fn main() {
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return;
    }
    println!(
        "durability: none (segments in memory); {MESSAGES} messages of {BODY_BYTES} bytes, each that waits"
    );
    println!("does so while {WAIT} pass; segments of {} MiB", SEGMENT_BYTES >> 20);
    println!("| waiting | disk/live, mean | highest | written/mail | copied | µs per message |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for percent in [0, 1, 5, 20] {
        let m = run(percent);
        let factor = |f: f64| if percent == 0 { "–".to_owned() } else { format!("{f:.2}") };
        println!(
            "| {percent} % | {} | {} | {:.3} | {} | {:.2} |",
            factor(m.mean),
            factor(m.highest),
            m.amplification,
            m.copied,
            m.micros
        );
    }
}
