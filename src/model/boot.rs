//! Identifies boots of the machine, and what a batch's times are based on.

use super::Timestamp;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Identifies one boot of the machine, as the kernel does.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

impl fmt::Display for BootId {
    /// As a UUID, as the kernel writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&i) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a boot id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no boot id: it has 32 hexadecimal digits")]
pub struct InvalidBootId(String);

impl FromStr for BootId {
    type Err = InvalidBootId;

    /// With or without dashes: the kernel writes them, systemd does not.
    fn from_str(text: &str) -> Result<BootId, InvalidBootId> {
        let invalid = || InvalidBootId(text.to_owned());
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid());
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(BootId(id))
    }
}

impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BootId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What the times of a batch are based on, and whether they are trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Basis {
    /// UTC, from a trusted clock.
    #[default]
    Wall,
    /// Microseconds since this boot of the gateway, as if it had been in 1970: the gateway's
    /// clock was not trusted yet.
    Boot(BootId),
    /// UTC, but taken as `Boot` and converted once the clock was trusted.
    Resynchronised,
    /// Times of the device that are impossible; the gateway received the readings at `received`.
    DeviceClock { received: Timestamp },
    /// The same while the gateway's clock was not trusted: `received` counts from this boot, as
    /// above.
    DeviceClockSince { boot: BootId, received: Timestamp },
}

impl Basis {
    /// The boot whose start must be known to give the times in UTC.
    pub fn boot(self) -> Option<BootId> {
        match self {
            Basis::Boot(boot) | Basis::DeviceClockSince { boot, .. } => Some(boot),
            Basis::Wall | Basis::Resynchronised | Basis::DeviceClock { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_read_as_the_kernel_and_as_systemd_write_it() {
        let text = "1057ad3f-6b73-4ba0-b931-e0fffe44996e";
        let id: BootId = text.parse().expect("the kernel's spelling");
        assert_eq!(id.to_string(), text);
        assert_eq!(text.replace('-', "").parse(), Ok(id));
        for bad in ["", "1057ad3f", "x057ad3f-6b73-4ba0-b931-e0fffe44996e", "1057ad3f6b734ba0b931e0fffe44996e00"] {
            assert!(bad.parse::<BootId>().is_err(), "{bad:?}");
        }
    }
}
