//! Serial ports in the field: found wherever they are plugged in, listed, listened to.

use crate::support::device::{POSTCARD, Talk, hello, sample};
use crate::support::gateway::{self, Gateway};
use crate::support::process::Process;
use crate::support::pty::Line;
use crate::support::sysfs::{Adapter, System};
use crate::support::{eventually, free_port};
use serde_json::Value as Json;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use tidegate::wire::codec::encode_device;
use tidegate::wire::message::{DeviceMessage, Readings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

const BOILER: Adapter = Adapter { vendor: "1a86", product: "7523", serial: Some("A1") };
const PUMP: Adapter = Adapter { vendor: "1a86", product: "7523", serial: Some("B2") };
const NAMELESS: Adapter = Adapter { vendor: "0403", product: "6001", serial: None };

fn up(link: &str) -> String {
    format!("tidegate_link_up{{link=\"{link}\"}}")
}

/// `[[serial]]` with these keys, quick to open its port again.
fn section(name: &str, keys: &str) -> String {
    format!("[[serial]]\nname = \"{name}\"\nreopen_interval = \"100ms\"\n{keys}\n")
}

fn device_end(line: &Line) -> Talk<SerialStream> {
    let port = tokio_serial::new(line.device_end().to_string_lossy(), 115_200).open_native_async();
    Talk::over(port.expect("the device's end of the line"), POSTCARD)
}

/// A device says hello and sends a reading; returns what of its session was settled.
async fn settled(line: &Line, device: &str, seq: u64) -> u64 {
    let mut talk = device_end(line);
    talk.say(&hello(device, 1, seq)).await;
    let settled = talk.welcome().await.settled;
    talk.readings(1, seq, 1).await;
    talk.acked(seq).await;
    settled
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("link").args(arguments).output().expect("the binary runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test]
async fn a_port_that_comes_back_under_another_name_is_found_by_its_link() {
    let (mut first, second) = (Line::new().await, Line::new().await);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let by_id = directory.path().join("usb-ACME_Sensor_0001-if00");
    symlink(first.gateway_end(), &by_id).expect("a link");
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &section("boiler", &format!("path = {by_id:?}")));
    let gateway = gateway.started().await;
    gateway.figure_becomes(&up("boiler"), |up| up == 1.0).await;
    assert_eq!(settled(&first, "pump", 1).await, 0);

    first.unplug();
    std::fs::remove_file(&by_id).expect("the link");
    gateway.figure_becomes(&up("boiler"), |up| up == 0.0).await;
    symlink(second.gateway_end(), &by_id).expect("a link");
    gateway.figure_becomes(&up("boiler"), |up| up == 1.0).await;
    assert_eq!(settled(&second, "pump", 2).await, 1);
    let opened = gateway.figure("tidegate_serial_opened_total{link=\"boiler\"}").await;
    assert_eq!(opened, 2.0);
}

/// A gateway in this process with the ports of `system`, and where its figures are.
async fn with_ports_of(system: &System, sections: &str) -> (tidegate::gateway::Gateway, String, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let http = format!("127.0.0.1:{}", free_port());
    let log = directory.path().join("log");
    let text = format!(
        "[gateway]\nid = \"gw\"\n[http]\nlisten = \"{http}\"\n[store]\ndirectory = {log:?}\n\
         [[mqtt]]\nbrokers = [\"mqtt://127.0.0.1:1\"]\n{sections}"
    );
    let config = tidegate::config::parse(&text, Path::new("test"), &|_| None).unwrap_or_else(|why| panic!("{why}"));
    let gateway = tidegate::gateway::Gateway::start_with_ports_of(system.root(), config).await;
    (gateway.expect("the gateway starts"), http, directory)
}

async fn figure_becomes(http: &str, name: &str, wanted: f64) {
    eventually(&format!("{name} is {wanted}"), async || gateway::figure(http, name).await == wanted).await;
}

#[tokio::test]
async fn a_usb_adapter_is_found_wherever_it_is_plugged_in() {
    let (mut one, two, other) = (Line::new().await, Line::new().await, Line::new().await);
    let system = System::new();
    system.plug("ttyUSB0", "1-1", BOILER, &one.gateway_end());
    system.plug("ttyUSB1", "1-2", PUMP, &other.gateway_end());
    let sections = section("boiler", "usb = \"1a86:7523\"\nusb_serial = \"A*\"");
    let (_gateway, http, _directory) = with_ports_of(&system, &sections).await;
    figure_becomes(&http, &up("boiler"), 1.0).await;
    assert_eq!(settled(&one, "boiler", 1).await, 0);

    system.unplug("ttyUSB0", "1-1", BOILER);
    one.unplug();
    figure_becomes(&http, &up("boiler"), 0.0).await;
    system.plug("ttyUSB7", "1-4", BOILER, &two.gateway_end());
    figure_becomes(&http, &up("boiler"), 1.0).await;
    assert_eq!(settled(&two, "boiler", 2).await, 1);
}

#[tokio::test]
async fn adapters_that_cannot_be_told_apart_are_not_opened() {
    let (one, two) = (Line::new().await, Line::new().await);
    let system = System::new();
    system.plug("ttyUSB0", "1-1", BOILER, &one.gateway_end());
    system.plug("ttyUSB1", "1-2", PUMP, &two.gateway_end());
    let (_gateway, http, _directory) = with_ports_of(&system, &section("any", "usb = \"1a86:*\"")).await;
    let failures = "tidegate_serial_open_failures_total{link=\"any\"}";
    eventually("it is tried", async || gateway::figure(&http, failures).await >= 2.0).await;
    assert_eq!(gateway::figure(&http, &up("any")).await, 0.0);
    system.unplug("ttyUSB0", "1-1", BOILER);
    figure_becomes(&http, &up("any"), 1.0).await;
    assert_eq!(settled(&two, "pump", 1).await, 0);
}

#[tokio::test]
async fn links_share_out_adapters_of_one_kind() {
    let (one, two) = (Line::new().await, Line::new().await);
    let system = System::new();
    system.plug("ttyUSB0", "1-1", BOILER, &one.gateway_end());
    system.plug("ttyUSB1", "1-2", PUMP, &two.gateway_end());
    let sections =
        section("any", "usb = \"1a86:7523\"") + &section("boiler", "usb = \"1a86:7523\"\nusb_serial = \"A1\"");
    let (_gateway, http, _directory) = with_ports_of(&system, &sections).await;
    for link in ["any", "boiler"] {
        figure_becomes(&http, &up(link), 1.0).await;
    }
    settled(&one, "at-boiler", 1).await;
    settled(&two, "at-any", 1).await;
    for link in ["any", "boiler"] {
        assert_eq!(gateway::figure(&http, &format!("tidegate_frames_valid_total{{link=\"{link}\"}}")).await, 2.0);
    }
}

#[tokio::test]
async fn several_ports_have_figures_of_their_own() {
    let lines = [Line::new().await, Line::new().await, Line::new().await];
    let sections: String =
        (0..3).map(|i| section(&format!("line-{i}"), &format!("path = {:?}", lines[i].gateway_end()))).collect();
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &sections).started().await;
    for (i, line) in lines.iter().enumerate() {
        gateway.figure_becomes(&up(&format!("line-{i}")), |up| up == 1.0).await;
        let mut talk = device_end(line);
        if i == 1 {
            talk.write(b"noise").await;
        }
        talk.say(&hello(&format!("device-{i}"), 1, 1)).await;
        talk.welcome().await;
        for seq in 1..=i as u64 {
            talk.readings(1, seq, 1).await;
            talk.acked(seq).await;
        }
    }
    for i in 0..3 {
        let figure = async |name: &str| gateway.figure(&format!("tidegate_{name}{{link=\"line-{i}\"}}")).await;
        assert_eq!(figure("frames_valid_total").await, 1.0 + f64::from(i));
        assert_eq!(figure("link_skipped_bytes_total").await, if i == 1 { 5.0 } else { 0.0 });
        assert_eq!(figure("serial_opened_total").await, 1.0);
        let (read, written) = (figure("serial_read_bytes_total").await, figure("serial_written_bytes_total").await);
        assert!(read > 40.0 && written > 20.0, "{read} read, {written} written");
    }
    let read = async |i: u32| gateway.figure(&format!("tidegate_serial_read_bytes_total{{link=\"line-{i}\"}}")).await;
    assert!(read(0).await < read(1).await && read(1).await < read(2).await);
}

#[tokio::test]
async fn what_keeps_a_port_shut_is_told_with_what_to_do() {
    let line = Line::new().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let other_name = directory.path().join("other-name");
    symlink(line.gateway_end(), &other_name).expect("a link");
    let rs485 = Line::new().await;
    let sections = [
        section("first", &format!("path = {:?}", line.gateway_end())),
        section("second", &format!("path = {other_name:?}")),
        // A pseudo-terminal has no transceiver to switch.
        section("bus", &format!("path = {:?}\nrs485 = true", rs485.gateway_end())),
        section("absent", "path = \"/dev/serial/by-id/usb-none\""),
        section("usb", "usb = \"dead:beef\""),
    ];
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &sections.concat()).started().await;
    eventually("whoever came second is told who has the port", async || {
        let log = gateway.log();
        let told = |who: &str, has: &str| {
            let words = format!("which `{has}` has; give one of them another port");
            log.lines().any(|line| line.contains(&format!("link={who}")) && line.contains(&words))
        };
        told("second", "first") != told("first", "second")
    })
    .await;
    for (link, words) in [
        ("bus", "its driver cannot switch an RS-485 transceiver"),
        ("bus", "remove rs485 if the adapter switches by itself"),
        ("absent", "plug the device in, or correct `path`"),
        ("usb", "no port has a USB adapter dead:beef"),
    ] {
        let told = |line: &str| line.contains(&format!("link={link}")) && line.contains(words);
        eventually(&format!("{link}: {words}"), async || gateway.log().lines().any(told)).await;
    }
}

#[test]
fn ports_are_listed_with_all_that_they_can_be_named_by() {
    let system = System::new();
    system.add_others();
    system.plug("ttyUSB10", "1-2", NAMELESS, Path::new("/dev/null"));
    system.plug("ttyUSB2", "1-1", BOILER, Path::new("/dev/null"));
    let config = system.root().join("tidegate.toml");
    let sections = section("boiler", "usb = \"1a86:*\"") + &section("gone", "path = \"/dev/serial/by-id/usb-gone\"");
    std::fs::write(&config, format!("{sections}[[mqtt]]\nbrokers = [\"mqtt://localhost\"]\n")).expect("a file");
    let arguments = ["list", "--sysroot", text(system.root()), "-c", text(&config)];

    let shown = run(&arguments);
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    let expected = format!(
        "{0}/dev/ttyAMA0\n  driver    unknown\n  link      none\n  access    No such file or directory (os error 2); \
         the device's file is missing: is udev running?\n\
         {0}/dev/ttyUSB2\n  by-id     {0}/dev/serial/by-id/usb-1a86_7523_A1-if00\n  \
         by-path   {0}/dev/serial/by-path/platform-usb-0:1-1-port0\n  usb       1a86:7523, serial \"A1\", interface 0\n  \
         adapter   ACME, USBSerial\n  driver    ch341-uart\n  link      boiler\n  access    yes\n",
        text(system.root())
    );
    assert!(shown.starts_with(&expected), "{shown}\nis not\n{expected}");
    assert!(shown.contains("usb       0403:6001, no serial number, interface 0\n"), "{shown}");
    assert!(
        shown.ends_with("links whose port was not found\n  gone      path /dev/serial/by-id/usb-gone\n"),
        "{shown}"
    );

    let json = run(&[&arguments[..], &["--json"]].concat());
    let json: Json = serde_json::from_slice(&json.stdout).expect("JSON");
    let [ama, boiler, nameless] = &json["ports"].as_array().expect("a list")[..] else { panic!("{json}") };
    assert_eq!((&ama["usb"], &ama["accessible"]), (&Json::Null, &false.into()));
    assert_eq!((&boiler["usb"]["id"], &boiler["links"][0]), (&"1a86:7523".into(), &"boiler".into()));
    assert_eq!((&nameless["usb"]["serial"], &nameless["links"]), (&Json::Null, &Json::Array(Vec::new())));
    assert_eq!(json["links_without_port"][0]["link"], "gone");
}

/// Carries bytes between whoever connects and the gateway, and keeps what each way had:
/// the device's bytes first.
async fn tapped(gateway: String) -> (String, Arc<Mutex<[Vec<u8>; 2]>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("tcp://{}", listener.local_addr().expect("an address"));
    let taken = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let tap = taken.clone();
    tokio::spawn(async move {
        let (mut device, _) = listener.accept().await.expect("a device");
        let mut gateway = TcpStream::connect(gateway).await.expect("the gateway");
        let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
        loop {
            let (way, bytes, to) = tokio::select! {
                read = device.read(&mut up) => (0, &up[..read.expect("the device's bytes")], &mut gateway),
                read = gateway.read(&mut down) => (1, &down[..read.expect("the gateway's bytes")], &mut device),
            };
            if bytes.is_empty() {
                return;
            }
            tap.lock().await[way].extend_from_slice(bytes);
            to.write_all(bytes).await.expect("a peer that reads");
        }
    });
    (address, taken)
}

#[tokio::test]
async fn what_simulated_devices_send_and_are_answered_is_decoded_from_a_capture() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let (address, taken) = tapped(gateway.tcp_address()).await;
    let arguments = ["simulate", &address, "--devices", "1", "--readings", "40", "--rate", "0", "--encoding", "json"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments);
    let mut simulate = Process::start(command, &gateway.directory().join("simulate.log"));
    assert!(simulate.ended().await.success());
    let capture = gateway.directory().join("capture");
    let taken = taken.lock().await.concat();
    std::fs::write(&capture, &taken).expect("a file");

    let heard = run(&["sniff", text(&capture), "--json"]);
    assert!(heard.status.success(), "{heard:?}");
    let heard = String::from_utf8(heard.stdout).expect("UTF-8");
    let mut lines: Vec<Json> = heard.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summary = lines.pop().expect("a summary");
    let of = |name: &str| lines.iter().filter(|line| line["message"] == name).collect::<Vec<_>>();
    assert_eq!((of("Hello").len(), of("Welcome").len()), (1, 1), "{heard}");
    assert_eq!(of("Hello")[0]["fields"]["device"], "sim-1");
    let samples =
        of("Readings").iter().map(|line| line["fields"]["samples"].as_array().map_or(0, Vec::len)).sum::<usize>();
    assert_eq!(samples, 40, "{heard}");
    assert_eq!(of("Ack").last().map(|line| &line["fields"]["seq"]), Some(&40.into()));
    assert!(of("Ack").iter().all(|line| line["from"] == "gateway" && line["encoding"] == "json"));
    assert_eq!(summary["summary"]["problem_bytes"], Json::Object(serde_json::Map::new()));
    assert_eq!(summary["summary"]["bytes"], taken.len());
}

#[test]
fn captured_bytes_are_decoded_from_standard_input_with_what_is_no_frame() {
    let mut frame = Vec::new();
    let readings = Readings { seq: 1, sub: None, samples: vec![sample(1, 1)] };
    encode_device(&DeviceMessage::Readings(readings), POSTCARD, &mut frame);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let mut sniff = command
        .args(["link", "sniff", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let input = [&b"\xff\x00"[..], &frame, &frame[..12]].concat();
    sniff.stdin.take().expect("a pipe").write_all(&input).expect("it reads");
    let output = sniff.wait_with_output().expect("it ends");
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "@0 -       no frame begins here: ff 00");
    assert!(lines[1].starts_with("@2 device  v2 postcard Readings {\"seq\":1,\"sub\":null,\"samples\":"), "{shown}");
    assert!(lines[2].contains("the frame was not complete in time: 12 34 56 7f 02 03"), "{shown}");
    assert!(
        lines.last().expect("a summary").contains("1 frames: 1 Readings; bytes that are no message: bad_magic 2"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_line_is_listened_to_until_ctrl_c() {
    let line = Line::new().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (out, log) = (directory.path().join("out"), directory.path().join("log"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["link", "sniff", "--baud", "115200"]).arg(line.gateway_end());
    let mut sniff = Process::start_apart(command, &out, &log);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually("it listens", async || read(&log).contains("miss the bytes")).await;
    let mut talk = device_end(&line);
    talk.say(&hello("pump", 7, 1)).await;
    eventually("the message is shown", async || read(&out).contains("Hello {\"device\":\"pump\"")).await;
    talk.write(b"garbage").await;
    eventually("so is noise after a pause", async || read(&out).contains("no frame begins here: 67 61 72")).await;
    sniff.signal("INT");
    assert!(sniff.ended().await.success());
    assert!(read(&out).ends_with("1 frames: 1 Hello; bytes that are no message: bad_magic 7\n"), "{}", read(&out));
}
