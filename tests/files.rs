//! The file sink of the real program: nothing is lost over SIGKILLs, a missing directory is waited
//! for, and files are what the manifest says.

use crate::support::device::Device;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use ring::digest::{SHA256, digest};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// What of a gateway's configuration makes it write to `directory`.
fn file(directory: &Path, keys: &str) -> String {
    format!("[[file]]\ndirectory = {directory:?}\n{keys}\n")
}

/// The lines of a manifest.
fn manifest(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("manifest.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of the manifest")).collect()
}

/// How often each reading of the device stands in complete files, which are as the manifest says.
fn readings(directory: &Path) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for entry in manifest(directory) {
        let text = std::fs::read(directory.join(entry["file"].as_str().expect("a name"))).expect("it is there");
        let sum: String = digest(&SHA256, &text).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((entry["sha256"].as_str(), entry["bytes"].as_u64()), (Some(&*sum), Some(text.len() as u64)));
        for line in std::str::from_utf8(&text).expect("text").lines() {
            let reading: Value = serde_json::from_str(line).expect("a reading");
            assert_eq!(reading["epoch"], entry["epoch"]);
            let seq = reading["seq"].as_u64();
            assert!(entry["first"].as_u64() <= seq && seq <= entry["last"].as_u64(), "{entry}: {line}");
            *counts.entry(reading["origin"][1].as_u64().expect("a number")).or_default() += 1;
        }
    }
    counts
}

fn written(directory: &Path) -> bool {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.map(|file| file.metadata().map_or(0, |found| found.len())).sum::<u64>() > 20_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_sigkills_and_complete_files_are_as_the_manifest_says() {
    const TOTAL: u64 = 3000;
    let to = tempfile::tempdir().expect("a temporary directory");
    let keys = "rotate_size = \"64KiB\"\nflush_within = \"20ms\"";
    let mut gateway = Gateway::new(&file(to.path(), keys)).started().await;
    let device = Arc::new(Device::new(1, TOTAL));
    let sending = {
        let (device, at) = (device.clone(), gateway.tcp_address());
        tokio::spawn(async move { device.run_tcp(&at).await })
    };
    for _ in 0..3 {
        eventually("something is written", async || written(to.path())).await;
        gateway.kill();
        gateway.start().await;
    }
    sending.await.expect("all are acknowledged");
    gateway.figure_becomes("tidegate_sink_pending{sink=\"file\"}", |pending| pending == 0.0).await;
    assert!(gateway.terminate().await.success(), "{}", gateway.log());

    let counts = readings(to.path());
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), (1..=TOTAL).collect::<Vec<_>>());
    let left: Vec<_> =
        std::fs::read_dir(to.path()).expect("a directory").flatten().map(|file| file.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    assert!(manifest(to.path()).len() > 3, "{:?}", manifest(to.path()));

    // A clean stop leaves nothing to be written twice.
    let before = manifest(to.path());
    gateway.start().await;
    gateway.figure_becomes("tidegate_sink_pending{sink=\"file\"}", |pending| pending == 0.0).await;
    assert!(gateway.terminate().await.success(), "{}", gateway.log());
    assert_eq!(manifest(to.path()), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_not_there_is_said_and_waited_for() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let to = at.path().join("stick");
    let gateway = Gateway::new(&file(&to, "format = \"csv\"\nflush_within = \"0s\"")).started().await;
    let device = Device::new(1, 10);
    device.run_tcp(&gateway.tcp_address()).await;
    gateway.says(&format!("cannot open {}", to.display())).await;
    let (_, ready) = gateway.get("/health/ready").await.expect("an answer");
    assert!(ready.contains("\"file\"") && ready.contains("cannot open"), "{ready}");

    std::fs::create_dir(&to).expect("a directory");
    gateway.figure_becomes("tidegate_sink_pending{sink=\"file\"}", |pending| pending == 0.0).await;
    let name = std::fs::read_dir(&to)
        .expect("a directory")
        .flatten()
        .find(|file| file.file_name().to_string_lossy().ends_with(".csv.part"));
    let mut rows = csv::Reader::from_path(name.expect("a file").path()).expect("CSV");
    assert_eq!(rows.headers().expect("a header").get(6), Some("channel"));
    let rows: Vec<_> = rows.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 30, "three values a reading");
    assert_eq!((rows[29].get(6), rows[29].get(8)), (Some("name"), Some("reading 10")));
}

#[test]
fn check_says_whether_files_can_be_written() {
    let at = tempfile::tempdir().expect("a temporary directory");
    let (configuration, to) = (at.path().join("tidegate.toml"), at.path().join("stick"));
    let text = format!("[gateway]\nid = \"gw\"\n[store]\ndirectory = {:?}\n[[tcp]]\n", at.path().join("log"));
    std::fs::write(&configuration, text + &file(&to, "")).expect("a file");
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.arg("check").args(arguments).arg("-c").arg(&configuration).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = check(&[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("file[0].directory: cannot open") && said.contains("plug in what it is on"), "{said}");
    std::fs::create_dir(&to).expect("a directory");
    let (code, said) = check(&["--connect"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("files can be written") && std::fs::read_dir(&to).expect("a directory").count() == 0,
        "{said}"
    );
}
