//! One outage with a crash in it, as other gateways were put through it.

use crate::support::broker::Broker;
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::subscriber::{Subscriber, options};
use std::process::Command;
use std::time::{Duration, Instant};
use tidegate::mqtt::Options;

#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    #[arg(long, default_value_t = 100)]
    devices: u64,
}

const TAKES: Duration = Duration::from_secs(25);
const BROKER_STOPS: Duration = Duration::from_secs(5);
const GATEWAY_IS_KILLED: Duration = Duration::from_secs(15);
const BROKER_IS_BACK: Duration = Duration::from_secs(20);
/// The last reading must have arrived by then.
const END: Duration = Duration::from_secs(120);

/// Runs it and reports; false if a reading is missing or came under a false name.
pub async fn run(args: &Args) -> bool {
    let mut broker = Broker::mosquitto("allow_anonymous true").await;
    let mut gateway = Gateway::with_broker(&broker.url(), "").started().await;
    gateway.connected().await;
    // With a session that the broker keeps over its outage.
    let session = Options { clean_session: false, ..options(broker.port()) };
    let subscriber = Subscriber::start(&session).await;

    let began = Instant::now();
    let at = async |time: Duration| tokio::time::sleep_until((began + time).into()).await;
    let summary = gateway.directory().join("simulate.json");
    let mut load = simulate(args, &gateway, &summary);
    at(BROKER_STOPS).await;
    broker.stop().await;
    at(GATEWAY_IS_KILLED).await;
    gateway.kill();
    gateway.start().await;
    let restarted = began.elapsed();
    at(BROKER_IS_BACK).await;
    broker.resume().await;
    let all_acknowledged = load.ended().await.success();
    let text = std::fs::read_to_string(&summary).expect("a summary");
    let report: serde_json::Value = serde_json::from_str(&text).expect("a JSON object");
    let (sent, acked) = (count(&report, "sent"), count(&report, "acked"));

    while subscriber.origins().len() < sent && began.elapsed() < END {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = began.elapsed();
    let origins = subscriber.origins();
    let again = origins.values().map(|times| times - 1).sum::<usize>();
    let lost = sent - origins.len().min(sent);
    println!("sent                 {sent}");
    println!("acknowledged         {acked}");
    println!("arrived              {}", origins.len());
    println!("lost                 {lost} ({} %)", 100.0 * lost as f64 / sent as f64);
    println!("duplicates           {again}, told by their origin");
    println!("restart took         {:.2} s", (restarted - GATEWAY_IS_KILLED).as_secs_f64());
    println!("all had arrived at   {:.1} s; the broker was back at {} s", last.as_secs_f64(), BROKER_IS_BACK.as_secs());
    gateway.terminate().await;
    all_acknowledged && lost == 0 && acked == sent && sent > 0
}

fn count(report: &serde_json::Value, key: &str) -> usize {
    let count = report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"));
    usize::try_from(count).expect("a count of readings")
}

fn simulate(args: &Args, gateway: &Gateway, summary: &std::path::Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["simulate", &format!("tcp://{}", gateway.tcp_address()), "--json"]);
    command.args(["--rate", &args.rate.to_string(), "--devices", &args.devices.to_string()]);
    command.args(["--duration", &format!("{}s", TAKES.as_secs())]);
    Process::start_apart(command, summary, &gateway.directory().join("simulate.log"))
}
