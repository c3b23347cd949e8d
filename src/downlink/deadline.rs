//! Deadlines of commands, across restarts and with clocks that are not trusted. Pure.
//!
//! Within one boot of the machine its monotonic clock counts, also over restarts of the
//! gateway. After another boot the wall clock counts, if it was trusted when the command
//! arrived, and as soon as it is trusted again. Until then the command waits, and it expires
//! at the latest when its whole lifetime has passed since the gateway started.

use crate::clock::Now;
use crate::model::{BootId, Deadline, Timestamp};
use std::time::Duration;

/// The expiry that a sender gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    In(Duration),
    At(Timestamp),
    /// It is malformed.
    Invalid,
}

/// The deadline of a command that arrives now. Its lifetime is unknown if it has no time on
/// the monotonic clock.
pub fn begin(expiry: Expiry, boot: BootId, now: Now) -> Deadline {
    match expiry {
        Expiry::In(lifetime) => Deadline {
            boot,
            uptime: Some(now.monotonic.saturating_add(lifetime)),
            wall: now.trusted.then(|| now.wall.plus(lifetime)),
            lifetime,
        },
        Expiry::At(wall) if now.trusted => {
            let lifetime = wall.since(now.wall);
            Deadline { boot, uptime: Some(now.monotonic.saturating_add(lifetime)), wall: Some(wall), lifetime }
        }
        Expiry::Invalid => Deadline { boot, uptime: Some(now.monotonic), wall: None, lifetime: Duration::ZERO },
        Expiry::At(wall) => Deadline { boot, uptime: None, wall: Some(wall), lifetime: Duration::MAX },
    }
}

/// The deadline on the monotonic clock of `boot`, if it is known by now.
pub fn known(deadline: &Deadline, boot: BootId, now: Now) -> Option<Duration> {
    if let Some(uptime) = deadline.uptime.filter(|_| deadline.boot == boot) {
        return Some(uptime);
    }
    let wall = deadline.wall.filter(|_| now.trusted)?;
    Some(now.monotonic.saturating_add(wall.since(now.wall)))
}

/// When a command that is loaded now expires at the latest: at once if its deadline can
/// never be known.
pub fn latest(deadline: &Deadline, boot: BootId, now: Now) -> Duration {
    match (deadline.uptime, deadline.wall) {
        (Some(uptime), _) if deadline.boot == boot => uptime,
        (_, Some(_)) => now.monotonic.saturating_add(deadline.lifetime),
        (_, None) => now.monotonic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);
    const NEXT: BootId = BootId([2; 16]);
    const WALL: i64 = 1_800_000_000;

    fn at(wall: i64, trusted: bool, uptime: u64) -> Now {
        Now { wall: Timestamp(wall * 1_000_000), trusted, monotonic: Duration::from_secs(uptime) }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn within_a_boot_steps_of_the_wall_clock_move_nothing() {
        let deadline = begin(Expiry::In(seconds(60)), BOOT, at(WALL, true, 100));
        for now in [at(0, true, 110), at(WALL + 1_000_000, true, 110), at(WALL, false, 110)] {
            assert_eq!(known(&deadline, BOOT, now), Some(seconds(160)));
            assert_eq!(latest(&deadline, BOOT, now), seconds(160));
        }
    }

    #[test]
    fn after_another_boot_the_wall_clock_counts_once_it_can_be_believed() {
        let deadline = begin(Expiry::In(seconds(60)), BOOT, at(WALL, true, 100));
        assert_eq!(known(&deadline, NEXT, at(5, false, 3)), None);
        assert_eq!(latest(&deadline, NEXT, at(5, false, 3)), seconds(63));
        assert_eq!(known(&deadline, NEXT, at(WALL + 20, true, 8)), Some(seconds(48)));
        assert_eq!(known(&deadline, NEXT, at(WALL + 100, true, 8)), Some(seconds(8)), "it is over");
    }

    #[test]
    fn a_time_that_can_never_be_told_is_over_at_once() {
        let deadline = begin(Expiry::In(seconds(60)), BOOT, at(5, false, 100));
        assert_eq!(known(&deadline, NEXT, at(WALL, true, 3)), None);
        assert_eq!(latest(&deadline, NEXT, at(WALL, true, 3)), seconds(3));
    }

    #[test]
    fn a_time_on_the_wall_waits_for_a_clock_that_can_be_believed() {
        let until = Expiry::At(Timestamp((WALL + 60) * 1_000_000));
        let deadline = begin(until, BOOT, at(5, false, 100));
        assert_eq!((deadline.uptime, known(&deadline, BOOT, at(10, false, 105))), (None, None));
        assert_eq!(known(&deadline, BOOT, at(WALL, true, 110)), Some(seconds(170)));
        let over = begin(until, BOOT, at(WALL + 100, true, 100));
        assert_eq!((over.uptime, over.lifetime), (Some(seconds(100)), Duration::ZERO));
    }
}
