//! `ringpost spool`: looking into a spool without its server.
//!
//! Owns: the subcommands and their output. Promises: nothing is written and no lock is taken, so that
//! they work on a spool that is mounted read-only, of a server that is down, and beside one that runs;
//! `verify` ends with 1 if anything is damaged. Must not: interpret the log itself; recovery and the
//! server's own read path do.
mod offline;
mod view;

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use self::offline::{OfflineLog, OfflineSpool};
use self::view::{DamageView, LogView, StatView, StoredView, VerifyView};
use super::ServerArgs;
use super::output::{self, Table};
use crate::mail::id::MessageId;
use crate::mail::text::printable;
use crate::spool::{Finding, LiveMessage, Reading};

#[derive(Args)]
pub struct SpoolArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read everything and check every checksum; exit with 1 if anything is damaged
    Verify {
        #[command(flatten)]
        spool: ServerArgs,
    },
    /// Say how much is in it
    Stat {
        #[command(flatten)]
        spool: ServerArgs,
    },
    /// List the messages in it, oldest first, or print one as an RFC 5322 file
    Dump {
        /// The message to print; with --json its envelope
        id: Option<MessageId>,
        #[command(flatten)]
        spool: ServerArgs,
        /// List this header field of each message as well (repeatable)
        #[arg(long = "header", value_name = "NAME", conflicts_with = "id")]
        headers: Vec<String>,
    },
}

/// Reads the spool and prints what it says.
pub fn run(args: &SpoolArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Verify { spool } => verify(spool),
        Command::Stat { spool } => stat(spool),
        Command::Dump { id: Some(id), spool, .. } => dump_one(spool, *id),
        Command::Dump { id: None, spool, headers } => dump_all(spool, headers),
    }
}

/// A log that cannot be read is one more thing that is wrong, and the others are read. What is wrong is
/// looked at twice: beside a running server the first reader may have been overtaken by the writer, and
/// damage stays.
fn verify(args: &ServerArgs) -> anyhow::Result<ExitCode> {
    let mut view = verify_once(args)?;
    if !view.damage.is_empty() {
        let again = verify_once(args)?;
        view.damage.retain(|damage| again.damage.contains(damage));
    }
    if args.json {
        output::json(&view)?;
    } else {
        output::text(&show_verified(&view))?;
    }
    Ok(if view.damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verify_once(args: &ServerArgs) -> anyhow::Result<VerifyView> {
    let spool = OfflineSpool::open(&args.spool)?;
    let mut view = VerifyView { damage: spool.damage(), ..VerifyView::default() };
    for number in spool.logs()? {
        let mut log = match spool.read_log(number, Reading::Whole) {
            Ok(log) => log,
            Err(error) => {
                view.damage.push(DamageView::of_log(number, &error));
                continue;
            }
        };
        for finding in &log.findings {
            match finding {
                Finding::Held { id, hold } => view.held.push(format!("message {id}: {hold}")),
                _ => view.damage.push(DamageView::of(number, finding)),
            }
        }
        for message in log.messages() {
            if let Err(error) = log.read(message.slot) {
                view.damage.push(DamageView::unreadable(number, &log, &message, &error));
            }
        }
        view.logs.push(LogView::of(&mut log)?);
    }
    Ok(view)
}

fn show_verified(view: &VerifyView) -> String {
    let mut out = String::new();
    for held in &view.held {
        out.push_str(&format!("held: {}\n", printable(held.as_bytes())));
    }
    for damage in &view.damage {
        out.push_str(&format!("damaged: {damage}\n"));
    }
    let (messages, bytes) =
        view.logs.iter().fold((0, 0), |(m, b), log| (m + log.messages, b + log.live_bytes));
    let verdict =
        if view.damage.is_empty() { "sound".to_owned() } else { format!("{} damaged", view.damage.len()) };
    out.push_str(&format!("{verdict}: {} logs, {messages} messages, {bytes} bytes\n", view.logs.len()));
    out
}

fn stat(args: &ServerArgs) -> anyhow::Result<ExitCode> {
    let spool = OfflineSpool::open(&args.spool)?;
    let mut view = StatView { spool: format!("{:016x}", spool.identity.id), ..StatView::default() };
    for number in spool.logs()? {
        view.logs.push(LogView::of(&mut open_log(&spool, number)?)?);
    }
    view.quarantined_files = spool.quarantined_files();
    if args.json {
        output::json(&view)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["log", "segments", "free", "bytes", "messages", "pending", "live bytes"]);
    for log in &view.logs {
        table.row([
            log.log.to_string(),
            log.segments.to_string(),
            log.free_segments.to_string(),
            log.bytes.to_string(),
            log.messages.to_string(),
            log.pending_recipients.to_string(),
            log.live_bytes.to_string(),
        ]);
    }
    let rest = format!("\nspool {}, {} files in quarantine\n", view.spool, view.quarantined_files);
    output::text(&(table.render() + &rest))?;
    Ok(ExitCode::SUCCESS)
}

fn open_log(spool: &OfflineSpool, number: u16) -> anyhow::Result<OfflineLog> {
    spool.read_log(number, Reading::Indexed).with_context(|| format!("log {number}"))
}

/// The log that has the message, and the message.
fn find(spool: &OfflineSpool, id: MessageId) -> anyhow::Result<Option<(OfflineLog, LiveMessage)>> {
    if !spool.logs()?.contains(&id.log()) {
        return Ok(None);
    }
    let log = open_log(spool, id.log())?;
    let message = log.messages().into_iter().find(|m| m.id == id);
    Ok(message.map(|message| (log, message)))
}

fn dump_one(args: &ServerArgs, id: MessageId) -> anyhow::Result<ExitCode> {
    let spool = OfflineSpool::open(&args.spool)?;
    let Some((mut log, message)) = find(&spool, id)? else {
        bail!("no message {id} is queued in {}; list them with: ringpost spool dump", args.spool.display());
    };
    let stored = log.read(message.slot)?;
    if args.json {
        output::json(&StoredView::of(&log, &message, &stored, &[]))?;
    } else {
        output::bytes(&offline::as_file(&stored))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of JSON per message, or a table. A message that cannot be read is named on standard error.
fn dump_all(args: &ServerArgs, headers: &[String]) -> anyhow::Result<ExitCode> {
    let spool = OfflineSpool::open(&args.spool)?;
    let mut table = Table::new(&["id", "received", "bytes", "pending", "sender", "recipients"]);
    let mut unreadable = 0;
    for number in spool.logs()? {
        let mut log = open_log(&spool, number)?;
        for message in log.messages() {
            let stored = match log.read(message.slot) {
                Ok(stored) => stored,
                Err(error) => {
                    eprintln!("ringpost: message {}: {error}", message.id);
                    unreadable += 1;
                    continue;
                }
            };
            let view = StoredView::of(&log, &message, &stored, headers);
            if args.json {
                output::json_line(&view)?;
            } else {
                table.row(view.cells());
                for (name, value) in &view.headers {
                    table.row(["".into(), "".into(), "".into(), "".into(), name.clone(), value.clone()]);
                }
            }
        }
    }
    if !args.json {
        output::text(&table.render())?;
    }
    Ok(if unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
