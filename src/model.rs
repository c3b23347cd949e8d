//! The facts that flow through the gateway, as plain validated types.
//!
//! A device's [`Batch`] holds [`Reading`]s; the log gives each reading a
//! [`Seq`], unique for ever within its [`Epoch`]. Nothing here knows a clock, a
//! socket or a database.

mod names;
mod reading;
mod value_serde;

pub use names::{ChannelName, DeviceId, GatewayId, InvalidName, Token};
pub use reading::{Batch, Channels, Numbered, Reading, ShapeMismatch, Value};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A reading's place in the log: strictly increasing, never reused in an epoch.
/// The first is 1; 0 stands for "before the first".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first reading.
    pub const ZERO: Seq = Seq(0);

    /// The seq that stands `n` after this one.
    pub fn plus(self, n: u64) -> Seq {
        Seq(self.0.saturating_add(n))
    }

    /// The seq right after this one.
    pub fn next(self) -> Seq {
        self.plus(1)
    }

    /// The seq right before this one; [`Seq::ZERO`] stays where it is.
    pub fn prev(self) -> Seq {
        Seq(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one life of the log: drawn at random when a database is created, so a
/// replaced database is never mistaken for its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall-clock time in microseconds since 1970-01-01T00:00:00Z, leap seconds
/// ignored. Negative before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time plus `duration`, at most the end of the representable range.
    pub fn plus(self, duration: Duration) -> Timestamp {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(micros))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Timestamp) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with microseconds; outside the years 1970 to 9999 the
    /// plain count of microseconds, so that every time has one spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const YEAR_10_000_US: i64 = 253_402_300_800_000_000;
        match u64::try_from(self.0) {
            Ok(micros) if self.0 < YEAR_10_000_US => {
                let time = std::time::UNIX_EPOCH + Duration::from_micros(micros);
                humantime::format_rfc3339_micros(time).fmt(f)
            }
            _ => self.0.fmt(f),
        }
    }
}

/// The identity that a device gave its reading: the device's session and its
/// own seq within it. Consumers drop duplicates by (device, origin).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub session: u64,
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_as_rfc3339() {
        assert_eq!(Timestamp(1_763_859_723_456_000).to_string(), "2025-11-23T01:02:03.456000Z");
        assert_eq!(Timestamp(-1).to_string(), "-1");
        assert_eq!(Timestamp(i64::MAX).to_string(), i64::MAX.to_string());
    }

    #[test]
    fn time_arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Timestamp(i64::MAX).plus(Duration::MAX), Timestamp(i64::MAX));
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
        assert_eq!(Timestamp(i64::MAX).since(Timestamp(i64::MIN)), Duration::from_micros(i64::MAX as u64));
    }
}
