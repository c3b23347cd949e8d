//! Who failed to authenticate too often, and how long it is not listened to. Pure.
//!
//! Failures fill a bucket that leaks: a device that backs off as the protocol asks it to
//! never fills it, so one with a wrong key does not lock out others behind its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// One failure is forgiven after so long.
const FORGIVEN_AFTER: Duration = Duration::from_secs(20);
/// How long the first lock holds; each further one twice as long.
const FIRST_LOCK: Duration = Duration::from_secs(10);
const LONGEST_LOCK: Duration = Duration::from_secs(600);
/// All is forgotten of who was quiet for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1800);
/// How many are remembered.
const MOST: usize = 4096;

/// Where attempts come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The whole address: neighbours in one IPv6 network are not locked out for each other.
    /// Who has many of them gains no guesses worth the name at keys of 256 bits, and pays for
    /// each with a connection.
    Address(IpAddr),
    /// A link whose far end has no address.
    Line(Arc<str>),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Origin {
        Origin::Address(address.to_canonical())
    }
}

/// What is remembered of those who failed.
#[derive(Debug)]
pub struct Lockouts {
    /// Failures that lock; 0: none do.
    limit: u32,
    origins: HashMap<Origin, Record>,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    failures: f64,
    /// When that was true.
    at: Duration,
    locks: u32,
    locked_until: Duration,
}

impl Record {
    /// Failures that are not forgiven yet.
    fn failures(&self, now: Duration) -> f64 {
        let quiet = now.saturating_sub(self.at.max(self.locked_until));
        (self.failures - quiet.as_secs_f64() / FORGIVEN_AFTER.as_secs_f64()).max(0.0)
    }

    /// When it was last heard of.
    fn last(&self) -> Duration {
        self.at.max(self.locked_until)
    }
}

impl Lockouts {
    /// Locks out whoever failed `limit` times; nobody if that is 0.
    pub fn new(limit: u32) -> Lockouts {
        Lockouts { limit, origins: HashMap::new() }
    }

    /// For how long nothing is taken from `origin`, if so.
    pub fn locked(&self, origin: &Origin, now: Duration) -> Option<Duration> {
        let record = self.origins.get(origin)?;
        record.locked_until.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// An attempt from `origin` failed. Returns how long it is locked out, if it was not
    /// already.
    pub fn failed(&mut self, origin: &Origin, now: Duration) -> Option<Duration> {
        if self.limit == 0 || self.locked(origin, now).is_some() {
            return None;
        }
        if !self.origins.contains_key(origin) && self.origins.len() >= MOST {
            self.make_room(now);
        }
        let fresh = Record { failures: 0.0, at: now, locks: 0, locked_until: Duration::ZERO };
        let record = self.origins.entry(origin.clone()).or_insert(fresh);
        if now >= record.last() + FORGOTTEN_AFTER {
            *record = fresh;
        }
        (record.failures, record.at) = (record.failures(now) + 1.0, now);
        // Those of a moment ago count in full, though a little of them is forgiven.
        if record.failures + 0.5 < f64::from(self.limit) {
            return None;
        }
        let time = FIRST_LOCK.saturating_mul(1 << record.locks.min(16)).min(LONGEST_LOCK);
        // After the lock one failure is enough for the next.
        record.failures = f64::from(self.limit - 1);
        record.locks += 1;
        record.locked_until = now + time;
        Some(time)
    }

    /// Forgets those of whom nothing was heard for long; if there are none, the one that
    /// is locked for least or was heard of longest ago.
    fn make_room(&mut self, now: Duration) {
        self.origins.retain(|_, record| now < record.last() + FORGOTTEN_AFTER);
        if self.origins.len() >= MOST {
            let least = self.origins.iter().min_by_key(|(_, record)| record.last()).map(|(origin, _)| origin.clone());
            least.map(|origin| self.origins.remove(&origin));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 10;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn from(address: &str) -> Origin {
        address.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn who_fails_often_is_locked_out_for_twice_as_long_each_time() {
        let (mut lockouts, origin) = (Lockouts::new(LIMIT), from("192.0.2.1"));
        for _ in 1..LIMIT {
            assert_eq!(lockouts.failed(&origin, seconds(1)), None);
        }
        assert_eq!(lockouts.locked(&origin, seconds(1)), None);
        let mut now = seconds(1);
        for expected in [10, 20, 40, 80, 160, 320, 600, 600] {
            assert_eq!(lockouts.failed(&origin, now), Some(seconds(expected)));
            assert_eq!(lockouts.failed(&origin, now), None, "it is locked out already");
            assert_eq!(lockouts.locked(&origin, now), Some(seconds(expected)));
            assert_eq!(lockouts.locked(&from("192.0.2.2"), now), None);
            now += seconds(expected);
            assert_eq!(lockouts.locked(&origin, now), None);
        }
        // All is forgotten in time.
        now += FORGOTTEN_AFTER;
        assert_eq!((1..LIMIT).filter_map(|_| lockouts.failed(&origin, now)).next(), None);
        assert_eq!(lockouts.failed(&origin, now), Some(seconds(10)));
    }

    #[test]
    fn a_device_that_backs_off_does_not_lock_out_its_address() {
        let (mut lockouts, origin) = (Lockouts::new(LIMIT), from("192.0.2.1"));
        // As docs/protocol.md says, each pause as short as chance makes it.
        let (mut now, mut pause) = (seconds(0), 1.0);
        for _ in 0..1000 {
            assert_eq!(lockouts.failed(&origin, now), None);
            now += Duration::from_secs_f64(pause * 0.5);
            pause = f64::min(pause * 2.0, 60.0);
        }
    }

    #[test]
    fn neighbours_in_an_ipv6_network_are_not_locked_out_for_each_other() {
        for (bad, neighbour) in [("2001:db8::1", "2001:db8::2"), ("fe80::1", "fe80::2"), ("fd00::1", "fd00::ffff:1")] {
            let mut lockouts = Lockouts::new(LIMIT);
            for _ in 0..LIMIT {
                lockouts.failed(&from(bad), seconds(1));
            }
            assert!(lockouts.locked(&from(bad), seconds(1)).is_some(), "{bad}");
            assert_eq!(lockouts.locked(&from(neighbour), seconds(1)), None, "{neighbour}");
        }
        assert_eq!(from("::ffff:192.0.2.1"), from("192.0.2.1"));
    }

    #[test]
    fn nobody_is_locked_out_by_no_limit() {
        let mut lockouts = Lockouts::new(0);
        assert!((0..100).all(|_| lockouts.failed(&from("192.0.2.1"), seconds(1)).is_none()));
    }

    #[test]
    fn the_table_has_a_bound_and_keeps_those_that_are_locked_out() {
        let (mut lockouts, bad) = (Lockouts::new(LIMIT), from("192.0.2.1"));
        for _ in 0..LIMIT {
            lockouts.failed(&bad, seconds(1));
        }
        for n in 0..20_000_u32 {
            let other = Origin::from(IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n)));
            lockouts.failed(&other, seconds(2));
        }
        assert!(lockouts.origins.len() <= MOST);
        assert!(lockouts.locked(&bad, seconds(3)).is_some());
    }
}
