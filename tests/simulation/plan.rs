//! What one seed is about: how the gateway is configured and which troubles come.
//! Not every seed has every trouble, so that each is also seen without the others.

use bytesize::ByteSize;
use fastrand::Rng;
use std::path::Path;
use std::time::Duration;
use tidegate::config::{Authentication, Commands, Deliver, Devices, Durability, HistoryWithin, Priority, Route, Store};

pub struct Plan {
    pub store: Store,
    pub routes: Vec<Route>,
    pub devices: usize,
    pub sinks: usize,
    pub steps: usize,
    pub latency: Duration,
    pub troubles: Vec<Trouble>,
    /// The machine has a battery-backed clock.
    pub battery: bool,
    pub commands: Commands,
    /// What sessions of devices are granted.
    pub sessions: Devices,
    pub authentication: Authentication,
}

/// Something that the operator, or fate, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Restart,
    Kill,
    PowerCut,
    /// Either of the two, in the middle of what the disk does.
    DeathAtWork,
    DiskErrors,
    DiskFull,
    /// Less is free than the log is to leave free.
    DiskLow,
    Line,
    Reboot,
    Broker,
    Pace,
    Clock,
    Sinks,
    /// A device is switched off or on.
    Switch,
    /// A device's key is taken away or given back.
    Keys,
    /// A copy of the log is made, or put back.
    Image,
    /// The log's directory is moved away, or back.
    Away,
    /// Another program begins to read the log, and does not let go; or does.
    Reader,
    /// The gateway stands still for a while.
    Pause,
    /// Somebody copies one of the log's files.
    Copy,
}

const TROUBLES: [Trouble; 19] = [
    Trouble::Restart,
    Trouble::Kill,
    Trouble::PowerCut,
    Trouble::DeathAtWork,
    Trouble::DiskErrors,
    Trouble::DiskFull,
    Trouble::DiskLow,
    Trouble::Line,
    Trouble::Reboot,
    Trouble::Broker,
    Trouble::Pace,
    Trouble::Clock,
    Trouble::Sinks,
    Trouble::Switch,
    Trouble::Keys,
    Trouble::Away,
    Trouble::Reader,
    Trouble::Pause,
    Trouble::Copy,
];

/// The channel that makes a reading an alarm, which a route may let outlive others.
pub const ALARM: &str = "alarm";

fn one_of<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

impl Plan {
    /// What has to do with time is drawn from `times`, what has to do with devices beside
    /// their readings from `more`, all else from `random`.
    pub fn draw(directory: &Path, random: &mut Rng, times: &mut Rng, more: &mut Rng) -> Plan {
        let ms = Duration::from_millis;
        let history = [0, 1000, 30_000, 300_000];
        let history_within = match one_of(random, &history) {
            0 => HistoryWithin::Off,
            within => HistoryWithin::Within(ms(within)),
        };
        let is_small = random.u8(..4) == 0;
        let alarms = Route { channels: vec![ALARM.into()], priority: Priority::High, ..Route::default() };
        let routes = if is_small && random.bool() { vec![alarms] } else { Vec::new() };
        let store = Store {
            directory: directory.to_owned(),
            // It is in memory: no copy of the log has it, and it is told of another boot.
            runtime_directory: (random.u8(..8) > 0).then(|| directory.join("run")),
            commit_within: ms(one_of(random, &[0, 20, 250, 2000])),
            history_within,
            deliver: if random.u8(..3) == 0 { Deliver::AfterCommit } else { Deliver::AtOnce },
            durability: if random.u8(..6) == 0 { Durability::Normal } else { Durability::Full },
            max_size: if is_small { ByteSize::kib(random.u64(192..512)) } else { ByteSize::mib(64) },
            max_age: (random.u8(..12) == 0).then(|| Duration::from_secs(random.u64(10..100))),
            thin: (is_small && random.bool()).then(|| random.u32(2..10)),
            max_pending: ByteSize::kib(one_of(random, &[64, 256, 16 * 1024])),
            segment_size: ByteSize::kib(one_of(random, &[4, 16, 64])),
            max_events: one_of(more, &[10_000, 10_000, 10_000, 8]),
            ..Store::default()
        };
        let commands = Commands {
            max_queued: one_of(more, &[2, 16]),
            max_live: one_of(more, &[5, 1000, 1000]),
            retry_after: ms(one_of(more, &[2000, 10_000])),
            answer_within: ms(one_of(more, &[3000, 10_000])),
            ..Commands::default()
        };
        let sessions = Devices {
            heartbeat_interval: ms(10_000),
            idle_timeout: ms(one_of(more, &[20_000, 30_000])),
            offline_delay: ms(one_of(more, &[0, 5000])),
            flap_damping: ms(one_of(more, &[5000, 15_000])),
            lock_out_after: 0,
            ..Devices::default()
        };
        let authentication = one_of(more, &[Authentication::None, Authentication::None, Authentication::Hmac]);
        let mut troubles: Vec<Trouble> = TROUBLES.into_iter().filter(|_| random.bool()).collect();
        // What a copy takes back, nobody can be asked for: few have them, but often.
        if more.u8(..6) == 0 {
            troubles.extend([Trouble::Image, Trouble::Image]);
        }
        Plan {
            store,
            routes,
            devices: random.usize(1..=4),
            sinks: random.usize(1..=3),
            steps: random.usize(5..40),
            latency: ms(one_of(random, &[1, 20, 300])),
            troubles,
            battery: times.bool(),
            commands,
            sessions,
            authentication,
        }
    }

    /// How far the clock is off after a boot, in microseconds: at the time of the last
    /// stop as a rule, or where clocks begin.
    pub fn clock_after_boot(&self, times: &mut Rng) -> i64 {
        const HOUR: i64 = 3_600_000_000;
        // A battery-backed clock may be set wrong, and is believed all the same.
        if self.battery {
            one_of(times, &[0, 0, 0, 20 * 24 * HOUR])
        } else {
            one_of(times, &[-HOUR / 60, -HOUR, -24 * HOUR, -56 * 365 * 24 * HOUR])
        }
    }

    /// How long after a boot somebody gives the machine the time, if ever.
    pub fn clock_is_set_after(&self, times: &mut Rng) -> Option<Duration> {
        let after = one_of(times, &[Some(300), Some(3000), Some(20_000), Some(120_000), None]);
        after.filter(|_| !self.battery).map(|after| Duration::from_millis(times.u64(..after)))
    }

    /// How far the clock of a device is off that has one.
    pub fn device_clock(times: &mut Rng) -> i64 {
        const HOUR: i64 = 3_600_000_000;
        one_of(times, &[0, 0, 0, 0, 0, HOUR / 12, 2 * HOUR, 30 * 365 * 24 * HOUR, -50 * 365 * 24 * HOUR, -HOUR])
    }

    /// Why the log may drop readings that were not delivered, as gaps say it.
    pub fn may_drop(&self) -> Vec<&'static str> {
        let short = self.troubles.iter().any(|trouble| matches!(trouble, Trouble::DiskLow | Trouble::DiskFull));
        let reasons = [
            (self.is_small(), "max_size"),
            (short, "min_free"),
            (self.store.max_age.is_some(), "max_age"),
            (self.store.thin.is_some(), "thinned"),
        ];
        reasons.into_iter().filter(|(may, _)| *may).map(|(_, reason)| reason).collect()
    }

    /// Whether readings of high priority are never dropped: there are few of them. Below this
    /// size, far below what a configuration may say, how a few hundred commands ended takes
    /// most of the room.
    pub fn keeps_alarms(&self) -> bool {
        !self.routes.is_empty() && self.store.max_age.is_none() && self.store.max_size >= ByteSize::kib(384)
    }

    fn is_small(&self) -> bool {
        self.store.max_size < ByteSize::mib(1)
    }
}
