//! Inputs and outputs of the queue.

use crate::model::{CommandKey, CommandState, Ending, Target};
use std::time::Duration;

/// Limits and times of all commands.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Patterns of devices that may get commands; none: every device.
    pub devices: Vec<String>,
    /// Most live commands of one device, and of all; most bytes of all live commands.
    pub max_queued: usize,
    pub max_live: usize,
    pub max_bytes: usize,
    /// Most bytes of a device's result.
    pub max_result: usize,
    pub max_expiry: Duration,
    /// Time after which a command is sent again.
    pub retry_after: Duration,
    /// Time for a device to answer, also after the command has expired.
    pub answer_within: Duration,
    /// Ended commands that are remembered.
    pub remember: usize,
}

/// An action for the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Hand a command over; [`super::Queue::handed`] expects whether that succeeded.
    Send(Dispatch),
    /// A command's end is on disk.
    Ended {
        key: CommandKey,
        ending: Ending,
        /// From its arrival to its end, if it arrived in this run of the gateway.
        took: Option<Duration>,
    },
}

/// A command to hand over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    pub place: u64,
    pub target: Target,
    /// The device's connection.
    pub connection: u64,
    pub id: String,
    pub name: String,
    pub payload: Option<String>,
    pub expires_in: Duration,
    /// It was handed over before.
    pub again: bool,
}

/// The result of [`super::Queue::receive`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receipt {
    /// Accepted; it counts once this many changes are on disk.
    Taken(u64),
    /// It arrived before; its state counts once this many changes are on disk.
    Known(CommandState, u64),
    /// It was not accepted.
    Refused(Refusal),
}

/// Why a command is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("commands are turned off; see [commands] enabled")]
    Disabled,
    #[error("commands to this device are not allowed; see [commands] devices")]
    NotAllowed,
    #[error("too many commands wait for this device; see [commands] max_queued")]
    QueueFull,
    #[error("too many commands wait; see [commands] max_live")]
    Busy,
    #[error("it expires too late; see [commands] max_expiry")]
    TooLong,
}
