//! Points in time, and their text.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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

/// Serialises a time as text, for fields that people read.
pub mod as_text {
    use super::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(time)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// A text that is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time; write it like 2026-11-23T01:02:03.456Z")]
pub struct InvalidTime(String);

impl FromStr for Timestamp {
    type Err = InvalidTime;

    /// Parses the output of `Display`, with up to nine decimals, of which six count. Does not
    /// use [`std::time::SystemTime`], whose range some libraries limit to 32 bits on 32-bit
    /// systems.
    fn from_str(text: &str) -> Result<Timestamp, InvalidTime> {
        parse(text).ok_or_else(|| InvalidTime(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    if let Ok(micros) = text.parse() {
        return Some(Timestamp(micros));
    }
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, fraction)) => (clock, Some(fraction)),
        None => (clock, None),
    };
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=days_of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(Timestamp(seconds * 1_000_000 + micros(fraction)?))
}

/// Decimals behind a point as microseconds.
fn micros(fraction: Option<&str>) -> Option<i64> {
    let Some(fraction) = fraction else { return Some(0) };
    if !(1..=9).contains(&fraction.len()) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<6}").get(..6)?.parse().ok()
}

/// Numbers of the given digits, joined by `separator`.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (H. Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn only_whole_times_are_read() {
        let read = |text: &str| text.parse::<Timestamp>().ok();
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(Timestamp(0)));
        assert_eq!(read("2026-11-23T01:02:03.456Z"), Some(Timestamp(1_795_395_723_456_000)));
        assert_eq!(read("2024-02-29T00:00:00.123456789Z"), Some(Timestamp(1_709_164_800_123_456)));
        for bad in [
            "",
            "now",
            "2026-11-23T01:02:03",
            "2026-11-23 01:02:03Z",
            "2026-11-23T01:02:03.Z",
            "2026-11-23T01:02:03.+1Z",
            "2026-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "26-11-23T01:02:03Z",
            "2026-11-23-01T01:02:03Z",
            "9223372036854775808",
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_time_is_read_as_it_was_written(
            micros in prop_oneof![any::<i64>(), 0..253_402_300_800_000_000i64, 2_147_483_000_000_000..2_148_000_000_000_000i64]
        ) {
            prop_assert_eq!(Timestamp(micros).to_string().parse(), Ok(Timestamp(micros)));
        }
    }
}
