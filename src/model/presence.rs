//! Presence of devices, and its causes.

use super::{DeviceId, Timestamp, time_as_text};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The presence of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It has a session and was heard recently.
    Online,
    /// It has a session and has been silent for longer than it should be.
    Idle,
    Offline,
}

/// Why a device is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It began a session.
    Connected,
    /// It began a session while another device of the same name was connected.
    TakenOver,
    /// It was heard again after it had been idle.
    Heard,
    /// It sends nothing.
    Silent,
    /// It sent Goodbye.
    Goodbye,
    /// It was silent for too long.
    Timeout,
    /// Its connection broke or its port vanished.
    LinkLost,
    /// It sent a message that ended its session.
    Refused,
    /// The gateway stops: the device's state is unknown.
    GatewayStopping,
    /// The gateway restarted, and the device has not reconnected.
    GatewayRestarted,
    /// Its hub reported it.
    Hub,
    /// Its hub went offline.
    HubOffline,
}

/// The state of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub device: DeviceId,
    pub state: Presence,
    pub reason: Cause,
    /// When the state began.
    #[serde(with = "time_as_text")]
    pub since: Timestamp,
    /// When it was last heard.
    #[serde(with = "time_as_text")]
    pub last_seen: Timestamp,
    /// Whether the gateway's clock was trusted when these times were taken.
    pub time_trusted: bool,
    /// The link of its current or last connection.
    pub link: Arc<str>,
    /// Number of times it went offline, or was taken over, since it became known.
    pub flaps: u64,
    /// Its state changes so often that changes are reported only once they last.
    pub flapping: bool,
    pub firmware: Option<Arc<str>>,
}

macro_rules! names {
    ($($kind:ident { $($variant:ident => $name:literal),* $(,)? })*) => {$(
        impl $kind {
            /// The name in JSON.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name),* }
            }
        }
    )*};
}

names!(
    Presence { Online => "online", Idle => "idle", Offline => "offline" }
    Cause {
        Connected => "connected", TakenOver => "taken-over", Heard => "heard", Silent => "silent",
        Goodbye => "goodbye", Timeout => "timeout", LinkLost => "link-lost", Refused => "refused",
        GatewayStopping => "gateway-stopping", GatewayRestarted => "gateway-restarted", Hub => "hub",
        HubOffline => "hub-offline",
    }
);
