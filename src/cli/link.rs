//! `tidegate link`: lists serial ports and decodes what is sent over them.

mod list;
mod sniff;

use std::process::ExitCode;

/// Lists serial ports, and decodes what is sent over them
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

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    match args.verb {
        Verb::List(args) => list::run(&args),
        Verb::Sniff(args) => super::run_tool(sniff::run(args)),
    }
}
