//! Messages as text: the JSON that WebSocket devices may speak instead of frames.
//!
//! Every message, either way, is an object of one shape:
//!
//! ```json
//! {"deviceId": "pump-7", "command": "readings", "payload": {}, "timestamp": "2026-11-23T01:02:03Z", "id": "c-1"}
//! ```
//!
//! See `docs/protocol.md`, "WebSocket".

mod fields;

use super::message::{
    Ack, Authenticate, Challenge, Command, CommandResult, DeviceClock, DeviceMessage, GatewayMessage, Goodbye,
    Heartbeat, HeartbeatReply, Hello, Readings, Sample, SubCommand, SubDevice, Welcome,
};
use super::samples::{self, Sifted};
use fields::{Nothing, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Context of a connection that its text messages contain or depend on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The device.
    pub device: Option<&'a str>,
    /// How the device writes times; as numbers if unknown.
    pub clock: Option<DeviceClock>,
    /// Time on the sender's clock, in its unit.
    pub now: Option<i64>,
}

/// Why a text is not a valid message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error("the text is not UTF-8 from byte {0} on")]
    Encoding(usize),
    #[error("the text is no message: {0}")]
    Shape(String),
    #[error("the command {0:?} is unknown here; known are {1}")]
    Command(String, String),
    #[error("{0}: `{1}` is missing")]
    Missing(&'static str, &'static str),
    #[error("{0}: the payload is wrong: {1}")]
    Payload(&'static str, String),
    #[error("{0}: `{1}` {2}")]
    Time(&'static str, &'static str, &'static str),
    #[error("{0}: `deviceId` is {1:?}, but this connection is the device {2:?}")]
    OtherDevice(&'static str, String, String),
    #[error("{0}: `deviceId` names a sub-device, which this message does not allow")]
    NoSubDevice(&'static str),
    #[error("{0}: `deviceId` must name a sub-device, as in \"hub/door\"")]
    SubDevice(&'static str),
}

/// A message's object, as it is decoded.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    device_id: Option<String>,
    command: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    timestamp: Option<Time>,
    id: Option<String>,
}

/// A message's object, as it is encoded.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<Cow<'a, str>>,
    command: &'static str,
    payload: P,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

/// A decoded object with its context.
struct Reader<'a> {
    name: &'static str,
    read: Read<'a>,
    context: Context<'a>,
}

/// Decodes a text message from a device.
///
/// # Errors
/// If it is invalid, with a description for the device's developer.
pub fn decode_device(text: &[u8], context: Context<'_>) -> Result<DeviceMessage, TextError> {
    const KNOWN: [&str; 7] = ["hello", "authenticate", "readings", "heartbeat", "result", "sub-device", "goodbye"];
    let mut reader = read(text, &KNOWN, context)?;
    Ok(match reader.name {
        "hello" => DeviceMessage::Hello(reader.hello()?),
        "authenticate" => {
            let fields::Authenticate { key, proof } = reader.of_the_device()?.payload()?;
            DeviceMessage::Authenticate(Authenticate { key, proof })
        }
        "readings" => {
            let sub = reader.sub_device()?;
            let fields::Readings { seq, samples } = reader.payload()?;
            let sample = |fields::Sample { time, values }| Ok(Sample { time: reader.time(time, "time")?, values });
            let samples = samples.into_iter().map(sample).collect::<Result<_, _>>()?;
            DeviceMessage::Readings(Readings { seq, sub, samples })
        }
        "heartbeat" => {
            let time = reader.of_the_device()?.timestamp()?;
            DeviceMessage::Heartbeat(Heartbeat { time })
        }
        "result" => {
            reader.sub_device()?;
            let fields::Result { state, payload } = reader.payload()?;
            DeviceMessage::CommandResult(CommandResult { id: reader.id()?, state, payload: payload.map(fields::text) })
        }
        "sub-device" => {
            let sub = reader.sub_device()?.ok_or(TextError::SubDevice(reader.name))?;
            let fields::SubDevice { online, reason } = reader.payload()?;
            DeviceMessage::SubDevice(SubDevice { sub, online, reason })
        }
        _ => DeviceMessage::Goodbye(reader.of_the_device()?.goodbye()?),
    })
}

/// See [`super::sift`].
pub(super) fn sift(text: &[u8], context: Context<'_>) -> Option<Sifted> {
    let message = samples::members(text)?;
    let string = |name| samples::one(&message, name).map(serde_json::from_slice::<String>).transpose().ok();
    if string("command")?? != "readings" {
        return None;
    }
    let read =
        Read { device_id: string("deviceId")?, command: String::new(), payload: None, timestamp: None, id: None };
    let reader = Reader { name: "readings", read, context };
    let sub = reader.sub_device().ok()?;
    let payload = samples::members(samples::one(&message, "payload")?)?;
    let seq = serde_json::from_slice(samples::one(&payload, "seq")?).ok()?;
    let sample = |sent: &[u8]| {
        let fields::Sample { time, values } = serde_json::from_slice(sent).map_err(|why| why.to_string())?;
        Ok(Sample { time: reader.time(time, "time").map_err(|why| why.to_string())?, values })
    };
    let time = |sent: &[u8]| reader.time(serde_json::from_slice(sent).ok()?, "time").ok();
    samples::sifted(seq, sub, samples::one(&payload, "samples")?, &sample, &time)
}

/// Decodes a text message from the gateway.
///
/// # Errors
/// As for [`decode_device`].
pub fn decode_gateway(text: &[u8], context: Context<'_>) -> Result<GatewayMessage, TextError> {
    const KNOWN: [&str; 8] =
        ["challenge", "welcome", "ack", "heartbeat-reply", "command", "sub-command", "refused", "goodbye"];
    // The gateway's times are on its own clock, whatever the device's is.
    let context = Context { clock: Some(DeviceClock::Wall), ..context };
    let mut reader = read(text, &KNOWN, context)?;
    if reader.name == "sub-command" {
        let sub = reader.sub_device()?.ok_or(TextError::SubDevice(reader.name))?;
        let Command { id, name, payload, expires_in } = reader.command()?;
        return Ok(GatewayMessage::SubCommand(SubCommand { sub, id, name, payload, expires_in }));
    }
    reader.of_the_device()?;
    Ok(match reader.name {
        "challenge" => {
            let fields::Challenge { nonce } = reader.payload()?;
            GatewayMessage::Challenge(Challenge { nonce })
        }
        "welcome" => {
            let fields::Welcome { settled, time_trusted, heartbeat_interval, max_frame, window, session } =
                reader.payload()?;
            let (time, session) = (reader.timestamp()?, session.map(|fields::SessionId(session)| session));
            let welcome = Welcome { settled, time, time_trusted, heartbeat_interval, max_frame, window, session };
            GatewayMessage::Welcome(welcome)
        }
        "ack" => {
            let Ack { seq } = reader.payload()?;
            GatewayMessage::Ack(Ack { seq })
        }
        "heartbeat-reply" => {
            let fields::HeartbeatReply { time_trusted } = reader.payload()?;
            GatewayMessage::HeartbeatReply(HeartbeatReply { time: reader.timestamp()?, time_trusted })
        }
        "command" => GatewayMessage::Command(reader.command()?),
        "refused" => GatewayMessage::Refused(reader.payload()?),
        _ => GatewayMessage::Goodbye(reader.goodbye()?),
    })
}

/// Decodes the fields that all messages have.
fn read<'a>(text: &'a [u8], known: &[&'static str], context: Context<'a>) -> Result<Reader<'a>, TextError> {
    let text = std::str::from_utf8(text).map_err(|why| TextError::Encoding(why.valid_up_to()))?;
    let read: Read<'a> = fields::object(text).map_err(TextError::Shape)?;
    match known.iter().find(|name| **name == read.command) {
        Some(name) => Ok(Reader { name, read, context }),
        None => Err(TextError::Command(fields::cut(&read.command), known.join(", "))),
    }
}

impl Reader<'_> {
    fn payload<P: DeserializeOwned>(&self) -> Result<P, TextError> {
        let payload = self.read.payload.ok_or(TextError::Missing(self.name, "payload"))?;
        fields::object(payload.get()).map_err(|why| TextError::Payload(self.name, why))
    }

    fn hello(&mut self) -> Result<Hello, TextError> {
        let device = self.read.device_id.take().ok_or(TextError::Missing(self.name, "deviceId"))?;
        let fields::Hello { session, clock, firmware, channels, first, max_frame } = self.payload()?;
        self.context.clock = Some(clock);
        Ok(Hello { device, session, clock, time: self.timestamp()?, firmware, channels, first, max_frame })
    }

    fn command(&mut self) -> Result<Command, TextError> {
        let fields::Command { name, payload, expires_in } = self.payload()?;
        Ok(Command { id: self.id()?, name, payload: payload.map(fields::text), expires_in })
    }

    fn goodbye(&self) -> Result<Goodbye, TextError> {
        let fields::Goodbye { reason, text } = self.payload()?;
        Ok(Goodbye { reason, text })
    }

    fn id(&mut self) -> Result<String, TextError> {
        self.read.id.take().ok_or(TextError::Missing(self.name, "id"))
    }

    fn timestamp(&self) -> Result<i64, TextError> {
        let time = self.read.timestamp.ok_or(TextError::Missing(self.name, "timestamp"))?;
        self.time(time, "timestamp")
    }

    fn time(&self, time: Time, field: &'static str) -> Result<i64, TextError> {
        time.by(self.context.clock).map_err(|why| TextError::Time(self.name, field, why))
    }

    /// The sub-device that the message is about, if it is one of this device's.
    fn sub_device(&self) -> Result<Option<String>, TextError> {
        let Some(id) = &self.read.device_id else { return Ok(None) };
        let (device, sub) = id.split_once('/').map_or((&**id, None), |(device, sub)| (device, Some(sub)));
        match self.context.device {
            Some(own) if device != own && !(device.is_empty() && sub.is_some()) => {
                Err(TextError::OtherDevice(self.name, fields::cut(id), own.to_owned()))
            }
            _ => Ok(sub.map(str::to_owned)),
        }
    }

    /// Checks that the message is about the device itself.
    fn of_the_device(&self) -> Result<&Self, TextError> {
        match self.sub_device()? {
            Some(_) => Err(TextError::NoSubDevice(self.name)),
            None => Ok(self),
        }
    }
}

/// Appends a message from a device as text.
pub fn encode_device(message: &DeviceMessage, context: Context<'_>, out: &mut Vec<u8>) {
    let writer = Writer { context, out };
    match message {
        DeviceMessage::Hello(hello) => {
            let Hello { device, session, clock, time, firmware, channels, first, max_frame } = hello;
            let own = Context { device: Some(device), clock: Some(*clock), now: Some(*time) };
            let (session, clock, firmware, channels) = (*session, *clock, firmware.clone(), channels.clone());
            let (first, max_frame) = (*first, *max_frame);
            let payload = fields::Hello { session, clock, firmware, channels, first, max_frame };
            Writer { context: own, ..writer }.put("hello", payload);
        }
        DeviceMessage::Authenticate(Authenticate { key, proof }) => {
            writer.put("authenticate", fields::Authenticate { key: key.clone(), proof: proof.clone() });
        }
        DeviceMessage::Readings(Readings { seq, sub, samples }) => {
            let sample = |Sample { time, values }: &Sample| fields::Sample {
                time: Time::of(*time, context.clock),
                values: values.clone(),
            };
            let payload = fields::Readings { seq: *seq, samples: samples.iter().map(sample).collect() };
            writer.about("readings", sub.as_deref(), None, payload);
        }
        DeviceMessage::Heartbeat(Heartbeat { time }) => writer.at(*time).put("heartbeat", Nothing {}),
        DeviceMessage::CommandResult(CommandResult { id, state, payload }) => {
            let payload = fields::Result { state: *state, payload: payload.as_deref().map(fields::embedded) };
            writer.about("result", None, Some(id), payload);
        }
        DeviceMessage::Goodbye(goodbye) => writer.put("goodbye", goodbye),
        DeviceMessage::SubDevice(SubDevice { sub, online, reason }) => {
            let payload = fields::SubDevice { online: *online, reason: reason.clone() };
            writer.about("sub-device", Some(sub), None, payload);
        }
    }
}

/// Appends a message from the gateway as text.
pub fn encode_gateway(message: &GatewayMessage, context: Context<'_>, out: &mut Vec<u8>) {
    let writer = Writer { context: Context { clock: Some(DeviceClock::Wall), ..context }, out };
    match message {
        GatewayMessage::Challenge(challenge) => writer.put("challenge", challenge),
        GatewayMessage::Welcome(welcome) => {
            let Welcome { settled, time, time_trusted, heartbeat_interval, max_frame, window, session } = *welcome;
            let session = session.map(fields::SessionId);
            let payload = fields::Welcome { settled, time_trusted, heartbeat_interval, max_frame, window, session };
            writer.at(time).put("welcome", payload);
        }
        GatewayMessage::Ack(ack) => writer.put("ack", ack),
        GatewayMessage::HeartbeatReply(HeartbeatReply { time, time_trusted }) => {
            let payload = fields::HeartbeatReply { time_trusted: *time_trusted };
            writer.at(*time).put("heartbeat-reply", payload);
        }
        GatewayMessage::Command(Command { id, name, payload, expires_in }) => {
            let payload = fields::Command::new(name, payload.as_deref(), *expires_in);
            writer.about("command", None, Some(id), payload);
        }
        GatewayMessage::Goodbye(goodbye) => writer.put("goodbye", goodbye),
        GatewayMessage::Refused(refused) => writer.put("refused", refused),
        GatewayMessage::SubCommand(SubCommand { sub, id, name, payload, expires_in }) => {
            let payload = fields::Command::new(name, payload.as_deref(), *expires_in);
            writer.about("sub-command", Some(sub), Some(id), payload);
        }
    }
}

struct Writer<'a, 'o> {
    context: Context<'a>,
    out: &'o mut Vec<u8>,
}

impl<'a> Writer<'a, '_> {
    /// Sets the sender's time.
    fn at(mut self, time: i64) -> Self {
        self.context.now = Some(time);
        self
    }

    fn put(self, command: &'static str, payload: impl Serialize) {
        self.about(command, None, None, payload);
    }

    fn about(self, command: &'static str, sub: Option<&str>, id: Option<&str>, payload: impl Serialize) {
        let Context { device, clock, now } = self.context;
        let device_id = match sub {
            Some(sub) => Some(Cow::Owned(format!("{}/{sub}", device.unwrap_or_default()))),
            None => device.map(Cow::Borrowed),
        };
        let timestamp = now.map(|now| Time::of(now, clock));
        // It cannot fail: the keys are strings, and the output is in memory.
        let _ = serde_json::to_writer(self.out, &Written { device_id, command, payload, timestamp, id });
    }
}
