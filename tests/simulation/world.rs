//! One seed from beginning to end: troubles, then healing, then the reckoning.

use super::broker::{Broker, Weather};
use super::clock::Machine;
use super::context::Context;
use super::controls::Controls;
use super::device::{self, Device};
use super::disk::{Death, Disk, Faults};
use super::gateway::{Door, Gateway, SinkPlan};
use super::images::Images;
use super::oracle::CLOCKLESS;
use super::plan::Plan;
use super::reader::Reader;
use super::sender::Sender;
use super::tally::Tally;
use super::vfs::FaultyVfs;
use fastrand::Rng;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tidegate::config::{Authentication, Durability, Encoding};
use tidegate::device::auth::{Key, KeyFiles, Material};
use tidegate::model::{BootId, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// What a seed came to.
pub struct Outcome {
    pub violation: Option<String>,
    pub tail: Vec<String>,
    /// Number of lines of the trace and their hash.
    pub digest: (u64, u64),
    pub tally: Tally,
}

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mode {
    /// Syncs do nothing: the control run.
    pub lying: bool,
    /// Print the trace.
    pub aloud: bool,
}

pub struct World {
    pub context: Context,
    pub vfs: FaultyVfs,
    pub random: Rng,
    /// What has to do with time is drawn from here.
    pub times: Rng,
    /// When somebody gives the machine the time.
    pub clock_due: Option<Instant>,
    pub plan: Plan,
    pub door: Door,
    pub devices: Vec<(String, Controls)>,
    pub sinks: Vec<SinkPlan>,
    /// Those that are out of the configuration for a while.
    pub sinks_away: Vec<SinkPlan>,
    pub sinks_made: usize,
    pub gateway: Option<Gateway>,
    pub tasks: JoinSet<()>,
    /// What has to do with devices beside their readings is drawn from here.
    pub more: Rng,
    pub sender: Sender,
    pub keys: KeyFiles,
    /// Of the log, of which only the database was copied.
    pub copy: Option<TempDir>,
    pub power_cuts: u64,
    pub kills: u64,
    pub images: Images,
    /// The log's directory is somewhere else.
    pub away: bool,
    /// Another program that reads the log.
    pub reader: Option<Reader>,
}

/// A command may be under way to its device for so long, on a line without latency.
const SLACK: Duration = Duration::from_millis(500);
/// Of fewer events that are kept some may go.
const FEW_EVENTS: u32 = 1000;
/// The disk is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

/// Runs a seed. The same seed in the same mode gives the same trace.
pub fn run(vfs: &FaultyVfs, directory: &Path, seed: u64, mode: Mode) -> Outcome {
    // It may be moved, to a place beside it.
    let directory = &directory.join("log");
    std::fs::create_dir(directory).expect("a directory can be made");
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
        world.bring_back();
        let World { tasks, gateway, power_cuts, kills, images, .. } = &mut world;
        if let Some(gateway) = gateway.take() {
            vfs.disk().die(Death::Killed);
            gateway.crash().await;
        }
        tasks.shutdown().await;
        let mut tally = context.oracle(|oracle| Tally::of(oracle));
        (tally.seeds, tally.virtual_time, tally.steps) = (1, context.elapsed(), context.digest().0);
        (tally.power_cuts, tally.kills, tally.disk_failures) = (*power_cuts, *kills, vfs.disk().failures);
        tally.images = images.put_back;
        let violation = context.oracle(|oracle| oracle.violation().map(str::to_owned));
        Outcome { violation, tail: context.tail(), digest: context.digest(), tally }
    })
}

impl World {
    fn new(context: &Context, vfs: &FaultyVfs, directory: &Path, seed: u64) -> World {
        let (mut random, mut times) = (Rng::with_seed(seed), Rng::with_seed(!seed));
        let mut more = Rng::with_seed(seed.rotate_left(32));
        let plan = Plan::draw(directory, &mut random, &mut times, &mut more);
        context.oracle(|oracle| {
            oracle.roll.within = plan.sessions.idle_timeout;
            oracle.few_events = plan.store.max_events < FEW_EVENTS;
            oracle.max_age = plan.store.max_age.map(|max_age| (max_age, context.begin()));
            oracle.orders.slack = SLACK + plan.latency * 12;
        });
        let door = Door::new(context, plan.latency);
        if let Some(runtime) = &plan.store.runtime_directory {
            std::fs::create_dir(runtime).expect("a directory can be made");
        }
        let keys = KeyFiles::of(&plan.sessions, &plan.store);
        let mut world = World {
            context: context.clone(),
            vfs: vfs.clone(),
            random,
            times,
            clock_due: None,
            plan,
            door,
            devices: Vec::new(),
            sinks: Vec::new(),
            sinks_away: Vec::new(),
            sinks_made: 0,
            gateway: None,
            tasks: JoinSet::new(),
            sender: Sender::new(more.fork()),
            more,
            keys,
            copy: None,
            power_cuts: 0,
            kills: 0,
            images: Images::default(),
            away: false,
            reader: None,
        };
        world.boot();
        for _ in 0..world.plan.sinks {
            world.add_sink();
        }
        for number in 0..world.plan.devices {
            let off = Plan::device_clock(&mut world.times);
            let kind = match world.random.bool() {
                true => CLOCKLESS,
                false if off == 0 => "wall",
                false => "wrong",
            };
            let name = format!("{kind}-{number}");
            let pace = world.pace();
            let random = world.random.fork();
            let (device, controls) = Device::new(context, &name, world.door.clone(), pace, off, random);
            world.give_key(&name);
            world.devices.push((name, controls));
            world.tasks.spawn(device.run());
        }
        world
    }

    /// A device gets its key.
    pub fn give_key(&self, device: &str) {
        let material = Material::Hmac(device::secret(device));
        let key = Key { name: device.to_owned(), devices: vec![device.to_owned()], created: Timestamp(0), material };
        if self.plan.authentication != Authentication::None {
            self.keys.add(&key).expect("the key is new");
        }
    }

    /// Whom commands may be for: devices, those behind them, the gateway, and nobody.
    fn targets(&self) -> Vec<String> {
        let mut targets = vec![String::new(), "nobody".to_owned()];
        for (name, controls) in &self.devices {
            targets.extend([name.clone(), name.clone()]);
            targets.extend(controls.subs().iter().map(|(sub, _)| format!("{name}/{sub}")));
        }
        targets
    }

    /// The machine boots.
    pub fn boot(&mut self) {
        self.images.booted();
        let boot = BootId(self.times.u128(..).to_be_bytes());
        let offset = self.plan.clock_after_boot(&mut self.times);
        self.clock_due = self.plan.clock_is_set_after(&mut self.times).map(|after| Instant::now() + after);
        let (at, battery) = (self.context.elapsed(), self.plan.battery);
        self.context.trace(format_args!("boot {boot}, its clock off by {offset} us, battery: {battery}"));
        self.context.machine(|machine| machine.boot(boot, at, offset, battery));
    }

    /// Somebody gives the machine the time, if that is due.
    fn set_clock(&mut self) {
        if self.clock_due.take_if(|due| *due <= Instant::now()).is_some() {
            self.context.trace(format_args!("the clock is set"));
            self.context.machine(Machine::set);
        }
    }

    pub fn pace(&mut self) -> Duration {
        Duration::from_millis([5, 20, 100, 1000, 5000][self.random.usize(..5)])
    }

    pub fn weather(&mut self) -> Weather {
        Weather {
            up: self.random.u8(..4) > 0,
            latency: Duration::from_millis([1, 20, 200, 2000][self.random.usize(..4)]),
            lifetime: Duration::from_secs([1, 5, 60, 3600][self.random.usize(..4)]),
            window: [1, 3, 32][self.random.usize(..3)],
        }
    }

    pub fn add_sink(&mut self) {
        self.sinks_made += 1;
        let name = format!("sink{}", self.sinks_made);
        let mut weather = self.weather();
        weather.up = true;
        let broker = Broker::new(&self.context, &name, weather, self.random.u64(..));
        let encoding = if self.random.bool() { Encoding::Json } else { Encoding::Postcard };
        let now = self.context.elapsed();
        self.context.oracle(|oracle| oracle.add_sink(&name, now));
        self.sinks.push(SinkPlan { name, broker, encoding });
    }

    pub fn is_violated(&self) -> bool {
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
    pub async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            if self.gateway.as_mut().is_some_and(Gateway::check) {
                self.context.trace(format_args!("the log is given up as damaged"));
                self.vfs.disk().die(Death::Killed);
            }
            self.check_disk();
            self.set_clock();
            self.command();
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

    /// Commands are given that are due.
    fn command(&mut self) {
        if !self.sender.is_due() {
            return;
        }
        let targets = self.targets();
        self.sender.work(&self.context, &targets, &self.sinks, self.gateway.as_mut());
    }

    pub async fn die(&mut self, death: Death) {
        self.vfs.disk().die(death);
        if let Some(gateway) = self.gateway.take() {
            gateway.crash().await;
        }
        self.revive();
    }

    pub fn revive(&mut self) {
        self.copy = None;
        let death = self.vfs.disk().death();
        self.forget();
        let lost = self.vfs.disk().revive();
        match death {
            Some(Death::PowerCut) => {
                self.power_cuts += 1;
                if self.plan.store.durability == Durability::Normal {
                    self.context.machine(Machine::forget);
                    self.context.oracle(|oracle| oracle.lossy = true);
                }
                self.boot();
            }
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
    pub async fn start(&mut self) {
        self.bring_back();
        loop {
            let started =
                Gateway::start(&self.context, &self.door, &self.vfs, &self.plan, &self.sinks, &mut self.random);
            match started {
                Ok(gateway) if !self.vfs.disk().is_dead() => {
                    self.context.trace(format_args!("started"));
                    let (same, copied) = self.images.started(self.plan.store.runtime_directory.is_some());
                    // No trouble of these damages what a careful program has written.
                    let notes = gateway.log.health().notes.into_iter();
                    let may_wait = !self.sinks_away.is_empty() || self.images.put_back > 0;
                    for note in notes.filter(|note| !(may_wait && note.contains("is not configured any more"))) {
                        let note = note.replace(&*self.plan.store.directory.to_string_lossy(), "DIR");
                        self.context.oracle(|oracle| oracle.violated(note));
                    }
                    let epoch = gateway.log.epoch().0;
                    self.context.oracle(|oracle| oracle.began(epoch, same, copied));
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
}
