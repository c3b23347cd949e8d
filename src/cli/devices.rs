//! `tidegate devices`: presence of devices, its history, and refused samples.

use super::api::{Api, segment};
use super::{File, OF_API, failed, load};
use crate::model::DeviceId;
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::Write;
use std::process::ExitCode;

/// Shows the devices that a running gateway knows, and whether they are online
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    file: File,
    /// Only this device, or HUB/SUB
    device: Option<DeviceId>,
    /// Show reported changes of their presence, newest first
    #[arg(long)]
    history: bool,
    /// Show their refused samples since the gateway started, newest first
    #[arg(long, conflicts_with = "history")]
    refused: bool,
    /// At most this many lines
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Entries requested at a time.
const PAGE: u64 = 1000;

/// Runs the verb.
pub fn run(args: &Args) -> ExitCode {
    let config = match load(&args.file.config, &OF_API) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let shown = Api::of(&config).and_then(|api| show(args, &api, &mut std::io::stdout().lock()));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(&why),
    }
}

fn show(args: &Args, api: &Api, out: &mut dyn Write) -> Result<()> {
    let written = "cannot write the output";
    let mut headed = args.json;
    let head = |out: &mut dyn Write| {
        if args.refused {
            return writeln!(
                out,
                "{:<28} {:<28} {:>20} {:>10} {:>7}  WHY",
                "TIME", "DEVICE", "SESSION", "SEQ", "COUNT"
            )
            .context(written);
        }
        writeln!(out, "{:<28} {:<8} {:<18} {:<28} {:>6}  LINK", "DEVICE", "STATE", "REASON", "SINCE", "FLAPS")
            .context(written)
    };
    each(args, api, &mut |entry| {
        if args.json {
            return writeln!(out, "{entry}").context(written);
        }
        if !std::mem::replace(&mut headed, true) {
            head(out)?;
        }
        let text = |key: &str| entry[key].as_str().unwrap_or("-");
        let number = |key: &str| entry[key].as_u64().unwrap_or_default();
        if args.refused {
            let (session, seq, count) = (number("session"), number("seq"), number("count"));
            // Devices choose this text: no terminal escape gets through.
            let why: String = text("text").chars().flat_map(char::escape_debug).collect();
            return writeln!(
                out,
                "{:<28} {:<28} {session:>20} {seq:>10} {count:>7}  {why}",
                text("time"),
                text("device")
            )
            .context(written);
        }
        let flapping = if entry["flapping"] == true { " (flapping)" } else { "" };
        writeln!(
            out,
            "{:<28} {:<8} {:<18} {:<28} {:>6}  {}{flapping}",
            text("device"),
            text("state"),
            text("reason"),
            text("since"),
            number("flaps"),
            text("link")
        )
        .context(written)
    })?;
    // If no sample was refused, the table has only its header.
    if headed { Ok(()) } else { head(out) }
}

/// Requests the entries page by page.
fn each(args: &Args, api: &Api, show: &mut dyn FnMut(&Value) -> Result<()>) -> Result<()> {
    let device = args.device.as_ref().map(|device| segment(device.as_str()));
    let (path, list, page_by) = match (&device, args.history) {
        (Some(device), _) if args.refused => (format!("/api/v1/devices/{device}/refused"), "refused", "before"),
        (None, _) if args.refused => ("/api/v1/refused".to_owned(), "refused", "before"),
        (Some(device), false) => return show(&api.get(&format!("/api/v1/devices/{device}"))?.json()?),
        (Some(device), true) => (format!("/api/v1/devices/{device}/history"), "history", "before"),
        (None, true) => ("/api/v1/history".to_owned(), "history", "before"),
        (None, false) => ("/api/v1/devices".to_owned(), "devices", "after"),
    };
    let (mut left, mut next) = (args.limit, String::new());
    while left > 0 {
        let limit = left.min(PAGE);
        let page = api.get(&format!("{path}?limit={limit}{next}"))?.json()?;
        for entry in page[list].as_array().into_iter().flatten() {
            show(entry)?;
            left = left.saturating_sub(1);
        }
        next = match &page["next"] {
            Value::String(name) => format!("&{page_by}={}", segment(name)),
            Value::Number(id) => format!("&{page_by}={id}"),
            _ => break,
        };
    }
    Ok(())
}
