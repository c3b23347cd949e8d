//! A gateway of any build, with what is measured of it from outside.

use crate::support::device::Talk;
use crate::support::gateway::figure;
use crate::support::process::Process;
use crate::support::{eventually, free_port, gateway};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;

pub const DELIVERED: &str = "tidegate_sink_delivered_total{sink=\"mqtt\"}";

pub struct Subject {
    _directory: TempDir,
    process: Process,
    tcp: u16,
    http: u16,
}

impl Subject {
    /// Starts it with one sink with these brokers, and waits until it listens. `keys` are further ones
    /// of the sink, `rest` has the other sections, of which `[store]` is the last.
    pub async fn start(binary: &Path, brokers: &[String], version: &str, keys: &str, rest: &str) -> Subject {
        Subject::start_with_hosts(binary, brokers, version, (keys, rest), "").await
    }

    /// The same, with these lines in its /etc/hosts.
    pub async fn start_with_hosts(
        binary: &Path,
        brokers: &[String],
        version: &str,
        (keys, rest): (&str, &str),
        hosts: &str,
    ) -> Subject {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (tcp, http) = (free_port(), free_port());
        let config = format!(
            "[gateway]\nid = \"gw\"\nclock = \"trusted\"\n[http]\nlisten = \"127.0.0.1:{http}\"\n[[tcp]]\nlisten = \
             \"127.0.0.1:{tcp}\"\n[[mqtt]]\nbrokers = {brokers:?}\nversion = \"{version}\"\n{keys}{rest}directory = \
             \"{}/log\"\n",
            directory.path().display()
        );
        let file = directory.path().join("tidegate.toml");
        std::fs::write(&file, config).expect("a configuration file");
        let mut command = Command::new(binary);
        if !hosts.is_empty() {
            let path = directory.path().join("hosts");
            std::fs::write(&path, hosts).expect("a file");
            let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", path.display());
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", &script]).arg(binary);
        }
        command.arg("run").arg("-c").arg(file).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        let mut process = Process::start(command, &directory.path().join("gateway.log"));
        eventually("the gateway listens", async || {
            let log = std::fs::read_to_string(directory.path().join("gateway.log")).unwrap_or_default();
            assert!(process.is_running(), "{log}");
            TcpStream::connect(("127.0.0.1", http)).await.is_ok()
                && TcpStream::connect(("127.0.0.1", tcp)).await.is_ok()
        })
        .await;
        Subject { _directory: directory, process, tcp, http }
    }

    pub fn tcp_address(&self) -> String {
        format!("127.0.0.1:{}", self.tcp)
    }

    pub async fn figure(&self, name: &str) -> f64 {
        figure(&format!("127.0.0.1:{}", self.http), name).await
    }

    pub async fn connected(&self) {
        let connected = "tidegate_sink_connected{sink=\"mqtt\"}";
        eventually("the uplink stands", async || self.figure(connected).await == 1.0).await;
    }

    /// How long it took until so many readings were confirmed; `None` if they were not `within`.
    pub async fn delivers(&self, readings: f64, within: Duration) -> Option<Duration> {
        let began = Instant::now();
        while self.figure(DELIVERED).await < readings {
            if began.elapsed() > within {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(began.elapsed())
    }

    /// The bound below which this share of the readings was delivered, in seconds.
    pub async fn delivery_quantile(&self, share: f64) -> f64 {
        let (_, text) = gateway::get(&format!("127.0.0.1:{}", self.http), "/metrics").await.expect("metrics");
        let buckets: Vec<(f64, f64)> = text
            .lines()
            .filter_map(|line| {
                let (labels, count) = line.strip_prefix("tidegate_delivery_seconds_bucket{")?.split_once("} ")?;
                let bound = labels.split_once("le=\"")?.1.split_once('"')?.0;
                Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
            })
            .collect();
        let all = buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        buckets.iter().find(|(_, count)| *count >= all * share).map_or(f64::NAN, |(bound, _)| *bound)
    }

    /// Time of the processor that it had.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("its state").split(' ').collect();
        // utime and stime (proc(5)), in hundredths of a second.
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// What it has in memory, and the most that it had.
    pub fn rss_kib(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        (value("VmRSS:"), value("VmHWM:"))
    }

    pub async fn device(&self, name: &str) -> Device {
        let (talk, _) = Talk::welcomed(&self.tcp_address(), name, 77).await;
        Device { talk, next: 1 }
    }
}

pub struct Device {
    talk: Talk<TcpStream>,
    next: u64,
}

impl Device {
    /// Sends so many readings, which are acknowledged then.
    pub async fn send(&mut self, count: u64) {
        self.talk.readings(1, self.next, count).await;
        self.next += count;
        self.talk.acked(self.next - 1).await;
    }
}

/// Whether its configuration may have that in the section of a sink.
pub fn knows(binary: &Path, key: &str) -> bool {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let config = format!("[gateway]\nid = \"gw\"\n[[mqtt]]\nbrokers = [\"mqtt://127.0.0.1:1883\"]\n{key}\n");
    std::fs::write(file.path(), config).expect("a file");
    let output = Command::new(binary).arg("check").arg("-c").arg(file.path()).output().expect("it can be started");
    let text = [output.stdout, output.stderr].concat();
    !String::from_utf8_lossy(&text).contains("unknown")
}

/// What went over one connection, both ways.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wire {
    pub bytes: u64,
    pub segments: u64,
}

impl Wire {
    /// With IPv4, TCP, and the timestamps that Linux adds.
    pub fn on_wire(self) -> u64 {
        self.bytes + 52 * self.segments
    }
}

/// What the one connection to this port has carried, as the system counts it.
pub fn wire(port: u16) -> Wire {
    let text = connections(port);
    let count = |name: &str| {
        let values = text.split_whitespace().filter_map(|field| field.strip_prefix(name)?.strip_prefix(':'));
        values.map(|value| value.parse::<u64>().expect("a number")).sum::<u64>()
    };
    Wire { bytes: count("bytes_sent") + count("bytes_received"), segments: count("segs_out") + count("segs_in") }
}

pub fn is_connected(port: u16) -> bool {
    connections(port).contains("bytes_received")
}

fn connections(port: u16) -> String {
    let mut command = Command::new("ss");
    command.args(["-tinH", "state", "established", "dport", "=", &format!(":{port}")]);
    let output = command.output().expect("ss is installed: apt-get install iproute2");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
