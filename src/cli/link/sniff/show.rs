//! Formats decoded parts of the stream as text and JSON.

use super::decoder::{Heard, What};
use crate::model::Timestamp;
use crate::wire::frame::{BodyEncoding, Format, Version};
use crate::wire::message::{DeviceMessage, GatewayMessage};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// A part with the time when it was received; parts of a capture have their offset instead.
pub struct Shown<'a> {
    pub heard: &'a Heard,
    pub at: Option<Timestamp>,
}

const NO_FRAME: &str = "no frame begins here";

/// What is shown of a part.
struct Parts {
    from: Option<&'static str>,
    format: Option<Format>,
    /// Its name, and its fields in JSON.
    message: Option<(&'static str, String)>,
    problem: Option<String>,
}

impl Parts {
    fn of(what: &What) -> Parts {
        match what {
            What::FromDevice(format, message) => Parts {
                from: Some("device"),
                format: Some(*format),
                message: Some(from_device(message)),
                problem: None,
            },
            What::FromGateway(format, message) => Parts {
                from: Some("gateway"),
                format: Some(*format),
                message: Some(from_gateway(message)),
                problem: None,
            },
            What::Invalid { format, from_gateway, why } => Parts {
                from: Some(if *from_gateway { "gateway" } else { "device" }),
                format: Some(*format),
                message: None,
                problem: Some(why.to_string()),
            },
            What::Noise(reason) => Parts {
                from: None,
                format: None,
                message: None,
                problem: Some(reason.map_or(NO_FRAME.to_owned(), |reason| reason.to_string())),
            },
        }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = Parts::of(&self.heard.what);
        match self.at {
            Some(time) => write!(f, "{time}")?,
            None => write!(f, "@{}", self.heard.offset)?,
        }
        write!(f, " {:<7}", parts.from.unwrap_or("-"))?;
        if let Some(format) = parts.format {
            write!(f, " v{} {}", version(format), encoding(format))?;
        }
        if let Some((name, fields)) = &parts.message {
            write!(f, " {name} {}", printable(fields))?;
        }
        match &parts.problem {
            Some(problem) => write!(f, " {}: {}", printable(problem), hexadecimal(&self.heard.bytes)),
            None => Ok(()),
        }
    }
}

impl Shown<'_> {
    pub fn json(&self) -> Value {
        let parts = Parts::of(&self.heard.what);
        let mut object = json!({ "offset": self.heard.offset, "bytes": self.heard.bytes.len() });
        let time = self.at.map(|time| time.to_string().into());
        let (name, fields) = parts.message.unzip();
        let hex = parts.problem.is_some().then(|| hexadecimal(&self.heard.bytes).into());
        let members: [(&str, Option<Value>); 8] = [
            ("time", time),
            ("from", parts.from.map(Value::from)),
            ("version", parts.format.map(|format| version(format).into())),
            ("encoding", parts.format.map(|format| encoding(format).into())),
            ("message", name.map(Value::from)),
            ("fields", fields.and_then(|fields| serde_json::from_str(&fields).ok())),
            ("problem", parts.problem.map(Value::from)),
            ("hex", hex),
        ];
        for (key, value) in members {
            if let Some(value) = value {
                object[key] = value;
            }
        }
        object
    }
}

/// Totals of a run.
#[derive(Debug, Default)]
pub struct Summary {
    bytes: u64,
    frames: u64,
    messages: BTreeMap<&'static str, u64>,
    /// Bytes outside a frame, or in a frame that is invalid, by reason.
    problems: BTreeMap<&'static str, u64>,
}

impl Summary {
    pub fn count(&mut self, heard: &Heard) {
        let bytes = heard.bytes.len() as u64;
        self.bytes += bytes;
        let (message, problem) = match &heard.what {
            What::FromDevice(_, message) => (Some(from_device(message).0), None),
            What::FromGateway(_, message) => (Some(from_gateway(message).0), None),
            What::Invalid { .. } => (None, Some("body")),
            What::Noise(reason) => (None, Some(reason.map_or("bad_magic", |reason| reason.label()))),
        };
        self.frames += u64::from(!matches!(heard.what, What::Noise(_)));
        if let Some(message) = message {
            *self.messages.entry(message).or_default() += 1;
        }
        if let Some(problem) = problem {
            *self.problems.entry(problem).or_default() += bytes;
        }
    }

    pub fn json(&self) -> Value {
        let Summary { bytes, frames, messages, problems } = self;
        json!({ "summary": { "bytes": bytes, "frames": frames, "messages": messages, "problem_bytes": problems } })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} frames", self.bytes, self.frames)?;
        for (i, (name, count)) in self.messages.iter().enumerate() {
            write!(f, "{}{count} {name}", if i == 0 { ": " } else { ", " })?;
        }
        for (i, (reason, bytes)) in self.problems.iter().enumerate() {
            write!(f, "{}{reason} {bytes}", if i == 0 { "; bytes that are no message: " } else { ", " })?;
        }
        Ok(())
    }
}

fn version(format: Format) -> u8 {
    match format.version {
        Version::V1 => 1,
        Version::V2 => 2,
        Version::Text => 0, // there are none on a serial line
    }
}

fn encoding(format: Format) -> &'static str {
    match format.encoding {
        BodyEncoding::Postcard => "postcard",
        BodyEncoding::Json => "json",
        BodyEncoding::Protobuf => "protobuf",
    }
}

/// The message's name, and its fields as JSON.
macro_rules! names {
    ($of:ident, $message:ident, $($variant:ident),*) => {
        fn $of(message: &$message) -> (&'static str, String) {
            match message {
                // They can all be serialised: the gateway sends them as JSON.
                $($message::$variant(fields) =>
                    (stringify!($variant), serde_json::to_string(fields).unwrap_or_default()),)*
            }
        }
    };
}

names!(from_device, DeviceMessage, Hello, Authenticate, Readings, Heartbeat, CommandResult, Goodbye, SubDevice);
names!(from_gateway, GatewayMessage, Challenge, Welcome, Ack, HeartbeatReply, Command, Goodbye, SubCommand, Refused);

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (i, byte) in bytes.iter().enumerate() {
        let separator = if i == 0 { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{byte:02x}");
    }
    text
}

/// Devices choose this text: no line break or terminal escape gets through.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{DeviceClock, Hello};

    const FORMAT: Format = Format { version: Version::V2, encoding: BodyEncoding::Postcard };

    fn heard(what: What) -> Heard {
        Heard { offset: 10, bytes: vec![0xff, 0x00], what }
    }

    #[test]
    fn a_message_is_one_line_with_its_fields() {
        let hello = Hello {
            device: "p\u{1b}[1m\u{9b}".into(),
            session: 7,
            clock: DeviceClock::Wall,
            time: 1,
            firmware: None,
            channels: Vec::new(),
            first: 1,
            max_frame: 0,
        };
        let heard = heard(What::FromDevice(FORMAT, DeviceMessage::Hello(hello)));
        let shown = Shown { heard: &heard, at: Some(Timestamp(0)) };
        let line = shown.to_string();
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z device  v2 postcard Hello {\"device\":"), "{line}");
        assert!(line.contains("\"session\":7") && !line.contains(char::is_control), "{line}");
        let json = shown.json();
        assert_eq!(
            (&json["from"], &json["message"], &json["fields"]["session"]),
            (&"device".into(), &"Hello".into(), &7.into())
        );
        assert!(json.get("hex").is_none());
    }

    #[test]
    fn noise_is_shown_in_hexadecimal_with_its_place_and_reason() {
        let heard = heard(What::Noise(None));
        let shown = Shown { heard: &heard, at: None };
        assert_eq!(shown.to_string(), "@10 -       no frame begins here: ff 00");
        assert_eq!(shown.json()["hex"], "ff 00");
        let mut summary = Summary::default();
        summary.count(&heard);
        assert_eq!(summary.to_string(), "2 bytes, 0 frames; bytes that are no message: bad_magic 2");
    }
}
