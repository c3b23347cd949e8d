//! From when to when a certificate holds (RFC 5280, section 4.1.2.5). Pure.
//!
//! rustls checks certificates of others and never tells the times of its own.

use crate::model::Timestamp;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::time::Duration;

/// Warnings begin so long before a certificate expires.
pub const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, in which a certificate has its version, if it is not the first.
pub(super) const VERSION: u8 = 0xa0;

/// The time in which a certificate, or a whole chain, is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// What is the matter with a certificate's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// It expired at this time.
    Expired(Timestamp),
    /// It expires at this time, so many days from now.
    Expires(Timestamp, u64),
    /// It holds from this time on, which is still to come.
    NotYet(Timestamp),
}

impl Validity {
    /// Of one certificate, in DER; `None` if it is none.
    pub fn of(certificate: &[u8]) -> Option<Validity> {
        let mut rest = inside(certificate, SEQUENCE)?;
        rest = inside(rest, SEQUENCE)?;
        if rest.first() == Some(&VERSION) {
            rest = element(rest)?.2;
        }
        // Serial number, algorithm, issuer.
        for _ in 0..3 {
            rest = element(rest)?.2;
        }
        let (tag, first, second) = element(inside(rest, SEQUENCE)?)?;
        let not_before = time(tag, first)?;
        let (tag, second, _) = element(second)?;
        Some(Validity { not_before, not_after: time(tag, second)? })
    }

    /// Of a chain, every certificate of which has to hold.
    pub fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Validity> {
        chain.iter().map(|certificate| Validity::of(certificate)).reduce(|a, b| {
            let (a, b) = (a?, b?);
            Some(Validity { not_before: a.not_before.max(b.not_before), not_after: a.not_after.min(b.not_after) })
        })?
    }

    /// What is the matter at the time `now`, by a clock that is `trusted` or not: one that
    /// is not set is behind.
    pub fn lapse(&self, now: Timestamp, trusted: bool) -> Option<Lapse> {
        let left = self.not_after.since(now);
        if now > self.not_after {
            Some(Lapse::Expired(self.not_after))
        } else if trusted && now < self.not_before {
            Some(Lapse::NotYet(self.not_before))
        } else {
            (left < SOON).then_some(Lapse::Expires(self.not_after, left.as_secs() / (24 * 3600)))
        }
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lapse::Expired(time) => write!(f, "has expired, at {}", second(*time)),
            Lapse::Expires(time, 0) => write!(f, "expires within a day, at {}", second(*time)),
            Lapse::Expires(time, 1) => write!(f, "expires in 1 day, at {}", second(*time)),
            Lapse::Expires(time, days) => write!(f, "expires in {days} days, at {}", second(*time)),
            Lapse::NotYet(time) => write!(f, "is not valid before {}", second(*time)),
        }
    }
}

/// Certificates count no fractions of seconds.
fn second(time: Timestamp) -> String {
    time.to_string().replace(".000000Z", "Z")
}

/// The first element of `der`: its tag, its content, and what follows it.
pub(super) fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            let length = bytes.iter().fold(0_u32, |length, byte| length << 8 | u32::from(*byte));
            (usize::try_from(length).ok()?, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The content of the first element of `der`, if it is a `wanted` one.
pub(super) fn inside(der: &[u8], wanted: u8) -> Option<&[u8]> {
    let (tag, content, _) = element(der)?;
    (tag == wanted).then_some(content)
}

/// A point in time; 1970 if it is before that.
fn time(tag: u8, content: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(content).ok()?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            // Two digits: 1950 to 2049.
            let century = if year < "50" { "20" } else { "19" };
            (format!("{century}{year}"), rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    if rest.len() != 11 || !rest.is_ascii() || !year.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (month, day, hour, minute, second) = (&rest[..2], &rest[2..4], &rest[4..6], &rest[6..8], &rest[8..]);
    let early = year.as_str() < "1970";
    // The calendar repeats itself after 400 years.
    let year = if early { "2370" } else { year.as_str() };
    let time: Timestamp = format!("{year}-{month}-{day}T{hour}:{minute}:{second}").parse().ok()?;
    Some(if early { Timestamp(0) } else { time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["host".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_times_of_a_certificate_are_read_from_either_form() {
        for (from, to) in [("2024-02-29", "2049-12-31"), ("2050-01-01", "4096-01-01"), ("1975-01-01", "9999-12-30")] {
            let day = |text: &str| {
                let mut parts = text.split('-').map(|part| part.parse::<i32>().expect("a number"));
                let mut next = || parts.next().expect("a part");
                (next(), next() as u8, next() as u8)
            };
            let found = Validity::of(&certificate(day(from), day(to))).expect("a certificate");
            let midnight = |text: &str| at(&format!("{text}T00:00:00Z"));
            assert_eq!(found, Validity { not_before: midnight(from), not_after: midnight(to) });
        }
        let old = Validity::of(&certificate((1950, 1, 1), (1960, 1, 1))).expect("a certificate");
        assert_eq!(old, Validity { not_before: Timestamp(0), not_after: Timestamp(0) });
    }

    #[test]
    fn no_cut_and_no_change_of_a_byte_makes_it_panic() {
        let whole = certificate((2024, 1, 1), (2034, 1, 1));
        for end in 0..whole.len() {
            let _ = Validity::of(&whole[..end]);
            for byte in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.to_vec();
                changed[end] = byte;
                let _ = Validity::of(&changed);
            }
        }
        for none in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x02"] {
            assert_eq!(Validity::of(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_chain_holds_as_long_as_each_of_it() {
        let chain = [certificate((2020, 1, 1), (2040, 1, 1)), certificate((2010, 1, 1), (2030, 1, 1))];
        let expected = Validity { not_before: at("2020-01-01T00:00:00Z"), not_after: at("2030-01-01T00:00:00Z") };
        assert_eq!(Validity::of_chain(&chain), Some(expected));
        assert_eq!(Validity::of_chain(&[]), None);
        assert_eq!(Validity::of_chain(&[chain[0].clone(), CertificateDer::from(vec![1])]), None);
    }

    #[test]
    fn what_expires_is_told_thirty_days_before() {
        let validity = Validity { not_before: at("2026-01-01T00:00:00Z"), not_after: at("2026-12-31T12:00:00Z") };
        let told = |now: &str, trusted| validity.lapse(at(now), trusted).map(|lapse| lapse.to_string());
        assert_eq!(told("2026-11-30T00:00:00Z", true), None);
        assert_eq!(told("2026-12-02T00:00:00Z", true), Some("expires in 29 days, at 2026-12-31T12:00:00Z".into()));
        assert_eq!(told("2026-12-31T01:00:00Z", true), Some("expires within a day, at 2026-12-31T12:00:00Z".into()));
        assert_eq!(told("2027-01-01T00:00:00Z", false), Some("has expired, at 2026-12-31T12:00:00Z".into()));
        assert_eq!(told("1970-01-01T00:00:00Z", true), Some("is not valid before 2026-01-01T00:00:00Z".into()));
        assert_eq!(told("1970-01-01T00:00:00Z", false), None, "the clock is not set");
    }
}
