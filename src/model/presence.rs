//! Whether devices are there, and why not.

use super::{DeviceId, Timestamp, time_as_text};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Whether a device is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// It has a session and was heard lately.
    Online,
    /// It has a session and is silent for longer than it should be.
    Idle,
    Offline,
}

/// How a device came into the state that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It began a session.
    Connected,
    /// It began a session while another of the same name was there.
    TakenOver,
    /// It was heard again after it had been idle.
    Heard,
    /// It sends nothing.
    Silent,
    /// It said Goodbye.
    Goodbye,
    /// It was silent for too long.
    Timeout,
    /// Its connection broke or its port vanished.
    LinkLost,
    /// It said something that ended its session.
    Refused,
    /// The gateway stops: nothing is known of the device.
    GatewayStopping,
    /// The gateway started anew, and the device has not come back.
    GatewayRestarted,
    /// Its hub says so.
    Hub,
    /// Its hub is gone.
    HubOffline,
}

/// What is known of a device's presence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub device: DeviceId,
    pub state: Presence,
    pub reason: Cause,
    /// When the state began.
    #[serde(with = "time_as_text")]
    pub since: Timestamp,
    /// When it was heard last.
    #[serde(with = "time_as_text")]
    pub last_seen: Timestamp,
    /// Whether the gateway's clock could be believed when these times were taken.
    pub time_trusted: bool,
    /// The link that it is or was connected by.
    pub link: Arc<str>,
    /// How often it went offline, or was taken over, since it became known.
    pub flaps: u64,
    /// It comes and goes so often that its changes are told only once they last.
    pub flapping: bool,
    pub firmware: Option<Arc<str>>,
}

macro_rules! names {
    ($($kind:ident { $($variant:ident => $name:literal),* $(,)? })*) => {$(
        impl $kind {
            /// As it is written in JSON.
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
