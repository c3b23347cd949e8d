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
/// A counter of milliseconds in 32 bits starts over here, after 49.7 days.
const WRAP: i64 = 1 << 32;
/// What a device's clock may show beyond what it is expected to show, in milliseconds,
/// before that is taken for something else.
const SLACK: i64 = 60_000;
/// Later than drift explains by so many microseconds, a message says that it was under way
/// for long, or that the device's counter stood still.
const LATE: i64 = 2_000_000;
/// So many late messages in a row say that the counter stands still at times.
const LATE_IN_A_ROW: u32 = 3;
/// After a pause of the gateway, what waited for its end is read within this.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Messages that arrive closer together than this count as one: they waited together.
const APART: Duration = Duration::from_secs(1);

/// Places the times of one device.
#[derive(Debug)]
pub struct Times {
    clock: DeviceClock,
    rules: TimeRules,
    tie: Option<Tie>,
    /// The clock has shown more than 32 bits hold: it does not start over there.
    wide: bool,
    /// The clock stands still at times, as a counter does while its device sleeps: each
    /// message that says what it shows is believed.
    stops: bool,
    late: Option<Late>,
    /// When the gateway's last pause was noticed, and how much later than usual messages
    /// may be for it.
    pause: Option<(Duration, Duration)>,
}

/// Where the device's boot lies on the gateway's monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Tie {
    /// In microseconds; the device may have booted before the gateway.
    boot: i64,
    /// When that was found.
    at: Duration,
    /// What the device's clock showed last, in milliseconds, with what wrapped around.
    time: i64,
    /// The same, of the last message that was not late.
    sure: i64,
}

/// Messages in a row that came later than drift explains.
#[derive(Debug, Clone, Copy)]
struct Late {
    count: u32,
    /// When the last one of them was counted.
    at: Duration,
}

impl Times {
    pub fn new(clock: DeviceClock, rules: TimeRules) -> Times {
        Times { clock, rules, tie: None, wide: false, stops: false, late: None, pause: None }
    }

    pub fn clock(&self) -> DeviceClock {
        self.clock
    }

    /// The gateway did not listen for a while.
    pub fn excuse(&mut self, by: Duration, now: Now) {
        self.pause = Some((now.monotonic, by));
    }

    /// Messages that arrive now may have waited for the gateway so long, in microseconds.
    fn waited(&self, now: Now) -> i64 {
        let pause = self.pause.filter(|(noticed, _)| now.monotonic <= *noticed + CATCH_UP);
        pause.map_or(0, |(_, by)| micros(by))
    }

    /// The device's clock showed `time` when it sent what arrived at `now`.
    ///
    /// What arrives late makes the device seem to have booted later than it did, and
    /// nothing makes it seem earlier: so an earlier boot is taken at once and a later
    /// one only as far as clocks drift, unless several messages in a row say so: then the
    /// device's counter stands still at times, and each message is believed. A clock that
    /// runs backwards, other than by wrapping around, started anew.
    pub fn synchronise(&mut self, time: i64, now: Now) {
        if self.clock != DeviceClock::SinceBoot {
            return;
        }
        self.wide |= time >= WRAP;
        let time = self.unwrapped(time, now);
        let seen = micros(now.monotonic).saturating_sub(time.saturating_mul(1000));
        let fits = |boot| Tie { boot, at: now.monotonic, time, sure: time };
        let Some(tie) = self.tie.filter(|tie| time >= tie.time) else {
            (self.tie, self.late) = (Some(fits(seen)), None);
            return;
        };
        let elapsed = now.monotonic.saturating_sub(tie.at);
        let drift = micros(elapsed / u32::try_from(1_000_000 / MAX_DRIFT_PPM).unwrap_or(1));
        let latest = tie.boot.saturating_add(drift);
        if !self.stops && seen > latest.saturating_add(LATE).saturating_add(self.waited(now)) {
            let late = self.late.get_or_insert(Late { count: 1, at: now.monotonic });
            if now.monotonic >= late.at + APART {
                *late = Late { count: late.count + 1, at: now.monotonic };
            }
            self.stops = late.count >= LATE_IN_A_ROW;
            if !self.stops {
                self.tie = Some(Tie { sure: tie.sure, ..fits(latest) });
                return;
            }
        }
        self.late = None;
        self.tie = Some(fits(if self.stops { seen } else { seen.min(latest) }));
    }

    /// A sample taken at `time` by the device's clock arrived at `now`: the clock shows at
    /// least as much.
    pub fn heard(&mut self, time: i64, now: Now) {
        if self.clock != DeviceClock::SinceBoot {
            return;
        }
        let time = self.unwrapped(time, now);
        let seen = micros(now.monotonic).saturating_sub(time.saturating_mul(1000));
        if let Some(tie) = &mut self.tie
            && seen < tie.boot
            && tie.boot.saturating_sub(seen) <= SLACK * 1000
        {
            tie.boot = seen;
        }
    }

    /// The device's `time` with what its counter lost by wrapping around: the latest that
    /// is not ahead of what the clock is expected to show.
    fn unwrapped(&self, time: i64, now: Now) -> i64 {
        let Some(tie) = self.tie.filter(|_| !self.wide && (0..WRAP).contains(&time)) else { return time };
        let expected = micros(now.monotonic).saturating_sub(tie.boot) / 1000;
        let ahead = expected.saturating_add(SLACK).saturating_sub(time);
        time + ahead.div_euclid(WRAP).max(0) * WRAP
    }

    /// What the device's `time` is, told at `now`.
    pub fn place(&self, time: i64, now: Now) -> (Timestamp, Basis) {
        if self.clock == DeviceClock::Wall {
            return self.corrected(Timestamp(time), now);
        }
        let shown = self.unwrapped(time, now);
        let boot = self.tie.map_or(micros(now.monotonic), |tie| tie.boot);
        let uptime = Timestamp(shown.saturating_mul(1000).saturating_add(boot));
        let received = Timestamp(micros(now.monotonic));
        let before_boot = time < 0;
        let doubtful = self.late.is_some() && self.tie.is_some_and(|tie| shown > tie.sure);
        let cannot_be = before_boot || uptime > received.plus(self.rules.max_ahead);
        match now.trusted {
            true if cannot_be || doubtful => (Timestamp(uptime.0.saturating_add(now.start().0)), self.absurd(now)),
            true => self.corrected(Timestamp(uptime.0.saturating_add(now.start().0)), now),
            // A doubtful one is nearer to the truth by its place in the gateway's boot.
            false if cannot_be => (uptime, self.absurd(now)),
            false => (uptime, Basis::Boot(self.rules.boot)),
        }
    }

    /// The time of a sample whose own cannot be read: when it came, and flagged.
    pub fn unknown(&self, now: Now) -> (Timestamp, Basis) {
        let received = if now.trusted { now.wall } else { Timestamp(micros(now.monotonic)) };
        (received, self.absurd(now))
    }

    /// Flags a time that cannot be. A gateway that does not know the time itself can
    /// tell only of the distant past that it is over.
    fn corrected(&self, time: Timestamp, now: Now) -> (Timestamp, Basis) {
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
    fn what_waited_while_the_gateway_stood_still_is_no_doubt_about_a_clock() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(0, at(100, WALL, true));
        times.excuse(Duration::from_secs(60), at(170, WALL + 70 * S, true));
        for (time, arrives) in [(10_000, 170), (40_000, 170), (65_000, 172)] {
            let now = at(arrives, WALL + (arrives as i64 - 100) * S, true);
            times.synchronise(time, now);
            let (placed, basis) = times.place(time, now);
            let off = placed.0 - (WALL + time * 1000);
            assert!(basis == Basis::Wall && (0..=100_000).contains(&off), "{basis:?}, off by {off} us");
        }
        // Later than that pause explains.
        times.synchronise(66_000, at(180, WALL + 80 * S, true));
        assert!(matches!(times.place(66_000, at(180, WALL + 80 * S, true)).1, Basis::DeviceClock { .. }));
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
        // What the device said of a time before it was up cannot be.
        let since = Basis::DeviceClockSince { boot: BOOT, received: Timestamp(110 * S) };
        assert_eq!(times.place(-200_000, at(110, 5, false)), (Timestamp(-101 * S), since));
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
    fn a_device_that_was_up_before_the_gateway_is_placed_before_its_boot() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(500_000, at(100, 5, false));
        assert_eq!(times.place(200_000, at(110, 5, false)), (Timestamp(-200 * S), Basis::Boot(BOOT)));
    }

    #[test]
    fn a_device_whose_clock_starts_anew_is_tied_anew() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(900_000, at(1000, WALL, true));
        times.synchronise(700, at(1001, WALL, true));
        assert_eq!(times.place(700, at(1001, WALL, true)), (Timestamp(WALL), Basis::Wall));
    }

    #[test]
    fn a_counter_of_32_bits_that_wraps_around_goes_on_where_it_was() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(WRAP - 10_000, at(1000, WALL, true));
        let now = at(1030, WALL, true);
        // 20 s after it wrapped, before any heartbeat, and from before.
        assert_eq!(times.place(20_000, now), (now.wall, Basis::Wall));
        assert_eq!(times.place(WRAP - 1_000, now), (Timestamp(WALL - 21 * S), Basis::Wall));
        times.synchronise(20_000, now);
        assert_eq!(times.place(20_000, now), (now.wall, Basis::Wall));
        assert_eq!(times.place(WRAP - 1_000, now), (Timestamp(WALL - 21 * S), Basis::Wall));
        // And again, 49.7 days later.
        let now = at(1030 + 4_294_967, WALL, true);
        times.synchronise(19_704, now);
        let now = at(1060 + 4_294_967, WALL, true);
        let (placed, basis) = times.place(49_704, now);
        assert!((placed.0 - WALL).abs() < S && basis == Basis::Wall, "{placed} {basis:?}");
    }

    #[test]
    fn a_counter_of_64_bits_does_not_wrap_around() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(WRAP + 10_000, at(1000, WALL, true));
        let first_day = Timestamp(WALL - (WRAP + 10_000) * 1000);
        assert_eq!(times.place(0, at(1000, WALL, true)), (first_day, Basis::Wall));
    }

    #[test]
    fn a_counter_that_stands_still_while_its_device_sleeps_is_followed_and_flagged_until_then() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(0, at(100, WALL, true));
        // Awake for 10 s of each 30.
        let (mut flagged, mut followed) = (0, 0);
        for beat in 1..=20u64 {
            let (now, shown) = (at(100 + 30 * beat, WALL, true), i64::try_from(10_000 * beat).expect("small"));
            times.synchronise(shown, now);
            match times.place(shown, now) {
                (_, Basis::DeviceClock { received }) => {
                    assert_eq!((received, followed), (now.wall, 0));
                    flagged += 1;
                }
                placed => {
                    assert_eq!(placed, (now.wall, Basis::Wall));
                    followed += 1;
                }
            }
        }
        assert_eq!((flagged, followed), (2, 18));
    }

    #[test]
    fn messages_that_waited_together_do_not_say_that_the_clock_stood_still() {
        let mut times = times(DeviceClock::SinceBoot);
        times.synchronise(0, at(100, WALL, true));
        let now = at(250, WALL + 150 * S, true);
        for beat in 1..=4 {
            times.synchronise(30_000 * beat, now);
        }
        times.synchronise(150_000, now);
        let (placed, basis) = times.place(150_000, now);
        assert!((placed.0 - now.wall.0).abs() <= 150 * S / 1000 && basis == Basis::Wall, "{placed} {basis:?}");
    }

    #[test]
    fn a_sample_that_is_newer_than_the_clock_was_thought_to_be_moves_it() {
        let mut times = times(DeviceClock::SinceBoot);
        // Under way for 3 s.
        times.synchronise(1_000, at(103, WALL, true));
        times.heard(6_000, at(105, WALL, true));
        assert_eq!(times.place(6_000, at(105, WALL, true)), (Timestamp(WALL), Basis::Wall));
        // What nobody can believe moves nothing.
        times.heard(86_400_000, at(105, WALL, true));
        assert_eq!(times.place(6_000, at(105, WALL, true)), (Timestamp(WALL), Basis::Wall));
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
        // One that may only be late keeps its place.
        times.synchronise(2_000, at(150, 5, false));
        let (placed, basis) = times.place(2_000, at(150, 5, false));
        assert!((101 * S..102 * S).contains(&placed.0) && basis == Basis::Boot(BOOT), "{placed} {basis:?}");
    }
}
