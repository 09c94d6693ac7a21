//! The command line: one file per subcommand.
//!
//! Owns: clap's definitions, what is printed, and exit codes: 0 done, 1 not done (one line on standard
//! error says why and what to do), 2 not understood. Promises: `--json` wherever something is printed;
//! standard output carries results only. Must not: hold logic that another part needs; commands are
//! callers.
mod check;
mod client;
mod demo;
mod load;
mod output;
mod passwd;
mod queue;
mod resolve;
mod send;
mod serve;
mod settings;
mod signals;
mod sink;
mod spool;
mod top;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A mail transfer agent for sending in bulk: SMTP in, durable on disk, delivered fast and gently.
#[derive(Parser)]
#[command(name = "ringpost", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Start with `ringpost demo`. Sizes take KiB, MiB and GiB, times ms, s, m, h and d.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See it work: source, server and sink on loopback, measured and verified
    Demo(demo::DemoArgs),
    /// Run the server
    Serve(serve::ServeArgs),
    /// Send a message through a running server, as sendmail does
    Send(send::SendArgs),
    /// Send generated mail to a server and measure how it is taken
    Load(Box<ringpost_loadgen::LoadArgs>),
    /// Receive mail, count it, measure it, throw it away
    Sink(Box<ringpost_loadgen::SinkArgs>),
    /// Look at the queue of a running server, and act on it
    Queue(queue::QueueArgs),
    /// Say what a message or a destination is waiting for
    Why(why::WhyArgs),
    /// Watch a running server
    Top(top::TopArgs),
    /// Look into a spool without its server: verify it, measure it, get messages out of it
    Spool(spool::SpoolArgs),
    /// Say where a domain's mail would go, under which limits, and why
    Resolve(resolve::ResolveArgs),
    /// Print the effective configuration and what is wrong with it
    Check(check::CheckArgs),
    /// Make lines for the file of users
    Passwd(passwd::PasswdArgs),
}

/// How a local command finds its server.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Spool directory of the server to talk to
    #[arg(
        long,
        value_name = "DIR",
        env = "RINGPOST_SPOOL",
        hide_env_values = true,
        default_value = "./spool"
    )]
    pub spool: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Send(args) => send::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Sink(args) => sink::run(&args),
        Command::Queue(args) => queue::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Resolve(args) => resolve::run(args),
        Command::Check(args) => check::run(args),
        Command::Passwd(args) => passwd::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("ringpost: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_are_understood() {
        for line in [
            "demo --messages 10 --size 64KiB --connections 2 --durability os --workers 1 --json --keep",
            "serve --listen 127.0.0.1:0 --listen [::1]:0 --allow-private-mx --event-log - --config r.toml",
            "serve --allow-private-mx=false --source 192.0.2.1,out.example --retry-schedule 1m,5m",
            "load --to 127.0.0.1:2525 --messages 5",
            "sink --listen 127.0.0.1:0",
            "send --from a@example.com --to b@example.net --to c@example.net mail.eml",
            "send -t",
            "send -i -oi -oem -odi -bm -f a@example.com -F Name -N success,failure -R hdrs -V id -- b@example.net",
            "send -r a@example.com b@example.net c@example.net --stream news --urgent --json --spool /s",
            "queue summary --spool /s --json",
            "queue list --domain example.com --state deferred --older-than 2h --limit 5",
            "queue show 0000000000001",
            "queue retry --domain example.com",
            "queue retry --all --dry-run",
            "queue remove --id 0000000000001 --reason spam",
            "queue hold --stream campaign --older-than 1h --json",
            "queue release --state held",
            "queue fail --sender a@example.com --recipient b@example.net",
            "queue move --domain example.com --to other.example",
            "queue suspend --domain example.com --for 2h --reason rest",
            "queue resume --domain example.com",
            "why example.com",
            "top --interval 500ms --count 3 --json",
            "resolve example.com --dns 127.0.0.1 --json",
            "spool verify --spool /s --json",
            "spool stat",
            "spool dump",
            "spool dump 0000000000001 --json",
            "spool dump --header Message-ID --header Subject",
            "check --listen 127.0.0.1:0 --json",
            "passwd hash alice@example.com",
            "passwd hash --scheme scram-sha-256 --from example.com,a@b.example --rate 100/h news",
        ] {
            let words = std::iter::once("ringpost").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn commands_that_say_too_little_or_too_much_are_refused() {
        for line in [
            "",
            "nothing",
            "demo --durability ram",
            "demo --messages 0",
            "demo --size 4k",
            "serve --workers 1 --workers 2",
            "serve --no-such-flag",
            "queue",
            "send -bs",
            "send --to",
            "queue retry example.com",
            "queue move --domain example.com",
            "queue suspend",
            "queue suspend --domain example.com --for 2",
            "queue show",
            "queue show not-an-id",
            "queue list --limit 0",
            "why",
            "resolve",
            "top --interval 0",
            "top --count 0",
            "passwd",
            "passwd hash",
            "passwd hash --scheme md5 a@b.example",
            "spool",
            "spool dump not-an-id",
        ] {
            let words = std::iter::once("ringpost").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
