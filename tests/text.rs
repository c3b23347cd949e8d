//! Messages as text: what the document shows is what is read and written, and what text
//! can carry arrives as it was sent.

use crate::golden::{DOCUMENT, examples};
use crate::wire::{Message, any_device_message, any_gateway_message};
use proptest::prelude::*;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use tidegate::model::Timestamp;
use tidegate::wire::message::*;
use tidegate::wire::text::{Context, TextError, decode_device, decode_gateway, encode_device, encode_gateway};

fn decode(from_gateway: bool, text: &str, context: Context<'_>) -> Result<Message, TextError> {
    match from_gateway {
        true => decode_gateway(text.as_bytes(), context).map(Message::Gateway),
        false => decode_device(text.as_bytes(), context).map(Message::Device),
    }
}

fn encode(message: &Message, context: Context<'_>) -> String {
    let mut out = Vec::new();
    match message {
        Message::Device(message) => encode_device(message, context, &mut out),
        Message::Gateway(message) => encode_gateway(message, context, &mut out),
    }
    String::from_utf8(out).expect("text")
}

/// The text messages that the document shows, by the titles of its examples.
fn shown() -> BTreeMap<String, &'static str> {
    let (_, section) = DOCUMENT.split_once("\n## WebSocket\n").expect("the document has a section on WebSocket");
    let (section, _) = section.split_once("\n## ").expect("another section follows");
    let example = |part: &'static str| {
        let (title, rest) = part.split_once('\n').expect("a heading and a body");
        let (_, rest) = rest.split_once("```json\n").unwrap_or_else(|| panic!("{title} shows no text"));
        (title.to_owned(), rest.split_once("```").expect("it ends").0)
    };
    section.split("\n#### Text: ").skip(1).map(example).collect()
}

#[test]
fn every_text_in_the_document_is_its_message_and_is_written_like_that() {
    let mut shown = shown();
    for example in examples() {
        let (title, message) = (&example.title, example.shown());
        let text = shown.remove(title).unwrap_or_else(|| panic!("{title} is not shown as text"));
        let json: Json = serde_json::from_str(text).expect("JSON");
        let device = json["deviceId"].as_str().and_then(|id| id.split('/').next()).expect("a deviceId");
        let clock = match &json["timestamp"] {
            Json::Number(_) => DeviceClock::SinceBoot,
            _ => DeviceClock::Wall,
        };
        let now = match &json["timestamp"] {
            Json::String(time) => Some(time.parse::<Timestamp>().expect("a time").0),
            other => other.as_i64(),
        };
        let context = Context { device: Some(device), clock: Some(clock), now };
        assert_eq!(decode(example.from_gateway, text, context).as_ref(), Ok(&message), "{title}");
        let written: Json = serde_json::from_str(&encode(&message, context)).expect("JSON");
        assert_eq!(written, json, "{title}");
    }
    assert!(shown.is_empty(), "not among the examples: {:?}", shown.keys());
}

const PUMP: Context<'_> = Context { device: Some("pump"), clock: Some(DeviceClock::Wall), now: None };

fn refused(text: &str, words: &str) {
    let why = decode_device(text.as_bytes(), PUMP).expect_err(text).to_string();
    assert!(why.contains(words), "{text}\n{why:?} lacks {words:?}");
}

#[test]
fn what_is_no_message_is_told_in_words_that_help() {
    refused("", "it is empty");
    refused("hello", "an object begins with '{', not with 'h'");
    refused(r#"["pump","hello"]"#, "an object begins with '{'");
    refused(r#"{"command":"heartbeat","timestamp":"2026-11-23T01:02:03Z""#, "EOF while parsing an object at line 1");
    refused(r#"{"deviceId":"pump"}"#, "missing field `command`");
    refused(r#"{"command":"ack","payload":{"seq":1}}"#, "\"ack\" is unknown here; known are hello, authenticate");
    refused(r#"{"command":"heartbeat"}"#, "heartbeat: `timestamp` is missing");
    refused(r#"{"command":"heartbeat","timestamp":1763859723456}"#, "is a number, but times of a wall clock are text");
    refused(r#"{"command":"heartbeat","timestamp":"yesterday"}"#, "expected a time: text like");
    refused(r#"{"command":"heartbeat","timestamp":1.5}"#, "or whole milliseconds since a boot");
    refused(r#"{"command":"readings"}"#, "readings: `payload` is missing");
    refused(r#"{"command":"readings","payload":[1,[]]}"#, "readings: the payload is wrong: an object begins");
    refused(r#"{"command":"readings","payload":{"samples":[]}}"#, "missing field `seq`");
    let number = r#"{"command":"readings","payload":{"seq":1,"samples":[{"time":1,"values":{}}]}}"#;
    refused(number, "readings: `time` is a number");
    refused(
        r#"{"deviceId":"valve","command":"goodbye","payload":{"reason":"normal"}}"#,
        "this connection is the device \"pump\"",
    );
    refused(r#"{"deviceId":"valve/x","command":"sub-device","payload":{"online":true}}"#, "\"valve/x\"");
    refused(r#"{"deviceId":"pump/x","command":"goodbye","payload":{"reason":"normal"}}"#, "names a sub-device");
    refused(r#"{"deviceId":"pump","command":"sub-device","payload":{"online":true}}"#, "must name a sub-device");
    refused(r#"{"command":"result","payload":{"state":"done"}}"#, "result: `id` is missing");
    refused(
        r#"{"command":"result","id":"1","payload":{"state":"dead"}}"#,
        "expected one of `done`, `failed`, `rejected`",
    );
    let hello = |session: &str| {
        format!(
            r#"{{"deviceId":"p","command":"hello","timestamp":"2026-11-23T01:02:03Z","payload":{{"session":{session}}}}}"#
        )
    };
    refused(&hello("9007199254740992"), "a whole number below 2^53, or any up to 2^64 - 1 as text");
    refused(&hello("-1"), "a session id");
    refused(&hello("1.5"), "a session id");
    refused(&hello("\"one\""), "a session id");
    refused(&hello("1").replace("\"deviceId\":\"p\",", ""), "hello: `deviceId` is missing");
    let boot = hello("1").replace("\"session\":1", "\"session\":1,\"clock\":\"since-boot\"");
    refused(&boot, "is text, but the device's clock is since-boot");
    let why = decode_device(b"{\"command\":\"\xff\"}", PUMP).expect_err("no UTF-8").to_string();
    assert_eq!(why, "the text is not UTF-8 from byte 12 on");
    let long = format!(r#"{{"command":"{}"}}"#, "x".repeat(60_000));
    assert!(decode_device(long.as_bytes(), PUMP).expect_err("unknown").to_string().len() < 300);
    let long = format!(r#"{{"command":"readings","payload":{{"seq":"{}"}}}}"#, "x".repeat(60_000));
    assert!(decode_device(long.as_bytes(), PUMP).expect_err("no number").to_string().len() < 400);
}

#[test]
fn sub_devices_are_named_with_or_without_the_hub() {
    for id in ["pump/door", "/door"] {
        let text = format!(r#"{{"deviceId":"{id}","command":"sub-device","payload":{{"online":true}}}}"#);
        let sub_device = SubDevice { sub: "door".into(), online: true, reason: None };
        assert_eq!(decode_device(text.as_bytes(), PUMP), Ok(DeviceMessage::SubDevice(sub_device)));
    }
}

#[test]
fn unknown_fields_are_ignored_and_optional_ones_may_be_left_out() {
    let hello = r#"{"deviceId":"p","command":"hello","timestamp":"2026-11-23T01:02:03Z","payload":{"session":"18446744073709551615","x":[]},"y":{}}"#;
    let Ok(DeviceMessage::Hello(hello)) = decode_device(hello.as_bytes(), Context::default()) else {
        panic!("a hello")
    };
    assert_eq!((hello.session, hello.clock, hello.first), (u64::MAX, DeviceClock::Wall, 0));
    let result = r#"{"command":"result","id":"c","payload":{"state":"failed","payload": {"a": [1, 2.50]} }}"#;
    let Ok(DeviceMessage::CommandResult(result)) = decode_device(result.as_bytes(), PUMP) else { panic!("a result") };
    assert_eq!(result.payload.as_deref(), Some(r#"{"a": [1, 2.50]}"#), "as it was written");
}

#[test]
fn a_commands_payload_that_is_no_json_is_a_string() {
    let command = Command { id: "c".into(), name: "n".into(), payload: Some("not {json".into()), expires_in: None };
    let text = encode(&Message::Gateway(GatewayMessage::Command(command)), PUMP);
    assert_eq!(
        text,
        r#"{"deviceId":"pump","command":"command","payload":{"name":"n","payload":"not {json"},"id":"c"}"#
    );
}

/// What stands in place of payloads that are no JSON, which text cannot carry.
fn json(payload: Option<String>) -> Option<String> {
    payload.map(|text| Json::String(text).to_string())
}

fn carried(message: DeviceMessage) -> DeviceMessage {
    match message {
        DeviceMessage::CommandResult(CommandResult { id, state, payload }) => {
            DeviceMessage::CommandResult(CommandResult { id, state, payload: json(payload) })
        }
        other => other,
    }
}

fn carried_down(message: GatewayMessage) -> GatewayMessage {
    match message {
        GatewayMessage::Command(command) => {
            GatewayMessage::Command(Command { payload: json(command.payload.clone()), ..command })
        }
        GatewayMessage::SubCommand(command) => {
            GatewayMessage::SubCommand(SubCommand { payload: json(command.payload.clone()), ..command })
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_survives_as_text(
        sent in prop_oneof![
            any_device_message().prop_map(|message| Message::Device(carried(message))),
            any_gateway_message().prop_map(|message| Message::Gateway(carried_down(message))),
        ],
        device in proptest::option::of("[a-z]{1,8}"),
        clock in prop_oneof![Just(None), Just(Some(DeviceClock::Wall)), Just(Some(DeviceClock::SinceBoot))],
        now in proptest::option::of(any::<i64>()),
    ) {
        let context = Context { device: device.as_deref(), clock, now };
        let text = encode(&sent, context);
        let got = decode(matches!(sent, Message::Gateway(_)), &text, context);
        prop_assert_eq!(format!("{got:?}"), format!("{:?}", Ok::<_, TextError>(sent)), "{}", text);
    }

    #[test]
    fn nearly_right_text_never_panics(
        message in any_device_message(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut text = encode(&Message::Device(message), PUMP).into_bytes();
        for (at, byte) in damage {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let _ = decode_device(&text, PUMP);
        let _ = decode_gateway(&text, PUMP);
    }
}
