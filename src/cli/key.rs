//! `tidegate key`: the keys that devices prove who they are with.

use super::{failed, load, say};
use crate::clock::{Clock, SystemClock};
use crate::device::auth::{Key, KeyFiles, Listed, Material, Secret, hex, random};
use crate::files::is_forbidden;
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

/// Makes, lists and revokes keys of devices
///
/// A running gateway notices a change at once.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Verb {
    /// Makes a key and prints its secret, which is shown never again
    New(New),
    /// Shows the keys, without their secrets
    List(List),
    /// Makes a key worthless; sessions that were established with it end
    Revoke(Revoke),
}

#[derive(Debug, Clone, clap::Args)]
struct New {
    /// What the key is called: devices send it, too
    name: String,
    /// A pattern of device names that the key is for, such as "pump-*"; may be given
    /// several times. Every device, if left out
    #[arg(long = "device", value_name = "PATTERN")]
    devices: Vec<String>,
    /// A token, which the device sends, instead of a key for HMAC, which it does not
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
    /// The key
    name: String,
    #[command(flatten)]
    file: super::File,
}

/// Does what the command line says.
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
    // Alone on standard output, so that it can be sent to a file.
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
