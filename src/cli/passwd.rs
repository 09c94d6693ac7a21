//! `ringpost passwd`: lines for the file of users.
//!
//! Owns: asking for a password and printing what is to be kept of it. Promises: the password comes from
//! standard input only, never from the command line, which other users can read; it is not shown on a
//! terminal. Must not: change a file.
use std::io::{BufRead, IsTerminal, Read};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::output;
use crate::auth::{Credential, Scheme};
use crate::limits;

#[derive(clap::Args)]
pub struct PasswdArgs {
    #[command(subcommand)]
    command: PasswdCommand,
}

#[derive(clap::Subcommand)]
enum PasswdCommand {
    /// Print a line for --auth-file; the password is read from standard input
    Hash(HashArgs),
}

#[derive(clap::Args)]
struct HashArgs {
    /// What to keep: argon2id, for PLAIN and LOGIN; scram-sha-256, for SCRAM as well (offered once all
    /// users of the file have it)
    #[arg(long, value_enum, default_value = "argon2id")]
    scheme: SchemeName,
    /// Addresses and domains the user may send as, with commas between them; * for all [default: the name,
    /// which must then be an address]
    #[arg(long)]
    from: Option<String>,
    /// Most recipients of the user in a time, as in 1000/h
    #[arg(long, value_name = "N/TIME")]
    rate: Option<String>,
    /// Stream that the user's mail is of
    #[arg(long)]
    stream: Option<String>,
    /// Name that the user logs in with
    name: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum SchemeName {
    Argon2id,
    #[value(name = "scram-sha-256")]
    ScramSha256,
}

/// Prints the line.
pub fn run(args: &PasswdArgs) -> anyhow::Result<ExitCode> {
    let PasswdCommand::Hash(args) = &args.command;
    // What the server would refuse is refused here, before a password is asked for.
    crate::worker::check_user_line(&line(args, STAND_IN)).map_err(anyhow::Error::msg)?;
    let password = read_password()?;
    let scheme = match args.scheme {
        SchemeName::Argon2id => Scheme::Argon2id,
        SchemeName::ScramSha256 => Scheme::ScramSha256,
    };
    output::text(&line(args, &Credential::make(scheme, password.as_bytes())))?;
    Ok(ExitCode::SUCCESS)
}

/// A hash of nothing in particular, to try the rest of a line with.
const STAND_IN: &str = "$2b$04$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu";

fn line(args: &HashArgs, credential: &str) -> String {
    let mut line = format!("{}:{credential}", args.name);
    if let Some(from) = &args.from {
        line += &format!(" from={from}");
    }
    if let Some(rate) = &args.rate {
        line += &format!(" rate={rate}");
    }
    if let Some(stream) = &args.stream {
        line += &format!(" stream={stream}");
    }
    line + "\n"
}

fn read_password() -> anyhow::Result<Zeroizing<String>> {
    let input = std::io::stdin();
    let mut password = Zeroizing::new(String::new());
    let most = limits::AUTH_PASSWORD_BYTES as u64 + 2;
    let mut read = || input.lock().take(most).read_line(&mut password).context("reading the password");
    if input.is_terminal() {
        let shown = tcgetattr(&input)?;
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        eprint!("Password: ");
        tcsetattr(&input, OptionalActions::Flush, &hidden)?;
        let result = read();
        tcsetattr(&input, OptionalActions::Flush, &shown)?;
        eprintln!();
        result?;
    } else {
        read()?;
    }
    let len = password.trim_end_matches(['\r', '\n']).len();
    password.truncate(len);
    ensure!(
        (1..=limits::AUTH_PASSWORD_BYTES).contains(&len) && !password.contains('\0'),
        "a password has from 1 to {} bytes",
        limits::AUTH_PASSWORD_BYTES
    );
    Ok(password)
}
