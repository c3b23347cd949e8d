//! Commands: what somebody upstream, or on this machine, wants done.

use super::{BootId, CommandId, CommandName, DeviceId, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Whom a command is for.
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

/// What makes a command one and the same, however often it is sent.
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

/// A command as a sink takes it from its destination, before anybody has read it.
#[derive(Debug)]
pub struct InboundCommand {
    pub source: Source,
    pub target: Target,
    /// What the sender wrote; `docs/commands.md` has the form.
    pub body: Bytes,
    /// How long the destination says that it is wanted, if it knows.
    pub wanted_for: Option<Duration>,
    pub confirmation: Confirmation,
}

/// Tells the destination that a command is on disk, so that it need not send it again.
/// Dropped, it tells nothing.
pub struct Confirmation(Box<dyn FnOnce() + Send>);

impl Confirmation {
    /// `confirm` runs once, and must not wait.
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

/// How far a command has come. All but the first two are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommandState {
    /// It was not handed to the device.
    Queued,
    /// It was handed to the device, or is about to be.
    Sent,
    /// The device did it.
    Done,
    /// The device tried, and says that it failed.
    Failed,
    /// The device or the gateway will not do it.
    Rejected,
    /// Its time was over before it was handed to the device: it was not done.
    Expired,
    /// It was handed to the device, and no answer came in time: it may have been done.
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

/// When a command is not wanted any more, in all ways in which that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot of the machine in which the command came.
    pub boot: BootId,
    /// On that boot's monotonic clock; not known of a time on the wall that came while
    /// the wall clock could not be believed.
    pub uptime: Option<Duration>,
    /// On the wall; not known if the wall clock could not be believed.
    pub wall: Option<Timestamp>,
    /// How long it is wanted at the most.
    pub lifetime: Duration,
}

/// A moment of one boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub boot: BootId,
    pub uptime: Duration,
}

/// A command on its way to a device, by the source that the device, or its hub, is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCommand {
    pub device: DeviceId,
    pub id: String,
    pub name: String,
    /// JSON text.
    pub payload: Option<String>,
    /// How long the command is still wanted.
    pub expires_in: Option<Duration>,
}

/// What a device answers to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResult {
    pub id: String,
    pub outcome: CommandOutcome,
    /// JSON text.
    pub payload: Option<String>,
}

/// What a device made of a command.
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
    /// What the device says of it, or why it was rejected: JSON text, or any other.
    pub payload: Option<String>,
    pub time: Timestamp,
}

/// A command and what became of it so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its place in the order in which commands came.
    pub place: u64,
    pub target: Target,
    pub id: CommandId,
    pub name: CommandName,
    /// JSON text.
    pub payload: Option<String>,
    pub source: Source,
    /// By the gateway's clock, set or not.
    pub received: Timestamp,
    pub deadline: Deadline,
    /// Since when it may have been handed to the device.
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
