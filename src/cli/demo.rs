//! `tidegate demo`: broker, gateway, devices and a subscriber in one process, without a
//! network or a configuration.

pub mod broker;

use super::simulate::{self, Rate};
use super::subscribe::{self, Streams, interrupted};
use crate::config::{ClockTrust, Config, Http, Mqtt, MqttVersion, Store, Tcp};
use crate::gateway::Gateway;
use crate::model::GatewayId;
use anyhow::{Context, Result, bail};
use broker::Broker;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Runs a whole system: an MQTT broker, a gateway, simulated devices, and a subscriber
/// that prints what the broker delivers.
///
/// All of it runs in this process and on the loopback interface. The gateway's log is in
/// a temporary directory, which is removed at the end.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Run only the broker, until Ctrl-C; prints its URL for MQTT 3.1.1 and, on a second
    /// line, its URL for MQTT 5
    #[arg(long, conflicts_with_all = ["devices", "duration"])]
    pub broker_only: bool,
    /// The broker's port for MQTT 3.1.1; 0: any free port
    #[arg(long, value_name = "P", default_value_t = 0)]
    pub mqtt_port: u16,
    /// The broker's port for MQTT 5; 0: any free port
    #[arg(long, value_name = "P", default_value_t = 0)]
    pub mqtt5_port: u16,
    /// Number of devices; each takes a reading a second
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub devices: u32,
    /// End after this time, such as "10s"; without it, on Ctrl-C
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}

const GATEWAY: &str = "demo";
/// The demo's length without `--duration`.
const UNLIMITED: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// Time for confirmed readings to reach the subscriber.
const DELIVERY_TIME: Duration = Duration::from_millis(300);

/// Runs the verb until its time is up, or Ctrl-C or SIGTERM. True if it succeeded.
///
/// # Errors
/// If a part cannot be started, or fails.
pub async fn run(args: Args) -> Result<bool> {
    let broker = Broker::start(args.mqtt_port, args.mqtt5_port).await?;
    if args.broker_only {
        writeln!(std::io::stdout(), "{}\n{}", broker.url(), broker.v5_url()).context("cannot print the addresses")?;
        interrupted().await?;
        return Ok(true);
    }
    let streams = Streams { out: Box::new(std::io::stdout()), err: Box::new(std::io::stderr()) };
    let (stop, stopped) = watch::channel(false);
    let mut demo = std::pin::pin!(demo(&args, broker, streams, stopped));
    tokio::select! {
        outcome = &mut demo => outcome?,
        interrupted = interrupted() => {
            interrupted?;
            stop.send_replace(true);
            demo.await?;
        }
    }
    Ok(true)
}

/// Runs everything except the broker until the time is up, `stop` turns true, or the
/// reader of the output closes it.
///
/// # Errors
/// If a part cannot be started or fails, or if not every reading was acknowledged in
/// time.
pub async fn demo(args: &Args, broker: Broker, mut streams: Streams, stop: watch::Receiver<bool>) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("tidegate-demo-")
        .tempdir()
        .context("cannot make a temporary directory for the log")?;
    let gateway = start_gateway(directory.path(), &broker).await?;
    let Some(address) = gateway.tcp_addresses().first() else { bail!("the gateway has no TCP listener") };
    let (devices, address) = (args.devices, *address);
    // The demo runs on even if this cannot be printed.
    let _ = writeln!(
        streams.err,
        "broker      {broker}\ngateway     {address}, log in {log}\ndevices     {devices}, a reading a second each\n\
         subscriber  what it receives follows; Ctrl-C ends it",
        broker = broker.url(),
        log = directory.path().display(),
    );
    let (stop_subscriber, subscriber_stopped) = watch::channel(false);
    let subscription = subscription(&broker)?;
    let (subscribed, ready) = oneshot::channel();
    let subscriber = subscribe::subscribe(&subscription, streams, subscriber_stopped, Some(subscribed));
    let mut subscriber = std::pin::pin!(subscriber);
    let simulation = simulation(args, address);
    let simulated = async {
        // After the subscription, so that the first readings are printed. A failed subscriber
        // is handled below.
        let _ = ready.await;
        simulate::simulate(&simulation, stop.clone()).await
    };
    let report = tokio::select! {
        report = simulated => report?,
        ended = &mut subscriber => {
            ended?;
            gateway.stop().await;
            return remove(directory);
        }
    };
    let stopping = async {
        gateway.stop().await;
        tokio::time::sleep(DELIVERY_TIME).await;
        stop_subscriber.send_replace(true);
    };
    let (printed, ()) = tokio::join!(subscriber, stopping);
    printed?;
    // An interrupted run does not wait for the last Acks.
    if !report.complete && !*stop.borrow() {
        bail!("not every reading was acknowledged: {}", report.trouble.unwrap_or_default());
    }
    remove(directory)
}

fn remove(directory: tempfile::TempDir) -> Result<()> {
    directory.close().context("cannot remove the temporary directory")
}

async fn start_gateway(directory: &Path, broker: &Broker) -> Result<Gateway> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config {
        tcp: vec![Tcp { listen: loopback, ..Tcp::default() }],
        http: Http { enabled: false, ..Http::default() },
        store: Store { directory: directory.into(), ..Store::default() },
        // On that port the broker speaks one version only.
        mqtt: vec![Mqtt { brokers: vec![broker.url()], version: Some(MqttVersion::V3_1_1), ..Mqtt::default() }],
        ..Config::default()
    };
    config.gateway.id = Some(GatewayId::new(GATEWAY)?);
    // The demo does not wait for a time server.
    config.gateway.clock = ClockTrust::Trusted;
    Gateway::start(config).await
}

fn subscription(broker: &Broker) -> Result<subscribe::Args> {
    Ok(subscribe::Args {
        broker: broker.url().parse()?,
        gateway: Some(GatewayId::new(GATEWAY)?),
        prefix: Mqtt::default().prefix,
        count: None,
        json: false,
        version: subscribe::MqttVersion::V3_1_1,
        username: None,
        password_file: None,
        ca_file: None,
        cert_file: None,
        key_file: None,
        client_id: None,
        timeout: None,
    })
}

fn simulation(args: &Args, gateway: SocketAddr) -> simulate::Args {
    simulate::Args {
        gateway: gateway.to_string(),
        devices: args.devices,
        rate: Rate::PerSecond(f64::from(args.devices)),
        readings: None,
        duration: Some(args.duration.unwrap_or(UNLIMITED)),
        burst: 1,
        seed: 1,
        encoding: simulate::Encoding::Postcard,
        prefix_id: "device".into(),
        give_up: Duration::from_secs(10),
        json: false,
        access: simulate::access::Access::default(),
    }
}

#[cfg(test)]
mod tests;
