//! `tidegate send`: sends a command to a device, or to the gateway itself.

use super::api::{Api, NoAnswer, segment};
use super::{DEFAULT_CONFIG, OF_API, USAGE, failed, load, say};
use crate::model::{CommandId, CommandName, DeviceId};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Sends a command to a device, or to the gateway itself
///
/// The running gateway of this configuration stores the command and sends it to the device,
/// now or when the device connects before the command expires. Exits with 0 once the command
/// is on disk; with --wait, once the device has carried it out.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "tidegate send [OPTIONS] DEVICE NAME [JSON]\n       tidegate send [OPTIONS] --gateway NAME [JSON]"
)]
pub struct Args {
    /// The running gateway's configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// To the gateway itself: ping, status, restart-sink or set-log-level
    #[arg(long)]
    gateway: bool,
    /// The device (HUB/SUB for one behind a hub), the command's name, and its payload
    #[arg(value_name = "DEVICE NAME [JSON]", required = true, num_args = 1..=3)]
    words: Vec<String>,
    /// The command's id; sending the same id again changes nothing. Random by default
    #[arg(long)]
    id: Option<CommandId>,
    /// Expire after a time such as 30s, or at a time such as 2026-11-23T01:02:03Z
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Wait until it has ended; for a minute unless a time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1m")]
    wait: Option<humantime::Duration>,
    /// Print the gateway's answer as JSON
    #[arg(long)]
    json: bool,
}

/// Time for which the gateway is asked to hold its answer back, in one request.
const MAX_HOLD: Duration = Duration::from_secs(5);

/// Time until a command must be on disk, without `--wait`.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Most of the given time that is reserved for asking what is wrong.
const RESERVED: Duration = Duration::from_millis(500);
/// Status if too many answers are held back.
const BUSY: u16 = 503;
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Allowance for the transmission of an answer that was held back.
const TRANSMISSION: Duration = Duration::from_millis(250);

/// The command, as given by the arguments.
struct Sending {
    /// Below the API.
    path: String,
    id: CommandId,
    body: Value,
}

pub fn run(args: &Args) -> ExitCode {
    let sending = match sending(args) {
        Ok(sending) => sending,
        Err(why) => {
            say(&format!("tidegate: {why:#}"));
            return USAGE.into();
        }
    };
    let config = match load(&args.config, &OF_API) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match Api::of(&config).and_then(|api| send(&api, &sending, args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => failed(&why),
    }
}

fn sending(args: &Args) -> Result<Sending> {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let (path, name, payload) = match (args.gateway, words.as_slice()) {
        (true, [name]) => ("/api/v1/commands".to_owned(), name, None),
        (true, [name, payload]) => ("/api/v1/commands".to_owned(), name, Some(payload)),
        (true, _) => bail!("give NAME [JSON] with --gateway"),
        (false, [device, name, payload @ ..]) => {
            let device = DeviceId::new(device).map_err(|why| anyhow::anyhow!("the device {device:?} {why}"))?;
            let path = format!("/api/v1/devices/{}/commands", segment(device.as_str()));
            (path, name, payload.first())
        }
        (false, _) => bail!("give DEVICE NAME [JSON], or --gateway NAME [JSON]"),
    };
    let name = CommandName::new(name).map_err(|why| anyhow::anyhow!("the name {name:?} {why}"))?;
    let payload: Option<Value> = payload
        .map(|payload| {
            let hint = if args.wait.is_some() { "; write a time to wait after =, as in --wait=30s" } else { "" };
            serde_json::from_str(payload).with_context(|| format!("{payload} is no JSON, to be quoted whole{hint}"))
        })
        .transpose()?;
    let id = args.id.clone().unwrap_or_else(CommandId::random);
    let mut body = json!({ "id": id, "name": name, "payload": payload });
    if let (Some(expires), Some(body)) = (&args.expires, body.as_object_mut()) {
        body.insert("expires".into(), expires.as_str().into());
    }
    Ok(Sending { path, id, body })
}

/// True if the command was accepted or, with `--wait`, done.
fn send(api: &Api, sending: &Sending, args: &Args) -> Result<bool> {
    let wait = args.wait.map(|wait| *wait);
    let until = Instant::now() + wait.unwrap_or(ANSWER_WITHIN);
    // The rest is for the question what is wrong.
    let within = wait.map_or(ANSWER_WITHIN, |wait| wait - (wait / 4).min(RESERVED));
    let mut command = match api.post_within(&sending.path, &sending.body, within) {
        Err(why) if why.is::<NoAnswer>() => bail!("{why}{}; {}", problems(api, until), advice_if_unknown(&sending.id)),
        answer => answer?.json()?,
    };
    if wait.is_some() {
        let path = format!("{}/{}", sending.path, sending.id);
        while !is_final(&command) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let hold = left.min(MAX_HOLD).as_millis().max(1);
            let answer = match api.get_within(&format!("{path}?wait={hold}ms"), left + TRANSMISSION) {
                // The command was accepted, and `command` has its last known state.
                Err(why) if why.is::<NoAnswer>() => break,
                answer => answer?,
            };
            if answer.status == BUSY {
                // The limit of waiting requests is reached.
                std::thread::sleep(left.min(ASK_AGAIN));
                match api.get_within(&path, left + TRANSMISSION) {
                    Ok(answer) if answer.status != BUSY => command = answer.json()?,
                    Err(why) if !why.is::<NoAnswer>() => return Err(why),
                    _ => {}
                }
                continue;
            }
            command = answer.json()?;
        }
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{command}")?;
    } else {
        let state = command["state"].as_str().unwrap_or_default();
        match &command["result"] {
            Value::Null => writeln!(out, "{} {state}", sending.id)?,
            result => writeln!(out, "{} {state} {result}", sending.id)?,
        }
    }
    Ok(match args.wait {
        Some(_) => command["state"] == "done",
        None => true,
    })
}

/// The advice for a command that the gateway did not confirm.
fn advice_if_unknown(id: &CommandId) -> String {
    format!("it may have accepted the command or not: send it again with --id {id}, which it accepts only once")
}

/// The gateway's problems, in brackets, if it reports them in time.
fn problems(api: &Api, until: Instant) -> String {
    let left = until.saturating_duration_since(Instant::now());
    let said = api.get_within("/health/ready", left).ok().and_then(|answer| serde_json::from_str(&answer.body).ok());
    let said: Value = said.unwrap_or_default();
    let problems = said["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    let reasons: Vec<&str> = problems.iter().filter_map(|problem| problem["reason"].as_str()).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

fn is_final(command: &Value) -> bool {
    !matches!(command["state"].as_str(), Some("queued" | "sent"))
}
