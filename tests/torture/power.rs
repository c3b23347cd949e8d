//! Power cuts: the gateway in a virtual machine whose disk forgets what was not flushed.
//! `docs/power-loss.md` says what this shows and what it does not.

use crate::disk::Fate;
use crate::fleet::{Fleet, Pace, Way};
use crate::guest::{Guest, HOST, LISTENS};
use crate::oracle::{Missing, Oracle};
use crate::quantile;
use crate::settings::{self, Places};
use crate::support::broker::Broker;
use crate::support::free_port;
use crate::tap::{Gate, Tap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initramfs: PathBuf,
    /// Cuts with durability = "full", where nothing may be lost
    #[arg(long, default_value_t = 200)]
    cuts: u64,
    /// Cuts with durability = "normal", where the latest commits may be
    #[arg(long, default_value_t = 20)]
    normal: u64,
    /// Cuts with a disk that ignores flushes, at most: one of them must be seen to lose
    #[arg(long, default_value_t = 5)]
    control: u64,
    /// Ruin the file system at this cut, to see that it is told from a loss
    #[arg(long)]
    ruin: Option<u64>,
    /// The same seed gives the same settings and moments; random if not given
    #[arg(long)]
    seed: Option<u64>,
}

const DEVICES: usize = 4;
/// An emulated machine is slow, and the host may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// A connection made before the machine is up comes to nothing without a word.
const PACE: Pace = Pace {
    at_once: 4,
    every: Duration::from_millis(20),
    welcome_within: Duration::from_secs(1),
    ack_within: Duration::from_secs(20),
};
/// What does not come for so long does not come.
const QUIET: Duration = Duration::from_secs(5);

/// Runs the three series and reports; false if one of them is not as it must be.
pub async fn run(args: &Args) -> bool {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}");
    let series = [
        ("durability = \"full\"", "full", false, args.cuts),
        ("durability = \"normal\"", "normal", false, args.normal),
        ("control: \"full\" on a disk that ignores flushes", "full", true, args.control),
    ];
    let mut good = true;
    for (i, (title, durability, lies, cuts)) in (0..).zip(series) {
        if cuts == 0 {
            continue;
        }
        println!("\n{title}");
        let directory = tempfile::Builder::new().prefix("tidegate-power-").tempdir().expect("a directory").keep();
        let mut series = Series::new(args, seed + i, &directory, durability, lies).await;
        let outcome = series.run(cuts).await;
        series.report();
        let as_expected = match (&outcome, lies, durability) {
            (Err(why), false, _) => {
                println!("FAILED: {why}");
                false
            }
            (_, true, _) => {
                let seen = series.lost > 0 || outcome.is_err();
                println!(
                    "{}",
                    if seen { "seen to fail, as it must" } else { "FAILED: nothing was lost; the cuts cut nothing" }
                );
                seen
            }
            (Ok(()), false, "full") => series.lost == 0,
            (Ok(()), false, _) => true,
        };
        if as_expected {
            std::fs::remove_dir_all(&directory).expect("a directory of ours");
        } else {
            series.guest.disk.save(&directory.join("disk.img"));
            println!("kept for inspection: {}", directory.display());
            good = false;
        }
    }
    good
}

struct Series {
    durability: &'static str,
    lies: bool,
    ruin: Option<u64>,
    random: fastrand::Rng,
    oracle: Arc<Oracle>,
    fleet: Fleet,
    _broker: Broker,
    tap: Tap,
    guest: Guest,
    cuts: u64,
    early: u64,
    /// Acknowledged readings that only the disk had when the power went.
    at_stake: u64,
    unflushed: u64,
    lost: u64,
    most_lost: u64,
    losing: u64,
    /// Disks that the machine's own file system did not survive on.
    refused: usize,
    with_refused: u64,
    recoveries: Vec<Duration>,
    began: Instant,
}

impl Series {
    async fn new(args: &Args, seed: u64, directory: &Path, durability: &'static str, lies: bool) -> Series {
        let mut random = fastrand::Rng::with_seed(seed);
        let oracle = Oracle::new(&["sink-0"]);
        let broker = Broker::mosquitto("allow_anonymous true").await;
        let tap = Tap::start(broker.port(), 0, oracle.clone()).await;
        let tcp = free_port();
        let mut guest = Guest::new(&args.kernel, &args.initramfs, directory, tcp, lies);
        guest.freeze().await;
        let fleet = Fleet::start(&vec![Way::Tcp(tcp); DEVICES], PACE, &oracle, &mut random.fork());
        Series {
            durability,
            lies,
            ruin: args.ruin,
            random,
            oracle,
            fleet,
            _broker: broker,
            tap,
            guest,
            cuts: 0,
            early: 0,
            at_stake: 0,
            unflushed: 0,
            lost: 0,
            most_lost: 0,
            losing: 0,
            refused: 0,
            with_refused: 0,
            recoveries: Vec::new(),
            began: Instant::now(),
        }
    }

    async fn run(&mut self, cuts: u64) -> Result<(), String> {
        let mut boot = Duration::from_secs(4);
        while self.cuts < cuts {
            let started = Instant::now();
            self.start();
            // Some go before the gateway is up: in the file system's recovery, in the
            // log's.
            if self.cuts > 0 && self.random.u8(..8) == 0 {
                tokio::time::sleep(boot.mul_f64(self.random.f64() * 1.1)).await;
                self.early += 1;
                self.cut().await;
                continue;
            }
            if !self.comes_back().await? {
                continue;
            }
            boot = started.elapsed();
            self.recoveries.push(boot);
            self.everything_arrives().await?;
            if self.lies && self.lost > 0 {
                return Ok(());
            }
            // What is acknowledged from here on is on disk only, but for a third of the
            // cuts, where the broker is there.
            let online = self.random.u8(..3) == 0;
            self.tap.set(if online { Gate::Open } else { Gate::Cut });
            self.fleet.pause(false);
            tokio::time::sleep(Duration::from_millis(self.random.u64(100..2500))).await;
            self.cut().await;
        }
        // The last cut's harvest.
        self.start();
        match self.comes_back().await? {
            true => self.everything_arrives().await,
            false => Ok(()),
        }
    }

    fn start(&mut self) {
        let places = Places {
            tcp: LISTENS,
            http: None,
            serial: None,
            log: "/data/tidegate",
            runtime: None,
            brokers: &[format!("mqtt://{HOST}:{}", self.tap.port())],
            are_slow: false,
        };
        let config = settings::draw(&places, self.durability, &mut self.random);
        self.fleet.pause(true);
        self.tap.set(Gate::Open);
        self.fleet.new_life();
        self.guest.start(&config);
    }

    async fn cut(&mut self) {
        let fate = match self.random.u8(..3) {
            _ if self.lies => Fate::First(self.random.u8(..100)),
            0 => Fate::Gone,
            1 => Fate::First(self.random.u8(..100)),
            _ => Fate::Some(self.random.u8(1..100)),
        };
        let unflushed = self.guest.cut(fate, &mut self.random).await;
        if self.ruin == Some(self.cuts + 1) {
            self.guest.disk.ruin();
        }
        self.unflushed += unflushed as u64;
        self.at_stake += self.missing().lost;
        self.cuts += 1;
        let totals = self.oracle.totals();
        eprintln!(
            "cut {}: {} acknowledged, {} of them on disk only, {unflushed} sectors unflushed ({fate:?}); {:.0} s",
            self.cuts,
            totals.acknowledged,
            self.missing().lost,
            self.began.elapsed().as_secs_f64(),
        );
    }

    /// Waits for the gateway. False if the machine could not mount its disk, which is not
    /// the gateway's doing: the next start is on a new one.
    async fn comes_back(&mut self) -> Result<bool, String> {
        let until = Instant::now() + PATIENCE;
        while !self.fleet.acknowledged(Duration::from_millis(500)).await {
            if let Some(why) = self.guest.refused_disk() {
                self.guest.renew_disk().await;
                self.refused += 1;
                self.with_refused += self.oracle.log_is_gone();
                eprintln!("disk refused: {why}");
                // Cuts ruin a disk; one that was never cut has no excuse. One that lies is
                // to be seen to fail.
                return if self.lies || self.refused as u64 > self.cuts { Err(why) } else { Ok(false) };
            }
            if !self.guest.is_on() || Instant::now() > until {
                return Err(format!("the gateway does not come back:\n{}", self.guest.last_words()));
            }
        }
        Ok(true)
    }

    /// Lets the gateway send what it has, and counts what it has not.
    async fn everything_arrives(&mut self) -> Result<(), String> {
        let may_lose = self.lies || self.durability == "normal";
        let until = Instant::now() + PATIENCE;
        let mut last = (self.missing().lost, Instant::now());
        while !self.oracle.nothing_is_missing() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let lost = self.missing().lost;
            if lost != last.0 {
                last = (lost, Instant::now());
            }
            if may_lose && last.1.elapsed() > QUIET || Instant::now() > until {
                break;
            }
        }
        let missing = self.missing();
        let totals = self.oracle.totals();
        if missing.lost > 0 {
            self.losing += 1;
            self.most_lost = self.most_lost.max(missing.lost);
            self.lost += missing.lost;
            if !may_lose {
                return Err(format!("after cut {}: {missing}\n{}", self.cuts, self.guest.last_words()));
            }
            if !self.lies && missing.inside > 0 {
                return Err(format!("more than the latest is lost: {missing}"));
            }
            self.oracle.give_up();
        }
        if self.lies {
            return Ok(());
        }
        if missing.unexplained > 0 {
            return Err(format!("after cut {}: {missing}", self.cuts));
        }
        // Each boot begins an epoch, and nothing else does.
        if totals.epochs as u64 > 1 + self.cuts + self.refused as u64 {
            return Err(format!("the log began anew:\n{}", self.guest.last_words()));
        }
        match self.oracle.wrongs() {
            wrongs if wrongs.is_empty() => Ok(()),
            wrongs => Err(format!("{} things are wrong:\n{}", totals.wrong, wrongs.join("\n"))),
        }
    }

    fn missing(&self) -> Missing {
        self.oracle.missing().swap_remove(0)
    }

    fn report(&mut self) {
        let totals = self.oracle.totals();
        self.recoveries.sort_unstable();
        let row = |name: &str, value: String| println!("{name:28} {value}");
        row("power cuts", format!("{}, {} of them before the gateway was up", self.cuts, self.early));
        row("flushes", format!("{}; {} sectors were not flushed at a cut", self.guest.disk.flushes(), self.unflushed));
        row("readings acknowledged", totals.acknowledged.to_string());
        row("on disk only at a cut", self.at_stake.to_string());
        row("lost", format!("{}, in {} cuts; most in one {}", self.lost, self.losing, self.most_lost));
        row("disk refused", format!("{}, with {} readings on it", self.refused, self.with_refused));
        row("wrong", totals.wrong.to_string());
        row("duplicates identified", format!("{} by seq, {} by origin", totals.again_by_seq, totals.again_by_origin));
        let boot = [0.5, 1.0].map(|share| format!("{:.1} s", quantile(&self.recoveries, share).as_secs_f64()));
        row("power to first Welcome", format!("p50 {}, longest {}", boot[0], boot[1]));
        row("took", format!("{:.0} s", self.began.elapsed().as_secs_f64()));
    }
}
