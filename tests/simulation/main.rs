//! The gateway's own parts in a simulated world: devices, lines, brokers, a disk
//! that forgets and an operator without mercy, all decided by a seed, in virtual
//! time. See `docs/simulation.md`.
//!
//! ```sh
//! cargo test --features simulation --test simulation -- --from 1 --seeds 1000
//! cargo test --features simulation --test simulation -- --seed 42    # again, with its trace
//! ```

#![allow(clippy::expect_used, clippy::panic, reason = "a simulation fails by panicking where it is itself wrong")]

mod broker;
mod clock;
mod context;
mod controls;
mod copies;
mod device;
mod disk;
mod doer;
mod freezer;
mod gateway;
mod healing;
mod images;
mod mailbox;
mod network;
mod oracle;
mod orders;
mod plan;
mod presence;
mod reader;
mod sender;
mod serial;
mod tally;
mod troubles;
mod vfs;
mod world;

use clap::Parser;
use std::process::ExitCode;
use std::time::Instant;
use tally::Tally;
use vfs::FaultyVfs;
use world::{Mode, Outcome};

/// Runs seeds of the simulation; ends at the first that breaks a promise.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// This seed alone, with its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Syncs do nothing: promises must be seen to break.
    #[arg(long)]
    lying_disk: bool,
    /// With --seed: leave the log's directory for inspection.
    #[arg(long, requires = "seed")]
    keep: bool,
    /// Go on after a seed that breaks a promise.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let vfs = FaultyVfs::register();
    let mode = Mode { lying: arguments.lying_disk, aloud: false };
    if let Some(seed) = arguments.seed {
        let mut directory = directory();
        let outcome = world::run(&vfs, directory.path(), seed, Mode { aloud: true, ..mode });
        if arguments.keep {
            println!("the log is left in {}", directory.path().display());
            directory.disable_cleanup(true);
        }
        return verdict(seed, &outcome);
    }
    let passed = arguments.lying_disk || (a_lying_disk_is_found_out(&vfs) && a_seed_replays_exactly(&vfs));
    if passed && seeds(&vfs, &arguments, mode) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(vfs: &FaultyVfs, seed: u64, mode: Mode) -> Outcome {
    world::run(vfs, directory().path(), seed, mode)
}

/// In memory, where that is possible.
fn directory() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::Builder::new().prefix("tidegate-simulation-").tempdir_in(place);
    directory.expect("a temporary directory")
}

fn verdict(seed: u64, outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        None => {
            println!(
                "seed {seed}: every promise was kept; {} lines, digest {:016x}",
                outcome.digest.0, outcome.digest.1
            );
            ExitCode::SUCCESS
        }
        Some(what) => {
            println!("seed {seed}: {what}");
            ExitCode::FAILURE
        }
    }
}

/// The control run: a simulation that finds nothing when nothing is synced would
/// find nothing at all.
fn a_lying_disk_is_found_out(vfs: &FaultyVfs) -> bool {
    const WITHIN: u64 = 100;
    for seed in 1..=WITHIN {
        if let Some(what) = run(vfs, seed, Mode { lying: true, aloud: false }).violation {
            println!("control: with syncs that do nothing, seed {seed} shows: {what}");
            return true;
        }
    }
    println!("FAILED: with syncs that do nothing, {WITHIN} seeds broke no promise: the simulation is blind");
    false
}

fn a_seed_replays_exactly(vfs: &FaultyVfs) -> bool {
    for seed in 1..=5 {
        let digests = [(), ()].map(|()| run(vfs, seed, Mode::default()).digest);
        if digests[0] != digests[1] {
            println!("FAILED: seed {seed} gave two traces: {digests:x?}");
            return false;
        }
    }
    println!("replay: 5 seeds gave the same trace twice");
    true
}

fn seeds(vfs: &FaultyVfs, arguments: &Arguments, mode: Mode) -> bool {
    let began = Instant::now();
    let (mut broken, mut tally) = (0, Tally::default());
    for seed in arguments.from..arguments.from + arguments.seeds {
        let outcome = run(vfs, seed, mode);
        tally += outcome.tally;
        if let Some(what) = &outcome.violation {
            broken += 1;
            println!("\nseed {seed} broke a promise: {what}");
            if !arguments.keep_going {
                outcome.tail.iter().for_each(|line| println!("{line}"));
            }
            println!("replay: cargo test --features simulation --test simulation -- --seed {seed}");
            if !arguments.keep_going {
                break;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} seeds, {broken} broken, in {seconds:.1} s: {:.1} seeds/s, {:.0} steps/s, {:.0} s of virtual time each;\n{tally}",
        tally.seeds,
        tally.seeds as f64 / seconds,
        tally.steps as f64 / seconds,
        tally.virtual_time.as_secs_f64() / tally.seeds as f64,
    );
    broken == 0
}
