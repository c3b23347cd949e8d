//! `tidegate key`: the keys that devices authenticate with.

use super::{failed, load, say};
use crate::clock::{Clock, SystemClock};
use crate::device::auth::{Key, KeyFiles, Listed, Material, Secret, hex, random};
use crate::files::is_forbidden;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

/// Makes, lists and revokes devices' keys
///
/// A running gateway notices a change at once.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    /// Makes a key and prints its secret, which is shown only this once
    New(New),
    /// Shows the keys, without their secrets
    List(List),
    /// Invalidates a key and ends the sessions that authenticated with it
    Revoke(Revoke),
}

#[derive(Debug, Clone, clap::Args)]
struct New {
    /// The key's name, which devices send
    name: String,
    /// Pattern of the device names that the key is for, such as "pump-*"; may be repeated.
    /// Default: every device
    #[arg(long = "device", value_name = "PATTERN")]
    devices: Vec<String>,
    /// Make a token, which the device sends, instead of an HMAC key, which it never sends
    #[arg(long)]
    token: bool,
    #[command(flatten)]
    file: super::File,
}

#[derive(Debug, Clone, clap::Args)]
struct List {
    /// Print one JSON object for each key
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    file: super::File,
}

#[derive(Debug, Clone, clap::Args)]
struct Revoke {
    /// The key's name
    name: String,
    #[command(flatten)]
    file: super::File,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let path = match &args.verb {
        Verb::New(New { file, .. }) | Verb::List(List { file, .. }) | Verb::Revoke(Revoke { file, .. }) => &file.config,
    };
    let used: &[&str] = match &args.verb {
        Verb::New(_) => &["devices.keys_file", "store.directory", "devices.sealing_key_file"],
        Verb::List(_) | Verb::Revoke(_) => &["devices.keys_file", "store.directory"],
    };
    let config = match load(path, used) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let files = KeyFiles::of(&config.devices, &config.store);
    let done = match args.verb {
        Verb::New(args) => new(args, &files),
        Verb::List(args) => list(&args, &files),
        Verb::Revoke(args) => files.revoke(&args.name),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) if is_forbidden(&why) => {
            failed(&why.context("keys belong to the user that runs the gateway: sudo -u tidegate, or root"))
        }
        Err(why) => failed(&why),
    }
}

fn new(args: New, files: &KeyFiles) -> Result<()> {
    let secret = Secret(random()?);
    let devices = if args.devices.is_empty() { vec!["*".into()] } else { args.devices };
    let material = match args.token {
        true => Material::Token(secret.token_hash()),
        false => Material::Hmac(secret.clone()),
    };
    let key = Key { name: args.name, devices, created: SystemClock::new().now().wall, material };
    files.add(&key)?;
    let (kind, name, devices) = (key.material.kind(), &key.name, key.devices.join(", "));
    say(&format!("key {name:?} ({kind}) for the devices {devices}; its secret, shown only now:"));
    // The secret alone goes to standard output, so that it can be redirected to a file.
    writeln!(std::io::stdout(), "{}", hex(&secret.0))
        .with_context(|| format!("cannot print the secret: revoke key {name:?} and make another"))
}

fn list(args: &List, files: &KeyFiles) -> Result<()> {
    let mut keys = files.list()?;
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = std::io::stdout().lock();
    let mut print = |line: String| writeln!(out, "{line}").context("cannot print the keys");
    if !args.json {
        print(format!("{:<24} {:<6} {:<28} DEVICES", "NAME", "KIND", "CREATED"))?;
    }
    for Listed { name, kind, created, devices } in keys {
        print(match args.json {
            true => json!({"name": name, "kind": kind, "created": created, "devices": devices}).to_string(),
            false => format!("{name:<24} {kind:<6} {created:<28} {}", devices.join(" ")),
        })?;
    }
    Ok(())
}
