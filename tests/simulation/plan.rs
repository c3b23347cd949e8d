//! What one seed is about: how the gateway is configured and which troubles come.
//! Not every seed has every trouble, so that each is also seen without the others.

use bytesize::ByteSize;
use fastrand::Rng;
use std::path::Path;
use std::time::Duration;
use tidegate::config::{Deliver, Durability, HistoryWithin, Priority, Route, Store};

pub struct Plan {
    pub store: Store,
    pub routes: Vec<Route>,
    pub devices: usize,
    pub sinks: usize,
    pub steps: usize,
    pub latency: Duration,
    pub troubles: Vec<Trouble>,
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
}

const TROUBLES: [Trouble; 13] = [
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
];

/// The channel that makes a reading an alarm, which a route may let outlive others.
pub const ALARM: &str = "alarm";

fn one_of<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

impl Plan {
    pub fn draw(directory: &Path, random: &mut Rng) -> Plan {
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
            commit_within: ms(one_of(random, &[0, 20, 250, 2000])),
            history_within,
            deliver: if random.u8(..3) == 0 { Deliver::AfterCommit } else { Deliver::AtOnce },
            durability: if random.u8(..6) == 0 { Durability::Normal } else { Durability::Full },
            max_size: if is_small { ByteSize::kib(random.u64(192..512)) } else { ByteSize::mib(64) },
            max_age: (random.u8(..12) == 0).then(|| Duration::from_secs(random.u64(10..100))),
            thin: (is_small && random.bool()).then(|| random.u32(2..10)),
            max_pending: ByteSize::kib(one_of(random, &[64, 256, 16 * 1024])),
            segment_size: ByteSize::kib(one_of(random, &[4, 16, 64])),
            ..Store::default()
        };
        let troubles = TROUBLES.into_iter().filter(|_| random.bool()).collect();
        Plan {
            store,
            routes,
            devices: random.usize(1..=4),
            sinks: random.usize(1..=3),
            steps: random.usize(5..40),
            latency: ms(one_of(random, &[1, 20, 300])),
            troubles,
        }
    }

    /// Whether the log may drop readings that were not delivered: for want of room, or
    /// for their age.
    pub fn may_drop(&self) -> bool {
        self.is_small() || self.store.max_age.is_some() || self.troubles.contains(&Trouble::DiskLow)
    }

    /// Whether readings of high priority are never dropped: there are few of them.
    pub fn keeps_alarms(&self) -> bool {
        !self.may_drop() || !self.routes.is_empty() && self.store.max_age.is_none()
    }

    fn is_small(&self) -> bool {
        self.store.max_size < ByteSize::mib(1)
    }
}
