//! Fails the gateway's system calls one after the other and checks after each that
//! nothing acknowledged is lost.
//!
//! `cargo test --test faults -- [--points N] [--workers N] [--seed N] [--control 1]`
//!
//! With `--control 1` the log's files are deleted before the second start: the run
//! passes if the loss is noticed.
//!
//! A point is one system call of one run on one of the store's files: the n-th write,
//! say, fails with EIO, ENOSPC or EMFILE, only then or from then on, or the process is
//! killed there. strace injects it. A device sends readings until they are
//! acknowledged; then the gateway is started without faults and everything must arrive,
//! with no seq used for two readings, and no gap that says something was dropped.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "shared with the suite, which uses all of it")]
mod support;

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::broker::Broker;
use support::device::Device;
use support::gateway::Gateway;
use support::subscriber::{Subscriber, options};
use tidegate::model::Epoch;

/// Enough for a checkpoint of the write-ahead log.
const READINGS: u64 = 300;
/// How long the device may try while calls fail, and the gateway to stop then.
const TRIES_FOR: Duration = Duration::from_millis(2500);
const STOPS_WITHIN: Duration = Duration::from_secs(3);
const CALLS: [&str; 8] = ["openat", "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "fallocate", "unlink"];

#[derive(Debug, Clone)]
struct Point {
    call: &'static str,
    /// `error=EIO` or `signal=SIGKILL`
    fault: &'static str,
    /// From the n-th call on that matches.
    n: u64,
    sticky: bool,
    /// Whether the broker is there while calls fail.
    online: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut points, mut workers, mut seed, mut control) = (60usize, 2usize, 1u64, false);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (argument.as_str(), value) {
            ("--points", Some(n)) => points = n as usize,
            ("--workers", Some(n)) => workers = n.max(1) as usize,
            ("--seed", Some(n)) => seed = n,
            ("--control", Some(n)) => control = n > 0,
            _ => {
                eprintln!("usage: [--points N] [--workers N] [--seed N] [--control 1], not {argument:?}");
                return ExitCode::from(2);
            }
        }
    }
    if support::installed("strace").is_none() {
        eprintln!("strace is not installed; apt-get install strace");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failed = tokio::task::LocalSet::new().block_on(&runtime, run(points, workers, seed, control));
    if (failed == 0) != control { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(points: usize, workers: usize, seed: u64, control: bool) -> usize {
    let started = Instant::now();
    let counts = count().await;
    println!("calls of a run without faults: {counts:?}");
    let points = Arc::new(choose(&counts, points, seed));
    let (next, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (points, next, failed) = (points.clone(), next.clone(), failed.clone());
        running.spawn_local(async move {
            let broker = Broker::start().await;
            let mut reached = 0;
            while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = tokio::time::timeout(Duration::from_secs(90), check(point, &broker, control)).await;
                match outcome.unwrap_or_else(|_| Err("hangs".into())) {
                    Ok(injected) => reached += usize::from(injected),
                    Err(why) => {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("FAILED {point:?}: {why}");
                    }
                }
            }
            reached
        });
    }
    let mut reached = 0;
    while let Some(done) = running.join_next().await {
        match done {
            Ok(some) => reached += some,
            Err(why) => {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("FAILED: {why}");
            }
        }
    }
    let failed = failed.load(Ordering::Relaxed);
    println!(
        "{} points, {reached} of them reached, {failed} failed, {:.0} s",
        points.len(),
        started.elapsed().as_secs_f64()
    );
    failed
}

/// Every point there is, or a share of them that takes all kinds.
fn choose(counts: &BTreeMap<&'static str, u64>, wanted: usize, seed: u64) -> Vec<Point> {
    let mut all = Vec::new();
    for (call, count) in counts {
        for n in 1..=*count {
            for fault in ["error=EIO", "error=ENOSPC", "error=EMFILE", "signal=SIGKILL"] {
                if fault == "error=EMFILE" && *call != "openat" {
                    continue;
                }
                for sticky in [false, true] {
                    if !(sticky && fault == "signal=SIGKILL") {
                        all.push(Point { call, fault, n, sticky, online: false });
                    }
                }
            }
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    random.shuffle(&mut all);
    // Calls of which there are few come first, so that each of them has its turn.
    all.sort_by_key(|point| counts[point.call].min(8));
    let few = all.iter().take_while(|point| counts[point.call] < 8).count();
    let mut chosen = all.split_off(few);
    all.truncate(wanted / 2);
    chosen.truncate(wanted - all.len());
    all.append(&mut chosen);
    all.iter_mut().enumerate().for_each(|(i, point)| point.online = i % 2 == 1);
    all
}

fn sections() -> String {
    // Several commits, a checkpoint and its syncs fit into a run.
    "[store]\ncommit_within = \"20ms\"\nhistory_within = \"50ms\"\nmax_size = \"8MiB\"\n".to_owned()
}

fn tracing(gateway: &Gateway, rest: &[&str]) -> Vec<String> {
    let store = gateway.directory().join("log");
    let mut command: Vec<String> = ["strace", "-D", "-f", "--seccomp-bpf", "-qqq", "-o"].map(str::to_owned).to_vec();
    command.push(gateway.directory().join("strace.out").display().to_string());
    for file in ["log.db", "log.db-wal", "log.db-shm", "reserve", "lock"] {
        command.extend(["-P".to_owned(), store.join(file).display().to_string()]);
    }
    command.extend(rest.iter().map(ToString::to_string));
    command
}

/// How many calls of each kind a run makes.
async fn count() -> BTreeMap<&'static str, u64> {
    let broker = Broker::start().await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &sections());
    let wrapper = tracing(&gateway, &["-e", &format!("trace={}", CALLS.join(","))]);
    gateway.launch_under(&wrapper, &[]);
    let device = Device::new(1, READINGS);
    let sent = tokio::time::timeout(Duration::from_secs(60), device.run_tcp(&gateway.tcp_address())).await;
    assert!(sent.is_ok(), "a run without faults ends: {}", gateway.log());
    gateway.terminate().await;
    let output = std::fs::read_to_string(gateway.directory().join("strace.out")).expect("strace's output");
    let count = |call: &&'static str| {
        let start = format!("{call}(");
        let count = output.lines().filter(|line| line.contains(&start) && !line.contains("resumed>")).count();
        (*call, count as u64)
    };
    CALLS.iter().map(count).filter(|(_, count)| *count > 0).collect()
}

/// Whether the fault was injected at all; an error is what went wrong.
async fn check(point: &Point, broker: &Broker, control: bool) -> Result<bool, String> {
    let witness = Subscriber::start(&options(broker.port())).await;
    let number = fastrand::u64(1..1_000_000_000);
    let device = Arc::new(Device::new(number, READINGS));
    let config = |url: &str| Gateway::with_broker(url, &sections());
    // Where nothing listens.
    let dead = format!("mqtt://127.0.0.1:{}", support::free_port());
    let mut gateway = config(&if point.online { broker.gateway_url() } else { dead });
    let when = format!("{}{}", point.n, if point.sticky { "+" } else { "" });
    let trace = format!("trace={}", point.call);
    let inject = format!("inject={}:{}:when={when}", point.call, point.fault);
    let wrapper = tracing(&gateway, &["-e", &trace, "-e", &inject]);
    gateway.launch_under(&wrapper, &[]);
    let sending = {
        let (device, address) = (device.clone(), gateway.tcp_address());
        tokio::task::spawn_local(async move { device.run_tcp(&address).await })
    };
    let until = Instant::now() + TRIES_FOR;
    while Instant::now() < until && device.acked() < READINGS && gateway.process().is_running() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let died = !gateway.process().is_running();
    let log = gateway.log();
    if died && !point.fault.starts_with("signal") && !log.contains("cannot run") {
        return Err(format!("it ended without a word: {log}"));
    }
    if log.contains("panicked") {
        return Err(format!("it panicked: {log}"));
    }
    if log.lines().count() > 200 {
        return Err(format!("{} lines of log", log.lines().count()));
    }
    // It stops by itself if it can: closing the log makes calls of its own.
    if !died {
        gateway.process().signal("TERM");
        let until = Instant::now() + STOPS_WITHIN;
        while Instant::now() < until && gateway.process().is_running() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let killed = point.fault.starts_with("signal") && !gateway.log().contains("stopped");
    let traced = std::fs::read_to_string(gateway.directory().join("strace.out")).unwrap_or_default();
    let reached = traced.contains("INJECTED") || (killed && !gateway.process().is_running());
    gateway.kill();
    if control {
        for file in ["log.db", "log.db-wal", "log.db-shm"] {
            // Not all of them need to be there.
            let _ = std::fs::remove_file(gateway.directory().join("log").join(file));
        }
    }
    gateway.use_broker(&broker.gateway_url());
    gateway.launch();
    let patience = Instant::now() + Duration::from_secs(if control { 5 } else { 45 });
    let mut missing = Vec::new();
    while Instant::now() < patience {
        let heard = witness.origins();
        missing = (1..=READINGS).filter(|seq| !heard.contains_key(&(device.id.clone(), *seq))).collect();
        if missing.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sending.abort();
    if !missing.is_empty() {
        return Err(format!("acknowledged {}, never arrived {missing:?}: {}", device.acked(), gateway.log()));
    }
    gateway.terminate().await;
    seqs_are_unique(&witness)?;
    let dropped = witness.look(|heard| {
        let lost = |event: &&serde_json::Value| event["type"] == "gap" && event["reason"] != "restart";
        heard.events.iter().filter(lost).count()
    });
    if dropped > 0 {
        return Err(format!("{dropped} gaps, but nothing had to go"));
    }
    Ok(reached)
}

fn seqs_are_unique(witness: &Subscriber) -> Result<(), String> {
    witness.look(|heard| {
        let mut identities: HashMap<(Epoch, u64), (String, Option<(u64, u64)>)> = HashMap::new();
        for (_, delivery) in &heard.deliveries {
            for reading in &delivery.readings {
                let identity = (reading.device.to_string(), reading.origin);
                let before = identities.entry((delivery.epoch, reading.seq.0)).or_insert_with(|| identity.clone());
                if *before != identity {
                    return Err(format!("seq {} means {before:?} and {identity:?}", reading.seq));
                }
            }
        }
        Ok(())
    })
}
