//! The examples in `docs/protocol.md` are the golden set: what stands there is what
//! is understood and sent, byte for byte. Never change an example, only add.

use crate::wire::{Message, frames};
use std::collections::BTreeSet;
use tidegate::device::auth::Secret;
use tidegate::wire::codec::{self, BodyError};
use tidegate::wire::frame::{BodyEncoding, Format, FrameRef, HEADER, Version};

pub const DOCUMENT: &str = include_str!("../docs/protocol.md");

/// A message and the frames that the document shows for it.
pub struct Example {
    /// As in the heading: "device Hello (note)".
    pub title: String,
    pub from_gateway: bool,
    pub name: String,
    /// The body as JSON.
    json: String,
    pub frames: Vec<(Format, Vec<u8>)>,
}

pub fn examples() -> Vec<Example> {
    let (_, examples) = DOCUMENT.split_once("\n## Examples\n").expect("the document has a section of examples");
    examples.split("\n### Example: ").skip(1).map(example).collect()
}

fn example(section: &str) -> Example {
    let (title, rest) = section.split_once('\n').expect("a heading and a body");
    let mut words = title.split_whitespace();
    let from_gateway = match words.next() {
        Some("device") => false,
        Some("gateway") => true,
        _ => panic!("{title:?} begins with neither device nor gateway"),
    };
    let name = words.next().unwrap_or_else(|| panic!("{title:?} names no message")).to_owned();
    let (mut json, mut frames) = (None, Vec::new());
    for block in rest.split("```").skip(1).step_by(2) {
        let (info, content) = block.split_once('\n').expect("a block has lines");
        match info.split_once(' ') {
            None if info == "json" => assert!(json.replace(content.to_owned()).is_none(), "{title}: one message only"),
            Some(("hex", format)) => frames.push((format_of(format), bytes(content))),
            _ => panic!("{title}: {info:?} is no kind of block"),
        }
    }
    let json = json.unwrap_or_else(|| panic!("{title} shows no JSON"));
    Example { title: title.to_owned(), from_gateway, name, json, frames }
}

fn format_of(info: &str) -> Format {
    let (version, encoding) = match info {
        "version 1, postcard" => (Version::V1, BodyEncoding::Postcard),
        "version 1, json" => (Version::V1, BodyEncoding::Json),
        "version 2, postcard" => (Version::V2, BodyEncoding::Postcard),
        "version 2, json" => (Version::V2, BodyEncoding::Json),
        "version 2, protobuf" => (Version::V2, BodyEncoding::Protobuf),
        _ => panic!("{info:?} is no version and encoding"),
    };
    Format { version, encoding }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("two hex digits")).collect()
}

impl Example {
    /// The message that is shown.
    pub fn shown(&self) -> Message {
        self.message(self.frames[0].1[5] & 0x8f)
    }

    /// The message that the JSON shows.
    fn message(&self, kind: u8) -> Message {
        let format = Format { version: Version::V1, encoding: BodyEncoding::Json };
        Message::decode(&FrameRef { format, kind, body: self.json.as_bytes() })
            .unwrap_or_else(|why| panic!("{}: {why}", self.title))
    }
}

/// Every message there is, as (from the gateway, name), found by asking for each number.
fn every_message() -> BTreeSet<(bool, String)> {
    let format = Format { version: Version::V1, encoding: BodyEncoding::Json };
    let name_of = |kind: u8| {
        let frame = FrameRef { format, kind, body: b"" };
        let gateway = kind & 0x80 != 0;
        let error = if gateway { codec::decode_gateway(&frame).err() } else { codec::decode_device(&frame).err() };
        match error.expect("no message is empty") {
            BodyError::Malformed { message, .. } => Some((gateway, message.to_owned())),
            BodyError::Unknown(_) | BodyError::Text(_) => None,
        }
    };
    (0..=0x0f).chain(0x80..=0x8f).filter_map(name_of).collect()
}

#[test]
fn every_example_decodes_to_its_message_and_encodes_to_its_bytes() {
    for example in examples() {
        let title = &example.title;
        assert!(!example.frames.is_empty(), "{title} shows no frame");
        for (format, bytes) in &example.frames {
            let kind = bytes[5] & 0x8f;
            assert_eq!(kind & 0x80 != 0, example.from_gateway, "{title}: direction");
            assert!(bytes.len() > HEADER, "{title}");

            let decoded: Vec<(Format, Message)> = frames(bytes).unwrap_or_else(|why| panic!("{title}: {why}"));
            let [(got, message)] = &decoded[..] else { panic!("{title}: one frame a block, not {}", decoded.len()) };
            assert_eq!(got, format, "{title}");
            assert_eq!(message.name(), example.name, "{title}");
            assert_eq!(*message, example.message(kind), "{title}");

            assert_eq!(message.encode(*format), *bytes, "{title}, {format:?}");
        }
    }
}

#[test]
fn every_message_is_shown_in_both_versions_and_encodings() {
    let examples = examples();
    for version in [Version::V1, Version::V2] {
        let shown = |encoding: Option<BodyEncoding>| -> BTreeSet<_> {
            let fits = |format: &Format| format.version == version && encoding.is_none_or(|e| e == format.encoding);
            let shows = |example: &&Example| example.frames.iter().any(|(format, _)| fits(format));
            examples.iter().filter(shows).map(|example| (example.from_gateway, example.name.clone())).collect()
        };
        assert_eq!(shown(Some(BodyEncoding::Postcard)), every_message(), "{version:?}");
        if version == Version::V2 {
            assert_eq!(shown(Some(BodyEncoding::Json)), every_message(), "{version:?}");
            assert_eq!(shown(Some(BodyEncoding::Protobuf)), every_message(), "{version:?}");
        }
    }
}

/// The sections that explain the messages name each by its number.
#[test]
fn the_document_gives_every_message_its_types() {
    for example in examples() {
        for (format, bytes) in &example.frames {
            let section = format!("\n### {}\n", example.name);
            let (_, rest) = DOCUMENT.split_once(&section).unwrap_or_else(|| panic!("{} has no section", example.name));
            let text = rest.split("\n### ").next().unwrap_or_default();
            let number = match format.encoding {
                BodyEncoding::Postcard => format!("`{:02x}`", bytes[5]),
                BodyEncoding::Json | BodyEncoding::Protobuf => format!("/`{:02x}`", bytes[5]),
            };
            assert!(text.contains(&number), "{} {number}", example.name);
        }
    }
}

/// The two frames that are taken apart are examples too.
#[test]
fn frames_byte_by_byte_are_whole_examples() {
    let (_, rest) = DOCUMENT.split_once("\n## Two frames byte by byte\n").expect("the section is there");
    let (tables, _) = rest.split_once("\n## ").expect("a section follows");
    let tables: Vec<Vec<u8>> = tables
        .split("|---|---|\n")
        .skip(1)
        .map(|table| {
            table.lines().map_while(|row| row.strip_prefix("| `")?.split('`').next()).flat_map(bytes).collect()
        })
        .collect();
    assert_eq!(tables.len(), 2);
    let shown: Vec<Vec<u8>> = examples().into_iter().flat_map(|e| e.frames).map(|(_, bytes)| bytes).collect();
    assert!(tables.iter().all(|table| shown.contains(table)));
}

/// The bytes that follow `label` in the proof that the document works out.
fn worked_out(label: &str) -> Vec<u8> {
    let (_, rest) = DOCUMENT.split_once("```text\nsecret ").expect("the document works out a proof");
    let (block, _) = rest.split_once("```").expect("the end of the block");
    let mut here = label == "secret";
    let mut found = Vec::new();
    for line in format!("secret {block}").lines() {
        let (name, digits) = line.split_at(9);
        if !name.trim().is_empty() {
            here = name.trim() == label;
        }
        if here {
            found.extend(bytes(digits));
        }
    }
    assert!(!found.is_empty(), "no {label}");
    found
}

#[test]
fn the_proof_that_is_worked_out_is_the_one_that_is_taken() {
    let secret = Secret(worked_out("secret").try_into().expect("32 bytes"));
    let (nonce, device) = (worked_out("nonce"), worked_out("device"));
    let device = std::str::from_utf8(&device).expect("a name");
    let session = u64::from_be_bytes(worked_out("session").try_into().expect("8 bytes"));
    assert_eq!((device, session), ("pump-7", 7731));
    let message = [b"tidegate-hmac-v1\0", &nonce[..], device.as_bytes(), b"\0", &session.to_be_bytes()].concat();
    assert_eq!(worked_out("message"), message);
    assert_eq!(worked_out("proof"), secret.hmac(&nonce, device, session));
    let in_frames = |part: &[u8]| {
        let holds = |frame: &[u8]| frame.windows(part.len()).any(|bytes| bytes == part);
        examples().iter().flat_map(|example| &example.frames).any(|(_, frame)| holds(frame))
    };
    assert!(in_frames(&nonce) && in_frames(&worked_out("proof")), "the examples show the same in frames");
}
