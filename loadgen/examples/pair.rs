//! Source and sink directly connected: what the load tools themselves cost.
//!
//! `cargo run --release -p ringpost-loadgen --example pair -- --to 127.0.0.1:0 --messages 200000`
//! takes the options of the source; `--to` is replaced by the sink's address.
use clap::Parser;
use ringpost_loadgen::{LoadArgs, Silent, Sink, SinkArgs, run_load, verify_exactly_once};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    load: LoadArgs,
}

fn main() -> anyhow::Result<()> {
    let Options { mut load } = Options::parse();
    let sink = Sink::start(&SinkArgs::new("127.0.0.1:0".parse()?))?;
    load.to = sink.addr();
    let sent = run_load(&load, &Silent)?;
    let received = sink.stop()?;
    print!("source: {sent}\nsink: {received}\n{}\n", verify_exactly_once(&sent, &received)?);
    Ok(())
}
