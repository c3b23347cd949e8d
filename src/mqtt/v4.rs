//! MQTT 3.1.1 by rumqttc.

use super::client::{Acker, Allowance, EventLoop, Message, Options, Publish, Seen};
use super::trouble;
use crate::backoff::Failure;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, LastWill, MqttOptions, NetworkOptions, Outgoing, Packet,
    QoS, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::mpsc;

pub struct Loop(rumqttc::EventLoop);

/// A client and its event loop, which connects when it is first asked.
pub fn client(options: &Options, capacity: u16) -> (AsyncClient, Loop) {
    let mut mqtt = MqttOptions::new(&options.client_id, &options.host, options.port);
    // Saturates where usize is 32 bits wide.
    let max_packet = usize::try_from(options.max_packet).unwrap_or(usize::MAX);
    mqtt.set_keep_alive(options.keep_alive)
        .set_clean_session(options.clean_session)
        .set_manual_acks(options.manual_acks)
        .set_max_packet_size(max_packet, max_packet)
        .set_inflight(capacity.saturating_mul(8));
    if let Some((user, password)) = &options.credentials {
        mqtt.set_credentials(user, password);
    }
    if let Some(tls) = &options.tls {
        mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    if let Some(Publish { topic, payload, retain, .. }) = &options.will {
        mqtt.set_last_will(LastWill::new(topic, payload.to_vec(), QoS::AtLeastOnce, *retain));
    }
    let (client, mut event_loop) = AsyncClient::new(mqtt, usize::from(capacity));
    event_loop.set_network_options(network(options));
    (client, Loop(event_loop))
}

pub fn network(options: &Options) -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    network
}

/// Sends the confirmations that are asked for, in this order.
pub async fn ack(client: AsyncClient, mut packets: mpsc::Receiver<u16>) {
    while let Some(packet) = packets.recv().await {
        let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, "");
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
        Event::Incoming(Packet::ConnAck(ack)) => {
            Seen::Connected(Allowance { session_present: ack.session_present, ..Allowance::default() })
        }
        Event::Outgoing(Outgoing::Publish(packet)) => Seen::Sent(packet),
        Event::Incoming(Packet::PubAck(ack)) => Seen::Acked(ack.pkid, Ok(())),
        Event::Incoming(Packet::Publish(publish)) => {
            let (retained, packet) = (publish.retain, publish.pkid);
            let (topic, payload) = (publish.topic, publish.payload);
            Seen::Message(Message { topic, payload, retained, wanted_for: None, acker: Acker::default() }, packet)
        }
        Event::Incoming(Packet::SubAck(ack)) => {
            let refused = ack.return_codes.iter().any(|code| matches!(code, SubscribeReasonCode::Failure));
            let failure = || Failure { what: "the broker refused the subscription".into(), permanent: true };
            Seen::Subscribed(if refused { Err(failure()) } else { Ok(()) })
        }
        _ => Seen::Nothing,
    }
}

fn failure(error: ConnectionError) -> Failure {
    let (what, permanent) = match &error {
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => (
                format!("the broker refused the credentials ({code:?}); check username, password_file, certificates"),
                true,
            ),
            ConnectReturnCode::BadClientId => ("the broker refused the client id; set client_id".into(), true),
            ConnectReturnCode::RefusedProtocolVersion => {
                ("the broker does not speak MQTT 3.1.1; set version = \"5\"".into(), true)
            }
            ConnectReturnCode::Success | ConnectReturnCode::ServiceUnavailable => {
                (format!("the broker takes no connection now ({code:?})"), false)
            }
        },
        _ => (trouble::of_v4(&error), false),
    };
    Failure { what, permanent }
}
