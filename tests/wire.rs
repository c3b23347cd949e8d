//! The device protocol through its public door: frames and messages together.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use std::ops::ControlFlow;
use tidegate::model::Value;
use tidegate::wire::codec::{self, BodyError};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, FrameRef, Limits, MAX_BODY, Recovery, Version};
use tidegate::wire::message::*;

/// A message in either direction.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Device(DeviceMessage),
    Gateway(GatewayMessage),
}

impl Message {
    pub fn decode(frame: &FrameRef<'_>) -> Result<Message, BodyError> {
        match frame.kind & 0x80 {
            0 => codec::decode_device(frame).map(Message::Device),
            _ => codec::decode_gateway(frame).map(Message::Gateway),
        }
    }

    pub fn encode(&self, format: Format) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Message::Device(message) => codec::encode_device(message, format, &mut out),
            Message::Gateway(message) => codec::encode_gateway(message, format, &mut out),
        }
        out
    }

    pub fn name(&self) -> &'static str {
        match self {
            Message::Device(DeviceMessage::Hello(_)) => "Hello",
            Message::Device(DeviceMessage::Authenticate(_)) => "Authenticate",
            Message::Device(DeviceMessage::Readings(_)) => "Readings",
            Message::Device(DeviceMessage::Heartbeat(_)) => "Heartbeat",
            Message::Device(DeviceMessage::CommandResult(_)) => "CommandResult",
            Message::Device(DeviceMessage::Goodbye(_)) => "Goodbye",
            Message::Device(DeviceMessage::SubDevice(_)) => "SubDevice",
            Message::Gateway(GatewayMessage::Challenge(_)) => "Challenge",
            Message::Gateway(GatewayMessage::Welcome(_)) => "Welcome",
            Message::Gateway(GatewayMessage::Ack(_)) => "Ack",
            Message::Gateway(GatewayMessage::HeartbeatReply(_)) => "HeartbeatReply",
            Message::Gateway(GatewayMessage::Command(_)) => "Command",
            Message::Gateway(GatewayMessage::Goodbye(_)) => "Goodbye",
            Message::Gateway(GatewayMessage::SubCommand(_)) => "SubCommand",
            Message::Gateway(GatewayMessage::Refused(_)) => "Refused",
        }
    }
}

const LIMITS: Limits = Limits { max_body: MAX_BODY, require_checksum: false };

/// What stands in a stream of frames and nothing else.
pub fn frames(stream: &[u8]) -> Result<Vec<(Format, Message)>, String> {
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    let messages = pushed(&mut decoder, stream)?;
    if decoder.is_partial() {
        return Err("the last frame is not complete".into());
    }
    Ok(messages)
}

fn pushed(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<(Format, Message)>, String> {
    let mut messages = Vec::new();
    let mut wrong = None;
    let pushed = decoder.push(bytes, &mut |event| {
        match event {
            Event::Frame(frame) => match Message::decode(&frame) {
                Ok(message) => messages.push((frame.format, message)),
                Err(why) => wrong = Some(why.to_string()),
            },
            other => wrong = Some(format!("{other:?}")),
        }
        ControlFlow::Continue(())
    });
    pushed.map_err(|why| why.to_string())?;
    wrong.map_or(Ok(messages), Err)
}

/// JSON has one NaN only, so any is as good as any other.
fn any_float() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<f64>().prop_map(|float| if float.is_nan() { f64::NAN } else { float }),
        1 => any::<u64>().prop_map(f64::from_bits).prop_map(|float| if float.is_nan() { f64::NAN } else { float }),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0), Just(21.0), Just(1e300)],
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any_float().prop_map(Value::Float),
        any::<i64>().prop_map(Value::Integer),
        any::<bool>().prop_map(Value::Boolean),
        any::<String>().prop_map(|text| Value::Text(text.into())),
        vec(any::<u8>(), 0..20).prop_map(|bytes| Value::Bytes(bytes.into())),
    ]
}

fn any_channel() -> impl Strategy<Value = ChannelRef> {
    prop_oneof![any::<u16>().prop_map(ChannelRef::Index), "[^#\\p{Cc}]\\P{Cc}{0,15}".prop_map(ChannelRef::Name)]
}

fn any_clock() -> impl Strategy<Value = DeviceClock> {
    prop_oneof![Just(DeviceClock::Wall), Just(DeviceClock::SinceBoot)]
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let declaration = (any::<u16>(), any::<String>(), option::of(any::<String>()))
        .prop_map(|(index, name, unit)| ChannelDeclaration { index, name, unit });
    let fields = (any::<String>(), any::<u64>(), any_clock(), any::<i64>(), option::of(any::<String>()));
    (fields, vec(declaration, 0..5), any::<u64>(), any::<u32>()).prop_map(
        |((device, session, clock, time, firmware), channels, first, max_frame)| Hello {
            device,
            session,
            clock,
            time,
            firmware,
            channels,
            first,
            max_frame,
        },
    )
}

fn any_readings() -> impl Strategy<Value = Readings> {
    let sample =
        (any::<i64>(), vec((any_channel(), any_value()), 0..5)).prop_map(|(time, values)| Sample { time, values });
    (any::<u64>(), option::of(any::<String>()), vec(sample, 0..5)).prop_map(|(seq, sub, samples)| Readings {
        seq,
        sub,
        samples,
    })
}

fn any_goodbye() -> impl Strategy<Value = Goodbye> {
    let reason = prop_oneof![
        Just(Reason::Normal),
        Just(Reason::Stopping),
        Just(Reason::BadFrame),
        Just(Reason::TooLarge),
        Just(Reason::Protocol),
        Just(Reason::Timeout),
        Just(Reason::TakenOver),
        Just(Reason::Unauthorized),
        Just(Reason::Busy),
    ];
    (reason, any::<String>()).prop_map(|(reason, text)| Goodbye { reason, text })
}

pub fn any_device_message() -> impl Strategy<Value = DeviceMessage> {
    let state = prop_oneof![Just(ResultState::Done), Just(ResultState::Failed), Just(ResultState::Rejected)];
    prop_oneof![
        any_hello().prop_map(DeviceMessage::Hello),
        (any::<String>(), vec(any::<u8>(), 0..40))
            .prop_map(|(key, proof)| DeviceMessage::Authenticate(Authenticate { key, proof })),
        any_readings().prop_map(DeviceMessage::Readings),
        any::<i64>().prop_map(|time| DeviceMessage::Heartbeat(Heartbeat { time })),
        (any::<String>(), state, option::of(any::<String>()))
            .prop_map(|(id, state, payload)| DeviceMessage::CommandResult(CommandResult { id, state, payload })),
        any_goodbye().prop_map(DeviceMessage::Goodbye),
        (any::<String>(), any::<bool>(), option::of(any::<String>()))
            .prop_map(|(sub, online, reason)| DeviceMessage::SubDevice(SubDevice { sub, online, reason })),
    ]
}

pub fn any_gateway_message() -> impl Strategy<Value = GatewayMessage> {
    let fields = (any::<u64>(), any::<i64>(), any::<bool>(), any::<u32>(), any::<u32>(), any::<u32>());
    let welcome = (fields, option::of(any::<u64>())).prop_map(
        |((settled, time, time_trusted, heartbeat_interval, max_frame, window), session)| Welcome {
            settled,
            time,
            time_trusted,
            heartbeat_interval,
            max_frame,
            window,
            session,
        },
    );
    let command = (any::<String>(), any::<String>(), option::of(any::<String>()), option::of(any::<u64>()))
        .prop_map(|(id, name, payload, expires_in)| Command { id, name, payload, expires_in });
    let sub_command = (any::<String>(), command.clone()).prop_map(|(sub, command)| {
        let Command { id, name, payload, expires_in } = command;
        SubCommand { sub, id, name, payload, expires_in }
    });
    prop_oneof![
        vec(any::<u8>(), 0..40).prop_map(|nonce| GatewayMessage::Challenge(Challenge { nonce })),
        welcome.prop_map(GatewayMessage::Welcome),
        any::<u64>().prop_map(|seq| GatewayMessage::Ack(Ack { seq })),
        (any::<i64>(), any::<bool>())
            .prop_map(|(time, time_trusted)| GatewayMessage::HeartbeatReply(HeartbeatReply { time, time_trusted })),
        command.prop_map(GatewayMessage::Command),
        any_goodbye().prop_map(GatewayMessage::Goodbye),
        sub_command.prop_map(GatewayMessage::SubCommand),
        (any::<u64>(), any::<u64>(), any::<String>()).prop_map(|(seq, count, text)| GatewayMessage::Refused(Refused {
            seq,
            count,
            text
        })),
    ]
}

pub fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![any_device_message().prop_map(Message::Device), any_gateway_message().prop_map(Message::Gateway)]
}

fn any_format() -> impl Strategy<Value = Format> {
    let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
    (version, any_encoding()).prop_map(|(version, encoding)| Format { version, encoding })
}

fn any_encoding() -> impl Strategy<Value = BodyEncoding> {
    prop_oneof![Just(BodyEncoding::Postcard), Just(BodyEncoding::Json), Just(BodyEncoding::Protobuf)]
}

/// Equal also where a float is NaN, and different where it is -0 and not 0: shown
/// in full, all of these have texts of their own.
fn shown<T: std::fmt::Debug>(message: &T) -> String {
    format!("{message:?}")
}

/// The message with all fields of this version, as a newer peer writes it before its own.
fn complete(message: Message) -> Message {
    match message {
        Message::Device(DeviceMessage::Hello(hello)) => {
            Message::Device(DeviceMessage::Hello(Hello { max_frame: hello.max_frame.max(1), ..hello }))
        }
        Message::Gateway(GatewayMessage::Welcome(welcome)) => {
            let session = welcome.session.or(Some(7));
            Message::Gateway(GatewayMessage::Welcome(Welcome { session, ..welcome }))
        }
        other => other,
    }
}

/// A message's body as the codec encodes it.
pub fn body_of(message: &Message, encoding: BodyEncoding) -> (u8, Vec<u8>) {
    let frame = message.encode(Format { version: Version::V1, encoding });
    (frame[5] & 0x8f, frame[10..].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_survives_the_stream_however_it_is_cut(
        sent in vec((any_format(), any_message()), 1..6),
        cuts in vec(any::<Index>(), 0..20),
        recovery in prop_oneof![Just(Recovery::Fail), Just(Recovery::Resync)],
    ) {
        let stream: Vec<u8> = sent.iter().flat_map(|(format, message)| message.encode(*format)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let mut decoder = Decoder::new(LIMITS, recovery);
        let mut got = Vec::new();
        for pair in cuts.windows(2) {
            got.extend(pushed(&mut decoder, &stream[pair[0]..pair[1]]).map_err(TestCaseError::fail)?);
        }
        prop_assert!(!decoder.is_partial());
        prop_assert_eq!(shown(&got), shown(&sent));
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        kind in any::<u8>(),
        format in any_format(),
        body in vec(any::<u8>(), 0..300),
    ) {
        let frame = FrameRef { format, kind: kind & 0x8f, body: &body };
        let _ = codec::decode_device(&frame);
        let _ = codec::decode_gateway(&frame);
    }

    /// Nearly right bodies reach further than arbitrary ones.
    #[test]
    fn damaged_bodies_never_panic(
        message in any_message(),
        format in any_format(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        length in any::<Index>(),
    ) {
        let (kind, mut body) = body_of(&message, format.encoding);
        for (at, byte) in damage {
            if !body.is_empty() { // as a message of zeros is in Protobuf
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        body.truncate(length.index(body.len() + 1));
        let _ = Message::decode(&FrameRef { format, kind, body: &body });
    }

    #[test]
    fn what_newer_peers_append_is_ignored(message in any_message(), version in any_format(), more in vec(any::<u8>(), 1..20)) {
        let message = complete(message);
        let format = Format { encoding: BodyEncoding::Postcard, ..version };
        let (kind, mut body) = body_of(&message, format.encoding);
        body.extend(more);
        let got = Message::decode(&FrameRef { format, kind, body: &body });
        prop_assert_eq!(shown(&got), shown(&Ok::<_, BodyError>(message.clone())));

        let format = Format { encoding: BodyEncoding::Json, ..version };
        let (kind, mut body) = body_of(&message, format.encoding);
        body.pop();
        body.extend(br#","added_later":[1,{"x":null}]}"#);
        let got = Message::decode(&FrameRef { format, kind, body: &body });
        prop_assert_eq!(shown(&got), shown(&Ok::<_, BodyError>(message.clone())));

        // Fields 15 to 18, one of each wire type.
        let format = Format { encoding: BodyEncoding::Protobuf, ..version };
        let (kind, mut body) = body_of(&message, format.encoding);
        body.extend([0x78, 0xff, 0x01, 0x81, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 0x8a, 0x01, 2, 8, 7, 0x95, 0x01, 1, 2, 3, 4]);
        let got = Message::decode(&FrameRef { format, kind, body: &body });
        prop_assert_eq!(shown(&got), shown(&Ok::<_, BodyError>(message)));
    }

    #[test]
    fn unknown_messages_are_told_from_malformed_ones(kind in prop_oneof![Just(0u8), 8..16u8], body in vec(any::<u8>(), 0..40), format in any_format()) {
        let from_device = FrameRef { format, kind, body: &body };
        prop_assert_eq!(codec::decode_device(&from_device), Err(BodyError::Unknown(from_device.type_byte())));
        prop_assume!(kind != 8); // Refused
        let from_gateway = FrameRef { format, kind: kind | 0x80, body: &body };
        prop_assert_eq!(codec::decode_gateway(&from_gateway), Err(BodyError::Unknown(from_gateway.type_byte())));
    }
}

#[test]
fn a_message_in_the_wrong_direction_is_unknown() {
    let format = Format { version: Version::V2, encoding: BodyEncoding::Json };
    let ack = FrameRef { format, kind: 0x83, body: br#"{"seq":1}"# };
    assert_eq!(codec::decode_device(&ack), Err(BodyError::Unknown(0x93)));
    let heartbeat = FrameRef { format, kind: 4, body: br#"{"time":1}"# };
    assert_eq!(codec::decode_gateway(&heartbeat), Err(BodyError::Unknown(0x14)));
}

#[test]
fn optional_fields_may_be_left_out_in_json() {
    let format = Format { version: Version::V1, encoding: BodyEncoding::Json };
    let hello = FrameRef { format, kind: 1, body: br#"{"device":"d","session":1,"clock":"wall","time":0}"# };
    assert!(codec::decode_device(&hello).is_ok());
    let readings = FrameRef { format, kind: 3, body: br##"{"seq":1,"samples":[{"time":0,"values":{"#0":1}}]}"## };
    assert!(codec::decode_device(&readings).is_ok());
    let missing = FrameRef { format, kind: 1, body: br#"{"device":"d","clock":"wall","time":0}"# };
    let why = codec::decode_device(&missing).expect_err("a session is needed").to_string();
    assert!(why.contains("Hello") && why.contains("session"), "{why}");
}
