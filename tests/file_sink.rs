//! A kind of sink that the program does not have, written against the public doors alone: it
//! appends readings to a file. It shows what a new kind needs, and that it gets all that the
//! kinds of the program get: a place of its own in the log, the pump, health and metrics.

use crate::support::device::Device;
use crate::support::gateway::{figure, get};
use crate::support::process::Process;
use crate::support::{PATIENCE, eventually, free_port};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tidegate::backoff::Failure;
use tidegate::clock::Now;
use tidegate::config::{ClockTrust, Config, HistoryWithin, Start, Store, Tcp};
use tidegate::gateway::{Additions, Gateway};
use tidegate::model::{CommandState, Confirmation, InboundCommand, Seq, SequencedBatch, Source, Target};
use tidegate::sink::{
    Budget, CommandIntake, Destination, Encoded, Outcome, Part, PumpSettings, Running, Sink, SinkConnection,
    Unencodable,
};
use tidegate::store::LogEvent;

/// A line a reading: `SEQ DEVICE SESSION ORIGIN`, and a line an event, which begins with `#`.
struct ToFile {
    path: PathBuf,
    commands: Option<CommandIntake>,
}

/// The sink `file`, which appends to `path`.
pub fn file_sink(path: PathBuf) -> Sink {
    let settings = PumpSettings {
        backoff_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(200),
        stable_after: Duration::from_secs(1),
        max_batch: 4096,
    };
    Sink {
        name: "file".to_owned(),
        start: Start::Oldest,
        memory: 1 << 20,
        build: Box::new(move |cursor, context| {
            let destination = ToFile { path, commands: context.commands.clone() };
            Ok(Running::new(destination, cursor, &settings, context))
        }),
    }
}

impl Destination for ToFile {
    type Payload = String;
    type Connection = Open;

    async fn connect(&mut self) -> Result<Open, Failure> {
        let failed =
            |why: std::io::Error| Failure { what: format!("{}: {why}", self.path.display()), permanent: false };
        let file = File::options().append(true).create(true).open(&self.path).map_err(failed)?;
        if let Some(commands) = self.commands.take() {
            let done = self.path.with_extension("confirmed");
            let ping = InboundCommand {
                source: Source::Http,
                target: Target::Gateway,
                body: r#"{"id":"from-the-file","name":"ping"}"#.into(),
                wanted_for: None,
                confirmation: Confirmation::new(move || drop(File::create(done))),
            };
            let _ = commands.sender.send(ping).await;
        }
        Ok(Open { file, written: VecDeque::new() })
    }

    fn encode(
        &self,
        chunk: &[SequencedBatch],
        after: Seq,
        budget: Budget,
        _: Now,
    ) -> Result<Encoded<String>, Unencodable> {
        let (mut payload, mut readings, mut upto) = (String::new(), 0, after);
        for (device, (seq, origin, _)) in chunk.iter().flat_map(|n| n.after(after).map(move |r| (&n.batch.device, r))) {
            let (session, origin) = origin.map_or((0, 0), |origin| (origin.session, origin.seq));
            payload += &format!("{} {device} {session} {origin}\n", seq.0);
            (readings, upto) = (readings + 1, seq);
            if payload.len() > budget.batch {
                break;
            }
        }
        if readings == 0 {
            return Err(Unencodable::Nothing);
        }
        let part = Part { size: payload.len(), payload, readings, first: after.next(), last: upto };
        Ok(Encoded { payloads: vec![part], upto, readings })
    }

    fn event(&self, event: &LogEvent) -> String {
        format!("# {}\n", serde_json::Value::from(event.body.clone()))
    }

    fn lane(_: &String) -> &str {
        "file"
    }
}

/// The open file, and the tokens of what stands in it.
struct Open {
    file: File,
    written: VecDeque<u64>,
}

impl SinkConnection for Open {
    type Payload = String;

    fn window(&self) -> usize {
        4
    }

    fn max_payload(&self) -> usize {
        1 << 20
    }

    fn tells_size(&self) -> bool {
        true
    }

    fn send(&mut self, token: u64, payload: String) -> Result<(), Failure> {
        let lost = |why: std::io::Error| Failure { what: why.to_string(), permanent: false };
        self.file.write_all(payload.as_bytes()).and_then(|()| self.file.sync_data()).map_err(lost)?;
        self.written.push_back(token);
        Ok(())
    }

    async fn outcome(&mut self) -> Outcome {
        match self.written.pop_front() {
            Some(token) => Outcome::Confirmed(token),
            None => std::future::pending().await,
        }
    }

    async fn close(self, _: Duration) {}
}

/// Where a gateway in a process of its own has its directory, and two addresses.
const DIRECTORY: &str = "TIDEGATE_TEST_DIRECTORY";
const ADDRESSES: &str = "TIDEGATE_TEST_ADDRESSES";

/// Runs an ignored test as a gateway in a process of its own, which can be killed.
pub fn launch(test: &str, directory: &Path, addresses: [&str; 2]) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", test]);
    command.env(DIRECTORY, directory).env(ADDRESSES, addresses.join(" "));
    Process::start(command, &directory.join("gateway.log"))
}

/// The directory and the addresses of this process, if it was launched so.
pub fn launched() -> Option<(PathBuf, [SocketAddr; 2])> {
    let directory = std::env::var_os(DIRECTORY).map(PathBuf::from)?;
    let addresses = std::env::var(ADDRESSES).expect("two addresses");
    let (one, other) = addresses.split_once(' ').expect("two addresses");
    Some((directory, [one, other].map(|address| address.parse().expect("an address"))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the gateway of the test below, in a process of its own that can be killed"]
async fn a_gateway_whose_only_sink_is_a_file() {
    let Some((directory, [listen, http])) = launched() else { return };
    let mut config = configuration(&directory, http);
    config.tcp = vec![Tcp { listen, ..Tcp::default() }];
    let sink = file_sink(directory.join("to/readings"));
    let _gateway =
        Gateway::start_with(config, Additions { sinks: vec![sink], ..Additions::default() }).await.expect("it starts");
    std::future::pending().await
}

/// A gateway with nothing but its log and HTTP.
pub fn configuration(directory: &Path, http: SocketAddr) -> Config {
    let mut config = Config::default();
    config.gateway.id = Some("gw".parse().expect("a valid name"));
    config.gateway.clock = ClockTrust::Trusted;
    config.http.listen = http;
    let history_within = HistoryWithin::Within(Duration::from_millis(250));
    config.store = Store { directory: directory.join("log"), history_within, ..Store::default() };
    config
}

/// How often each reading of a device stands in the file.
pub fn written(path: &Path) -> BTreeMap<(String, u64), u64> {
    let mut counts = BTreeMap::new();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, device, _, origin] = fields[..] else { continue };
        *counts.entry((device.to_owned(), origin.parse().expect("a number"))).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_sink_that_the_program_does_not_have_goes_on_after_sigkill_where_it_stood() {
    const TOTAL: u64 = 2000;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (tcp, http) = (free_port(), free_port());
    let (devices_at, http_at) = (format!("127.0.0.1:{tcp}"), format!("127.0.0.1:{http}"));
    let file = directory.path().join("to/readings");
    let test = "file_sink::a_gateway_whose_only_sink_is_a_file";
    let launch = || launch(test, directory.path(), [&devices_at, &http_at]);
    let mut gateway = launch();

    // Given a destination that is not there yet, the device is served all the same.
    let device = Arc::new(Device::new(1, TOTAL));
    let sending = {
        let (device, at) = (device.clone(), devices_at.clone());
        async move { device.run_tcp(&at).await }
    };
    let sending = tokio::spawn(sending);
    eventually("some are acknowledged", async || device.acked() > 20).await;
    let (_, ready) = get(&http_at, "/health/ready").await.expect("an answer");
    assert!(ready.contains("\"file\"") && ready.contains("to/readings"), "{ready}");
    assert_eq!(figure(&http_at, "tidegate_sink_connected{sink=\"file\"}").await, 0.0);

    // When the destination comes, and the gateway is killed in the middle,
    std::fs::create_dir(directory.path().join("to")).expect("a directory");
    eventually("some are in the file", async || written(&file).len() > 40).await;
    assert_eq!(figure(&http_at, "tidegate_sink_connected{sink=\"file\"}").await, 1.0);
    eventually("its command is on disk", async || file.with_extension("confirmed").exists()).await;
    // The sink's place is on disk with a commit that begins after this.
    let commits = figure(&http_at, "tidegate_commit_seconds_count").await;
    eventually("it is on disk", async || figure(&http_at, "tidegate_commit_seconds_count").await >= commits + 2.0)
        .await;
    gateway.kill();
    let before = written(&file).len() as u64;
    assert!(before < TOTAL, "{before}: the kill came too late");
    gateway = launch();

    // then all arrive, and what was confirmed long before is not sent again.
    tokio::time::timeout(PATIENCE, sending).await.expect("all are acknowledged").expect("no panic");
    eventually("all are in the file", async || written(&file).len() as u64 == TOTAL).await;
    let counts = written(&file);
    assert!((1..=TOTAL).all(|origin| counts.contains_key(&(device.id.clone(), origin))));
    let twice = counts.values().filter(|count| **count > 1).count() as u64;
    assert!(twice < before, "{twice} of {before} were sent again");
    let (_, result) = get(&http_at, "/api/v1/commands/from-the-file").await.unwrap_or_default();
    assert!(result.contains(CommandState::Done.name()), "{result}");
    drop(gateway);
}
