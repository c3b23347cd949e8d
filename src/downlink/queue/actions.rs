//! What the queue is told and what it says.

use crate::model::{CommandKey, CommandState, Ending, Target};
use std::time::Duration;

/// What holds for all commands.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Patterns of devices that may be commanded; none: every device.
    pub devices: Vec<String>,
    /// Live commands of one device, of all, and the bytes that these take.
    pub max_queued: usize,
    pub max_live: usize,
    pub max_bytes: usize,
    /// Bytes of what a device says of a command.
    pub max_result: usize,
    pub max_expiry: Duration,
    /// From when a command was sent until it is sent again.
    pub retry_after: Duration,
    /// How long a device may take to answer, also if the command's time is over.
    pub answer_within: Duration,
    /// Ended commands that are remembered.
    pub remember: usize,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Hand a command over; [`super::Queue::handed`] wants to know whether that worked.
    Send(Dispatch),
    /// It is on disk how a command ended.
    Ended {
        key: CommandKey,
        ending: Ending,
        /// From its arrival to its end, if it came in this life of the gateway.
        took: Option<Duration>,
    },
}

/// A command to hand over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    pub place: u64,
    pub target: Target,
    /// The connection that the device has.
    pub connection: u64,
    pub id: String,
    pub name: String,
    pub payload: Option<String>,
    pub expires_in: Duration,
    /// It was handed over before.
    pub again: bool,
}

/// What became of a command that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// It counts once so many changes are on disk.
    Taken(u64),
    /// It came before; what came of it counts once so many changes are on disk.
    Known(CommandState, u64),
    /// It was not taken over.
    Refused(Refusal),
}

/// Why a command is not taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("commands are turned off; see [commands] enabled")]
    Disabled,
    #[error("this device may not be commanded; see [commands] devices")]
    NotAllowed,
    #[error("as many commands wait for this device as may; see [commands] max_queued")]
    QueueFull,
    #[error("as many commands wait as may; see [commands] max_live")]
    Busy,
    #[error("it would be wanted for too long; see [commands] max_expiry")]
    TooLong,
}
