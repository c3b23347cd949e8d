//! One seed from beginning to end: troubles, then healing, then the reckoning.

use super::broker::{Broker, Weather};
use super::context::Context;
use super::device::{Controls, Device};
use super::disk::{Death, Disk, Faults};
use super::gateway::{Door, Gateway, SinkPlan};
use super::network::Line;
use super::plan::{Plan, Trouble};
use super::vfs::FaultyVfs;
use fastrand::Rng;
use std::path::Path;
use std::time::Duration;
use tidegate::config::{Durability, Encoding};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// What a seed came to.
pub struct Outcome {
    pub violation: Option<String>,
    pub tail: Vec<String>,
    /// Number of lines of the trace and their hash.
    pub digest: (u64, u64),
    pub virtual_time: Duration,
    pub steps: u64,
    pub deliveries: u64,
    pub duplicates: u64,
    pub power_cuts: u64,
    pub kills: u64,
    pub disk_failures: u64,
}

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mode {
    /// Syncs do nothing: the control run.
    pub lying: bool,
    /// Print the trace.
    pub aloud: bool,
}

struct World {
    context: Context,
    vfs: FaultyVfs,
    random: Rng,
    plan: Plan,
    door: Door,
    devices: Vec<(String, Controls)>,
    sinks: Vec<SinkPlan>,
    sinks_made: usize,
    gateway: Option<Gateway>,
    tasks: JoinSet<()>,
    power_cuts: u64,
    kills: u64,
}

/// How long everything may take to drain once it has healed.
const DRAIN_WITHIN: Duration = Duration::from_secs(1800);
/// The disk is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

/// Runs a seed. The same seed in the same mode gives the same trace.
pub fn run(vfs: &FaultyVfs, directory: &Path, seed: u64, mode: Mode) -> Outcome {
    // What the gateway draws at random is drawn from this thread's generator.
    fastrand::seed(seed);
    let mut disk = Disk::new(seed);
    disk.lying = mode.lying;
    vfs.insert(disk);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let context = Context::new(directory, mode.aloud);
        let mut world = World::new(&context, vfs, directory, seed);
        world.live().await;
        let World { tasks, gateway, power_cuts, kills, .. } = &mut world;
        if let Some(gateway) = gateway.take() {
            vfs.disk().die(Death::Killed);
            gateway.crash().await;
        }
        tasks.shutdown().await;
        let (power_cuts, kills) = (*power_cuts, *kills);
        let (deliveries, duplicates, violation) =
            context.oracle(|oracle| (oracle.deliveries, oracle.duplicates, oracle.violation().map(str::to_owned)));
        Outcome {
            violation,
            tail: context.tail(),
            digest: context.digest(),
            virtual_time: context.elapsed(),
            steps: context.digest().0,
            deliveries,
            duplicates,
            power_cuts,
            kills,
            disk_failures: vfs.disk().failures,
        }
    })
}

impl World {
    fn new(context: &Context, vfs: &FaultyVfs, directory: &Path, seed: u64) -> World {
        let mut random = Rng::with_seed(seed);
        let plan = Plan::draw(directory, &mut random);
        let door = Door::new(context, plan.latency);
        let mut world = World {
            context: context.clone(),
            vfs: vfs.clone(),
            random,
            plan,
            door,
            devices: Vec::new(),
            sinks: Vec::new(),
            sinks_made: 0,
            gateway: None,
            tasks: JoinSet::new(),
            power_cuts: 0,
            kills: 0,
        };
        for _ in 0..world.plan.sinks {
            world.add_sink();
        }
        for number in 0..world.plan.devices {
            let name = format!("{}-{number}", if world.random.bool() { "boot" } else { "wall" });
            let pace = world.pace();
            let random = world.random.fork();
            let (device, controls) = Device::new(context, &name, world.door.clone(), pace, random);
            world.devices.push((name, controls));
            world.tasks.spawn(device.run());
        }
        world
    }

    fn pace(&mut self) -> Duration {
        Duration::from_millis([5, 20, 100, 1000, 5000][self.random.usize(..5)])
    }

    fn weather(&mut self) -> Weather {
        Weather {
            up: self.random.u8(..4) > 0,
            latency: Duration::from_millis([1, 20, 200, 2000][self.random.usize(..4)]),
            lifetime: Duration::from_secs([1, 5, 60, 3600][self.random.usize(..4)]),
            window: [1, 3, 32][self.random.usize(..3)],
        }
    }

    fn add_sink(&mut self) {
        self.sinks_made += 1;
        let name = format!("sink{}", self.sinks_made);
        let mut weather = self.weather();
        weather.up = true;
        let broker = Broker::new(&self.context, &name, weather, self.random.u64(..));
        let encoding = if self.random.bool() { Encoding::Json } else { Encoding::Postcard };
        self.context.oracle(|oracle| oracle.add_sink(&name));
        self.sinks.push(SinkPlan { name, broker, encoding });
    }

    fn is_violated(&self) -> bool {
        self.context.oracle(|oracle| oracle.violation().is_some())
    }

    async fn live(&mut self) {
        let Plan { store, troubles, .. } = &self.plan;
        self.context.trace(format_args!(
            "{troubles:?}; commit within {:?}, history {:?}, {:?}, {:?}, {} of log, age {:?}, thin {:?}, {} routes, \
             {} pending, segments of {}",
            store.commit_within,
            store.history_within,
            store.deliver,
            store.durability,
            store.max_size,
            store.max_age,
            store.thin,
            self.plan.routes.len(),
            store.max_pending,
            store.segment_size,
        ));
        self.start().await;
        for _ in 0..self.plan.steps {
            let pause = Duration::from_millis([30, 300, 3000, 10_000][self.random.usize(..4)]);
            let pause = pause.mul_f64(self.random.f64());
            self.pass(pause).await;
            if self.is_violated() {
                return;
            }
            if !self.plan.troubles.is_empty() {
                let trouble = self.plan.troubles[self.random.usize(..self.plan.troubles.len())];
                self.trouble(trouble).await;
            }
        }
        self.heal().await;
    }

    /// Lets time pass, and starts the gateway again when it dies meanwhile.
    async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            if self.gateway.as_mut().is_some_and(Gateway::check) {
                self.context.trace(format_args!("the log is given up as damaged"));
                self.vfs.disk().die(Death::Killed);
            }
            self.check_disk();
            let death = self.vfs.disk().death();
            if let Some(death) = death {
                self.die(death).await;
                let pause = Duration::from_millis(self.random.u64(1..3000));
                sleep(pause).await;
                self.start().await;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }

    async fn die(&mut self, death: Death) {
        self.vfs.disk().die(death);
        if let Some(gateway) = self.gateway.take() {
            gateway.crash().await;
        }
        self.revive();
    }

    fn revive(&mut self) {
        let death = self.vfs.disk().death();
        self.vfs.forget();
        let lost = self.vfs.disk().revive();
        match death {
            Some(Death::PowerCut) => self.power_cuts += 1,
            _ => self.kills += 1,
        }
        self.check_disk();
        match lost {
            Ok(lost) => self.context.trace(format_args!("{death:?}: {lost} sectors are not what they seemed")),
            Err(why) => self.context.oracle(|oracle| oracle.violated(format!("the simulated disk failed: {why}"))),
        }
    }

    /// What the disk saw that no careful program does.
    fn check_disk(&mut self) {
        if let Some(path) = self.vfs.disk().retried.take() {
            let text = path.replace(&*self.plan.store.directory.to_string_lossy(), "DIR");
            self.context.oracle(|oracle| oracle.violated(format!("a failed sync was tried again on {text}")));
        }
    }

    /// Starts the gateway, as often as it takes.
    async fn start(&mut self) {
        loop {
            let started =
                Gateway::start(&self.context, &self.door, &self.vfs, &self.plan, &self.sinks, &mut self.random);
            match started {
                Ok(gateway) if !self.vfs.disk().is_dead() => {
                    self.context.trace(format_args!("started"));
                    // No trouble of these damages what a careful program has written.
                    for note in gateway.log.health().notes {
                        let note = note.replace(&*self.plan.store.directory.to_string_lossy(), "DIR");
                        self.context.oracle(|oracle| oracle.violated(note));
                    }
                    self.gateway = Some(gateway);
                    return;
                }
                Ok(gateway) => {
                    gateway.crash().await;
                    self.revive();
                }
                Err(why) => {
                    let text = why.to_string();
                    self.context.trace(format_args!("does not start: {text}; {why:?}"));
                    let faulty = self.vfs.disk().faults != Faults::default();
                    if self.vfs.disk().is_dead() {
                        self.revive();
                    } else if faulty {
                        if self.random.u8(..5) == 0 {
                            self.vfs.disk().faults = Faults::default();
                        }
                    } else {
                        self.context.oracle(|oracle| oracle.violated(format!("the gateway does not start: {text}")));
                        return;
                    }
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn trouble(&mut self, trouble: Trouble) {
        self.context.trace(format_args!("{trouble:?}"));
        match trouble {
            Trouble::Restart => {
                if let Some(gateway) = self.gateway.take() {
                    gateway.stop().await;
                }
                if self.vfs.disk().is_dead() {
                    self.revive();
                }
                self.vfs.forget();
                self.start().await;
            }
            Trouble::Kill | Trouble::PowerCut => {
                self.die(if trouble == Trouble::Kill { Death::Killed } else { Death::PowerCut }).await;
                let pause = Duration::from_millis(self.random.u64(1..5000));
                sleep(pause).await;
                self.start().await;
            }
            Trouble::DeathAtWork => {
                let death = if self.random.bool() { Death::Killed } else { Death::PowerCut };
                let changes = self.random.u64(..60);
                self.vfs.disk().light_fuse(changes, death);
            }
            Trouble::DiskErrors => {
                let mut chance = || [0, 0, 50, 1000, 10_000][self.random.usize(..5)];
                let faults = Faults {
                    write: chance(),
                    sync: chance(),
                    truncate: chance(),
                    open: chance(),
                    read: chance(),
                    ..self.vfs.disk().faults
                };
                let Faults { full, low, .. } = faults;
                let faults = if self.random.bool() { Faults { full, low, ..Faults::default() } } else { faults };
                self.context.trace(format_args!("{faults:?}"));
                self.vfs.disk().faults = faults;
            }
            Trouble::DiskFull => {
                let full = self.random.bool();
                self.context.trace(format_args!("the disk is full: {full}"));
                self.vfs.disk().faults.full = full;
            }
            Trouble::DiskLow => {
                let low = self.random.bool();
                self.context.trace(format_args!("the disk is low: {low}"));
                self.vfs.disk().faults.low = low;
            }
            Trouble::Line => {
                let (name, controls) = &self.devices[self.random.usize(..self.devices.len())];
                let line = [Line::Up, Line::Silent, Line::Cut][self.random.usize(..3)];
                controls.set_line(&self.context, name, line);
            }
            Trouble::Reboot => self.devices[self.random.usize(..self.devices.len())].1.reboot(),
            Trouble::Broker => {
                let weather = self.weather();
                self.sinks[self.random.usize(..self.sinks.len())].broker.set(weather);
            }
            Trouble::Pace => {
                let pace = if self.random.u8(..5) == 0 { Duration::ZERO } else { self.pace() };
                self.devices[self.random.usize(..self.devices.len())].1.set_pace(pace);
            }
            Trouble::Clock => {
                self.context.trust_clock(self.random.bool());
                let years = self.random.i64(-60..60);
                let step = [0, 1_000_000, 3_600_000_000, 31_557_600_000_000][self.random.usize(..4)];
                self.context.step_clock(years * step);
            }
            Trouble::Sinks => self.change_sinks().await,
        }
    }

    /// The operator edits the configuration and restarts.
    async fn change_sinks(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await;
        }
        if self.vfs.disk().is_dead() {
            self.revive();
        }
        self.vfs.forget();
        let index = self.random.usize(..self.sinks.len());
        match self.random.u8(..3) {
            0 if self.sinks.len() > 1 => {
                let gone = self.sinks.remove(index);
                self.context.trace(format_args!("{} is removed", gone.name));
                self.context.oracle(|oracle| oracle.remove_sink(&gone.name));
            }
            1 => {
                self.sinks_made += 1;
                let name = format!("sink{}", self.sinks_made);
                let sink = &mut self.sinks[index];
                self.context.trace(format_args!("{} becomes {name}", sink.name));
                self.context.oracle(|oracle| oracle.rename_sink(&sink.name, &name));
                sink.broker = sink.broker.renamed(&name);
                sink.name = name;
            }
            _ if self.sinks.len() < 4 => {
                self.add_sink();
                self.context.trace(format_args!("a sink is added"));
            }
            _ => {}
        }
        self.start().await;
    }

    /// Everything works again; nothing new is measured. One sink stays dead at
    /// first: the others must not need it.
    async fn heal(&mut self) {
        self.context.trace(format_args!("all heals"));
        self.vfs.disk().faults = Faults::default();
        self.context.trust_clock(true);
        let fine =
            Weather { up: true, latency: Duration::from_millis(5), lifetime: Duration::from_secs(1 << 30), window: 32 };
        for (_, controls) in &self.devices {
            controls.clear_lines();
            controls.set_pace(Duration::ZERO);
        }
        for (number, sink) in self.sinks.iter().enumerate() {
            let dead = number == 0 && self.sinks.len() > 1;
            sink.broker.restart(Weather { up: !dead, ..fine.clone() });
        }
        self.drain(1, "while one is dead").await;
        self.sinks[0].broker.restart(fine);
        self.drain(0, "when all works").await;
        // A restart must not take anything back.
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await;
        }
        self.vfs.forget();
        self.start().await;
        self.drain(0, "after a restart").await;
        let lossy = self.plan.store.durability == Durability::Normal && self.power_cuts > 0;
        for sink in &self.sinks {
            self.context.oracle(|oracle| oracle.account(&sink.name));
            if !lossy {
                self.context.oracle(|oracle| oracle.settle(&sink.name, self.plan.may_drop(), self.plan.keeps_alarms()));
            }
        }
    }

    /// Waits until devices are acknowledged and sinks have everything, all but the
    /// first `dead` sinks.
    async fn drain(&mut self, dead: usize, when: &str) {
        let dead = if self.sinks.len() > 1 { dead } else { 0 };
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 3 {
            self.pass(Duration::from_secs(2)).await;
            if self.is_violated() {
                return;
            }
            let sessions: Vec<_> =
                self.devices.iter().map(|(name, controls)| (name.clone(), controls.session())).collect();
            let unacked = self.context.oracle(|oracle| oracle.unacked(&sessions));
            let pending: Vec<i64> = match &self.gateway {
                Some(gateway) => self.sinks[dead..].iter().map(|sink| gateway.pending(&sink.name)).collect(),
                None => vec![-1],
            };
            let done = unacked == 0 && pending.iter().all(|pending| *pending == 0);
            quiet = if done { quiet + 1 } else { 0 };
            if began.elapsed() > DRAIN_WITHIN {
                let health = self.gateway.as_ref().map(|gateway| gateway.log.health());
                self.context.oracle(|oracle| {
                    oracle.violated(format!(
                        "not drained {when}: {unacked} readings are not acknowledged, {pending:?} wait for the sinks; {health:?}"
                    ));
                });
                return;
            }
        }
        self.context.trace(format_args!("drained {when}"));
    }
}
