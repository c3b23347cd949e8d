//! What is told of how a command ended.

use crate::model::{Command, CommandState, Target};
use serde_json::{Value, json};
use std::fmt::Display;

/// The event that tells how a command ended; `None` if it has not.
pub(super) fn event(command: &Command) -> Option<String> {
    let ending = command.ended.as_ref()?;
    let event = json!({
        "type": "command-result", "device": command.target.device(), "id": command.id, "name": command.name,
        "state": ending.state, "payload": ending.payload.as_deref().map(value),
    });
    Some(event.to_string())
}

/// What may be an id has so many bytes at most.
const LONGEST_ID: usize = 64;

/// The event that tells of something that was meant to be a command and is none.
pub(super) fn no_command(target: &Target, id: Option<String>, why: &str) -> String {
    // Where only the payload can be left out, nothing else may be large.
    let id = id.filter(|id| id.len() <= LONGEST_ID);
    let event = json!({
        "type": "command-result", "device": target.device(), "id": id, "name": null, "state": CommandState::Rejected,
        "payload": { "error": why },
    });
    event.to_string()
}

/// What a payload says: any JSON, or the text that it is.
pub fn value(payload: &str) -> Value {
    serde_json::from_str(payload).unwrap_or_else(|_| payload.into())
}

/// Why something was rejected, as a payload.
pub fn error(why: &dyn Display) -> String {
    json!({ "error": why.to_string() }).to_string()
}

/// The payload, unless it takes more than `most` bytes when it is told.
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
