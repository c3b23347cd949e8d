//! All devices come back at once, or thousands come that mean no good. What do a few
//! notice that never left?
//!
//! The gateway, those who come and the few are processes of their own; the figures of the
//! same crowd at a server that does nothing but answer tell what is the machine's doing.

use crate::load::{Kind, Load};
use crate::quantile;
use crate::support::PATIENCE;
use crate::support::crowd::{Others, Return};
use crate::support::gateway::Gateway;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Devices that come back
    #[arg(long, default_value_t = 10_000)]
    devices: u64,
    /// How often they leave and come back
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Readings that each has to get rid of when it is back
    #[arg(long, default_value_t = 10)]
    backlog: u64,
    /// The old connections stay, as when a switch lost its power
    #[arg(long)]
    half_open: bool,
    /// At a server that does nothing but answer
    #[arg(long)]
    control: bool,
    #[command(flatten)]
    scene: Scene,
}

#[derive(clap::Args)]
pub struct FloodArgs {
    /// What they do; everything in turn if not given
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Connections that come at once
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    #[command(flatten)]
    scene: Scene,
}

#[derive(clap::Args)]
struct Scene {
    /// Devices that never left, each with ten readings a second
    #[arg(long, default_value_t = 100)]
    others: u64,
    /// How much those who come yield to gateway and others, as nice(1) has it
    #[arg(long, default_value_t = 0)]
    nice: i32,
    /// Give the gateway one processor, and everything else another
    #[arg(long)]
    pin: bool,
}

/// Connections of one process that loads: it may open 20,000 files at most, and needs two
/// a device for half-open connections.
const PER_PROCESS: u64 = 5_000;
const QUIET: Duration = Duration::from_secs(3);
/// How long a device may be silent once it was welcomed, for those that are.
const IDLE: Duration = Duration::from_secs(15);

/// Has all devices come back, and reports; false if one is missing in the end.
pub async fn run(args: &Args) -> bool {
    let mut server = if args.control { Server::control() } else { Server::gateway(args.devices, &args.scene).await };
    args.scene.set(&mut server);
    let others = Others::start(&server.address, args.scene.others);
    let mut crowd = args.scene.loads(args.devices, |first, beyond| {
        let half_open = args.half_open.to_string();
        vec!["crowd".into(), server.address.clone(), first, beyond, args.backlog.to_string(), half_open]
    });
    for load in &mut crowd {
        load.line();
    }
    println!("{} devices are connected; {}", args.devices, server.memory());
    for round in 1..=args.rounds {
        let before = cpu(server.id);
        let (outcome, took) = disturb(&mut crowd, &others).await;
        println!(
            "round {round}: all back in {:.2} s, {}, {} attempts refused; {:.0} us of CPU a device; {}",
            took.as_secs_f64(),
            seconds(&outcome.times),
            outcome.refused,
            (cpu(server.id) - before).as_secs_f64() * 1e6 / args.devices as f64,
            server.memory(),
        );
    }
    others.stop().await;
    server.has(args.devices).await
}

/// Has connections come that mean no good, and reports; false if one stays, or if a
/// device is missing in the end.
pub async fn flood(args: &FloodArgs) -> bool {
    let kinds = match args.kind {
        Some(kind) => vec![kind],
        None => vec![Kind::Silent, Kind::Drip, Kind::Oversized, Kind::Garbage, Kind::Mute],
    };
    let mut good = true;
    for kind in kinds {
        let mut server = Server::gateway(args.connections, &args.scene).await;
        args.scene.set(&mut server);
        let others = Others::start(&server.address, args.scene.others);
        let name = format!("{kind:?}").to_lowercase();
        let mut strangers = args.scene.loads(args.connections, |first, beyond| {
            vec!["strangers".into(), server.address.clone(), name.clone(), first, beyond]
        });
        println!("{} connections, {name}; {}", args.connections, server.memory());
        let (outcome, _) = disturb(&mut strangers, &others).await;
        println!("  gone after {}, {} not even taken; {}", seconds(&outcome.times), outcome.refused, server.memory());
        others.stop().await;
        good &= server.has(0).await;
    }
    good
}

/// Has the loads begin and waits until they are done; reports what the others notice.
async fn disturb(loads: &mut Vec<Load>, others: &Others) -> (Return, Duration) {
    others.latencies();
    tokio::time::sleep(QUIET).await;
    let before = others.latencies();
    let began = Instant::now();
    loads.iter_mut().for_each(Load::begin);
    let mut working = std::mem::take(loads);
    let done = tokio::task::spawn_blocking(move || {
        let outcomes: Vec<_> = working.iter_mut().map(Load::outcome).collect();
        (working, outcomes)
    });
    let (done, outcomes) = done.await.expect("those who load go on");
    let took = began.elapsed();
    println!(
        "  Acks of others before: {}\n  Acks of others during: {}",
        milliseconds(&before),
        milliseconds(&others.latencies())
    );
    *loads = done;
    let mut all = Return::default();
    for outcome in outcomes {
        all.refused += outcome.refused;
        all.times.extend(outcome.times);
    }
    all.times.sort_unstable();
    (all, took)
}

fn milliseconds(latencies: &[Duration]) -> String {
    let ms = |share| quantile(latencies, share).as_secs_f64() * 1e3;
    let (p50, p90, p99, max) = (ms(0.5), ms(0.9), ms(0.99), ms(1.0));
    format!("p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms of {}", latencies.len())
}

fn seconds(times: &[Duration]) -> String {
    let s = |share| quantile(times, share).as_secs_f64();
    format!("p50 {:.2} s, p99 {:.2} s, max {:.2} s", s(0.5), s(0.99), s(1.0))
}

impl Scene {
    /// Gives gateway and others their processors.
    fn set(&self, server: &mut Server) {
        if self.pin {
            pin(std::process::id(), 1);
            pin(server.id, 0);
        }
    }

    /// Processes that share `count` connections.
    fn loads(&self, count: u64, role: impl Fn(String, String) -> Vec<String>) -> Vec<Load> {
        let starts = (0..count).step_by(PER_PROCESS as usize);
        let start = |first: u64| {
            let role = role(first.to_string(), (first + PER_PROCESS).min(count).to_string());
            Load::start(self.nice, &role.iter().map(String::as_str).collect::<Vec<_>>())
        };
        starts.map(start).collect()
    }
}

/// Keeps a process and those it starts to one processor.
fn pin(process: u32, processor: u32) {
    let mut command = Command::new("taskset");
    command.args(["-a", "-c", "-p", &processor.to_string(), &process.to_string()]).stdout(Stdio::null());
    assert!(command.status().expect("taskset can be started").success(), "taskset");
}

/// Whom the devices connect to.
struct Server {
    id: u32,
    address: String,
    /// None for the control.
    gateway: Option<Gateway>,
    _control: Option<Load>,
}

impl Server {
    fn control() -> Server {
        let mut control = Load::start(0, &["server"]);
        Server { id: control.id(), address: control.line(), gateway: None, _control: Some(control) }
    }

    async fn gateway(devices: u64, scene: &Scene) -> Server {
        // Acks tell how long the gateway took, not how long it waited for more.
        let idle = humantime::format_duration(IDLE);
        let sections = format!(
            "[store]\ncommit_within = \"0s\"\n[devices]\nidle_timeout = \"{idle}\"\nheartbeat_interval = \"5s\"\n"
        );
        let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &sections);
        gateway.keys("[[tcp]]", &format!("max_connections = {}\n", devices + scene.others));
        gateway.keys("[gateway]", "memory_limit = \"192MiB\"\n");
        let mut gateway = gateway.started().await;
        Server { id: gateway.process().id(), address: gateway.tcp_address(), gateway: Some(gateway), _control: None }
    }

    /// Whether so many devices are connected in the end; a control does not know.
    async fn has(&self, devices: u64) -> bool {
        let Some(gateway) = &self.gateway else { return true };
        let until = Instant::now() + PATIENCE;
        loop {
            let there = gateway.figure("tidegate_devices_connected").await;
            if there == devices as f64 {
                return true;
            }
            if Instant::now() > until {
                println!("FAILED: {there} devices are connected instead of {devices}");
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn memory(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).expect("it runs");
        let mib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
        };
        format!("RSS {:.1} MiB, at most {:.1}", mib("VmRSS:"), mib("VmHWM:"))
    }
}

/// Time that a process has computed.
pub fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}
