//! `ringpost send`: one message, as sendmail takes it, to a running server.
//!
//! Owns: sendmail's way of saying who sends what to whom. Promises: exits 0 only when the server has
//! said that the message is durable; blind copies are not shown to anyone; a message that is cut off or
//! has a recipient that is no address is not sent at all. Must not: keep mail of its own: without a
//! server nothing is sent.
use std::borrow::Cow;
use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

use super::{ServerArgs, client, output};
use crate::config::System;
use crate::control::{Mail, Said, To, Wishes};
use crate::limits;
use crate::mail::address::Address;
use crate::mail::{header, lines, mailboxes};

mod message;

use message::Letter;

#[derive(clap::Args)]
#[command(
    disable_version_flag = true,
    after_help = "As /usr/sbin/sendmail: a script of one line, exec ringpost send --spool DIR \"$@\""
)]
pub struct SendArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Sender, to whom bounces go; '' or <> for none [default: $LOGNAME at this host]
    #[arg(short = 'f', long = "from", short_alias = 'r', value_name = "ADDRESS")]
    from: Option<String>,
    /// Full name of the sender, for a From field that the message lacks
    #[arg(short = 'F', long, value_name = "NAME")]
    full_name: Option<String>,
    /// A recipient
    #[arg(long, value_name = "ADDRESS")]
    to: Vec<String>,
    /// Send to the addresses in To, Cc and Bcc as well
    #[arg(short = 't', long)]
    read_recipients: bool,
    /// A line with nothing but a dot does not end the message on standard input
    #[arg(short = 'i', long)]
    ignore_dots: bool,
    /// What to tell the sender of: never, or some of success,failure,delay
    #[arg(short = 'N', long, value_name = "WORDS", value_delimiter = ',')]
    notify: Vec<String>,
    /// What a bounce holds of the message: full or hdrs
    #[arg(short = 'R', long, value_name = "PART")]
    ret: Option<String>,
    /// Envelope id for bounces, in xtext
    #[arg(short = 'V', long, value_name = "ID")]
    envid: Option<String>,
    /// Stream it belongs to
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// It goes before what is not urgent
    #[arg(long)]
    urgent: bool,
    /// Options of sendmail: i is -i, the others are passed over
    #[arg(short = 'o', hide = true, value_name = "OPTION")]
    option: Vec<String>,
    /// Mode of sendmail: m is the only one
    #[arg(short = 'b', hide = true, value_name = "MODE", value_parser = ["m"])]
    mode: Option<String>,
    /// Recipients; with --to, the file to read the message from instead of standard input
    #[arg(value_name = "ADDRESS|FILE")]
    operands: Vec<String>,
}

/// Sends the message.
pub fn run(args: &SendArgs) -> anyhow::Result<ExitCode> {
    let host = System::ask().hostname;
    let (addresses, file) = args.operands()?;
    let text = args.read(file)?;
    let mut letter = Letter::new(&text);
    let mut recipients: Vec<String> =
        addresses.iter().map(|address| complete(address, &host)).collect::<anyhow::Result<_>>()?;
    if args.read_recipients {
        for address in letter.recipients()? {
            recipients.push(complete(&address, &host)?);
        }
    }
    ensure!(!recipients.is_empty(), "no recipients: name them, or have them read from the message with -t");
    let from = args.sender(&host)?;
    letter.hide_blind_copies();
    letter.add_from(args.full_name.as_deref(), &from)?;
    let bytes = letter.into_bytes();
    let said: Said =
        client::post(&args.server.spool, "/api/v1/messages", &args.json(&from, recipients, &bytes)?)?;
    match said {
        Said::Accepted { id } if args.server.json => output::json(&serde_json::json!({ "id": id }))?,
        Said::Accepted { .. } => {}
        Said::Refused { error, .. } => bail!("{error}"),
    }
    Ok(ExitCode::SUCCESS)
}

impl SendArgs {
    /// The recipients on the command line, and the file.
    fn operands(&self) -> anyhow::Result<(&[String], Option<PathBuf>)> {
        match (&self.to[..], &self.operands[..]) {
            ([], addresses) => Ok((addresses, None)),
            (to, []) => Ok((to, None)),
            (to, [file]) => Ok((to, Some(file.into()))),
            _ => bail!("with --to, name one file at most; repeat --to for further recipients"),
        }
    }

    /// The message as it comes, up to its end.
    fn read(&self, file: Option<PathBuf>) -> anyhow::Result<Vec<u8>> {
        let most = limits::INJECTION_BYTES as u64;
        let mut text = Vec::new();
        match file {
            Some(path) => {
                let shown = path.display();
                let file = std::fs::File::open(&path).with_context(|| format!("cannot open {shown}"))?;
                file.take(most + 1).read_to_end(&mut text).with_context(|| format!("cannot read {shown}"))?;
            }
            None => {
                let mut input = std::io::stdin().lock().take(most + 1);
                let dots_end = !self.ignore_dots && !self.option.iter().any(|o| o == "i");
                read_input(&mut input, dots_end, &mut text).context("cannot read standard input")?;
            }
        }
        ensure!(text.len() as u64 <= most, "the message is larger than any request: send it by SMTP");
        ensure!(!text.is_empty(), "the message is empty");
        Ok(text)
    }

    /// The reverse-path; empty for the null one.
    fn sender(&self, host: &str) -> anyhow::Result<String> {
        let user = || ["LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok());
        match self.from.as_deref() {
            Some("" | "<>") => Ok(String::new()),
            Some(from) => complete(from, host),
            None => complete(&user().context("who sends it? Name the sender with --from")?, host),
        }
    }

    fn json(&self, from: &str, recipients: Vec<String>, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let recipient = |address: String| match &self.notify[..] {
            [] => To::Address(address.into()),
            words => To::Full(Wishes {
                address: address.into(),
                notify: Some(words.iter().map(|word| Cow::Borrowed(&**word)).collect()),
                orcpt: None,
            }),
        };
        let mut mail = Mail {
            from: from.into(),
            to: recipients.into_iter().map(recipient).collect(),
            stream: self.stream.as_deref().map(Into::into),
            urgent: self.urgent,
            ret: self.ret.as_deref().map(Into::into),
            envid: self.envid.as_deref().map(Into::into),
            ..Mail::default()
        };
        mail.carry(bytes);
        Ok(serde_json::to_vec(&mail)?)
    }
}

/// Reads to the end, or to a line with nothing but a dot.
fn read_input(input: &mut impl BufRead, dots_end: bool, text: &mut Vec<u8>) -> std::io::Result<()> {
    if !dots_end {
        return input.read_to_end(text).map(drop);
    }
    loop {
        let from = text.len();
        if input.read_until(b'\n', text)? == 0 {
            return Ok(());
        }
        if matches!(&text[from..], b".\n" | b".\r\n" | b".") {
            text.truncate(from);
            return Ok(());
        }
    }
}

/// The address, with this host as its domain if it has none.
fn complete(address: &str, host: &str) -> anyhow::Result<String> {
    let bare = address.strip_prefix('<').and_then(|a| a.strip_suffix('>')).unwrap_or(address);
    let whole = if bare.contains('@') { bare.to_owned() } else { format!("{bare}@{host}") };
    let shown = || crate::mail::text::printable(whole.as_bytes());
    Address::parse_utf8(whole.as_bytes()).with_context(shown)?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_ends_the_input_unless_told_otherwise() {
        for (input, dots_end, expected) in [
            ("a\n.\nb\n", true, "a\n"),
            ("a\n.\nb\n", false, "a\n.\nb\n"),
            ("a\r\n.\r\nb", true, "a\r\n"),
            ("a\n..\n. \nb", true, "a\n..\n. \nb"),
            (".", true, ""),
            ("", true, ""),
        ] {
            let mut text = Vec::new();
            read_input(&mut input.as_bytes(), dots_end, &mut text).expect("memory");
            assert_eq!(text, expected.as_bytes(), "{input:?} {dots_end}");
        }
    }

    #[test]
    fn addresses_are_completed_and_checked() {
        for (address, expected) in [
            ("a@b.test", Some("a@b.test")),
            ("<a@b.test>", Some("a@b.test")),
            ("root", Some("root@host.test")),
            ("a b", None),
            ("", None),
            ("-x@-y", None),
            ("a@b\r\nc", None),
        ] {
            assert_eq!(complete(address, "host.test").ok().as_deref(), expected, "{address:?}");
        }
    }
}
