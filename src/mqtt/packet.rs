//! Packets of MQTT 3.1.1 and 5 as bytes, by rumqttc's codecs: the only code that knows how
//! the two versions differ.

use super::cause::Cause;
use super::message::{Message, Publish};
use super::options::Options;
use super::reason::quoted;
use super::{cause, reason};
use crate::backoff::Failure;
use crate::config::MqttVersion as Version;
use bytes::{Buf, Bytes, BytesMut};
use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::{QoS as QoS5, v5};
use std::time::Duration;

/// What the broker allows (MQTT 5, 3.2.2.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    pub receive_maximum: Option<u16>,
    pub max_packet: Option<u32>,
    pub session_present: bool,
    /// Replaces the client's.
    pub keep_alive: Option<Duration>,
    /// It does not support retained messages.
    pub no_retain: bool,
    /// It does not support wildcards.
    pub no_wildcards: bool,
    /// It supports QoS 0 only, without confirmations.
    pub no_qos_1: bool,
}

/// A packet from the broker.
#[derive(Debug)]
pub(super) enum Packet {
    ConnAck(Result<Allowance, (Failure, Cause)>),
    PubAck(u16, Result<(), Failure>),
    /// A publish is refused temporarily, for a quota.
    NotNow(u16, Failure),
    SubAck(u16, Result<(), Failure>),
    /// With its packet id; 0 with QoS 0.
    Publish(Message, u16),
    /// A message that cannot be used, with its packet id, which is 0 if it is unknown or
    /// needs no confirmation.
    Unusable {
        topic: String,
        size: usize,
        why: &'static str,
        packet: u16,
    },
    /// The broker closes the connection, with a reason.
    Disconnect(Failure, Cause),
    /// Without effect here.
    Other,
}

/// Decodes a broker's bytes and encodes a client's.
#[derive(Debug)]
pub(super) struct Codec {
    version: Version,
    /// Largest packet accepted, in bytes.
    max_packet: usize,
    /// Bytes still to come of a packet that is skipped.
    skipping: usize,
    /// Whether anything was read yet.
    begun: bool,
}

/// How long the broker keeps a session without a connection, in seconds: for ever.
const SESSION_EXPIRY: u32 = u32::MAX;
/// Messages that the broker may have outstanding with manual acknowledgement.
const RECEIVE_MAXIMUM: u16 = 64;

const PUBLISH: u8 = 3;
const CONNACK: u8 = 2;
const LAST_TYPE: u8 = 14;
/// The fixed header with a remaining length of four bytes (2.2.3).
const LONGEST_HEADER: usize = 5;

const QOS: QoS = QoS::AtLeastOnce;
const QOS_5: QoS5 = QoS5::AtLeastOnce;

/// The fixed header: packet type with its flags, bytes of the header, remaining length.
struct Header {
    first: u8,
    length: usize,
    rest: usize,
}

impl Codec {
    pub fn new(options: &Options) -> Codec {
        let max_packet = usize::try_from(options.max_packet).unwrap_or(usize::MAX);
        Codec { version: options.version, max_packet, skipping: 0, begun: false }
    }

    /// Decodes the next packet of `input`; `None` if it is incomplete.
    ///
    /// # Errors
    /// If the bytes are not MQTT: the connection cannot be used any more.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, Failure> {
        let passed = self.skipping.min(input.len());
        input.advance(passed);
        self.skipping -= passed;
        if self.skipping > 0 {
            return Ok(None);
        }
        let Some(header) = self.header(input)? else { return Ok(None) };
        let size = header.length + header.rest;
        if size > self.max_packet {
            return self.skip(input, &header);
        }
        if input.len() < size {
            input.reserve(size - input.len());
            return Ok(None);
        }
        self.begun = true;
        let kind = header.first >> 4;
        let bytes = input.split_to(size);
        let name = (kind == PUBLISH).then(|| named(&bytes, &header));
        match (self.parse(bytes), name) {
            (Ok(packet), _) => Ok(Some(packet)),
            (Err(()), None) if kind == CONNACK => {
                let what = "the broker answered the connection with a malformed packet".to_owned();
                Ok(Some(Packet::ConnAck(Err((Failure::transient(what), Cause::NoAnswer)))))
            }
            // One malformed message does not end the connection.
            (Err(()), Some((topic, packet))) => Ok(Some(Packet::Unusable { topic, size, why: "is malformed", packet })),
            (Err(()), None) => {
                Err(Failure::transient(format!("the broker sent a packet of type {kind} that is malformed")))
            }
        }
    }

    fn header(&self, input: &[u8]) -> Result<Option<Header>, Failure> {
        let Some(first) = input.first() else { return Ok(None) };
        let kind = first >> 4;
        if !self.begun && kind != CONNACK {
            return Err(Codec::no_broker(input));
        }
        if kind == 0 || kind > LAST_TYPE {
            return Err(Failure::transient(format!(
                "the broker sent {}, which begins no packet of MQTT",
                quoted(input)
            )));
        }
        let mut rest = 0;
        for (i, byte) in input.iter().skip(1).take(LONGEST_HEADER - 1).enumerate() {
            rest |= usize::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(Some(Header { first: *first, length: i + 2, rest }));
            }
        }
        if input.len() >= LONGEST_HEADER {
            return Err(Failure::transient("the broker sent a packet whose length is malformed".to_owned()));
        }
        Ok(None)
    }

    /// The error for a server that does not speak MQTT: a captive portal, HTTP, TLS.
    fn no_broker(input: &[u8]) -> Failure {
        let what = match input.first() {
            Some(0x15 | 0x16) => "; if that port is for TLS, write mqtts:// in `brokers`".to_owned(),
            _ => format!(": it says {}", quoted(input)),
        };
        Failure::transient(format!("what answers there does not speak MQTT{what}"))
    }

    fn skip(&mut self, input: &mut BytesMut, header: &Header) -> Result<Option<Packet>, Failure> {
        let (kind, size) = (header.first >> 4, header.length + header.rest);
        if kind != PUBLISH {
            return Err(Failure::transient(format!(
                "the broker sent a packet of type {kind} with {size} bytes, which is too large"
            )));
        }
        // Its topic, and its packet id for the confirmation.
        if input.len() < size && needs_more(input, header) {
            return Ok(None);
        }
        let (topic, packet) = named(input, header);
        let there = size.min(input.len());
        input.advance(there);
        self.skipping = size - there;
        Ok(Some(Packet::Unusable { topic, size, why: "is larger than max_packet", packet }))
    }

    fn parse(&self, mut bytes: BytesMut) -> Result<Packet, ()> {
        match self.version {
            Version::V3_1_1 => v4::Packet::read(&mut bytes, usize::MAX).map_err(drop).map(see_4),
            Version::V5 => {
                if let Some(answer) = cause::older_answer(&bytes) {
                    return Ok(Packet::ConnAck(Err(answer)));
                }
                // A DISCONNECT may have neither (3.14.2); rumqttc requires both.
                match bytes[..] {
                    [0xe0, 0] => bytes = BytesMut::from(&[0xe0, 2, 0, 0][..]),
                    [0xe0, 1, code] => bytes = BytesMut::from(&[0xe0, 2, code, 0][..]),
                    _ => {}
                }
                v5::Packet::read(&mut bytes, None).map_err(drop).map(see_5)
            }
        }
    }

    /// Appends CONNECT.
    pub fn connect(&self, options: &Options, out: &mut BytesMut) {
        let keep_alive = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX);
        let written = match self.version {
            Version::V3_1_1 => {
                let mut connect = v4::Connect::new(&options.client_id);
                connect.keep_alive = keep_alive;
                connect.clean_session = options.clean_session;
                connect.last_will = options
                    .will
                    .as_ref()
                    .map(|will| v4::LastWill::new(&will.topic, will.payload.to_vec(), QOS, will.retain));
                connect.login = options.credentials.as_ref().map(|(user, password)| v4::Login::new(user, password));
                connect.write(out).map_err(drop)
            }
            Version::V5 => {
                let mut properties = v5::ConnectProperties::new();
                properties.session_expiry_interval = (!options.clean_session).then_some(SESSION_EXPIRY);
                properties.receive_maximum = options.manual_acks.then_some(RECEIVE_MAXIMUM);
                properties.max_packet_size = Some(options.max_packet);
                let connect = v5::Connect {
                    keep_alive,
                    client_id: options.client_id.clone(),
                    clean_start: options.clean_session,
                    properties: Some(properties),
                };
                let will = options
                    .will
                    .as_ref()
                    .map(|will| v5::LastWill::new(&will.topic, will.payload.to_vec(), QOS_5, will.retain, None));
                let login = options.credentials.as_ref().map(|(user, password)| v5::Login::new(user, password));
                connect.write(&will, &login, out).map_err(drop)
            }
        };
        // The configuration bounds its parts.
        debug_assert!(written.is_ok());
    }

    /// Appends a publish with QoS 1 and this packet id. Returns its size, or `None` if that
    /// exceeds `max` bytes or the longest packet of MQTT.
    pub fn publish(&self, publish: Publish, packet: u16, max: usize, out: &mut BytesMut) -> Option<usize> {
        let Publish { topic, payload, retain, content_type, encoding } = publish;
        if topic.len() > usize::from(u16::MAX) {
            return None;
        }
        match self.version {
            Version::V3_1_1 => {
                let publish = v4::Publish { dup: false, qos: QOS, retain, topic, pkid: packet, payload };
                let size = publish.size();
                (size <= max && publish.write(out).is_ok()).then_some(size)
            }
            Version::V5 => {
                let user = [("encoding", encoding), ("compression", "none")];
                let properties = v5::PublishProperties {
                    content_type: Some(content_type.to_owned()),
                    user_properties: user.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                    ..v5::PublishProperties::default()
                };
                let topic = Bytes::from(topic);
                let properties = Some(properties);
                let publish = v5::Publish { dup: false, qos: QOS_5, retain, topic, pkid: packet, payload, properties };
                let size = publish.size();
                (size <= max && publish.write(out).is_ok()).then_some(size)
            }
        }
    }

    /// Appends a SUBSCRIBE with QoS 1.
    pub fn subscribe(&self, filter: &str, packet: u16, out: &mut BytesMut) {
        let written = match self.version {
            Version::V3_1_1 => {
                let mut subscribe = v4::Subscribe::new(filter, QOS);
                subscribe.pkid = packet;
                subscribe.write(out).map_err(drop)
            }
            Version::V5 => {
                let mut subscribe = v5::Subscribe::new(v5::Filter::new(filter, QOS_5), None);
                subscribe.pkid = packet;
                subscribe.write(out).map_err(drop)
            }
        };
        debug_assert!(written.is_ok());
    }

    /// Appends the confirmation of a message.
    pub fn pub_ack(packet: u16, out: &mut BytesMut) {
        let [high, low] = packet.to_be_bytes();
        out.extend_from_slice(&[0x40, 2, high, low]);
    }

    pub fn ping(out: &mut BytesMut) {
        out.extend_from_slice(&[0xc0, 0]);
    }

    pub fn disconnect(out: &mut BytesMut) {
        out.extend_from_slice(&[0xe0, 0]);
    }
}

/// Topic and packet id from the beginning of a publish, as far as they are received.
fn named(bytes: &[u8], header: &Header) -> (String, u16) {
    let body = bytes.get(header.length..).unwrap_or_default();
    let Some(([high, low], behind)) = body.split_first_chunk() else { return (String::new(), 0) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let topic = behind.get(..length).map(|topic| String::from_utf8_lossy(topic).into_owned()).unwrap_or_default();
    let wants_answer = header.first & 0b0110 != 0;
    let id =
        behind.get(length..).and_then(|rest| rest.first_chunk()).filter(|_| wants_answer && header.rest >= length + 4);
    (topic, id.map_or(0, |id| u16::from_be_bytes(*id)))
}

/// Whether topic and packet id of a publish are incomplete.
fn needs_more(bytes: &[u8], header: &Header) -> bool {
    let Some([high, low]) = bytes.get(header.length..).and_then(|body| body.first_chunk()) else { return true };
    bytes.len() < header.length + 2 + usize::from(u16::from_be_bytes([*high, *low])) + 2
}

fn see_4(packet: v4::Packet) -> Packet {
    match packet {
        v4::Packet::ConnAck(ack) => Packet::ConnAck(match ack.code {
            v4::ConnectReturnCode::Success => {
                Ok(Allowance { session_present: ack.session_present, ..Allowance::default() })
            }
            code => Err((reason::connect_4(code), cause::connect_4(code))),
        }),
        v4::Packet::PubAck(ack) => Packet::PubAck(ack.pkid, Ok(())),
        v4::Packet::SubAck(ack) => {
            let refused = ack.return_codes.iter().any(|code| matches!(code, v4::SubscribeReasonCode::Failure));
            let failure = Failure::permanent("the broker refused the subscription");
            Packet::SubAck(ack.pkid, if refused { Err(failure) } else { Ok(()) })
        }
        v4::Packet::Publish(publish) => {
            let v4::Publish { topic, payload, retain, pkid, .. } = publish;
            Packet::Publish(Message { topic, payload, retained: retain, wanted_for: None, ..Message::default() }, pkid)
        }
        _ => Packet::Other,
    }
}

fn see_5(packet: v5::Packet) -> Packet {
    match packet {
        v5::Packet::ConnAck(ack) => {
            let told = ack.properties.as_ref();
            Packet::ConnAck(match ack.code {
                v5::ConnectReturnCode::Success => Ok(Allowance {
                    receive_maximum: told.and_then(|told| told.receive_max),
                    max_packet: told.and_then(|told| told.max_packet_size),
                    session_present: ack.session_present,
                    keep_alive: told.and_then(|told| told.server_keep_alive).map(|s| Duration::from_secs(s.into())),
                    no_retain: told.and_then(|told| told.retain_available) == Some(0),
                    no_wildcards: told.and_then(|told| told.wildcard_subscription_available) == Some(0),
                    no_qos_1: told.and_then(|told| told.max_qos) == Some(0),
                }),
                code => {
                    let why = told.and_then(|told| told.reason_string.as_deref());
                    let elsewhere = told.and_then(|told| told.server_reference.as_deref());
                    Err((reason::connect_5(code, why, elsewhere), cause::connect_5(code, elsewhere)))
                }
            })
        }
        v5::Packet::PubAck(ack) => {
            let why = ack.properties.as_ref().and_then(|told| told.reason_string.as_deref());
            match (ack.reason, reason::publish(ack.reason, why)) {
                (v5::PubAckReason::QuotaExceeded, Err(why)) => Packet::NotNow(ack.pkid, why),
                (_, outcome) => Packet::PubAck(ack.pkid, outcome),
            }
        }
        v5::Packet::SubAck(ack) => {
            let why = ack.properties.as_ref().and_then(|told| told.reason_string.as_deref());
            let refused = ack.return_codes.iter().find(|code| !matches!(code, v5::SubscribeReasonCode::Success(_)));
            Packet::SubAck(ack.pkid, refused.map_or(Ok(()), |code| Err(reason::subscribe(*code, why))))
        }
        v5::Packet::Publish(publish) => {
            let expiry = publish.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
            let message = Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
                wanted_for: expiry.map(|seconds| Duration::from_secs(seconds.into())),
                ..Message::default()
            };
            Packet::Publish(message, publish.pkid)
        }
        v5::Packet::Disconnect(end) => {
            let told = end.properties.as_ref();
            Packet::Disconnect(reason::disconnect(end.reason_code, told), cause::disconnect(end.reason_code, told))
        }
        _ => Packet::Other,
    }
}
