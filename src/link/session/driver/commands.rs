//! Commands: from the registry to the device, and their results back.

use super::{SessionDriver, SessionEnd, or_never};
use crate::device::Call;
use crate::ingest::Attachment;
use crate::link::protocol::Refusal;
use crate::model::{CommandOutcome, CommandResult, DeviceCommand};
use crate::wire::message::{self, Command, GatewayMessage, Reason, ResultState, SubCommand};

/// No command is queued while so many bytes wait for the device to take them.
const MAX_CALLS_OUT: usize = 8 * 1024;

impl SessionDriver<'_> {
    /// Waits until the session is asked to do something. Cancel-safe.
    pub fn called(&self) -> impl Future<Output = ()> + Send + use<> {
        or_never(self.attachment.as_ref().map(Attachment::called))
    }

    /// Does what the session is asked to do, as far as the device takes what it is sent.
    pub fn answer_calls(&mut self) {
        loop {
            let room = self.out.len() < MAX_CALLS_OUT;
            let Some(call) = self.attachment.as_ref().and_then(|attachment| attachment.take_call(room)) else { return };
            match call {
                Call::Command(command) => self.send_command(command),
                Call::Replaced => {
                    self.slot.vacate();
                    let text = "the same device connected again";
                    self.end(SessionEnd::Refused(Refusal { reason: Reason::TakenOver, text: text.into() }));
                    return;
                }
            }
        }
    }

    /// Queues a command, unless it is larger than the device takes: then it is rejected in the
    /// name of the device.
    fn send_command(&mut self, command: DeviceCommand) {
        let start = self.out.len();
        let id = command.id.clone();
        let Some(excess) = self.put(&to_message(command)) else { return };
        self.out.truncate(start);
        let most = self.session.max_frame();
        let error = format!("the command has {} bytes, and the device takes {most}", most as usize + excess);
        let payload = Some(serde_json::json!({ "error": error }).to_string());
        self.answered(CommandResult { id, outcome: CommandOutcome::Rejected, payload });
    }

    /// Passes on the result that a device sent.
    pub(super) fn take_result(&mut self, result: message::CommandResult) {
        let message::CommandResult { id, state, payload } = result;
        let outcome = match state {
            ResultState::Done => CommandOutcome::Done,
            ResultState::Failed => CommandOutcome::Failed,
            ResultState::Rejected => CommandOutcome::Rejected,
        };
        self.answered(CommandResult { id, outcome, payload });
    }

    fn answered(&self, result: CommandResult) {
        if let Some(attachment) = &self.attachment {
            attachment.answer(result);
        }
    }
}

/// The message of a command: one of its own if it is for a device behind a hub.
fn to_message(command: DeviceCommand) -> GatewayMessage {
    let DeviceCommand { device, id, name, payload, expires_in } = command;
    let expires_in = expires_in.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    match device.as_str().split_once('/') {
        None => GatewayMessage::Command(Command { id, name, payload, expires_in }),
        Some((_, sub)) => GatewayMessage::SubCommand(SubCommand { sub: sub.to_owned(), id, name, payload, expires_in }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeviceId;
    use std::time::Duration;

    #[test]
    fn a_command_for_a_device_behind_a_hub_is_a_message_of_its_own() {
        let command = |device: &str| DeviceCommand {
            device: DeviceId::new(device).expect("a valid name"),
            id: "a".into(),
            name: "open".into(),
            payload: None,
            expires_in: Some(Duration::from_micros(20_000_999)),
        };
        let (id, name, expires_in) = ("a".to_owned(), "open".to_owned(), Some(20_000));
        let own = Command { id: id.clone(), name: name.clone(), payload: None, expires_in };
        assert_eq!(to_message(command("pump")), GatewayMessage::Command(own));
        let sub = SubCommand { sub: "door".into(), id, name, payload: None, expires_in };
        assert_eq!(to_message(command("hub/door")), GatewayMessage::SubCommand(sub));
    }
}
