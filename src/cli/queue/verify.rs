//! `tidegate queue verify`: checks the log for damage.

use super::{Failure, Which, json};
use crate::cli::say;
use serde_json::json;
use std::io::Write;

/// Checks every checksum in the log and its structure; exits with 1 if something is
/// damaged
///
/// Reads the whole log; also works while the gateway runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<bool, Failure> {
    let verdict = args.which.open()?.verify()?;
    let fine = verdict.problems.is_empty();
    if args.json {
        let problems = &verdict.problems;
        json(
            out,
            &json!({
                "fine": fine, "segments": verdict.segments, "readings": verdict.readings, "problems": problems,
                "notes": verdict.notes,
            }),
        )?;
        return Ok(fine);
    }
    for problem in &verdict.problems {
        writeln!(out, "{problem}")?;
    }
    verdict.notes.iter().for_each(|note| say(&format!("tidegate: {note}")));
    let summary = if fine { "fine".to_owned() } else { format!("{} problems", verdict.problems.len()) };
    writeln!(out, "{} readings in {} segments: {summary}", verdict.readings, verdict.segments)?;
    Ok(fine)
}
