//! SIGKILL at random moments: gateway, brokers, both, and again while they start.

use crate::fleet::{Fleet, Pace, Way};
use crate::oracle::Oracle;
use crate::quantile;
use crate::settings::{self, Places};
use crate::support::free_port;
use crate::support::process::Process;
use crate::support::pty::Line;
use crate::tap::{Gate, Tap};
use crate::upstream::Upstream;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// How often something is killed and comes back
    #[arg(long, default_value_t = 20)]
    cycles: u64,
    /// The same seed gives the same settings, victims and delays; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Devices over TCP; there is always one more on a serial line
    #[arg(long, default_value_t = 8)]
    devices: usize,
    /// Brokers that confirm late, lose confirmations, close connections or take one publish at a
    /// time, another one after each kill, in place of Mosquitto
    #[arg(long)]
    scripted: bool,
    /// Keep the directory also when nothing failed
    #[arg(long)]
    keep: bool,
}

/// How long a gateway may take to acknowledge something after its start, and what is
/// missing to come.
const PATIENCE: Duration = Duration::from_secs(60);
const SINKS: [&str; 2] = ["sink-0", "sink-1"];
const PACE: Pace = Pace {
    at_once: 4,
    every: Duration::from_millis(20),
    welcome_within: Duration::from_secs(3),
    ack_within: Duration::from_secs(3),
};

/// Runs the cycles and reports; false if a promise was broken.
pub async fn run(args: &Args) -> bool {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let began = Instant::now();
    let mut torture = Torture::new(args, seed).await;
    println!("seed {seed}, in {}", torture.directory.display());
    let mut failure = None;
    for cycle in 1..=args.cycles {
        if let Err(why) = torture.cycle(cycle).await {
            failure = Some(format!("cycle {cycle}: {why}"));
            break;
        }
        torture.progress(cycle, args.cycles);
    }
    if failure.is_none() {
        failure = torture.everything_arrives().await.err();
    }
    torture.report(began.elapsed());
    torture.end();
    match failure {
        None if args.keep => println!("kept: {}", torture.directory.display()),
        None => std::fs::remove_dir_all(&torture.directory).expect("a directory of ours"),
        Some(why) => {
            println!("\nFAILED, seed {seed}: {why}\nkept for inspection: {}", torture.directory.display());
            return false;
        }
    }
    true
}

struct Torture {
    directory: PathBuf,
    /// In memory.
    runtime: tempfile::TempDir,
    random: fastrand::Rng,
    oracle: Arc<Oracle>,
    fleet: Fleet,
    line: Line,
    tcp: u16,
    http: u16,
    brokers: Vec<Upstream>,
    taps: Vec<Tap>,
    /// Brokers that are down.
    down: Vec<bool>,
    gateway: Option<Process>,
    launched: Instant,
    /// Whether the present life's first Ack was waited for.
    welcomed: bool,
    gateway_kills: u64,
    broker_kills: u64,
    stops: u64,
    disconnects: u64,
    reboots: u64,
    link_faults: u64,
    recoveries: Vec<Duration>,
    diary: std::fs::File,
    began: Instant,
}

impl Torture {
    async fn new(args: &Args, seed: u64) -> Torture {
        let directory = tempfile::Builder::new().prefix("tidegate-torture-").tempdir().expect("a directory").keep();
        let runtime = tempfile::Builder::new().prefix("tidegate-torture-").tempdir_in("/dev/shm").expect("a tmpfs");
        let mut random = fastrand::Rng::with_seed(seed);
        let oracle = Oracle::new(&SINKS);
        let (mut brokers, mut taps) = (Vec::new(), Vec::new());
        for sink in 0..SINKS.len() {
            let broker = Upstream::start(args.scripted, &mut random).await;
            taps.push(Tap::start(broker.port(), sink, oracle.clone()).await);
            brokers.push(broker);
        }
        let line = Line::new().await;
        let (tcp, http) = (free_port(), free_port());
        let mut ways = vec![Way::Tcp(tcp); args.devices];
        ways.push(Way::Serial(line.device_end()));
        let fleet = Fleet::start(&ways, PACE, &oracle, &mut random.fork());
        let diary = std::fs::File::create(directory.join("diary.log")).expect("a file");
        Torture {
            directory,
            runtime,
            random,
            oracle,
            fleet,
            line,
            tcp,
            http,
            down: vec![false; brokers.len()],
            brokers,
            taps,
            gateway: None,
            launched: Instant::now(),
            welcomed: false,
            gateway_kills: 0,
            broker_kills: 0,
            stops: 0,
            disconnects: 0,
            reboots: 0,
            link_faults: 0,
            recoveries: Vec::new(),
            diary,
            began: Instant::now(),
        }
    }

    /// Something runs, something is killed, and now and then everything must arrive.
    async fn cycle(&mut self, cycle: u64) -> Result<(), String> {
        self.note(&format!("--- cycle {cycle}"));
        if self.gateway.is_none() {
            self.launch();
        }
        // A tenth is killed while it starts.
        if self.random.u8(..10) == 0 {
            self.pause(60).await;
            self.kill_gateway();
            self.pause(30).await;
            self.launch();
        }
        self.acknowledges().await?;
        self.pause(250).await;
        if self.random.u8(..3) == 0 {
            self.unsettle_a_device();
        }
        if self.random.u8(..8) == 0 {
            self.trouble_a_link().await;
        }
        self.pause(250).await;
        match self.random.u8(..20) {
            0..10 => self.kill_gateway(),
            10..13 => self.kill_a_broker(),
            13..17 => {
                self.kill_a_broker();
                self.pause(5).await;
                self.kill_gateway();
            }
            17 => {
                self.kill_gateway();
                self.kill_a_broker();
            }
            _ => self.stop_and_kill().await,
        }
        self.pause(100).await;
        // Outages outlast kills.
        for broker in 0..self.brokers.len() {
            if self.down[broker] && self.random.bool() {
                self.revive(broker).await;
            }
        }
        if !self.fleet.is_sound() {
            return Err("a device panicked; see above".into());
        }
        if self.random.u8(..5) == 0 { self.everything_arrives().await } else { self.nothing_is_wrong() }
    }

    /// Everything acknowledged up to now is with every broker, and every gap explained.
    async fn everything_arrives(&mut self) -> Result<(), String> {
        if self.gateway.is_none() {
            self.launch();
        }
        for broker in 0..self.brokers.len() {
            if self.down[broker] {
                self.revive(broker).await;
            }
        }
        self.acknowledges().await?;
        self.fleet.pause(true);
        let until = Instant::now() + PATIENCE;
        while !self.oracle.nothing_is_missing() {
            if Instant::now() > until {
                let missing = self.oracle.missing();
                return Err(missing.iter().map(|missing| format!("\n{missing}")).collect());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.fleet.pause(false);
        self.note("everything arrived");
        self.nothing_is_wrong()
    }

    fn nothing_is_wrong(&self) -> Result<(), String> {
        let totals = self.oracle.totals();
        if totals.epochs > 1 {
            return Err(format!("the log began anew: {} epochs", totals.epochs));
        }
        match self.oracle.wrongs() {
            wrongs if wrongs.is_empty() => Ok(()),
            wrongs => Err(format!("{} things are wrong:\n{}", totals.wrong, wrongs.join("\n"))),
        }
    }

    /// Waits until the gateway acknowledges something.
    async fn acknowledges(&mut self) -> Result<(), String> {
        if self.welcomed {
            return Ok(());
        }
        if !self.fleet.acknowledged(PATIENCE).await {
            let log = std::fs::read_to_string(self.directory.join("gateway.log")).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(10).collect();
            return Err(format!("nothing was acknowledged for {PATIENCE:?}; its last words:\n{}", last.join("\n")));
        }
        self.recoveries.push(self.launched.elapsed());
        self.welcomed = true;
        Ok(())
    }

    fn launch(&mut self) {
        let brokers: Vec<_> = self.taps.iter().map(Tap::url).collect();
        let places = Places {
            tcp: &format!("127.0.0.1:{}", self.tcp),
            http: Some(self.http),
            serial: Some(&self.line.gateway_end().display().to_string()),
            log: &self.directory.join("log").display().to_string(),
            runtime: Some(&self.runtime.path().display().to_string()),
            brokers: &brokers,
            are_slow: self.brokers.iter().any(Upstream::is_slow),
        };
        let durability = if self.random.bool() { "full" } else { "normal" };
        let toml = settings::draw(&places, durability, &mut self.random);
        let config = self.directory.join("tidegate.toml");
        std::fs::write(&config, &toml).expect("a configuration file");
        self.note(&format!("start\n{toml}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("run").arg("-c").arg(config).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        self.fleet.new_life();
        self.launched = Instant::now();
        self.gateway = Some(Process::start(command, &self.directory.join("gateway.log")));
        self.welcomed = false;
    }

    fn kill_gateway(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.kill();
            self.gateway_kills += 1;
            self.note("SIGKILL to the gateway");
        }
    }

    /// SIGTERM, and SIGKILL somewhere on its way down.
    async fn stop_and_kill(&mut self) {
        if let Some(gateway) = &self.gateway {
            gateway.signal("TERM");
            self.stops += 1;
            self.note("SIGTERM to the gateway");
            self.pause(80).await;
            self.kill_gateway();
        }
    }

    fn kill_a_broker(&mut self) {
        let broker = self.random.usize(..self.brokers.len());
        if !std::mem::replace(&mut self.down[broker], true) {
            self.brokers[broker].kill();
            self.broker_kills += 1;
            self.note(&format!("SIGKILL to broker {broker}"));
        }
    }

    async fn revive(&mut self, broker: usize) {
        let how = self.brokers[broker].resume(&mut self.random).await;
        self.down[broker] = false;
        self.note(&format!("broker {broker} is back, which {how}"));
    }

    fn unsettle_a_device(&mut self) {
        let device = self.random.usize(..self.fleet.len());
        if self.random.u8(..4) == 0 {
            self.reboots += 1;
            self.fleet.reboot(device);
            self.note(&format!("device {} reboots", device + 1));
        } else {
            self.disconnects += 1;
            self.fleet.disconnect(device);
            self.note(&format!("device {} is disconnected", device + 1));
        }
    }

    async fn trouble_a_link(&mut self) {
        let sink = self.random.usize(..self.taps.len());
        let gate = if self.random.bool() { Gate::Cut } else { Gate::Stalled };
        self.link_faults += 1;
        self.note(&format!("the link to broker {sink} is {gate:?}"));
        self.taps[sink].set(gate);
        self.pause(200).await;
        self.taps[sink].set(Gate::Cut);
        self.taps[sink].set(Gate::Open);
    }

    async fn pause(&mut self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.u64(..=most_ms))).await;
    }

    fn note(&mut self, what: &str) {
        let _ = writeln!(self.diary, "{:10.3} {what}", self.began.elapsed().as_secs_f64());
    }

    fn progress(&self, cycle: u64, cycles: u64) {
        let live = std::io::stderr().is_terminal();
        if !live && !cycle.is_multiple_of(50) {
            return;
        }
        let totals = self.oracle.totals();
        let kills = self.gateway_kills + self.broker_kills;
        let line = format!(
            "cycle {cycle} of {cycles}, {kills} kills, {} acknowledged, {} delivered, {} wrong, {:.0} s",
            totals.acknowledged,
            totals.delivered,
            totals.wrong,
            self.began.elapsed().as_secs_f64(),
        );
        let _ = if live { write!(std::io::stderr(), "\r{line}\x1b[K") } else { writeln!(std::io::stderr(), "{line}") };
    }

    fn report(&mut self, took: Duration) {
        let totals = self.oracle.totals();
        let lost: u64 = self.oracle.missing().iter().map(|missing| missing.lost).sum();
        self.recoveries.sort_unstable();
        let mut text = String::new();
        let mut row = |name: &str, value: String| writeln!(text, "{name:28} {value}").expect("a String takes all");
        row(
            "SIGKILLs",
            format!(
                "{} (gateway {}, brokers {})",
                self.gateway_kills + self.broker_kills,
                self.gateway_kills,
                self.broker_kills
            ),
        );
        row("begun stops", self.stops.to_string());
        row("link faults", self.link_faults.to_string());
        row("devices", format!("{} disconnected, {} rebooted", self.disconnects, self.reboots));
        row("readings acknowledged", totals.acknowledged.to_string());
        row("readings delivered", format!("{} different ones", totals.delivered));
        row("lost", lost.to_string());
        row("wrong", totals.wrong.to_string());
        row("duplicates identified", format!("{} by seq, {} by origin", totals.again_by_seq, totals.again_by_origin));
        let recovery = [0.5, 0.99, 1.0].map(|share| format!("{} ms", quantile(&self.recoveries, share).as_millis()));
        row("start to first Ack", format!("p50 {}, p99 {}, longest {}", recovery[0], recovery[1], recovery[2]));
        row("took", format!("{:.0} s", took.as_secs_f64()));
        print!("\n{text}");
    }

    fn end(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.kill();
        }
    }
}
