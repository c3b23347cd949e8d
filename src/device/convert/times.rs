//! From a device's times to the gateway's. Pure.
//!
//! A clock that counts since the device's boot is tied to the gateway's monotonic
//! clock, not to the wall: a step of the wall moves what is converted afterwards with
//! it, and while the wall cannot be believed, times count from the gateway's boot.

use crate::clock::Now;
use crate::model::{Basis, BootId, Timestamp};
use crate::wire::message::DeviceClock;
use std::time::Duration;

/// What devices' times are held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRules {
    /// What the gateway's monotonic clock counts in.
    pub boot: BootId,
    /// A device's clock may be this far ahead of the gateway's.
    pub max_ahead: Duration,
    /// Nothing was taken before this.
    pub earliest: Timestamp,
}

impl Default for TimeRules {
    fn default() -> TimeRules {
        TimeRules { boot: BootId::default(), max_ahead: Duration::from_secs(600), earliest: Timestamp(0) }
    }
}

/// How fast the distance between two clocks may grow by their drift alone, in parts
/// per million: ten times what a poor crystal does.
const MAX_DRIFT_PPM: u64 = 1000;

/// Places the times of one device.
#[derive(Debug)]
pub struct Times {
    clock: DeviceClock,
    rules: TimeRules,
    tie: Option<Tie>,
}

/// Where the device's boot lies on the gateway's monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Tie {
    /// In microseconds; the device may have booted before the gateway.
    boot: i64,
    /// When that was found, and what the device's clock showed then.
    at: Duration,
    time: i64,
}

impl Times {
    pub fn new(clock: DeviceClock, rules: TimeRules) -> Times {
        Times { clock, rules, tie: None }
    }

    pub fn clock(&self) -> DeviceClock {
        self.clock
    }

    /// The device's clock showed `time` when it sent what arrived at `now`.
    ///
    /// What arrives late makes the device seem to have booted later than it did, and
    /// nothing makes it seem earlier: so an earlier boot is taken at once and a later
    /// one only as far as clocks drift. A clock that runs backwards started anew.
    pub fn synchronise(&mut self, time: i64, now: Now) {
        if self.clock != DeviceClock::SinceBoot {
            return;
        }
        let seen = micros(now.monotonic).saturating_sub(time.saturating_mul(1000));
        let boot = match self.tie {
            Some(tie) if time >= tie.time => {
                let elapsed = now.monotonic.saturating_sub(tie.at);
                let drift = micros(elapsed / u32::try_from(1_000_000 / MAX_DRIFT_PPM).unwrap_or(1));
                seen.min(tie.boot.saturating_add(drift))
            }
            _ => seen,
        };
        self.tie = Some(Tie { boot, at: now.monotonic, time });
    }

    /// What the device's `time` is, told at `now`.
    pub fn place(&self, time: i64, now: Now) -> (Timestamp, Basis) {
        match self.clock {
            DeviceClock::Wall => self.judge(Timestamp(time), now),
            DeviceClock::SinceBoot => {
                let boot = self.tie.map_or(micros(now.monotonic), |tie| tie.boot);
                let uptime = Timestamp(time.saturating_mul(1000).saturating_add(boot));
                let received = Timestamp(micros(now.monotonic));
                match now.trusted {
                    true => self.judge(Timestamp(uptime.0.saturating_add(now.start().0)), now),
                    false if uptime > received.plus(self.rules.max_ahead) => (uptime, self.absurd(now)),
                    false => (uptime, Basis::Boot(self.rules.boot)),
                }
            }
        }
    }

    /// The time of a sample whose own cannot be read: when it came, and flagged.
    pub fn unknown(&self, now: Now) -> (Timestamp, Basis) {
        let received = if now.trusted { now.wall } else { Timestamp(micros(now.monotonic)) };
        (received, self.absurd(now))
    }

    /// Flags a time that cannot be. A gateway that does not know the time itself can
    /// tell only of the distant past that it is over.
    fn judge(&self, time: Timestamp, now: Now) -> (Timestamp, Basis) {
        let ahead = now.trusted && time > now.wall.plus(self.rules.max_ahead);
        let absurd = ahead || time < self.rules.earliest;
        (time, if absurd { self.absurd(now) } else { Basis::Wall })
    }

    fn absurd(&self, now: Now) -> Basis {
        match now.trusted {
            true => Basis::DeviceClock { received: now.wall },
            false => Basis::DeviceClockSince { boot: self.rules.boot, received: Timestamp(micros(now.monotonic)) },
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;
    /// 2026-11-23
    const WALL: i64 = 1_795_395_723 * S;
    const BOOT: BootId = BootId([7; 16]);

    fn at(seconds: u64, wall: i64, trusted: bool) -> Now {
        Now { wall: Timestamp(wall), trusted, monotonic: Duration::from_secs(seconds) }
    }

    fn times(clock: DeviceClock) -> Times {
        let earliest = Timestamp(1_577_836_800 * S);
        Times::new(clock, TimeRules { boot: BOOT, max_ahead: Duration::from_secs(600), earliest })
    }

    #[test]
    fn a_boot_clock_is_placed_on_the_gateways() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(2_000, at(100, WALL, true));
        assert_eq!(times.place(1_500, at(100, WALL, true)), (Timestamp(WALL - S / 2), Basis::Wall));
        assert_eq!(times.place(2_500, at(101, WALL + S, true)), (Timestamp(WALL + S / 2), Basis::Wall));
        assert!(matches!(times.place(i64::MAX, at(101, WALL, true)), (Timestamp(i64::MAX), Basis::DeviceClock { .. })));
    }

    #[test]
    fn a_step_of_the_gateways_clock_moves_what_comes_after_it() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(0, at(100, WALL, true));
        for step in [3600 * S, -3600 * S, 86_400 * S] {
            let now = at(110, WALL + 10 * S + step, true);
            assert_eq!(times.place(10_000, now), (now.wall, Basis::Wall));
        }
    }

    #[test]
    fn while_the_gateways_clock_is_not_believed_times_count_from_its_boot() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(1_000, at(100, 5, false));
        assert_eq!(times.place(3_000, at(110, 5, false)), (Timestamp(102 * S), Basis::Boot(BOOT)));
        // The device was up before the gateway.
        assert_eq!(times.place(-200_000, at(110, 5, false)), (Timestamp(-101 * S), Basis::Boot(BOOT)));
        assert_eq!(times.place(3_000, at(110, WALL, true)), (Timestamp(WALL - 8 * S), Basis::Wall));
    }

    #[test]
    fn a_heartbeat_that_comes_late_does_not_move_the_device() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(0, at(100, WALL, true));
        // Sent after 10 s, read after 60 s.
        times.synchronise(10_000, at(160, WALL, true));
        let (placed, _) = times.place(0, at(160, WALL, true));
        let drift = placed.0 - (WALL - 60 * S);
        assert!((0..=60 * S / 1000).contains(&drift), "{drift} us");
        // One that took no time says where the device really is.
        times.synchronise(60_500, at(160, WALL, true));
        assert_eq!(times.place(60_500, at(160, WALL, true)).0, Timestamp(WALL));
    }

    #[test]
    fn a_clock_that_drifts_is_followed() {
        let mut times = times(DeviceClock::SinceBoot);
        // The device's clock is slow by 100 ppm, over a month.
        for beat in 0..=86_400u64 {
            let seconds = beat * 30;
            times.synchronise(i64::try_from(seconds * 1000 - seconds / 10).expect("small"), at(seconds, WALL, true));
        }
        let end = 86_400 * 30;
        let shown = i64::try_from(end * 1000 - end / 10).expect("small");
        let off = times.place(shown, at(end, WALL, true)).0.0 - WALL;
        assert!(off.abs() < 10_000, "{off} us");
    }

    #[test]
    fn a_device_whose_clock_starts_anew_is_tied_anew() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(4_294_967_000, at(1000, WALL, true));
        times.synchronise(700, at(1001, WALL, true));
        assert_eq!(times.place(700, at(1001, WALL, true)), (Timestamp(WALL), Basis::Wall));
    }

    #[test]
    fn a_device_clock_that_cannot_be_is_flagged_as_far_as_the_gateway_can_tell() {
        let times = times(DeviceClock::Wall);
        let now = at(100, WALL, true);
        let absurd = Basis::DeviceClock { received: now.wall };
        let since = Basis::DeviceClockSince { boot: BOOT, received: Timestamp(100 * S) };
        for (time, basis, without_time) in [
            (WALL, Basis::Wall, Basis::Wall),
            (WALL + 600 * S, Basis::Wall, Basis::Wall),
            (WALL + 601 * S, absurd, Basis::Wall),
            (WALL - 5 * 365 * 86_400 * S, Basis::Wall, Basis::Wall),
            (0, absurd, since),
            (i64::MIN, absurd, since),
            (i64::MAX, absurd, Basis::Wall),
        ] {
            assert_eq!(times.place(time, now), (Timestamp(time), basis), "{time}");
            assert_eq!(times.place(time, at(100, WALL, false)), (Timestamp(time), without_time), "{time}");
        }
    }

    #[test]
    fn an_uptime_that_is_not_over_yet_is_flagged_also_without_the_time() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(1_000, at(100, 5, false));
        assert_eq!(times.place(601_000, at(100, 5, false)), (Timestamp(700 * S), Basis::Boot(BOOT)));
        let since = Basis::DeviceClockSince { boot: BOOT, received: Timestamp(100 * S) };
        assert_eq!(times.place(602_000, at(100, 5, false)), (Timestamp(701 * S), since));
    }
}
