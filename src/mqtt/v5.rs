//! MQTT 5 by rumqttc.

use super::client::{Acker, Allowance, EventLoop, Message, Options, Publish, Seen};
use super::trouble;
use super::v4::network;
use crate::backoff::Failure;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, LastWill, Packet, PubAckReason, Publish as Publish5, PublishProperties, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use std::time::Duration;
use tokio::sync::mpsc;

pub const QOS: QoS = QoS::AtLeastOnce;

/// How long the broker keeps a session without a connection, in seconds: for ever.
const SESSION_EXPIRY: u32 = u32::MAX;

/// Messages that the broker may have outstanding where they are confirmed by hand.
const RECEIVE_MAXIMUM: u16 = 64;

pub struct Loop(rumqttc::v5::EventLoop);

/// A client and its event loop, which connects when it is first asked.
pub fn client(options: &Options, capacity: u16) -> (AsyncClient, Loop) {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.host, options.port);
    mqtt.set_keep_alive(options.keep_alive)
        .set_clean_start(options.clean_session)
        .set_manual_acks(options.manual_acks)
        .set_connection_timeout(options.connect_timeout.as_secs().max(1))
        .set_max_packet_size(Some(options.max_packet))
        .set_outgoing_inflight_upper_limit(capacity.saturating_mul(8))
        .set_network_options(network(options));
    if !options.clean_session {
        mqtt.set_session_expiry_interval(Some(SESSION_EXPIRY));
    }
    if options.manual_acks {
        mqtt.set_receive_maximum(Some(RECEIVE_MAXIMUM));
    }
    if let Some((user, password)) = &options.credentials {
        mqtt.set_credentials(user, password);
    }
    if let Some(tls) = &options.tls {
        mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    if let Some(Publish { topic, payload, retain, .. }) = &options.will {
        mqtt.set_last_will(LastWill::new(topic, payload.to_vec(), QOS, *retain, None));
    }
    let (client, event_loop) = AsyncClient::new(mqtt, usize::from(capacity));
    (client, Loop(event_loop))
}

/// What MQTT 5 tells beside the payload.
pub fn properties(content_type: &str, encoding: &str) -> PublishProperties {
    let user = [("encoding", encoding), ("compression", "none")];
    PublishProperties {
        content_type: Some(content_type.to_owned()),
        user_properties: user.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..PublishProperties::default()
    }
}

/// Sends the confirmations that are asked for, in this order.
pub async fn ack(client: AsyncClient, mut packets: mpsc::Receiver<u16>) {
    while let Some(packet) = packets.recv().await {
        let mut publish = Publish5::new("", QOS, "", None);
        publish.pkid = packet;
        if client.ack(&publish).await.is_err() {
            return;
        }
    }
}

impl EventLoop for Loop {
    async fn next(&mut self) -> Result<Seen, Failure> {
        self.0.poll().await.map(see).map_err(failure)
    }

    fn rest(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.0.state.events).into_iter().map(see).collect()
    }
}

fn see(event: Event) -> Seen {
    match event {
        Event::Incoming(Packet::ConnAck(ack)) => Seen::Connected(Allowance {
            receive_maximum: ack.properties.as_ref().and_then(|p| p.receive_max),
            max_packet: ack.properties.as_ref().and_then(|p| p.max_packet_size),
            session_present: ack.session_present,
        }),
        Event::Outgoing(Outgoing::Publish(packet)) => Seen::Sent(packet),
        Event::Incoming(Packet::PubAck(ack)) => {
            let outcome = match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                reason => Err(Failure { what: format!("the broker refused a publish ({reason:?})"), permanent: true }),
            };
            Seen::Acked(ack.pkid, outcome)
        }
        Event::Incoming(Packet::Publish(publish)) => {
            let expiry = publish.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
            let message = Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
                wanted_for: expiry.map(|seconds| Duration::from_secs(seconds.into())),
                acker: Acker::default(),
            };
            Seen::Message(message, publish.pkid)
        }
        Event::Incoming(Packet::SubAck(ack)) => {
            let refused = ack.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
            let failure =
                |code| Failure { what: format!("the broker refused the subscription: {code:?}"), permanent: true };
            Seen::Subscribed(refused.map_or(Ok(()), |code| Err(failure(code))))
        }
        _ => Seen::Nothing,
    }
}

fn failure(error: ConnectionError) -> Failure {
    use ConnectReturnCode as Code;
    let (what, permanent) = match &error {
        ConnectionError::ConnectionRefused(code) => match code {
            Code::BadUserNamePassword | Code::NotAuthorized | Code::Banned | Code::BadAuthenticationMethod => (
                format!("the broker refused the credentials ({code:?}); check username, password_file, certificates"),
                true,
            ),
            Code::BadClientId | Code::ClientIdentifierNotValid => {
                ("the broker refused the client id; set client_id".into(), true)
            }
            Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
                ("the broker does not speak MQTT 5; set version = \"3.1.1\"".into(), true)
            }
            _ => (format!("the broker takes no connection now ({code:?})"), false),
        },
        _ => (trouble::of_v5(&error), false),
    };
    Failure { what, permanent }
}
