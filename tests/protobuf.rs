//! Bodies in Protobuf: what the gateway speaks is what `proto/tidegate.proto` says,
//! here as another implementation understands it.

use crate::golden::examples;
use crate::wire::{Message, any_message, body_of};
use proptest::prelude::*;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use tidegate::model::Value;
use tidegate::wire::codec;
use tidegate::wire::frame::{BodyEncoding, Format, FrameRef, Version};
use tidegate::wire::message::{ChannelRef, DeviceMessage, Readings, Sample};

/// The file, compiled.
fn proto() -> DescriptorPool {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile([directory.join("tidegate.proto")], [directory]).expect("it compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("a set that the compiler made")
}

fn message_of(proto: &DescriptorPool, name: &str) -> MessageDescriptor {
    proto.get_message_by_name(&format!("tidegate.{name}")).unwrap_or_else(|| panic!("tidegate.proto has no {name}"))
}

fn decoded(proto: &DescriptorPool, name: &str, body: &[u8]) -> DynamicMessage {
    DynamicMessage::decode(message_of(proto, name), body).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// The JSON body of what another implementation found in a Protobuf body.
fn json_of(message: &DynamicMessage) -> serde_json::Value {
    let fields = message.descriptor();
    let of = |field: FieldDescriptor| {
        let value = message.get_field(&field);
        let json = match field.is_list() {
            _ if field.supports_presence() && !message.has_field(&field) => serde_json::Value::Null,
            true if field.name() == "values" => sample_json(&value),
            true => value.as_list().expect("a list").iter().map(|value| value_json(&field, value)).collect(),
            false => value_json(&field, &value),
        };
        (field.name().to_owned(), json)
    };
    assert_eq!(message.unknown_fields().count(), 0, "{message:?}");
    serde_json::Value::Object(fields.fields().map(of).collect())
}

fn value_json(field: &FieldDescriptor, value: &prost_reflect::Value) -> serde_json::Value {
    match (field.kind(), value) {
        (Kind::Enum(kind), value) => {
            let number = value.as_enum_number().expect("an enum");
            let name = kind.get_value(number).expect("a value that the file has").name().to_lowercase();
            let (_, name) = name.split_once('_').expect("its enum's name stands first");
            json!(name.replace('_', "-"))
        }
        (Kind::Bytes, value) => {
            // As everywhere in JSON; the model knows how.
            let bytes = value.as_bytes().expect("bytes").to_vec();
            json!(Value::Bytes(bytes.into()))["base64"].clone()
        }
        (_, prost_reflect::Value::Message(message)) => json_of(message),
        (_, prost_reflect::Value::String(text)) => json!(text),
        (_, prost_reflect::Value::Bool(bool)) => json!(bool),
        (_, prost_reflect::Value::U32(number)) => json!(number),
        (_, prost_reflect::Value::U64(number)) => json!(number),
        (_, prost_reflect::Value::I64(number)) => json!(number),
        other => panic!("{other:?} is in no message"),
    }
}

fn sample_json(values: &prost_reflect::Value) -> serde_json::Value {
    let one = |value: &prost_reflect::Value| {
        let message = value.as_message().expect("a ChannelValue");
        let set = |name| message.has_field_by_name(name).then(|| message.get_field_by_name(name)).flatten();
        let channel = match (set("index"), set("name")) {
            (Some(index), None) => format!("#{}", index.as_u32().expect("a number")),
            (None, Some(name)) => name.as_str().expect("a text").to_owned(),
            other => panic!("one channel, not {other:?}"),
        };
        let types = ["float_value", "integer_value", "boolean_value", "text_value", "bytes_value"];
        let set: Vec<_> = types.into_iter().filter_map(set).map(std::borrow::Cow::into_owned).collect();
        let value = match &set[..] {
            [prost_reflect::Value::F64(float)] => Value::Float(*float),
            [prost_reflect::Value::I64(integer)] => Value::Integer(*integer),
            [prost_reflect::Value::Bool(boolean)] => Value::Boolean(*boolean),
            [prost_reflect::Value::String(text)] => Value::Text(text.as_str().into()),
            [prost_reflect::Value::Bytes(bytes)] => Value::Bytes(bytes.to_vec().into()),
            other => panic!("one value, not {other:?}"),
        };
        (channel, json!(value))
    };
    serde_json::Value::Object(values.as_list().expect("a list").iter().map(one).collect())
}

fn decode(encoding: BodyEncoding, kind: u8, body: &[u8]) -> Result<Message, String> {
    let format = Format { version: Version::V2, encoding };
    Message::decode(&FrameRef { format, kind, body }).map_err(|why| why.to_string())
}

/// Adds the fields of later versions that are not written while they say nothing.
fn with_appended(message: &str, json: &mut serde_json::Value) {
    let (field, nothing) = match message {
        "Hello" => ("max_frame", json!(0)),
        "Welcome" => ("session", json!(null)),
        _ => return,
    };
    json.as_object_mut().expect("an object").entry(field).or_insert(nothing);
}

#[test]
fn the_gateway_speaks_what_the_proto_file_says() {
    let proto = proto();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(message in any_message())| {
        let (kind, body) = body_of(&message, BodyEncoding::Protobuf);
        let (_, json) = body_of(&message, BodyEncoding::Json);
        let mut json: serde_json::Value = serde_json::from_slice(&json).expect("it was encoded as JSON");
        with_appended(message.name(), &mut json);
        let theirs = decoded(&proto, message.name(), &body);
        prop_assert_eq!(json_of(&theirs), json);
        // They leave out what is empty; where that is not allowed, it is found missing.
        let again = prost_reflect::prost::Message::encode_to_vec(&theirs);
        match decode(BodyEncoding::Protobuf, kind, &again) {
            Ok(_) => prop_assert_eq!(again, body),
            Err(why) => prop_assert!(why.ends_with("is missing"), "{}", why),
        }
    });
}

#[test]
fn the_examples_use_every_field_of_the_proto_file() {
    let proto = proto();
    let mut used = BTreeSet::new();
    let mut open: Vec<DynamicMessage> = Vec::new();
    for example in examples() {
        let of = |(format, bytes): &(Format, Vec<u8>)| {
            let protobuf = format.encoding == BodyEncoding::Protobuf;
            protobuf.then(|| decoded(&proto, &example.name, &bytes[10..bytes.len() - 4])) // all are version 2
        };
        open.extend(example.frames.iter().filter_map(of));
    }
    while let Some(message) = open.pop() {
        for (field, value) in message.fields() {
            used.insert(field.full_name().to_owned());
            let inner = value.as_list().unwrap_or_default();
            open.extend(inner.iter().filter_map(prost_reflect::Value::as_message).cloned());
        }
    }
    let all = proto.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    assert_eq!(all.map(|field| field.full_name().to_owned()).collect::<BTreeSet<_>>(), used);
}

#[test]
fn a_body_that_is_no_message_is_refused_with_what_is_wrong() {
    const HELLO: u8 = 1;
    const READINGS: u8 = 3;
    let refused = |kind, body: &[u8]| decode(BodyEncoding::Protobuf, kind, body).expect_err("no message");
    let hello = |more: &[u8]| refused(HELLO, &[&[0x0a, 1, b'd', 0x10, 5], more].concat());
    let value = |value: &[u8]| {
        let length = value.len() as u8;
        refused(READINGS, &[&[0x08, 1, 0x1a, length + 2, 0x12, length], value].concat())
    };

    assert_eq!(refused(HELLO, &[]), "the body is not a valid Hello: device is missing");
    assert_eq!(refused(HELLO, &[0x0a, 1, b'd']), "the body is not a valid Hello: session is missing");
    assert_eq!(refused(READINGS, &[]), "the body is not a valid Readings: seq is missing");
    assert_eq!(hello(&[0x18, 7]), "the body is not a valid Hello: clock: 7 is none of its values");
    assert_eq!(hello(&[0x1d, 0, 0, 0, 0]), "the body is not a valid Hello: clock: wire type 5 where 0 is expected");
    assert_eq!(hello(&[0x2a, 1, 0xff]), "the body is not a valid Hello: firmware: the text is not UTF-8");
    assert_eq!(hello(&[0x32, 2, 0x08, 1]), "the body is not a valid Hello: channels: name is missing");

    let channel = "the body is not a valid Readings: samples: values: the channel, index or name, is missing";
    assert_eq!(value(&[]), channel);
    assert_eq!(value(&[0x28, 1]), channel);
    let none = "the body is not a valid Readings: samples: values: the value, of a type that is known, is missing";
    assert_eq!(value(&[0x08, 0]), none);
    assert_eq!(value(&[0x08, 0, 0x78, 1]), none, "of a type that is not known yet");
    assert_eq!(
        value(&[0x08, 0xf0, 0xa2, 0x04]),
        "the body is not a valid Readings: samples: values: index: 70000 is above 65535"
    );

    let cut = "the body is not a valid Hello: it ends in the middle of a field";
    for body in [&[0x0a][..], &[0x0a, 2, b'd'], &[0x10, 0x80], &[0x79, 1, 2, 3], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]]
    {
        assert_eq!(refused(HELLO, body), cut, "{body:02x?}");
    }
    let long = "the body is not a valid Hello: a number is longer than 64 bits";
    assert_eq!(refused(HELLO, &[&[0x10][..], &[0xff; 9], &[2]].concat()), long);
    assert_eq!(refused(HELLO, &[&[0x10][..], &[0x80; 10], &[0]].concat()), long);
    assert_eq!(refused(HELLO, &[0x0b, 0x0c]), "the body is not a valid Hello: 11 is no tag of a field");
    assert_eq!(refused(HELLO, &[0x00, 0x00]), "the body is not a valid Hello: 0 is no tag of a field");
}

#[test]
fn what_stands_twice_counts_as_it_stands_last() {
    let value = [0x08, 3, 0x12, 1, b'x', 0x28, 1, 0x20, 5];
    let body = [&[0x08, 1, 0x08, 9, 0x1a, 11, 0x12, 9][..], &value].concat();
    let readings = readings(BodyEncoding::Protobuf, &body);
    assert_eq!(readings.seq, 9);
    assert_eq!(readings.samples[0].values, [(ChannelRef::Name("x".into()), Value::Integer(-3))]);
}

fn readings(encoding: BodyEncoding, body: &[u8]) -> Readings {
    let format = Format { version: Version::V1, encoding };
    match codec::decode_device(&FrameRef { format, kind: 3, body }) {
        Ok(DeviceMessage::Readings(readings)) => readings,
        other => panic!("no Readings: {other:?}"),
    }
}

/// What decoded Readings take in memory, near enough; a small allocation takes 32 bytes.
fn memory(readings: &Readings) -> usize {
    const SMALL: usize = 32;
    let value = |(channel, value): &(ChannelRef, Value)| {
        let channel = matches!(channel, ChannelRef::Name(name) if !name.is_empty());
        let value = matches!(value, Value::Text(text) if !text.is_empty());
        SMALL * (usize::from(channel) + usize::from(value))
    };
    let sample = |sample: &Sample| {
        let values = sample.values.capacity() * size_of::<(ChannelRef, Value)>();
        values + sample.values.iter().map(value).sum::<usize>()
    };
    readings.samples.capacity() * size_of::<Sample>() + readings.samples.iter().map(sample).sum::<usize>()
}

/// A hostile frame is made to cost as much memory as possible, byte for byte.
#[test]
fn a_hostile_body_costs_no_more_memory_than_in_postcard() {
    const BODY: usize = 64 << 10;
    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    let cost = |encoding, body: Vec<u8>| {
        let length = body.len();
        memory(&readings(encoding, &body)) as f64 / length as f64
    };
    // Many times the smallest sample, or the smallest value in one sample.
    let postcard = |one: &[u8], sample: &[u8]| {
        let count = BODY / one.len();
        cost(BodyEncoding::Postcard, [&[1, 0][..], sample, &varint(count), &one.repeat(count)].concat())
    };
    let json = |begin: &str, one: &str, end: &str| {
        let body =
            format!(r#"{{"seq":1,"samples":[{begin}{}{one}{end}]}}"#, format!("{one},").repeat(BODY / one.len()));
        cost(BodyEncoding::Json, body.into_bytes())
    };
    let samples = |one: &[u8]| cost(BodyEncoding::Protobuf, [&[0x08, 1][..], &one.repeat(BODY / one.len())].concat());
    let values = |one: &[u8]| {
        let all = one.repeat(BODY / one.len());
        cost(BodyEncoding::Protobuf, [&[0x08, 1, 0x1a][..], &varint(all.len()), &all].concat())
    };
    let costs = [
        ("samples without values", postcard(&[0, 0], &[]), samples(&[0x1a, 0]), json("", "[0,{}]", "")),
        (
            "integers without a name",
            postcard(&[1, 0, 1, 0], &[1, 0]),
            values(&[0x12, 4, 0x12, 0, 0x20, 0]),
            json("[0,{", r#""":0"#, "}]"),
        ),
        (
            "one-letter texts",
            postcard(&[1, 1, b'n', 3, 1, b't'], &[1, 0]),
            values(&[0x12, 6, 0x12, 1, b'n', 0x32, 1, b't']),
            json("[0,{", r#""n":"t""#, "}]"),
        ),
    ];
    for (what, postcard, protobuf, json) in costs {
        println!(
            "{what}: {postcard:.1} bytes a byte of the body in postcard, {protobuf:.1} in Protobuf, {json:.1} in JSON"
        );
        assert!(protobuf < postcard + 0.1, "{what}");
        assert!(postcard < 24.0 && json < 24.0, "{what}");
    }
}
