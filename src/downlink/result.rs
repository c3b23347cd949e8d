//! Events that report the end of a command.

use crate::model::{Command, CommandState, Target};
use serde_json::{Value, json};
use std::fmt::Display;

/// The event that reports the end of a command; `None` if it has not ended.
pub(super) fn event(command: &Command) -> Option<String> {
    let ending = command.ended.as_ref()?;
    let event = json!({
        "type": "command-result", "device": command.target.device(), "id": command.id, "name": command.name,
        "state": ending.state, "payload": ending.payload.as_deref().map(value),
    });
    Some(event.to_string())
}

/// Longest text that may be an id, in bytes.
const LONGEST_ID: usize = 64;

/// The event that reports a message that is no valid command.
pub(super) fn no_command(target: &Target, id: Option<String>, why: &str) -> String {
    // Everything except the payload has to be small: only the payload can be left out.
    let id = id.filter(|id| id.len() <= LONGEST_ID);
    let event = json!({
        "type": "command-result", "device": target.device(), "id": id, "name": null, "state": CommandState::Rejected,
        "payload": { "error": why },
    });
    event.to_string()
}

/// A payload as JSON; text that is not JSON becomes a string.
pub fn value(payload: &str) -> Value {
    serde_json::from_str(payload).unwrap_or_else(|_| payload.into())
}

/// The reason of a rejection, as a payload.
pub fn error(why: &dyn Display) -> String {
    json!({ "error": why.to_string() }).to_string()
}

/// The payload, unless it takes more than `most` bytes in the event.
pub(super) fn bounded(payload: String, most: usize) -> String {
    let size = value(&payload).to_string().len();
    match size.max(payload.len()) <= most {
        true => payload,
        false => error(&format!("the device's payload of {size} bytes was left out; see [commands] max_result")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_is_no_json_is_told_as_text() {
        assert_eq!(value("{\"a\":1}"), json!({"a": 1}));
        assert_eq!(value("valve stuck"), json!("valve stuck"));
    }

    #[test]
    fn what_is_too_long_for_an_id_is_none() {
        let told = |id: &str| {
            let event = no_command(&Target::Gateway, Some(id.to_owned()), "why");
            serde_json::from_str::<Value>(&event).expect("JSON")["id"].clone()
        };
        assert_eq!((told("a b"), told(&"x".repeat(65))), (json!("a b"), Value::Null));
    }

    #[test]
    fn a_payload_that_is_too_large_is_left_out_and_said_so() {
        assert_eq!(bounded("[1,2,3]".into(), 7), "[1,2,3]");
        assert!(bounded("[1,2,3,4]".into(), 7).contains("max_result"));
        assert!(bounded("\u{1}\u{1}\u{1}".into(), 7).contains("20 bytes"), "six bytes for each control character");
    }
}
