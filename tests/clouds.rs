//! The clouds' brokers, as their documentation describes them: a profile alone keeps to all of
//! their rules.

mod broker;

use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::tls::Certificates;
use crate::uplink::{DELIVERED, send};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use broker::{Cloud, KEY, Service};
use tidegate::model::Value;
use tidegate::wire::message::{ChannelRef, DeviceMessage, Readings, Sample};

/// A gateway with this profile that sends there and adds `keys`.
fn gateway(cloud: &Cloud, certificates: &Certificates, profile: &str, keys: &str) -> Gateway {
    let files = format!(
        "ca_file = {:?}\ncert_file = {:?}\nkey_file = {:?}\n",
        certificates.path("ca.pem"),
        certificates.path("client.pem"),
        certificates.path("client.key")
    );
    let mut gateway = Gateway::with_broker(&cloud.url, &format!("profile = \"{profile}\"\n{files}{keys}"));
    gateway.replace("keep_alive = \"5s\"\n", "");
    gateway.keys("[[tcp]]", "max_frame = \"1MiB\"");
    gateway
}

/// Readings in packets of what size they may have, the gateway's status and devices' statuses.
async fn all_is_taken(cloud: &Cloud, gateway: &Gateway, topic: impl Fn(&str) -> String) {
    send(gateway, 500).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 500.0).await;
    for kind in ["readings", "status", "devices/pump/status", "events"] {
        let wanted = topic(&format!("tidegate/gw/{kind}"));
        eventually(&wanted, async || cloud.look(|seen| seen.taken.iter().any(|(topic, _)| *topic == wanted))).await;
    }
    assert_eq!(cloud.look(|seen| seen.broken.clone()), Vec::<String>::new(), "{}", gateway.log());
    assert_eq!(gateway.log().matches("connected to the broker").count(), 1, "{}", gateway.log());
}

/// A reading that one payload of the service does not hold is no payload of it.
async fn too_much_is_not_sent(cloud: &Cloud, gateway: &Gateway, bytes: usize) {
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "valve", 78).await;
    let huge = Sample { time: 0, values: vec![(ChannelRef::Index(0), Value::Text("x".repeat(bytes).into()))] };
    talk.say(&DeviceMessage::Readings(Readings { seq: 1, sub: None, samples: vec![huge] })).await;
    // That others pass is what shows that it is the reading.
    talk.readings(1, 2, 1).await;
    talk.acked(2).await;
    let dropped = "tidegate_sink_dropped_total{sink=\"mqtt\",reason=\"too_large\"}";
    gateway.figure_becomes(dropped, |dropped| dropped == 1.0).await;
    assert_eq!(cloud.look(|seen| seen.broken.clone()), Vec::<String>::new(), "{}", gateway.log());
}

#[tokio::test]
async fn aws_iot_core_takes_what_its_profile_sends() {
    let certificates = Certificates::new();
    let cloud = Cloud::start(Service::AwsIot, certificates.acceptor(), None).await;
    let gateway = gateway(&cloud, &certificates, "aws-iot", "").started().await;
    all_is_taken(&cloud, &gateway, str::to_owned).await;
    too_much_is_not_sent(&cloud, &gateway, 140_000).await;
}

#[tokio::test]
async fn azure_event_grid_takes_what_its_profile_sends() {
    let certificates = Certificates::new();
    let cloud = Cloud::start(Service::AzureEventGrid, certificates.acceptor(), None).await;
    let gateway = gateway(&cloud, &certificates, "azure-event-grid", "").started().await;
    all_is_taken(&cloud, &gateway, str::to_owned).await;
}

/// A gateway that sends to a hub, with the key that they share.
fn of_a_hub(cloud: &Cloud, certificates: &Certificates, keys: &str) -> Gateway {
    let key = certificates.path("shared.key");
    std::fs::write(&key, format!("{}\n", STANDARD.encode(KEY))).expect("a file");
    gateway(cloud, certificates, "azure-iot-hub", &format!("shared_access_key_file = {key:?}\n{keys}"))
}

#[tokio::test]
async fn azure_iot_hub_takes_what_its_profile_sends_and_gives_commands() {
    let certificates = Certificates::new();
    let command =
        ("devices/gw/messages/devicebound/?%24.mid=1&device=boiler", r#"{"id":"c-1","name":"open","expires":"1s"}"#);
    let command = Some((command.0.to_owned(), command.1.to_owned()));
    let cloud = Cloud::start(Service::AzureIotHub, certificates.acceptor(), command).await;
    let gateway = of_a_hub(&cloud, &certificates, "").started().await;
    let topic = |topic: &str| {
        let topic = topic.replace('/', "%2F");
        format!("devices/gw/messages/events/$.ct=application%2Fjson&$.ce=utf-8&topic={topic}")
    };
    all_is_taken(&cloud, &gateway, topic).await;
    // No boiler is there that takes it in time.
    let result = topic("tidegate/gw/devices/boiler/result");
    eventually("its result comes", async || cloud.look(|seen| seen.taken.iter().any(|(topic, _)| *topic == result)))
        .await;
    too_much_is_not_sent(&cloud, &gateway, 270_000).await;
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let certificates = Certificates::new();
    let cloud = Cloud::start(Service::AzureIotHub, certificates.acceptor(), None).await;
    let gateway = of_a_hub(&cloud, &certificates, "token_lifetime = \"5s\"\n").started().await;
    send(&gateway, 10).await;
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 10.0).await;
    eventually("there is a new token", async || cloud.look(|seen| seen.passwords.len() >= 2)).await;
    cloud.look(|seen| {
        assert_eq!(seen.broken, Vec::<String>::new());
        assert!(seen.passwords[0] != seen.passwords[1] && seen.left >= 1, "the first connection took leave");
    });
}

#[test]
fn what_a_cloud_does_not_take_is_refused_when_the_configuration_is_checked() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("tidegate.toml");
    let key = directory.path().join("no.key");
    std::fs::write(&key, "no key").expect("a file");
    let shared = format!("shared_access_key_file = {key:?}\n");
    let aws = "brokers = [\"mqtts://h\"]\nprofile = \"aws-iot\"\n";
    let hub = "brokers = [\"mqtts://h\"]\nprofile = \"azure-iot-hub\"\n";
    let cases = [
        (format!("{aws}keep_alive = \"10s\""), "keep_alive: 10s is not what aws-iot takes"),
        (format!("{aws}prefix = \"a/b/c/d\""), "prefix: has 4 levels"),
        (format!("{aws}prefix = \"{}\"", "p".repeat(45)), "prefix: is so long"),
        (format!("{aws}[[mqtt]]\nname = \"b\"\n{aws}"), "client_id: `mqtt` has the gateway's name"),
        (format!("{aws}{shared}"), "shared_access_key_file: is for Azure IoT Hub only"),
        (format!("{hub}{shared}password_file = {key:?}"), "shared_access_key_file: makes the password"),
        (format!("{hub}{shared}"), "holds no shared access key"),
        (hub.replace("mqtts", "mqtt"), "brokers: azure-iot-hub is reached over TLS only"),
    ];
    for (lines, what) in cases {
        let text = format!("[[tcp]]\nlisten = \"127.0.0.1:7411\"\n[[mqtt]]\n{lines}\n");
        std::fs::write(&file, text).expect("a file");
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let checked = check.args(["check", "-c"]).arg(&file).output().expect("it runs");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.code() == Some(2) && said.contains(what), "{lines}: {said}");
    }
}
