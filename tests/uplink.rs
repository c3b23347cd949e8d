//! The uplink against real brokers: what arrives, and what happens when the broker
//! does not behave.

use crate::support::broker::Broker;
use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use serde_json::Value as Json;
use tidegate::mqtt::{Connection, Event};

#[tokio::test]
async fn readings_arrive_with_identity_value_and_time() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let (mut talk, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump-7", 77).await;
    assert_eq!(welcome.settled, 0);
    talk.readings(3, 1, 5).await;
    talk.acked(5).await;
    subscriber.heard(5).await;
    let readings = subscriber.readings();
    for (i, reading) in readings.iter().enumerate() {
        let seq = i as u64 + 1;
        let sample = crate::support::device::sample(3, seq);
        assert_eq!((reading.seq.0, reading.device.as_str(), reading.origin), (seq, "pump-7", Some((77, seq))));
        assert_eq!(reading.time.0, sample.time);
        let values: Vec<_> = sample.values.into_iter().map(|(_, value)| value).collect();
        assert_eq!(reading.values.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>(), values);
        let names: Vec<_> = reading.values.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["count", "level", "name"]);
    }
}
