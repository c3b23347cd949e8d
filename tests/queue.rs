//! `tidegate queue`: what an operator does with the log, through the real binary.

use crate::support::broker::Broker;
use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use serde_json::Value as Json;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn queue(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("queue").args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output:?}"))
}

/// A gateway whose broker is away, with 300 readings of a device in its log.
async fn with_readings() -> (Gateway, Broker) {
    let mut broker = Broker::start().await.behind_a_proxy().await;
    broker.stop().await;
    let gateway = Gateway::with_broker(&broker.gateway_url(), "").started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    for first in (1..=300).step_by(50) {
        talk.readings(1, first, 50).await;
        talk.acked(first + 49).await;
    }
    (gateway, broker)
}

fn lines(output: &Output) -> Vec<Json> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

/// A copy of the log as it lies there.
fn copy(gateway: &Gateway) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["log.db-wal", "log.db"] {
        let from = gateway.directory().join("log").join(name);
        if from.exists() {
            std::fs::copy(from, directory.path().join(name)).expect("a copy");
        }
    }
    let database = directory.path().join("log.db");
    (directory, database)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test]
async fn stats_and_exports_show_what_waits_while_the_gateway_runs() {
    let (gateway, _broker) = with_readings().await;
    let config = gateway.config_file();
    let stats = json(&queue(&["stats", "-c", path(&config), "--json"]));
    assert_eq!((&stats["sinks"][0]["sink"], &stats["sinks"][0]["pending"]), (&"mqtt".into(), &300.into()));
    assert!(stats["sinks"][0]["bytes"].as_u64().is_some_and(|bytes| bytes > 100), "{stats}");
    let table = text(&queue(&["stats", "-c", path(&config)]).stdout);
    assert!(table.contains("300 readings") && table.contains("mqtt"), "{table}");

    let all = queue(&["export", "-c", path(&config)]);
    assert_eq!((all.status.code(), lines(&all).len()), (Some(0), 300));
    let some = lines(&queue(&["export", "-c", path(&config), "--from", "100", "--to", "149"]));
    assert_eq!((some.len(), &some[0]["seq"], &some[0]["origin"]), (50, &100.into(), &serde_json::json!([1, 100])));
    assert_eq!(some[0]["epoch"], stats["epoch"]);
    let time = some[10]["time"].as_str().expect("a time");
    let later = lines(&queue(&["export", "-c", path(&config), "--from", time]));
    assert_eq!(later[0]["seq"], 110);

    let file = gateway.directory().join("out.csv");
    let output = queue(&["export", "-c", path(&config), "--format", "csv", "-o", path(&file), "--to", "2"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    let csv = std::fs::read_to_string(file).expect("the file");
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!(rows[0], "epoch,seq,device,session,device_seq,time,channel,type,value,quality,boot,received");
    let values = some[0]["values"].as_object().expect("values").len();
    assert_eq!(rows.len(), 1 + 2 * values);
    assert!(rows[1].contains(",1,pump,1,1,") && rows[1].ends_with(",,,"), "{}", rows[1]);

    let verdict = queue(&["verify", "-c", path(&config), "--json"]);
    assert_eq!((verdict.status.code(), &json(&verdict)["fine"]), (Some(0), &true.into()));
}

#[tokio::test]
async fn a_copy_is_read_with_its_write_ahead_log_and_a_damaged_one_as_far_as_it_is_sound() {
    let (mut gateway, _broker) = with_readings().await;
    let (directory, database) = copy(&gateway);
    let before: Vec<_> = std::fs::read_dir(directory.path()).expect("a directory").map(|e| e.unwrap().path()).collect();
    assert_eq!(lines(&queue(&["export", "--file", path(&database)])).len(), 300);
    let stats = json(&queue(&["stats", "--file", path(&database), "--json"]));
    assert_eq!((&stats["readings"], &stats["sinks"][0]["pending"]), (&300.into(), &300.into()));
    assert_eq!(queue(&["verify", "--file", path(&database)]).status.code(), Some(0));
    let after: Vec<_> = std::fs::read_dir(directory.path()).expect("a directory").map(|e| e.unwrap().path()).collect();
    assert_eq!(after.len(), before.len(), "nothing was written beside it");

    // A bit of the write-ahead log: SQLite would see nothing from there on.
    let wal = directory.path().join("log.db-wal");
    let mut bytes = std::fs::read(&wal).expect("a file");
    bytes[32 + 16] ^= 1; // the checksum of its first frame
    std::fs::write(wal, bytes).expect("a write");
    let export = queue(&["export", "--file", path(&database)]);
    assert_eq!((lines(&export).len(), export.status.code()), (300, Some(1)), "{}", text(&export.stderr));
    assert!(text(&export.stderr).contains("write-ahead log; readings may be missing"), "{}", text(&export.stderr));

    // One bit of a segment's block.
    assert!(gateway.terminate().await.success());
    let (directory, database) = copy(&gateway);
    for name in ["log.db"] {
        let file = directory.path().join(name);
        let bytes = std::fs::read(&file).expect("a file");
        let magic = [0x28, 0xB5, 0x2F, 0xFD]; // with which a compressed block begins
        let first = memchr::memmem::find(&bytes, &magic).into_iter();
        for at in first {
            let block = bytes[at..at + 40].to_vec();
            for image in memchr::memmem::find_iter(&bytes, &block) {
                let open = std::fs::File::options().write(true).open(&file).expect("a file");
                open.write_all_at(&[bytes[image + 20] ^ 1], image as u64 + 20).expect("a write");
            }
        }
    }
    let export = queue(&["export", "--file", path(&database)]);
    assert_eq!((export.status.code(), lines(&export).len()), (Some(1), 250));
    assert!(text(&export.stderr).contains("its checksum does not hold; it is left out"), "{}", text(&export.stderr));
    let verdict = queue(&["verify", "--file", path(&database)]);
    assert_eq!(verdict.status.code(), Some(1));
    assert!(text(&verdict.stdout).contains("checksum does not hold"), "{}", text(&verdict.stdout));
}

#[tokio::test]
async fn a_reader_that_has_had_enough_is_no_error() {
    let (gateway, _broker) = with_readings().await;
    let config = gateway.config_file();
    for format in ["jsonl", "csv"] {
        let mut export = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["queue", "export", "-c", path(&config), "--format", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        drop(export.stdout.take());
        let output = export.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{format}");
    }
}

#[tokio::test]
async fn a_purge_needs_the_gateway_stopped_and_a_yes_and_is_reported_as_a_gap() {
    let (mut gateway, mut broker) = with_readings().await;
    let config = gateway.config_file();
    let refused = queue(&["purge", "-c", path(&config), "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("in use by another process"), "{}", text(&refused.stderr));
    assert!(gateway.terminate().await.success());

    let asked = queue(&["purge", "-c", path(&config), "--before", "101"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stdout).contains("would remove 100 readings, seqs 1 to 100"), "{}", text(&asked.stdout));
    let unknown = queue(&["purge", "-c", path(&config), "--sink", "nobody", "--yes"]);
    assert!(text(&unknown.stderr).contains("no sink \"nobody\" in the log; it has mqtt"), "{}", text(&unknown.stderr));
    assert_eq!(lines(&queue(&["export", "-c", path(&config)])).len(), 300, "nothing was changed");

    let done = queue(&["purge", "-c", path(&config), "--before", "101", "--yes", "--json"]);
    assert_eq!((done.status.code(), &json(&done)["undelivered"]["mqtt"]), (Some(0), &100.into()));
    assert_eq!(lines(&queue(&["export", "-c", path(&config)])).len(), 200);

    let subscriber = Subscriber::start(&options(broker.port())).await;
    broker.resume().await;
    gateway.start().await;
    subscriber.heard(200).await;
    let origins = subscriber.origins();
    assert!(origins.keys().all(|(_, seq)| *seq > 100), "{origins:?}");
    let database = gateway.directory().join("log/log.db");
    assert!(!gateway.directory().join("log/quarantine").exists(), "{}", database.display());
}

#[tokio::test]
async fn a_purge_says_what_leaves_the_log_and_what_one_sink_alone_does_not_get() {
    let (mut gateway, _broker) = with_readings().await;
    let config = gateway.config_file();
    assert!(gateway.terminate().await.success());
    let kept = || lines(&queue(&["export", "-c", path(&config)])).len() as u64;
    let asked = queue(&["purge", "-c", path(&config), "--sink", "mqtt", "--before", "51"]);
    let said = "would pass over 50 readings for mqtt, which does not get them, up to seq 50; no reading leaves the log";
    assert!(text(&asked.stdout).contains(said), "{}", text(&asked.stdout));
    let done = json(&queue(&["purge", "-c", path(&config), "--sink", "mqtt", "--before", "51", "--yes", "--json"]));
    assert_eq!((&done["removed"], &done["undelivered"]["mqtt"], kept()), (&0.into(), &50.into(), 300));
    // In the middle of a segment.
    let done = json(&queue(&["purge", "-c", path(&config), "--before", "76", "--yes", "--json"]));
    let removed = done["removed"].as_u64().expect("a number");
    assert!(removed < 75 && done["readings"] == 75 && kept() == 300 - removed, "{done}");
    let asked = queue(&["purge", "-c", path(&config), "--before", "101"]);
    assert!(
        text(&asked.stdout).contains(&format!("would remove {} readings", 100 - removed)),
        "{}",
        text(&asked.stdout)
    );
}

#[tokio::test]
async fn a_sink_that_was_renamed_is_told_of_loudly_and_gets_its_backlog_by_command() {
    let (mut gateway, mut broker) = with_readings().await;
    assert!(gateway.terminate().await.success());
    gateway.keys("[[mqtt]]", "name = \"cloud\"\nstart = \"now\"");
    gateway.start().await;
    let config = gateway.config_file();
    let note = "the sink mqtt is not configured any more, and 300 readings are kept for it as history";
    gateway.says(note).await;
    let (_, ready) = gateway.get("/health/ready").await.expect("an answer");
    assert!(ready.contains(note) && ready.contains("tidegate queue rename-sink mqtt NEW"), "{ready}");
    let stats = json(&queue(&["stats", "-c", path(&config), "--json"]));
    let sinks: Vec<_> = stats["sinks"].as_array().expect("sinks").iter().collect();
    let shown = |sink: &Json| (sink["sink"].clone(), sink["configured"].clone(), sink["pending"].clone());
    assert_eq!(shown(sinks[0]), ("cloud".into(), true.into(), 0.into()));
    assert_eq!(shown(sinks[1]), ("mqtt".into(), false.into(), 300.into()));
    let running = queue(&["rename-sink", "mqtt", "cloud", "-c", path(&config)]);
    assert_eq!(running.status.code(), Some(1));
    assert!(text(&running.stderr).contains("stop the gateway first"), "{}", text(&running.stderr));
    assert!(gateway.terminate().await.success());

    let asked = queue(&["forget-sink", "mqtt", "-c", path(&config)]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stdout).contains("would forget mqtt, for which 300 readings were kept"), "{asked:?}");
    let renamed = queue(&["rename-sink", "mqtt", "cloud", "-c", path(&config), "--json"]);
    assert_eq!((renamed.status.code(), &json(&renamed)["readings"]), (Some(0), &300.into()), "{renamed:?}");
    let subscriber = Subscriber::start(&options(broker.port())).await;
    broker.resume().await;
    gateway.start().await;
    subscriber.heard(300).await;
}

#[test]
fn wrong_bounds_and_configurations_exit_with_2_and_missing_logs_with_1() {
    assert_eq!(queue(&["export", "--from", "yesterday"]).status.code(), Some(2));
    assert_eq!(queue(&["stats", "-c", "/no/such/file.toml"]).status.code(), Some(2));
    let missing = queue(&["verify", "--file", "/no/such/log.db"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/no/such/log.db"), "{}", text(&missing.stderr));
}

#[tokio::test]
async fn a_copy_without_its_write_ahead_log_is_not_called_fine() {
    let (mut gateway, _broker) = with_readings().await;
    // Part of the log is in the database, and more in its write-ahead log.
    assert!(gateway.terminate().await.success());
    gateway.start().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 2).await;
    talk.readings(1, 1, 50).await;
    talk.acked(50).await;
    let (directory, database) = copy(&gateway);
    std::fs::remove_file(directory.path().join("log.db-wal")).expect("it was copied");
    let by_file = queue(&["verify", "--file", path(&database)]);
    let config = directory.path().join("tidegate.toml");
    let text_of_config = std::fs::read_to_string(gateway.config_file()).expect("a file");
    let log = gateway.directory().join("log");
    let moved = text_of_config.replace(path(&log), path(directory.path()));
    assert_ne!(moved, text_of_config);
    std::fs::write(&config, moved).expect("a file");
    let by_directory: Vec<Output> = (0..2).map(|_| queue(&["verify", "-c", path(&config)])).collect();
    for output in by_directory.iter().chain([&by_file]) {
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("its write-ahead log is missing") && said.contains("copy log.db-wal along"), "{said}");
    }
    let export = queue(&["export", "-c", path(&config)]);
    assert_eq!(export.status.code(), Some(1));
    assert!(text(&export.stderr).contains("readings may be missing"), "{}", text(&export.stderr));
    // While the gateway runs, and once it has ended, its own log is fine.
    let own = gateway.config_file();
    assert_eq!(queue(&["verify", "-c", path(&own)]).status.code(), Some(0));
    assert!(gateway.terminate().await.success());
    assert_eq!(queue(&["verify", "-c", path(&own)]).status.code(), Some(0));
}

#[test]
fn what_is_no_log_or_may_not_be_read_is_named_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let said = |output: &Output| (output.status.code(), text(&output.stderr));
    for verb in ["export", "verify", "stats"] {
        let (code, said) = said(&queue(&[verb, "--file", "/etc/passwd"]));
        assert!(code == Some(1) && said.contains("/etc/passwd is no tidegate log"), "{verb}: {said}");
    }
    let (code, missing) = said(&queue(&["export", "--file", path(&directory.path().join("none.db"))]));
    assert!(code == Some(1) && missing.contains("there is no file"), "{missing}");
    let (code, of_directory) = said(&queue(&["export", "--file", path(directory.path())]));
    assert!(code == Some(1) && of_directory.contains("is a directory; name the log.db in it"), "{of_directory}");

    let log = directory.path().join("log");
    std::fs::create_dir(&log).expect("a directory");
    std::fs::write(log.join("log.db"), "").expect("a file");
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let config = directory.path().join("tidegate.toml");
    let text_of_config = format!("[[tcp]]\n[[mqtt]]\nbrokers = ['mqtt://a']\n[store]\ndirectory = {log:?}\n");
    std::fs::write(&config, text_of_config).expect("a file");
    // Only root can be somebody else.
    let mut other = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    other.args(["queue", "stats", "-c"]).arg(&config).uid(65_534).gid(65_534);
    let Ok(output) = other.output() else { return };
    let (code, forbidden) = said(&output);
    assert!(code == Some(1) && forbidden.contains("this user may not use"), "{forbidden}");
    assert!(forbidden.contains("with sudo"), "{forbidden}");
}
