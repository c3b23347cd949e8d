//! `tidegate link`: what an operator does at the ports.

mod list;
mod sniff;

use std::process::ExitCode;

/// Lists serial ports, and listens to them
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    List(list::Args),
    Sniff(sniff::Args),
}

/// Does what the command line says.
pub fn run(args: Args) -> ExitCode {
    match args.verb {
        Verb::List(args) => list::run(&args),
        Verb::Sniff(args) => super::tool(sniff::run(args)),
    }
}
