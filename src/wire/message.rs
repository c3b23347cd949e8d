//! Messages between devices and the gateway.
//!
//! Field order and variant order are the postcard format: only ever append, and never
//! change existing ones (see `docs/protocol.md`, "Compatibility"). An appended field is not
//! written while it is empty, so that older messages keep their bytes; of several, one is
//! written if a later one is. The codec has their number.

pub use super::values::ChannelRef;
use crate::model::Value;
use serde::{Deserialize, Serialize};

/// From a device.
#[derive(Debug, Clone, PartialEq)]
pub enum DeviceMessage {
    Hello(Hello),
    Authenticate(Authenticate),
    Readings(Readings),
    Heartbeat(Heartbeat),
    CommandResult(CommandResult),
    Goodbye(Goodbye),
    SubDevice(SubDevice),
}

/// From the gateway.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayMessage {
    Challenge(Challenge),
    Welcome(Welcome),
    Ack(Ack),
    HeartbeatReply(HeartbeatReply),
    Command(Command),
    Goodbye(Goodbye),
    SubCommand(SubCommand),
    Refused(Refused),
}

/// The first message on a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The device's name, see [`crate::model::DeviceId`]; no slash.
    pub device: String,
    /// New, and best random, whenever the device's seq starts over.
    pub session: u64,
    pub clock: DeviceClock,
    /// The device's clock when it sent this, in the unit of `clock`.
    pub time: i64,
    #[serde(default)]
    pub firmware: Option<String>,
    /// Meaning of the indexes in Readings.
    #[serde(default)]
    pub channels: Vec<ChannelDeclaration>,
    /// The oldest seq that the device still has or will take next. The device has given up
    /// the seqs between the last settled one and this.
    #[serde(default)]
    pub first: u64,
    /// The largest body that the device accepts, in bytes; 0 if unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_frame: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Meaning of a device's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceClock {
    /// Microseconds since 1970-01-01T00:00:00Z.
    Wall,
    /// Milliseconds since the device booted.
    SinceBoot,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelDeclaration {
    pub index: u16,
    pub name: String,
    #[serde(default)]
    pub unit: Option<String>,
}

/// The answer to a Challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticate {
    /// Name of the key.
    pub key: String,
    /// The token itself, or the HMAC over the challenge; base64 in JSON.
    #[serde(with = "super::codec::bytes")]
    pub proof: Vec<u8>,
}

/// Samples, numbered by the device: the first has `seq`, each next one more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Readings {
    pub seq: u64,
    /// The sub-device that took the samples.
    #[serde(default)]
    pub sub: Option<String>,
    pub samples: Vec<Sample>,
}

/// Values taken at one time, which is in the unit of the device's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub time: i64,
    /// In JSON an object, `{"temperature": 21.5, "#3": true}`.
    #[serde(with = "super::values")]
    pub values: Vec<(ChannelRef, Value)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The device's clock when it sent this.
    pub time: i64,
}

/// The result of a command on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    pub id: String,
    pub state: ResultState,
    /// JSON text.
    #[serde(default)]
    pub payload: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultState {
    Done,
    Failed,
    Rejected,
}

/// Ends a session, from either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    pub reason: Reason,
    pub text: String,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The sender is done.
    Normal,
    /// The sender is stopping or restarting; come back later.
    Stopping,
    /// A frame that could not be decoded: bad magic, version, checksum or body.
    BadFrame,
    /// A frame larger than the limit.
    TooLarge,
    /// A message that is not allowed in this state.
    Protocol,
    /// Nothing was received for too long.
    Timeout,
    /// The same device connected again.
    TakenOver,
    /// Wrong or missing credentials.
    Unauthorized,
    /// Too many connections.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    #[serde(with = "super::codec::bytes")]
    pub nonce: Vec<u8>,
}

/// The session is established.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The last seq of this session that is settled, 0 if none.
    pub settled: u64,
    /// The gateway's clock, microseconds since 1970-01-01T00:00:00Z.
    pub time: i64,
    /// Whether that clock is trusted.
    pub time_trusted: bool,
    /// Send something at least this often, in seconds.
    pub heartbeat_interval: u32,
    /// Largest frame body accepted, in bytes.
    pub max_frame: u32,
    /// Samples that may be outstanding without an Ack.
    pub window: u32,
    /// The session of this Welcome. On a serial line the Welcome of an earlier session may still
    /// be in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
}

/// Everything up to `seq` is settled: the device may discard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub seq: u64,
}

/// Samples that can never be stored: they are settled, and forwarded without their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The first of them.
    pub seq: u64,
    /// Number of seqs from there; some of them may be valid.
    pub count: u64,
    /// Description of the first one's fault.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    pub time: i64,
    pub time_trusted: bool,
}

/// A command for the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub id: String,
    pub name: String,
    /// JSON text.
    #[serde(default)]
    pub payload: Option<String>,
    /// Time until the command expires, in milliseconds from now.
    #[serde(default)]
    pub expires_in: Option<u64>,
}

/// A hub reports whether one of its sub-devices is online.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubDevice {
    pub sub: String,
    pub online: bool,
    /// Description, such as "battery empty".
    #[serde(default)]
    pub reason: Option<String>,
}

/// A command for a sub-device. A separate message, so that a hub that does not know it does
/// not take it for a [`Command`] to itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubCommand {
    pub sub: String,
    pub id: String,
    pub name: String,
    /// JSON text.
    #[serde(default)]
    pub payload: Option<String>,
    /// Time until the command expires, in milliseconds from now.
    #[serde(default)]
    pub expires_in: Option<u64>,
}
