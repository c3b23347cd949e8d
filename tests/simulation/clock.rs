//! The gateway's machine as far as time goes: when it booted, what its clock shows and
//! who believes it; and what follows from that for the times of readings.

use super::context::Context;
use super::vfs::FaultyVfs;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate::clock::{Clock, Now, Pauses};
use tidegate::model::{BootId, Timestamp};
use tidegate::sink::encode::{Delivered, Quality};
use tidegate::store::Log;
use tokio::time::sleep;

/// 2026-01-01T00:00:00Z: no clock is believed that shows less.
const PLAUSIBLE: Timestamp = Timestamp(1_767_225_600_000_000);
/// What the gateway's configuration says of devices' clocks by default.
const EARLIEST: Timestamp = Timestamp(1_577_836_800_000_000);
const MAX_AHEAD: i64 = 600_000_000;
/// A device's clock counts milliseconds.
const GRAIN: i64 = 2_000;
/// Messages under way when the clock is set may arrive this much later without a time.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// A commit that is due and did not fail is on the disk after this.
const COMMITTED: Duration = Duration::from_secs(2);

/// What the gateway's clock showed from some instant on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    boot: BootId,
    trusted: bool,
    /// How far the clock was ahead of the true time.
    offset: i64,
}

/// One boot of the machine.
#[derive(Debug, Clone, Default)]
struct Boot {
    at: Duration,
    /// Every beginning of it, less the true one, that a log took over; how long after
    /// the truth its clock was.
    offsets: Vec<(i64, Timestamp)>,
    /// Since when all readings of it have times: a log knows its beginning for good.
    placed: Option<Duration>,
    /// It is on the disk.
    kept: bool,
}

/// The machine, and what its clock was like before.
pub struct Machine {
    boot: BootId,
    boots: BTreeMap<BootId, Boot>,
    /// Somebody vouches for the clock.
    set: bool,
    /// Now and then nobody believes it, whatever it shows.
    doubted: bool,
    offset: i64,
    /// What each look at the clock showed, where that changed.
    views: Vec<(Duration, View)>,
    /// When the gateway stood still, and until when.
    pauses: Vec<(Duration, Duration)>,
}

/// A reading as its device knows it.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// The true time.
    pub at: Timestamp,
    /// What the device says, if it has a clock.
    pub said: Option<Timestamp>,
}

impl Default for Machine {
    fn default() -> Machine {
        let boot = BootId::default();
        Machine {
            boot,
            boots: [(boot, Boot::default())].into(),
            set: true,
            doubted: false,
            offset: 0,
            views: Vec::new(),
            pauses: Vec::new(),
        }
    }
}

impl Machine {
    /// It boots, with a clock that is off by so many microseconds; without a battery
    /// nobody vouches for it yet.
    pub fn boot(&mut self, boot: BootId, at: Duration, offset: i64, battery: bool) {
        (self.boot, self.set, self.offset) = (boot, battery, offset);
        self.boots.insert(boot, Boot { at, ..Boot::default() });
    }

    /// The clock gets the true time from somebody who vouches for it.
    pub fn set(&mut self) {
        (self.set, self.offset) = (true, 0);
    }

    pub fn pauses_for(&mut self, now: Duration, time: Duration) {
        self.pauses.push((now, now + time));
    }

    /// For how long the gateway stood still between two times.
    pub fn paused(&self, from: Duration, upto: Duration) -> Duration {
        let part = |(began, ended): &(Duration, Duration)| (*ended).min(upto).saturating_sub(from.max(*began));
        self.pauses.iter().map(part).sum()
    }

    pub fn is_set(&self) -> bool {
        self.set
    }

    pub fn step(&mut self, micros: i64) {
        self.offset += micros;
    }

    pub fn doubt(&mut self, doubted: bool) {
        self.doubted = doubted;
    }

    /// What a log that was synced to the disk knows may be lost all the same.
    pub fn forget(&mut self) {
        self.boots.values_mut().for_each(|boot| (boot.placed, boot.kept) = (None, false));
    }

    fn look(&mut self, believed: bool, elapsed: Duration, truth: Timestamp) -> Now {
        let wall = Timestamp(truth.0 + self.offset);
        let trusted = believed && !self.doubted && wall >= PLAUSIBLE;
        let view = View { boot: self.boot, trusted, offset: self.offset };
        if self.views.last().is_none_or(|(_, last)| *last != view) {
            self.views.push((elapsed, view));
        }
        let at = self.boots.get(&self.boot).map_or(Duration::ZERO, |boot| boot.at);
        Now { wall, trusted, monotonic: elapsed.saturating_sub(at) }
    }

    /// A run of the gateway begins, whose log knows when this boot began or does not.
    fn run(&mut self, elapsed: Duration, synchronised: bool) {
        if let Some(boot) = self.boots.get_mut(&self.boot) {
            boot.kept |= synchronised;
        }
        // What the run before knew and nobody read back may be lost with it.
        for boot in self.boots.values_mut().filter(|boot| !boot.kept) {
            boot.placed = None;
        }
        if let Some(boot) = self.boots.get_mut(&self.boot).filter(|boot| boot.kept) {
            boot.placed.get_or_insert(elapsed);
        }
    }

    /// What the log took over is on the disk.
    fn kept(&mut self) {
        if let Some(boot) = self.boots.get_mut(&self.boot) {
            boot.kept = true;
        }
    }

    /// The log takes over that the boot began as `now` says.
    fn placed(&mut self, now: Now, elapsed: Duration, begin: Timestamp) {
        if let Some(boot) = self.boots.get_mut(&self.boot) {
            let began = now.start();
            boot.offsets.push((began.0 - begin.plus(boot.at).0, began));
            boot.placed = Some(elapsed);
        }
    }

    /// The views that a reading which was taken at `from` and got to a consumer at `upto`
    /// may have come under.
    fn views(&self, from: Duration, upto: Duration) -> impl Iterator<Item = View> + Clone + '_ {
        let first = self.views.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        self.views[first..].iter().take_while(move |(at, _)| *at <= upto).map(|(_, view)| *view)
    }

    /// Whether a reading that came to a consumer at `elapsed` has the time it should
    /// have, or says truthfully that it has none. `begin` is when the simulation began;
    /// the gateway may have learnt of the device's clock so late (`slack`).
    pub fn judge(
        &self,
        taken: Taken,
        reading: &Delivered,
        slack: Duration,
        begin: Timestamp,
        elapsed: Duration,
    ) -> Result<(), String> {
        let Taken { at, said } = taken;
        let (from, upto) = (at.since(begin), elapsed);
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let drift = micros(elapsed) / 1000;
        let near = |off: i64| (-GRAIN..=micros(slack) + drift + GRAIN).contains(&off);
        let during = |off: i64| (0..=micros(upto.saturating_sub(from))).contains(&off);
        let trusted = self.views(from, upto).filter(|view| view.trusted);
        let doubted = || self.views(from, upto).filter(|view| !view.trusted);
        let placed = || doubted().filter_map(|view| self.boots.get(&view.boot)).flat_map(|boot| &boot.offsets);
        let absurd = |offset: i64| said.is_some_and(|said| said.0 > at.0 + offset + MAX_AHEAD);
        let ancient = said.is_some_and(|said| said < EARLIEST);
        // Its boot's beginning in true time, if it is one under which the reading came.
        let began = |boot: BootId| {
            let known = self.boots.get(&boot).filter(|_| doubted().any(|view| view.boot == boot));
            known.map(|known| (known, begin.plus(known.at).0)).ok_or(format!("it did not come in boot {boot}"))
        };
        let timed = |boot: &Boot| match boot.placed {
            Some(since) if upto > since + UNDER_WAY + self.paused(since, upto) => {
                Err("its boot's beginning was known long before".to_owned())
            }
            _ => Ok(()),
        };
        let when = reading.time.0;
        if let Some(said) = said.filter(|said| *said != reading.time) {
            return Err(format!("the device said {said}"));
        }
        let right = match reading.quality {
            Quality::Good if said.is_some() => {
                let later = micros(upto.saturating_sub(from));
                !ancient && (doubted().next().is_some() || trusted.clone().any(|view| !absurd(view.offset + later)))
            }
            Quality::Good => trusted.clone().any(|view| near(when - at.0 - view.offset)),
            Quality::Resynchronised if said.is_none() => {
                let mut offsets = placed();
                offsets.any(|(offset, _)| near(when - at.0 - offset))
            }
            Quality::Resynchronised => false,
            Quality::Unsynchronised { boot, uptime } if said.is_none() => {
                let (known, began) = began(boot)?;
                timed(known)?;
                near(began + uptime.0 - at.0)
            }
            Quality::Unsynchronised { .. } => false,
            // Word of the device's clock came late: it might have stood still.
            Quality::DeviceClock { received } if said.is_none() => {
                trusted.clone().any(|view| during(received.0 - at.0 - view.offset) && near(when - at.0 - view.offset))
            }
            Quality::DeviceClock { received } => {
                let at_once = trusted
                    .clone()
                    .any(|view| (ancient || absurd(view.offset)) && during(received.0 - at.0 - view.offset));
                at_once || ancient && placed().any(|(offset, _)| during(received.0 - at.0 - offset))
            }
            Quality::DeviceClockSince { boot, uptime } => {
                let (known, began) = began(boot)?;
                timed(known)?;
                ancient && during(began + uptime.0 - at.0)
            }
        };
        right
            .then_some(())
            .ok_or_else(|| format!("the gateway's clock was {:?}", self.views(from, upto).collect::<Vec<_>>()))
    }

    /// Until when a device may begin a command that came at `first`, was taken over at
    /// `taken` and is wanted for `lifetime`; the gateway started last at `run`. Over a
    /// boot only a clock that is right can tell; a wrong one prolongs it no further than
    /// by all its time from a start on.
    pub fn wanted_until(
        &self,
        first: Duration,
        taken: Duration,
        lifetime: Duration,
        run: Duration,
        now: Duration,
    ) -> Duration {
        let booted = self.boots.values().any(|boot| boot.at > first && boot.at <= now);
        let right = self.views(first, now).all(|view| !view.trusted || view.offset == 0);
        if booted && !right { taken.max(run) + lifetime } else { taken + lifetime }
    }

    /// Whether a boot began as an event says.
    pub fn began(&self, boot: BootId, began: Timestamp) -> bool {
        self.boots.get(&boot).is_some_and(|boot| boot.offsets.iter().any(|(_, told)| *told == began))
    }

    /// Whether consumers of readings without a time must have been told of this boot.
    pub fn must_be_told(&self, boot: BootId) -> bool {
        self.boots.get(&boot).is_some_and(|boot| boot.placed.is_some())
    }
}

/// The clock as one run of the gateway knows it.
pub struct SimulatedClock {
    context: Context,
    machine: Arc<Mutex<Machine>>,
    boot: BootId,
    believed: AtomicBool,
    pauses: Mutex<Pauses>,
}

impl SimulatedClock {
    pub fn new(context: &Context, machine: &Arc<Mutex<Machine>>) -> SimulatedClock {
        let boot = machine.lock().boot;
        SimulatedClock {
            context: context.clone(),
            machine: machine.clone(),
            boot,
            believed: AtomicBool::new(false),
            pauses: Mutex::default(),
        }
    }

    /// Watches the clock as `gateway::timekeeper` does, for as long as the log is open.
    pub async fn keep(&self, log: &Log, vfs: &FaultyVfs) {
        let mut told = None;
        loop {
            if told.is_some_and(|told| self.context.elapsed() >= told + COMMITTED)
                && log.health().failure.is_none()
                && !vfs.disk().is_dead()
            {
                told = None;
                self.machine.lock().kept();
            }
            if self.machine.lock().is_set() && !self.believed.swap(true, Ordering::Relaxed) {
                self.context.trace(format_args!("the clock is believed"));
            }
            let now = self.now();
            if now.trusted && !log.is_synchronised() {
                self.context.trace(format_args!("boot {} began {}", self.boot, now.start()));
                self.machine.lock().placed(now, self.context.elapsed(), self.context.begin());
                log.synchronised(now);
                told = Some(self.context.elapsed());
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// A run begins with this log. What it knows from before vouches for the clock.
    pub fn begin(&self, log: &Log) {
        let synchronised = log.is_synchronised();
        let mut machine = self.machine.lock();
        machine.run(self.context.elapsed(), synchronised);
        self.believed.store(synchronised || machine.is_set(), Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Now {
        let believed = self.believed.load(Ordering::Relaxed);
        self.machine.lock().look(believed, self.context.elapsed(), self.context.wall())
    }

    fn boot(&self) -> BootId {
        self.boot
    }

    fn put_off(&self) -> Duration {
        let pauses = *self.pauses.lock();
        pauses.put_off(self.now().monotonic)
    }

    fn look(&self) -> Option<Duration> {
        let now = self.now().monotonic;
        self.pauses.lock().look(now)
    }
}
