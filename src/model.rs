//! The data of the gateway, as plain validated types.
//!
//! A device's [`Batch`] holds [`Reading`]s; the log gives each reading a
//! [`Seq`], unique for ever within its [`Epoch`]. Nothing here knows a clock, a
//! socket or a database.

mod boot;
mod command;
mod epochs;
mod glob;
mod names;
mod presence;
mod reading;
mod timestamp;
mod value_serde;

pub use boot::{Basis, BootId, InvalidBootId};
pub use command::{
    Command, CommandKey, CommandOutcome, CommandResult, CommandState, Confirmation, Deadline, DeviceCommand, Ending,
    InboundCommand, Moment, Source, Target,
};
pub use epochs::{Epoch, EpochRange, Epochs};
pub use glob::{glob, stray_in_devices};
pub use names::{ChannelName, CommandId, CommandName, DeviceId, GatewayId, InvalidName, Token};
pub use presence::{Cause, DeviceStatus, Presence};
pub use reading::{Batch, Channels, Reading, SequencedBatch, ShapeMismatch, Value, channels_memory};
pub use timestamp::{InvalidTime, Timestamp, as_text as time_as_text};

use serde::{Deserialize, Serialize};
use std::fmt;

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

/// The identity that a device gave its reading: the device's session and its
/// own seq within it. Consumers drop duplicates by (device, origin).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub session: u64,
    pub seq: u64,
}
