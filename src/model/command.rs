//! Commands from upstream, or from this machine.

use super::{BootId, CommandId, CommandName, DeviceId, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The target of a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Gateway,
    Device(DeviceId),
}

impl Target {
    /// The device, unless it is the gateway.
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Target::Gateway => None,
            Target::Device(device) => Some(device),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Gateway => f.write_str("the gateway"),
            Target::Device(device) => device.fmt(f),
        }
    }
}

/// Identifies a command, however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CommandKey {
    pub target: Target,
    pub id: CommandId,
}

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Mqtt,
    Http,
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Source::Mqtt => "mqtt",
            Source::Http => "http",
        }
    }
}

/// A command as a sink receives it from its destination, unparsed.
#[derive(Debug)]
pub struct InboundCommand {
    pub source: Source,
    pub target: Target,
    /// The sender's text; `docs/commands.md` has its format.
    pub body: Bytes,
    /// The message expiry at the destination, if there is one.
    pub wanted_for: Option<Duration>,
    pub confirmation: Confirmation,
}

/// Confirms to the destination that a command is on disk, so that it is not sent again.
/// Dropped, it confirms nothing.
pub struct Confirmation(Box<dyn FnOnce() + Send>);

impl Confirmation {
    /// `confirm` runs once, and must not block.
    pub fn new(confirm: impl FnOnce() + Send + 'static) -> Confirmation {
        Confirmation(Box::new(confirm))
    }

    pub fn confirm(self) {
        (self.0)();
    }
}

impl fmt::Debug for Confirmation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confirmation")
    }
}

/// The state of a command. All but the first two are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandState {
    /// It was not sent to the device.
    Queued,
    /// It was sent to the device, or is about to be.
    Sent,
    /// The device carried it out.
    Done,
    /// The device tried, and reports that it failed.
    Failed,
    /// The device or the gateway refuses it.
    Rejected,
    /// It expired before it was sent to the device: it was not carried out.
    Expired,
    /// It was sent to the device, and no answer came in time: it may have been carried out.
    Unreachable,
}

impl CommandState {
    pub fn name(self) -> &'static str {
        match self {
            CommandState::Queued => "queued",
            CommandState::Sent => "sent",
            CommandState::Done => "done",
            CommandState::Failed => "failed",
            CommandState::Rejected => "rejected",
            CommandState::Expired => "expired",
            CommandState::Unreachable => "unreachable",
        }
    }

    pub fn is_final(self) -> bool {
        !matches!(self, CommandState::Queued | CommandState::Sent)
    }
}

/// When a command expires, on every clock on which that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot of the machine in which the command arrived.
    pub boot: BootId,
    /// On that boot's monotonic clock; unknown for a wall time that arrived while the wall
    /// clock was not trusted.
    pub uptime: Option<Duration>,
    /// On the wall clock; unknown if that was not trusted.
    pub wall: Option<Timestamp>,
    /// Longest time until it expires.
    pub lifetime: Duration,
}

/// A time in one boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub boot: BootId,
    pub uptime: Duration,
}

/// A command on its way to a device, through the source that the device, or its hub, is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCommand {
    pub device: DeviceId,
    pub id: String,
    pub name: String,
    /// JSON text.
    pub payload: Option<String>,
    /// Time until the command expires.
    pub expires_in: Option<Duration>,
}

/// A device's answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResult {
    pub id: String,
    pub outcome: CommandOutcome,
    /// JSON text.
    pub payload: Option<String>,
}

/// The outcome of a command on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutcome {
    Done,
    Failed,
    Rejected,
}

impl From<CommandOutcome> for CommandState {
    fn from(outcome: CommandOutcome) -> CommandState {
        match outcome {
            CommandOutcome::Done => CommandState::Done,
            CommandOutcome::Failed => CommandState::Failed,
            CommandOutcome::Rejected => CommandState::Rejected,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub state: CommandState,
    /// The device's result, or the reason of a rejection: JSON, or any other text.
    pub payload: Option<String>,
    pub time: Timestamp,
}

/// A command and its progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its position in the order of arrival.
    pub place: u64,
    pub target: Target,
    pub id: CommandId,
    pub name: CommandName,
    /// JSON text.
    pub payload: Option<String>,
    pub source: Source,
    /// By the gateway's clock, trusted or not.
    pub received: Timestamp,
    pub deadline: Deadline,
    /// Since when it may have been sent to the device.
    pub sent: Option<Moment>,
    pub ended: Option<Ending>,
}

impl Command {
    pub fn key(&self) -> CommandKey {
        CommandKey { target: self.target.clone(), id: self.id.clone() }
    }

    pub fn state(&self) -> CommandState {
        match (&self.ended, self.sent) {
            (Some(ending), _) => ending.state,
            (None, Some(_)) => CommandState::Sent,
            (None, None) => CommandState::Queued,
        }
    }
}
