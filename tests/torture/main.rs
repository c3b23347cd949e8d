//! Torture: the real binary, real brokers, power that goes at any moment, and devices
//! that come by the thousand, for as long as you like, with an oracle that knows every
//! reading. Exits with 1 if one acknowledged reading was lost, one value was wrong, or one
//! device was lost.
//!
//! ```sh
//! cargo test --test torture -- kills --cycles 1000 --seed 7
//! cargo test --test torture -- kills --scripted
//! cargo test --test torture -- outage
//! scripts/power-cut 200
//! cargo test --test torture -- storm
//! cargo test --test torture -- flood
//! cargo test --release --test torture -- neighbours --loud 400 --calm 100
//! cargo test --release --test torture -- commands
//! cargo test --release --test torture -- start
//! cargo test --test torture -- links --rate 1200
//! cargo test --test torture -- links --limit 100
//! cargo test --test torture -- uplink faults --gateway OLD --gateway NEW
//! ```

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod commands;
mod console;
mod disk;
mod fleet;
mod guest;
mod kills;
mod links;
mod load;
mod neighbours;
mod oracle;
mod outage;
mod power;
mod settings;
mod start;
mod storm;
#[allow(dead_code, reason = "the suite uses the rest")]
#[path = "../support/mod.rs"]
mod support;
mod tap;
mod uplink;
mod upstream;

use clap::Parser;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Kills tidegate and its brokers, or floods it, and counts what was lost.")]
enum Torture {
    /// SIGKILL gateway and brokers at random moments, under ever new settings.
    Kills(kills::Args),
    /// 2,000 readings/s; the broker stops after 5 s, the gateway is killed after 15, the
    /// broker is back after 20.
    Outage(outage::Args),
    /// Cut the power of a QEMU guest at random moments; `scripts/power-cut` prepares it.
    Power(power::Args),
    /// All devices lose their connections and come back at once, while others go on.
    Storm(storm::Args),
    /// Loud devices send as fast as they may, beside calm ones.
    Neighbours(neighbours::Args),
    /// Thousands of connections mean no good, while others go on.
    Flood(storm::FloodArgs),
    /// How long a command takes over MQTT to a device and back, with many devices online.
    Commands(commands::Args),
    /// How long logs of several sizes take to open from a cold page cache, and what that reads.
    Start(start::Args),
    /// How much of a slow link carries readings for the first time, and of a broker's limit.
    Links(links::Args),
    /// What the uplink costs and how soon it recovers, of several builds of the gateway.
    Uplink(uplink::Args),
    /// What these start as processes of their own.
    #[command(subcommand, hide = true)]
    Load(load::Role),
}

fn main() -> ExitCode {
    let torture = Torture::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let good = runtime.expect("threads can be started").block_on(async {
        match torture {
            Torture::Kills(args) => kills::run(&args).await,
            Torture::Outage(args) => outage::run(&args).await,
            Torture::Power(args) => power::run(&args).await,
            Torture::Storm(args) => storm::run(&args).await,
            Torture::Neighbours(args) => neighbours::run(&args).await,
            Torture::Flood(args) => storm::flood(&args).await,
            Torture::Commands(args) => commands::run(&args).await,
            Torture::Start(args) => start::run(&args),
            Torture::Links(args) => links::run(&args).await,
            Torture::Uplink(args) => uplink::run(&args).await,
            Torture::Load(role) => load::run(role).await,
        }
    });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The value below which this share of them lies.
fn quantile(sorted: &[std::time::Duration], share: f64) -> std::time::Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}
