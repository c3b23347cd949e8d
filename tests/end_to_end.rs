//! The proof: devices over TCP and serial lines, a broker that goes away, a gateway
//! that is killed, and nothing acknowledged is lost.

use crate::support::PATIENCE;
use crate::support::broker::Broker;
use crate::support::device::{Device, START, sample};
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::pty::Line;
use crate::support::subscriber::{Subscriber, options};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate::model::Value;
use tokio::task::JoinSet;

const TCP: u64 = 50;
const SERIAL: u64 = 2;
const TOTAL: u64 = 100_000;

/// How many readings device `number` of `1..=TCP + SERIAL` has.
fn share(number: u64) -> u64 {
    let devices = TCP + SERIAL;
    TOTAL / devices + u64::from(number <= TOTAL % devices)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_reading_arrives_once_through_outages_and_kills() {
    let mut broker = Broker::start().await;
    let lines = [Line::new().await, Line::new().await];
    let serial: String = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            format!("[[serial]]\nname = \"serial-{i}\"\npath = {:?}\nreopen_interval = \"100ms\"\n", line.gateway_end())
        })
        .collect();
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &serial);
    let mut subscribing = Subscribing::start(&broker, &gateway.directory());
    let session = options(broker.port());
    let witness = Subscriber::start(&tidegate::mqtt::Options { clean_session: false, ..session }).await;
    gateway.start().await;

    // Given devices that send, each until all of its readings are acknowledged.
    let devices: Vec<_> = (1..=TCP + SERIAL).map(|number| Arc::new(Device::new(number, share(number)))).collect();
    let mut running = JoinSet::new();
    for device in &devices {
        let device = device.clone();
        let address = gateway.tcp_address();
        let line = device.number.checked_sub(TCP + 1).map(|i| lines[i as usize].device_end());
        running.spawn(async move {
            match line {
                Some(path) => device.run_serial(&path).await,
                None => device.run_tcp(&address).await,
            }
        });
    }

    // When the broker goes twice and the gateway is killed three times, once during an
    // outage.
    let acked = || devices.iter().map(|device| device.acked()).sum::<u64>();
    let mut random = fastrand::Rng::new();
    let mut kill = async |gateway: &mut Gateway| {
        tokio::time::sleep(Duration::from_millis(random.u64(50..1500))).await;
        gateway.kill();
        tokio::time::sleep(Duration::from_millis(random.u64(0..300))).await;
        gateway.start().await;
    };
    reached(&acked, TOTAL / 10).await;
    kill(&mut gateway).await;
    reached(&acked, TOTAL * 2 / 10).await;
    broker.stop().await;
    kill(&mut gateway).await;
    reached(&acked, TOTAL * 4 / 10).await;
    broker.resume().await;
    reached(&acked, TOTAL * 5 / 10).await;
    kill(&mut gateway).await;
    reached(&acked, TOTAL * 6 / 10).await;
    broker.stop().await;
    reached(&acked, TOTAL * 7 / 10).await;
    broker.resume().await;
    while let Some(done) = running.join_next().await {
        done.expect("no device fails");
    }
    assert_eq!(acked(), TOTAL);

    // Then a consumer sees each reading once, with its value and time, and every gap
    // is explained.
    let seen = subscribing.finished().await;
    check_content(&seen);
    let gaps = subscribing.gaps();
    assert!(gaps.contains("unexplained 0"), "{gaps}");
    assert_eq!(gaps.matches("explained: restart").count(), 3, "{gaps}");

    // And on the wire each seq always means the same reading, and a reading has no more
    // seqs than the gateway had lives.
    witness.heard(TOTAL as usize).await;
    check_wire(&witness);
    gateway.terminate().await;
}

async fn reached(acked: &impl Fn() -> u64, wanted: u64) {
    let until = Instant::now() + PATIENCE;
    while acked() < wanted {
        assert!(Instant::now() < until, "{} of {wanted} readings are acknowledged", acked());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn check_content(lines: &[Json]) {
    let mut seen = HashMap::new();
    for line in lines {
        let device = line["device"].as_str().expect("a device");
        let seq = line["origin"][1].as_u64().expect("an origin");
        assert!(seen.insert((device.to_owned(), seq), line).is_none(), "{device} {seq} came twice: {line}");
    }
    for number in 1..=TCP + SERIAL {
        for seq in 1..=share(number) {
            let line = seen.remove(&(format!("device-{number}"), seq));
            let line = line.unwrap_or_else(|| panic!("reading {seq} of device {number} is lost"));
            let value = (number * 1_000_000 + seq) as i64;
            assert_eq!(line["values"]["count"], value);
            assert_eq!(line["values"]["level"], value as f64 / 64.0);
            assert_eq!(line["values"]["name"], format!("reading {seq}"));
            let time = tidegate::model::Timestamp(START + (seq * 1000 + number) as i64).to_string();
            assert_eq!(line["time"], time);
        }
    }
    assert!(seen.is_empty(), "{} readings that nobody sent", seen.len());
}

fn check_wire(witness: &Subscriber) {
    let mut by_seq = BTreeMap::new();
    let mut seqs: HashMap<_, HashSet<u64>> = HashMap::new();
    for reading in witness.readings() {
        let (_, origin) = reading.origin.expect("devices number their readings");
        let number: u64 = reading.device.as_str()["device-".len()..].parse().expect("a number");
        assert_eq!(reading.values[0].1, Value::Integer((number * 1_000_000 + origin) as i64));
        assert_eq!(reading.time.0, sample(number, origin).time);
        let identity = (reading.device.clone(), reading.origin);
        seqs.entry(identity.clone()).or_default().insert(reading.seq.0);
        let known = by_seq.entry(reading.seq.0).or_insert_with(|| identity.clone());
        assert_eq!(*known, identity, "seq {} means two readings", reading.seq);
    }
    assert_eq!(seqs.len() as u64, TOTAL);
    // A device that was not acknowledged before a kill sends again what was delivered
    // from memory: that has a seq of each life. Within one life the log takes it once.
    for (identity, seqs) in &seqs {
        let lives: HashSet<u64> = seqs.iter().map(|seq| life(*seq)).collect();
        assert_eq!(lives.len(), seqs.len(), "{identity:?} is in the log twice: {seqs:?}");
    }
}

/// Which run of the gateway gave a seq out: each start after a kill begins a new block
/// of 2^20.
fn life(seq: u64) -> u64 {
    (seq - 1) >> 20
}

/// `tidegate subscribe`, with its output in files.
struct Subscribing {
    process: Process,
    out: PathBuf,
    log: PathBuf,
}

impl Subscribing {
    fn start(broker: &Broker, directory: &Path) -> Subscribing {
        let (out, log) = (directory.join("subscribe.out"), directory.join("subscribe.log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(["subscribe", &broker.url(), "--gateway", "gw", "--json"]);
        command.args(["--count", &TOTAL.to_string(), "--client-id", "consumer"]);
        Subscribing { process: Process::start_apart(command, &out, &log), out, log }
    }

    /// The readings it printed, once it has them all.
    async fn finished(&mut self) -> Vec<Json> {
        let status = self.process.ended().await;
        assert!(status.success(), "subscribe ended with {status}");
        let text = std::fs::read_to_string(&self.out).expect("its output");
        text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }

    /// What it said of gaps.
    fn gaps(&self) -> String {
        let text = std::fs::read_to_string(&self.log).expect("its log");
        text.lines().filter(|line| line.starts_with("gap")).map(|line| format!("{line}\n")).collect()
    }
}
