//! What the gateway logs: each line holds the facts, and no line holds anybody up.

use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::journal::{Entry, FullPipe, Journal};
use crate::support::pty::Line;
use tokio::net::TcpStream;

const DROPPED: &str = "tidegate_log_lines_dropped_total";

async fn listening(gateway: &Gateway) {
    eventually("the gateway listens", async || TcpStream::connect(gateway.tcp_address()).await.is_ok()).await;
}

/// Devices are welcomed and acknowledged, and health is told.
async fn serves(gateway: &Gateway, device: &str) {
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), device, 1).await;
    talk.readings(1, 1, 10).await;
    talk.acked(10).await;
    assert_eq!(gateway.get("/health/ready").await.map(|(code, _)| code), Some(200));
}

/// Has connections end without a word, each with its lines, until some found no room.
async fn overflow(gateway: &Gateway) {
    eventually("lines are dropped", async || {
        for _ in 0..200 {
            TcpStream::connect(gateway.tcp_address()).await.expect("a connection");
        }
        gateway.figure(DROPPED).await > 0.0
    })
    .await;
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_up_no_device_no_health_and_no_end() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[gateway]", "log_level = \"debug\"");
    let mut pipe = FullPipe::new(&gateway.directory());
    gateway.launch_under(&pipe.wrapper(), &[]);
    listening(&gateway).await;
    serves(&gateway, "pump").await;

    overflow(&gateway).await;
    serves(&gateway, "valve").await;
    assert!(gateway.terminate().await.success());
    assert_eq!(pipe.read(), "", "nothing was written, for want of room");
}

#[tokio::test]
async fn lines_that_found_no_room_are_counted_and_that_is_said_once_there_is_room() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[gateway]", "log_level = \"debug\"");
    let mut pipe = FullPipe::new(&gateway.directory());
    gateway.launch_under(&pipe.wrapper(), &[]);
    listening(&gateway).await;
    overflow(&gateway).await;

    let mut log = String::new();
    eventually("it is said", async || {
        log += &pipe.read();
        log.contains("lines of the log were dropped")
    })
    .await;
    assert!(log.contains("starting gateway=gw"), "what came first is there\n{log}");
    let said = log.lines().find(|line| line.contains("lines of the log were dropped")).expect("the line");
    let count = said.split(" lines of the log").next().and_then(|text| text.rsplit(' ').next());
    let count: f64 = count.and_then(|count| count.parse().ok()).expect("a number of lines");
    assert!(count > 0.0 && gateway.figure(DROPPED).await >= count, "{said}");
    assert!(said.contains(" WARN ") && said.contains("since="), "{said}");

    // The reader keeps up from here on, and so the last line is there.
    gateway.process().signal("TERM");
    eventually("it ends", async || {
        log += &pipe.read();
        !gateway.process().is_running()
    })
    .await;
    log += &pipe.read();
    assert!(log.ends_with("tidegate::gateway: stopped\n"), "{log}");
}

fn say<'a>(entries: &'a [Entry], message: &str) -> &'a Entry {
    let found = entries.iter().find(|entry| entry["MESSAGE"].starts_with(message));
    found.unwrap_or_else(|| panic!("no {message:?} in {entries:#?}"))
}

#[tokio::test]
async fn the_line_in_the_journal_holds_the_facts_and_so_do_its_fields() {
    let Some(journal) = Journal::new() else { return };
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.launch_under(&journal.wrapper(), &[]);
    listening(&gateway).await;
    let _pump = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
    let mut entries = Vec::new();
    eventually("both are told", async || {
        entries.extend(std::iter::from_fn(|| journal.next()));
        let told = |message: &str| entries.iter().any(|entry: &Entry| entry["MESSAGE"].starts_with(message));
        told("device connected") && told("not connected")
    })
    .await;

    let connected = say(&entries, "device connected");
    let from = connected["F_FROM"].clone();
    assert!(from.starts_with("127.0.0.1:"), "{connected:?}");
    for fact in ["link=tcp", "device=pump", &format!("from={from}"), "session=7"] {
        assert!(connected["MESSAGE"].split(' ').any(|word| word == fact), "no {fact} in {connected:?}");
    }
    let away = say(&entries, "not connected; readings are kept");
    assert!(away["MESSAGE"].contains(" sink=mqtt why=\""), "{away:?}");
    for (entry, field, value) in [
        (connected, "PRIORITY", "5"),
        (connected, "F_LINK", "tcp"),
        (connected, "F_DEVICE", "pump"),
        (connected, "F_SESSION", "7"),
        (connected, "TARGET", "tidegate::link::session::driver"),
        (connected, "SYSLOG_IDENTIFIER", "tidegate"),
        (away, "PRIORITY", "4"),
        (away, "F_SINK", "mqtt"),
    ] {
        assert_eq!(entry.get(field).map(String::as_str), Some(value), "{field} of {entry:?}");
    }
    assert!(away["MESSAGE"].contains(&away["F_WHY"]), "{away:?}");
}

#[tokio::test]
async fn a_journal_that_is_stopped_holds_up_no_device_no_health_and_no_end() {
    let Some(journal) = Journal::new() else { return };
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[gateway]", "log_level = \"debug\"");
    gateway.launch_under(&journal.wrapper(), &[]);
    listening(&gateway).await;
    overflow(&gateway).await;
    serves(&gateway, "pump").await;
    assert!(gateway.terminate().await.success());
    say(&std::iter::from_fn(|| journal.next()).collect::<Vec<_>>(), "starting gateway=gw");
}

/// How many lines begin so behind their target, and those that sum others up.
fn lines_and_sums<'a>(log: &'a str, message: &str) -> (usize, Vec<&'a str>) {
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(&format!(": {message}"))).collect();
    let sums: Vec<&str> = lines.iter().copied().filter(|line| line.contains(" times more in the last ")).collect();
    (lines.len() - sums.len(), sums)
}

#[tokio::test]
async fn a_device_that_comes_and_goes_is_summed_up_and_hides_no_other() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    for session in 1..=40 {
        Talk::welcomed(&gateway.tcp_address(), "pump", session).await;
    }
    Talk::welcomed(&gateway.tcp_address(), "valve", 1).await;
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    assert!(gateway.figure("tidegate_log_lines_summarised_total").await > 50.0);
    gateway.terminate().await;
    let log = gateway.log();
    for message in ["device connected", "device disconnected"] {
        let (lines, sums) = lines_and_sums(&log, message);
        assert!((2..=20).contains(&lines), "{lines} lines\n{log}");
        assert!((1..=3).contains(&sums.len()), "one for each reason\n{log}");
        assert!(sums[0].contains("device=pump"), "the last one's facts\n{log}");
        assert!(log.lines().any(|line| line.contains(message) && line.contains("device=valve")), "{log}");
    }
    assert!(
        log.contains("session=1 ") && lines_and_sums(&log, "device connected").1[0].contains("session=40 "),
        "{log}"
    );
}

#[tokio::test]
async fn names_without_end_do_not_fill_the_log() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    for number in 0..300 {
        Talk::welcomed(&gateway.tcp_address(), &format!("device-{number}"), 1).await;
    }
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    gateway.terminate().await;
    let log = gateway.log();
    let (lines, sums) = lines_and_sums(&log, "device connected");
    assert!((20..=50).contains(&lines), "{lines} lines\n{log}");
    assert!(sums.len() == 1 && sums[0].contains("device=device-299"), "{log}");
}

#[tokio::test]
async fn a_serial_port_that_flaps_is_summed_up() {
    let mut line = Line::new().await;
    let path = line.gateway_end();
    let serial = format!("[[serial]]\npath = {path:?}\nreopen_interval = \"100ms\"\n");
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &serial).started().await;
    for times in 1..=12 {
        gateway
            .figure_becomes("tidegate_serial_opened_total{link=\"serial\"}", |opened| opened >= f64::from(times))
            .await;
        line.unplug();
        gateway.figure_becomes("tidegate_link_up{link=\"serial\"}", |up| up == 0.0).await;
        line.plug().await;
    }
    gateway.terminate().await;
    let log = gateway.log();
    let (lines, sums) = lines_and_sums(&log, "serial port opened");
    assert!((3..=6).contains(&lines) && sums.len() == 1, "{log}");
    assert!(sums[0].contains(&format!("link=serial path={}", path.display())), "{log}");
}

#[tokio::test]
async fn a_wrong_variable_is_told_and_the_configuration_counts() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.launch_with(&[("RUST_LOG", "warning")]);
    gateway
        .says("RUST_LOG is not used, but [gateway] log_level is why=\"unknown level `warning`; did you mean `warn`?\"")
        .await;
    gateway.says("listening for devices").await;
}

#[tokio::test]
async fn a_level_that_keeps_all_back_still_tells_why_the_gateway_cannot_run() {
    let first = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let directory = first.directory().join("log");
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &format!("[store]\ndirectory = {directory:?}\n"));
    gateway.keys("[gateway]", "log_level = \"off\"");
    gateway.launch();
    assert_eq!(gateway.process().ended().await.code(), Some(1));
    let log = gateway.log();
    assert!(
        log.lines().count() == 1 && log.contains("cannot run: ") && log.contains(&directory.display().to_string()),
        "{log}"
    );
}
