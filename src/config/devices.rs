//! `[devices]`, and what silence means by it.

use crate::model::{Timestamp, time_as_text};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// `[devices]`: what every device session is granted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Devices {
    /// How often devices are asked to send something.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// Silence after which a session ends.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Readings that a device may have outstanding without an Ack.
    pub window: u32,
    /// Messages a second that a device may send on average; 0 for any number.
    pub max_message_rate: u32,
    /// Messages that it may send at once after a pause.
    pub message_burst: u32,
    /// A device whose clock is further ahead of the gateway's than this is not believed.
    #[serde(with = "humantime_serde")]
    pub max_clock_ahead: Duration,
    /// Nor is one that says that it took a reading before this.
    #[serde(with = "time_as_text")]
    pub earliest_time: Timestamp,
    /// From a device's departure, or its silence, until it is told: it may come back.
    #[serde(with = "humantime_serde")]
    pub offline_delay: Duration,
    /// How long the state of a device that comes and goes must last before it is told.
    #[serde(with = "humantime_serde")]
    pub flap_damping: Duration,
    /// Devices known at one time, sub-devices and those that are gone included.
    pub max_known: usize,
    /// Devices behind one hub.
    pub max_sub_devices: usize,
    /// Patterns of which one must match a device's name; none: every device.
    pub allow: Vec<String>,
    /// Patterns of which none may.
    pub deny: Vec<String>,
    /// `keys` in the store's directory if not given.
    pub keys_file: Option<PathBuf>,
    /// `sealing-key` beside the keys file if not given.
    pub sealing_key_file: Option<PathBuf>,
    /// Failed attempts to authenticate after which an address is locked out; 0: never.
    pub lock_out_after: u32,
}

/// What silence of a device means.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    pub heartbeat_interval: Duration,
    pub idle_timeout: Duration,
}

impl Silence {
    /// From here on the device is late: half an interval after its Heartbeat was due.
    pub fn idle_after(&self) -> Duration {
        (self.heartbeat_interval * 3 / 2).min(self.idle_timeout)
    }
}

impl Devices {
    /// What holds on a link that may have intervals of its own.
    pub fn silence(&self, heartbeat_interval: Option<Duration>, idle_timeout: Option<Duration>) -> Silence {
        Silence {
            heartbeat_interval: heartbeat_interval.unwrap_or(self.heartbeat_interval),
            idle_timeout: idle_timeout.unwrap_or(self.idle_timeout),
        }
    }
}

impl Default for Devices {
    fn default() -> Devices {
        Devices {
            heartbeat_interval: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(90),
            window: 4096,
            max_message_rate: 10_000,
            message_burst: 10_000,
            max_clock_ahead: Duration::from_secs(600),
            earliest_time: Timestamp(1_577_836_800_000_000), // 2020-01-01
            offline_delay: Duration::from_secs(5),
            flap_damping: Duration::from_secs(30),
            max_known: 20_000,
            max_sub_devices: 256,
            allow: Vec::new(),
            deny: Vec::new(),
            keys_file: None,
            sealing_key_file: None,
            lock_out_after: 10,
        }
    }
}
