//! The example devices, written from `docs/protocol.md` alone, against the gateway.
//!
//! Those that speak Protobuf need what Debian has as protobuf-compiler, python3-protobuf,
//! nanopb and libnanopb-dev.

use crate::support::broker::Broker;
use crate::support::gateway::Gateway;
use crate::support::process::Process;
use crate::support::pty::Line;
use crate::support::subscriber::{Subscriber, options};
use crate::support::{eventually, installed, real_services_are_required};
use std::path::{Path, PathBuf};
use std::process::Command;
use tidegate::model::Value;

fn example(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A C example as a user compiles it, with every warning an error.
fn compiled(source: &str, directory: &Path, more: &[&str]) -> PathBuf {
    let binary = directory.join(source.replace('.', "-"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-o"]).arg(&binary);
    let status = cc.current_dir(directory).arg(example(source)).args(more).status();
    assert!(status.expect("a C compiler, which building tidegate needs too").success(), "{source} does not compile");
    binary
}

fn succeeds(command: &mut Command) -> bool {
    command.status().unwrap_or_else(|why| panic!("{command:?}: {why}")).success()
}

/// Whether `there` is; where real services are required, it must be.
fn available(there: bool, package: &str) -> bool {
    assert!(there || !real_services_are_required(), "{package} is not installed; apt-get install {package}");
    if !there {
        println!("{package} is not installed: not tried");
    }
    there
}

/// The Protobuf examples, as far as their tools are there.
fn protobuf_examples(directory: &Path, address: &str, count: u64) -> Vec<Example> {
    let proto = format!("{}/proto", env!("CARGO_MANIFEST_DIR"));
    let mut examples = Vec::new();
    let pythons = ["python3", "/usr/bin/python3"];
    let python = pythons.into_iter().find(|python| {
        let import = Command::new(python).args(["-c", "import google.protobuf"]).output();
        import.is_ok_and(|output| output.status.success())
    });
    if available(installed("protoc").is_some(), "protobuf-compiler") && available(python.is_some(), "python3-protobuf")
    {
        let mut protoc = Command::new("protoc");
        protoc.args(["-I", &proto, "--python_out"]).arg(directory).arg(format!("{proto}/tidegate.proto"));
        assert!(succeeds(&mut protoc), "{protoc:?}");
        let mut command = Command::new(python.expect("it was found"));
        command.env("PYTHONPATH", directory).arg(example("protobuf.py")).args(["--tcp", address]);
        command.args(["--device", "protobuf-py", "--interval", "0.005", "--count", &count.to_string()]);
        examples.push(Example { id: "protobuf-py", command });
    }
    let generator = installed("nanopb_generator.py").or_else(|| installed("nanopb_generator"));
    if let Some(generator) = &generator
        && available(Path::new("/usr/include/pb_encode.h").exists(), "libnanopb-dev")
    {
        let mut generate = Command::new(generator);
        generate.current_dir(proto).arg("-q").arg("-D").arg(directory).arg("tidegate.proto");
        assert!(succeeds(&mut generate), "{generate:?}");
        let binary = compiled("protobuf.c", directory, &["-I.", "tidegate.pb.c", "-lprotobuf-nanopb"]);
        let mut command = Command::new(binary);
        command.args(["--device", "protobuf-c", "--interval-ms", "5", "--count", &count.to_string(), "--tcp"]);
        command.args(address.split(':'));
        examples.push(Example { id: "protobuf-c", command });
    }
    available(generator.is_some(), "nanopb");
    examples
}

struct Example {
    id: &'static str,
    command: Command,
}

/// The examples with their arguments for `count` readings to a TCP address or a port.
fn examples(directory: &Path, tcp: Option<&str>, serial: [&Path; 2], count: u64) -> Vec<Example> {
    let mut python = Command::new("python3");
    python.arg(example("device.py")).args(["--device", "py", "--interval", "0.005", "--count", &count.to_string()]);
    let mut c = Command::new(compiled("device.c", directory, &[]));
    c.args(["--device", "c", "--interval-ms", "5", "--count", &count.to_string()]);
    match tcp {
        Some(address) => {
            python.args(["--tcp", address]);
            c.arg("--tcp").args(address.split(':'));
        }
        None => {
            python.arg("--serial").arg(serial[0]);
            c.arg("--serial").arg(serial[1]);
        }
    }
    let mut examples = vec![Example { id: "py", command: python }, Example { id: "c", command: c }];
    if let Some(address) = tcp {
        examples.extend(protobuf_examples(directory, address, count));
    }
    examples
}

async fn deliver(over_tcp: bool) {
    const COUNT: u64 = 200;
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let lines = [Line::new().await, Line::new().await];
    let serial: String = lines
        .iter()
        .enumerate()
        .map(|(i, line)| {
            let path = line.gateway_end();
            format!("[[serial]]\nname = \"serial-{i}\"\npath = {path:?}\nreopen_interval = \"100ms\"\n")
        })
        .collect();
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &serial).started().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = gateway.tcp_address();
    let ends = [lines[0].device_end(), lines[1].device_end()];
    let ends = [ends[0].as_path(), ends[1].as_path()];
    let examples = examples(directory.path(), over_tcp.then_some(&*address), ends, COUNT);
    let ids: Vec<_> = examples.iter().map(|example| example.id).collect();
    let mut running: Vec<_> = examples
        .into_iter()
        .map(|example| {
            let log = directory.path().join(format!("{}.log", example.id));
            (Process::start(example.command, &log), log)
        })
        .collect();
    // The gateway goes in the middle, and comes back.
    eventually("half of the readings arrive", async || subscriber.origins().len() as u64 >= COUNT).await;
    gateway.kill();
    gateway.start().await;
    for (process, log) in &mut running {
        let status = process.ended().await;
        assert!(status.success(), "{}", std::fs::read_to_string(log).unwrap_or_default());
    }
    subscriber.heard(ids.len() * COUNT as usize).await;
    for id in ids {
        let readings = subscriber.readings();
        let mut counts: Vec<_> = readings
            .iter()
            .filter(|reading| reading.device.as_str() == id)
            .map(|reading| {
                let (_, seq) = reading.origin.expect("the examples number their readings");
                let value = |name| reading.values.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
                assert_eq!(value("count"), Some(Value::Integer(seq as i64)), "{reading:?}");
                assert!(matches!(value("temperature"), Some(Value::Float(_))), "{reading:?}");
                let off = reading.time.0 - tidegate::clock::Clock::now(&tidegate::clock::SystemClock::new()).wall.0;
                assert!(off.abs() < 120_000_000, "taken {off} us from now");
                seq
            })
            .collect();
        counts.sort_unstable();
        counts.dedup();
        assert_eq!(counts, (1..=COUNT).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn the_example_devices_deliver_over_tcp_through_a_kill() {
    deliver(true).await;
}

#[tokio::test]
async fn the_example_devices_deliver_over_serial_lines_through_a_kill() {
    deliver(false).await;
}

#[tokio::test]
async fn the_example_device_proves_who_it_is() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", "authentication = \"hmac\"\n");
    let gateway = gateway.started().await;
    let secret = gateway.directory().join("secret");
    let mut new = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    new.args(["key", "new", "py", "--device", "py", "-c"]).arg(gateway.config_file());
    std::fs::write(&secret, new.output().expect("the binary runs").stdout).expect("a file");
    let mut python = Command::new("python3");
    python.arg(example("device.py")).args(["--device", "py", "--interval", "0.005", "--count", "20"]);
    python.args(["--tcp", &gateway.tcp_address(), "--key", "py", "--secret-file"]).arg(&secret);
    let log = gateway.directory().join("py.log");
    let status = Process::start(python, &log).ended().await;
    assert!(status.success(), "{}", std::fs::read_to_string(log).unwrap_or_default());
}

/// A device that nobody taught to say who it is must not look as if nothing were there.
#[tokio::test]
async fn the_examples_that_cannot_prove_who_they_are_say_what_is_asked_and_who_can() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", "authentication = \"hmac\"\n");
    let gateway = gateway.started().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let address = gateway.tcp_address();
    for example in examples(directory.path(), Some(&address), [Path::new(""); 2], 1) {
        let who_can = match example.id {
            "py" => "give --key and --secret-file",
            "protobuf-py" => "device.py can",
            _ => "client/ can",
        };
        let log = directory.path().join(format!("{}.log", example.id));
        let _process = Process::start(example.command, &log);
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        eventually(&format!("{} says it: {}", example.id, said()), async || {
            said().contains("the gateway asks for a key") && said().contains(who_can)
        })
        .await;
    }
}
