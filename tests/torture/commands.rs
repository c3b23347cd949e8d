//! The round trip of a command: published to a broker, persisted, confirmed, handed to its
//! device, answered, persisted, and its result published.

use super::quantile;
use super::support::broker::Broker;
use super::support::eventually;
use super::support::gateway::Gateway;
use super::support::process::Process;
use super::support::subscriber::options;
use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};
use tidegate::mqtt::{Connection, Event, Publish};

#[derive(clap::Args)]
pub struct Args {
    /// Devices that are online.
    #[arg(long, default_value_t = 1000)]
    devices: u64,
    /// Commands, one after the other, or as many under way as `--at-once`.
    #[arg(long, default_value_t = 2000)]
    commands: u64,
    #[arg(long, default_value_t = 1)]
    at_once: usize,
    /// Readings that all devices together send in a second meanwhile.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
}

/// Whether each command was done, once.
pub async fn run(args: &Args) -> bool {
    // Without this Mosquitto holds a small packet back until the one before is confirmed,
    // which the kernel delays by 40 ms.
    let broker = Broker::mosquitto("allow_anonymous true\nset_tcp_nodelay true").await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    gateway.connected().await;
    let mut devices = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    devices.arg("simulate").arg(format!("tcp://{}", gateway.tcp_address()));
    devices.args([
        "--devices",
        &args.devices.to_string(),
        "--rate",
        &args.rate.to_string(),
        "--duration",
        "1h",
        "--prefix-id",
        "device",
    ]);
    let _devices = Process::start(devices, &gateway.directory().join("devices.log"));
    let wanted = args.devices as f64;
    eventually("all devices are online", async || gateway.figure("tidegate_devices_connected").await >= wanted).await;

    let mut connection = Connection::open(&options(broker.port())).await.expect("the broker answers");
    connection.subscribe("tidegate/gw/devices/+/result").expect("room in the queue");
    let (mut under_way, mut times) = (HashMap::new(), Vec::new());
    let (mut given, mut wrong) = (0, 0);
    let began = Instant::now();
    while (times.len() as u64) < args.commands {
        while given < args.commands && under_way.len() < args.at_once {
            let device = given % args.devices + 1;
            let publish = Publish {
                topic: format!("tidegate/gw/devices/device-{device}/command"),
                payload: format!("{{\"id\":\"c-{given}\",\"name\":\"set\",\"payload\":{{\"to\":{given}}}}}").into(),
                retain: false,
                content_type: "",
                encoding: "",
            };
            under_way.insert(format!("c-{given}"), Instant::now());
            connection.publish(given, publish).expect("room in the queue");
            given += 1;
        }
        let event = tokio::time::timeout(Duration::from_secs(60), connection.event()).await;
        if let Event::Message(message) = event.expect("results come") {
            let result: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            match under_way.remove(result["id"].as_str().unwrap_or_default()) {
                Some(given) if result["state"] == "done" => times.push(given.elapsed()),
                _ => wrong += 1,
            }
        }
    }
    let took = began.elapsed();
    times.sort_unstable();
    println!(
        "{} commands to {} devices, {} at once: p50 {:?}, p99 {:?}, max {:?}; {:.0} a second; {wrong} wrong",
        times.len(),
        args.devices,
        args.at_once,
        quantile(&times, 0.5),
        quantile(&times, 0.99),
        quantile(&times, 1.0),
        times.len() as f64 / took.as_secs_f64(),
    );
    wrong == 0
}
