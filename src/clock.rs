//! Wall and monotonic time, and whether the wall clock is trusted. Machines without a
//! battery-backed clock boot in the past: often in 1970, more often at the time of their
//! last stop, which is plausible and wrong.
//!
//! What makes the wall clock trusted is decided elsewhere ([`SystemClock::believe`]). All
//! waits, timeouts and orders use monotonic time only.

mod pauses;

pub use pauses::{Excuses, LAST_LOOK, LONGEST_NAP, Pauses, keep, patiently};

use crate::model::{BootId, Timestamp};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// UTC; may step in both directions.
    pub wall: Timestamp,
    /// Whether `wall` is trusted. False on a machine whose clock is not set yet.
    pub trusted: bool,
    /// Since the machine's boot, or another start; never steps back.
    pub monotonic: Duration,
}

impl Now {
    /// The wall time at which `monotonic` was zero.
    pub fn start(self) -> Timestamp {
        let monotonic = i64::try_from(self.monotonic.as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.wall.0.saturating_sub(monotonic))
    }
}

/// The source of time; passed in, so that tests and simulations use their own.
pub trait Clock: Send + Sync {
    fn now(&self) -> Now;

    /// The boot that `monotonic` counts from: two clocks with the same boot count from the
    /// same instant, also in different processes.
    fn boot(&self) -> BootId {
        BootId::default()
    }

    /// Time by which deadlines of peers have been extended so far because the gateway was
    /// paused; see [`Pauses`].
    fn put_off(&self) -> Duration {
        Duration::ZERO
    }

    /// Notes that the gateway is running. Returns how long it was paused, if it just was.
    fn look(&self) -> Option<Duration> {
        None
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot: BootId,
    /// The machine's uptime when `monotonic` was zero.
    zero: Duration,
    believed: AtomicBool,
    pauses: Mutex<Pauses>,
}

/// 2026-01-01T00:00:00Z: older than any release of this program.
const EARLIEST_PLAUSIBLE: Timestamp = Timestamp(1_767_225_600_000_000);

/// The kernel's id of the boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The boot's id where that file is hidden from a service; see the systemd unit.
const BOOT_ID_VARIABLE: &str = "TIDEGATE_BOOT_ID";

impl SystemClock {
    /// A clock that counts from now and is trusted whenever it is plausible.
    pub fn new() -> SystemClock {
        SystemClock::of(random(), uptime(), true)
    }

    /// A clock that counts from the machine's boot and is not trusted until
    /// [`SystemClock::believe`].
    pub fn since_boot() -> SystemClock {
        let told = std::fs::read_to_string(BOOT_ID).or_else(|_| std::env::var(BOOT_ID_VARIABLE));
        let boot = told.ok().and_then(|text| text.trim().parse().ok());
        if boot.is_none() {
            tracing::warn!(
                "the system does not name its boot ({BOOT_ID}, or {BOOT_ID_VARIABLE}): readings that arrive before the clock is \
                 set get no time if the gateway restarts before that"
            );
        }
        SystemClock::of(boot.unwrap_or_else(random), Duration::ZERO, false)
    }

    fn of(boot: BootId, zero: Duration, believed: bool) -> SystemClock {
        SystemClock { boot, zero, believed: AtomicBool::new(believed), pauses: Mutex::default() }
    }

    /// From now on the wall clock is trusted whenever it is plausible. It stays so when the
    /// source of time is lost again: a clock that was set drifts by seconds, one that never was
    /// set is wrong by months.
    pub fn believe(&self) {
        self.believed.store(true, Ordering::Relaxed);
    }

    pub fn is_believed(&self) -> bool {
        self.believed.load(Ordering::Relaxed)
    }
}

fn random() -> BootId {
    BootId(fastrand::u128(..).to_be_bytes())
}

/// The machine's uptime, including sleep.
fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel returns no negative times, and valid nanoseconds.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = Timestamp(0).plus(since_1970);
        let trusted = wall >= EARLIEST_PLAUSIBLE && self.is_believed();
        Now { wall, trusted, monotonic: uptime().saturating_sub(self.zero) }
    }

    fn boot(&self) -> BootId {
        self.boot
    }

    fn put_off(&self) -> Duration {
        let pauses = *self.pauses.lock();
        pauses.put_off(uptime())
    }

    fn look(&self) -> Option<Duration> {
        self.pauses.lock().look(uptime())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_trusts_only_a_plausible_time() {
        let now = SystemClock::new().now();
        assert_eq!(now.trusted, now.wall >= EARLIEST_PLAUSIBLE);
        assert_eq!(EARLIEST_PLAUSIBLE.to_string(), "2026-01-01T00:00:00.000000Z");
    }

    #[test]
    fn a_plausible_time_alone_is_not_believed() {
        let clock = SystemClock::since_boot();
        assert!(!clock.now().trusted);
        clock.believe();
        let now = clock.now();
        assert_eq!(now.trusted, now.wall >= EARLIEST_PLAUSIBLE);
    }

    #[test]
    fn uptime_and_boot_are_the_same_for_every_clock_of_one_boot() {
        let (first, second) = (SystemClock::since_boot(), SystemClock::since_boot());
        let before = first.now().monotonic;
        assert!(second.now().monotonic >= before && before > Duration::ZERO);
        if std::path::Path::new(BOOT_ID).exists() {
            assert_eq!(first.boot(), second.boot());
        }
        let one = SystemClock::new();
        assert!(one.now().monotonic < before, "it counts from its own start");
    }

    #[test]
    fn the_start_of_monotonic_time_is_told_on_the_wall() {
        let now = Now { wall: Timestamp(10_000_000), trusted: true, monotonic: Duration::from_secs(4) };
        assert_eq!(now.start(), Timestamp(6_000_000));
    }
}
