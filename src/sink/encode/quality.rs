//! What a consumer is told about a reading's time.

use crate::model::{Basis, BootId, Timestamp};
use serde::{Serialize, Serializer};
use std::fmt;

/// How far a reading's time can be relied on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(tag = "quality", rename_all = "kebab-case")]
pub enum Quality {
    /// It is when the reading was taken.
    #[default]
    Good,
    /// So it is, found after the fact: the gateway had no time yet.
    Resynchronised,
    /// It is not known; the reading was taken `uptime` after this boot of the gateway.
    Unsynchronised {
        boot: BootId,
        #[serde(serialize_with = "seconds")]
        uptime: Timestamp,
    },
    /// It is what the device said and cannot be.
    DeviceClock {
        #[serde(serialize_with = "time")]
        received: Timestamp,
    },
    /// The same; the gateway got it `uptime` after this boot of its own.
    #[serde(rename = "device-clock")]
    DeviceClockSince {
        boot: BootId,
        #[serde(serialize_with = "seconds")]
        uptime: Timestamp,
    },
}

impl Quality {
    pub fn of(basis: Basis, time: Timestamp) -> Quality {
        match basis {
            Basis::Wall => Quality::Good,
            Basis::Resynchronised => Quality::Resynchronised,
            Basis::Boot(boot) => Quality::Unsynchronised { boot, uptime: time },
            Basis::DeviceClock { received } => Quality::DeviceClock { received },
            Basis::DeviceClockSince { boot, received } => Quality::DeviceClockSince { boot, uptime: received },
        }
    }

    /// As it is called on the wire; nothing if it is good.
    pub fn name(&self) -> &'static str {
        match self {
            Quality::Good => "",
            Quality::Resynchronised => "resynchronised",
            Quality::Unsynchronised { .. } => "unsynchronised",
            Quality::DeviceClock { .. } | Quality::DeviceClockSince { .. } => "device-clock",
        }
    }

    pub fn is_good(&self) -> bool {
        *self == Quality::Good
    }

    /// From the fields of a JSON reading whose `time` this is about.
    pub(super) fn read(
        name: Option<&str>,
        time: Timestamp,
        boot: Option<BootId>,
        uptime: Option<f64>,
        received: Option<Timestamp>,
    ) -> Result<Quality, String> {
        match (name, boot, uptime, received) {
            (None, ..) => Ok(Quality::Good),
            (Some("resynchronised"), ..) => Ok(Quality::Resynchronised),
            (Some("unsynchronised"), Some(boot), ..) => Ok(Quality::Unsynchronised { boot, uptime: time }),
            (Some("device-clock"), .., Some(received)) => Ok(Quality::DeviceClock { received }),
            (Some("device-clock"), Some(boot), Some(uptime), None) => {
                let uptime = Timestamp((uptime * 1e6).round() as i64); // saturates
                Ok(Quality::DeviceClockSince { boot, uptime })
            }
            (Some(name), ..) => Err(format!("quality {name:?} is unknown or lacks what goes with it")),
        }
    }
}

/// Serializes microseconds as seconds: exact for 285 years.
fn seconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.0 as f64 / 1e6)
}

impl fmt::Display for Quality {
    /// For people, to stand behind a time; nothing if it is good.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quality::Good => Ok(()),
            Quality::Resynchronised => f.write_str(" (resynchronised)"),
            Quality::Unsynchronised { boot, .. } => write!(f, " (since boot {boot})"),
            Quality::DeviceClock { received } => write!(f, " (device's clock; received {received})"),
            Quality::DeviceClockSince { boot, uptime } => {
                write!(f, " (device's clock; received {:.3} s after boot {boot})", uptime.0 as f64 / 1e6)
            }
        }
    }
}

/// Serializes a time as it stands in payloads.
pub(super) fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}
