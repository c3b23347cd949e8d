//! What the uplink costs and how soon it recovers, of several builds of the gateway in turn: given
//! an older one, before and after stand side by side.

#[path = "uplink/faults.rs"]
mod faults;
#[path = "uplink/subject.rs"]
mod subject;

use super::support::broker::Broker;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use subject::Subject;

#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    what: What,
    /// Gateways to measure, one after the other; this build's if none is given. The last one is what
    /// the devices are simulated by, too.
    #[arg(long)]
    gateway: Vec<PathBuf>,
    /// How often each is measured.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// How long to measure what depends on it, and to wait for what may never come.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Readings a second that are acknowledged and confirmed, and what each costs.
    Throughput,
    /// From a reading's arrival to its PUBACK, at 2,000 a second.
    Latency,
    /// Bytes on the wire while nothing is sent; with ss (iproute2).
    Idle,
    /// Bytes on the wire a reading, by encoding and batch; with ss (iproute2).
    Bytes,
    /// To the second broker when the first ends, and back.
    Failover,
    /// Time to recover from what brokers do; as root, for a name with a dead address.
    Faults,
}

const MOSQUITTO: &str = "allow_anonymous true\nset_tcp_nodelay true";
const VERSIONS: [&str; 2] = ["3.1.1", "5"];

/// Measures and reports.
pub async fn run(args: &Args) -> bool {
    let own = PathBuf::from(env!("CARGO_BIN_EXE_tidegate"));
    let by = args.gateway.last().unwrap_or(&own);
    let gateways = if args.gateway.is_empty() { std::slice::from_ref(&own) } else { &args.gateway };
    let time = Duration::from_secs(args.seconds);
    for _ in 0..args.times {
        match args.what {
            What::Throughput => {
                for burst in ["1", "16"] {
                    for gateway in gateways {
                        throughput(gateway, by, burst).await;
                    }
                }
            }
            What::Latency => {
                for gateway in gateways {
                    latency(gateway, by).await;
                }
            }
            What::Idle => idle(gateways, time).await,
            What::Bytes => {
                for encoding in ["json", "postcard"] {
                    for batch in [None, Some("1KiB"), Some("4KiB"), Some("16KiB"), Some("64KiB")] {
                        for gateway in gateways {
                            bytes(gateway, by, encoding, batch).await;
                        }
                    }
                }
            }
            What::Failover => {
                for gateway in gateways {
                    failover(gateway, time).await;
                }
            }
            What::Faults => faults::run(gateways, time).await,
        }
    }
    true
}

/// How the gateway is called in what is printed.
fn name(gateway: &Path) -> String {
    gateway.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Devices of this build that send to it, until they are done.
fn simulate(by: &Path, subject: &Subject, arguments: &[&str]) -> serde_json::Value {
    let mut command = Command::new(by);
    command.args(["simulate", &format!("tcp://{}", subject.tcp_address()), "--json"]).args(arguments);
    let output = command.output().expect("devices can be started");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

async fn throughput(gateway: &Path, by: &Path, burst: &str) {
    let broker = Broker::mosquitto(MOSQUITTO).await;
    let rest = "[devices]\nmax_message_rate = 0\n[store]\ncommit_within = \"0s\"\ndeliver = \"after-commit\"\n";
    let subject = Subject::start(gateway, &[broker.url()], "3.1.1", "", rest).await;
    subject.connected().await;
    let (idle, before, began) = (subject.rss_kib(), subject.cpu(), Instant::now());
    let duration = if burst == "1" { "5s" } else { "3s" };
    let report =
        simulate(by, &subject, &["--devices", "100", "--rate", "max", "--duration", duration, "--burst", burst]);
    let acked = report["acked"].as_f64().expect("a number");
    let all = subject.delivers(acked, Duration::from_secs(60)).await.is_some();
    let took = began.elapsed().as_secs_f64();
    println!(
        "throughput: {}, {burst} frames a write: {:.0} acked/s, {:.0} to PUBACK/s{}, {:.2} us of CPU a reading, \
         RSS {:.1} MiB idle, {:.1} at most",
        name(gateway),
        report["readings_per_s"].as_f64().expect("a number"),
        acked / took,
        if all { "" } else { " (not all)" },
        (subject.cpu() - before).as_secs_f64() * 1e6 / acked,
        idle.0 as f64 / 1024.0,
        subject.rss_kib().1 as f64 / 1024.0,
    );
}

async fn latency(gateway: &Path, by: &Path) {
    let broker = Broker::mosquitto(MOSQUITTO).await;
    let subject = Subject::start(gateway, &[broker.url()], "3.1.1", "", "[store]\n").await;
    subject.connected().await;
    let before = subject.cpu();
    let report = simulate(by, &subject, &["--devices", "100", "--rate", "2000", "--duration", "15s"]);
    let acked = report["acked"].as_f64().expect("a number");
    subject.delivers(acked, Duration::from_secs(10)).await;
    println!(
        "latency: {}, 2,000 readings/s: p50 up to {} ms, p99 up to {} ms, {:.1} us of CPU a reading",
        name(gateway),
        subject.delivery_quantile(0.5).await * 1000.0,
        subject.delivery_quantile(0.99).await * 1000.0,
        (subject.cpu() - before).as_secs_f64() * 1e6 / acked,
    );
}

/// All at once: nothing of it takes the processor.
async fn idle(gateways: &[PathBuf], time: Duration) {
    let mut subjects = Vec::new();
    for gateway in gateways {
        for version in VERSIONS {
            let broker = Broker::mosquitto(MOSQUITTO).await;
            let subject = Subject::start(gateway, &[broker.url()], version, "", "[store]\n").await;
            subject.connected().await;
            subjects.push((name(gateway), version, broker, subject));
        }
    }
    // What belongs to connecting is over by then.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let before: Vec<_> = subjects.iter().map(|(_, _, broker, _)| subject::wire(broker.port())).collect();
    tokio::time::sleep(time).await;
    for ((name, version, broker, _), before) in subjects.iter().zip(before) {
        let now = subject::wire(broker.port());
        let a_day = |count: u64| count as f64 * 86_400.0 / time.as_secs_f64();
        println!(
            "idle: {name}, MQTT {version}: {:.0} bytes of MQTT a day, {:.0} with TCP and IPv4, in {:.0} segments",
            a_day(now.bytes - before.bytes),
            a_day(now.on_wire() - before.on_wire()),
            a_day(now.segments - before.segments),
        );
    }
}

/// Readings one by one without a batch size, else a backlog.
async fn bytes(gateway: &Path, by: &Path, encoding: &str, batch: Option<&str>) {
    let mut broker = Broker::mosquitto(MOSQUITTO).await;
    let keys = format!("encoding = \"{encoding}\"\nmax_batch = \"{}\"\npresence = false\n", batch.unwrap_or("64KiB"));
    let (devices, rate, count) = if batch.is_some() { ("10", "max", "20000") } else { ("10", "50", "250") };
    if batch.is_some() {
        broker.stop().await;
    }
    let subject = Subject::start(gateway, &[broker.url()], "3.1.1", &keys, "[store]\n").await;
    if batch.is_none() {
        subject.connected().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let before = if batch.is_some() { subject::Wire::default() } else { subject::wire(broker.port()) };
    let report = simulate(by, &subject, &["--devices", devices, "--rate", rate, "--readings", count]);
    if batch.is_some() {
        broker.resume().await;
    }
    let acked = report["acked"].as_f64().expect("a number");
    let all = subject.delivers(acked, Duration::from_secs(30)).await.is_some();
    let after = subject::wire(broker.port());
    println!(
        "bytes: {}, {encoding}, {}: {:.1} bytes of MQTT a reading{}",
        name(gateway),
        batch.map_or("one reading at a time".to_owned(), |batch| format!("max_batch {batch}")),
        (after.bytes - before.bytes) as f64 / acked,
        if all { "" } else { " (not all)" },
    );
}

/// A reading every 50 ms, while the first of two brokers ends and comes back.
async fn failover(gateway: &Path, time: Duration) {
    let mut first = Broker::mosquitto(MOSQUITTO).await;
    let second = Broker::mosquitto(MOSQUITTO).await;
    let urls = [first.url(), second.url()];
    // An older gateway knows no such key; it never returns.
    let knows = subject::knows(gateway, "return_after = \"10s\"");
    let keys = if knows { "return_after = \"10s\"\n" } else { "" };
    let subject = Subject::start(gateway, &urls, "3.1.1", keys, "[store]\n").await;
    subject.connected().await;
    let mut device = subject.device("pump").await;
    device.send(100).await;
    subject.delivers(100.0, time).await.expect("the first broker is fine");
    let began = Instant::now();
    first.kill();
    device.send(1).await;
    let moved = subject.delivers(101.0, time).await.map(|_| began.elapsed());
    first.resume().await;
    let began = Instant::now();
    let mut returned = None;
    while returned.is_none() && began.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(20)).await;
        returned = subject::is_connected(first.port()).then(|| began.elapsed());
    }
    println!(
        "failover: {}: to the second broker {}; back to the first {} (return_after {})",
        name(gateway),
        told(moved, time),
        told(returned, time),
        if knows { "10 s; 30 min by default" } else { "is no key" },
    );
}

/// How long it took, if it came.
fn told(took: Option<Duration>, within: Duration) -> String {
    took.map_or_else(|| format!("not within {} s", within.as_secs()), |took| format!("{:.2} s", took.as_secs_f64()))
}
