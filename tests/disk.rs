//! A disk that fills up under the gateway, and is emptied again.

use crate::support::broker::Broker;
use crate::support::device::Device;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::mount::SmallDisk;
use crate::support::subscriber::{Subscriber, options};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOTAL: u64 = 3000;
const FULL: &str = "tidegate_store_state{state=\"full\"}";
const NORMAL: &str = "tidegate_store_state{state=\"normal\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_holds_devices_back_and_loses_nothing() {
    // Without the right to mount, a limit on the size of files stands in for the disk.
    let disk = SmallDisk::mount(6);
    let place = match &disk {
        Some(disk) => disk.path().to_owned(),
        None => tempfile::tempdir().expect("a temporary directory").keep(),
    };
    let mut broker = Broker::start().await;
    let store = format!("[store]\ndirectory = \"{}/log\"\nmax_size = \"8MiB\"\n", place.display());
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &store);
    let witness = Subscriber::start(&tidegate::mqtt::Options { clean_session: false, ..options(broker.port()) }).await;
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -S -f 160; exec \"$0\" \"$@\""].map(str::to_owned);
    match &disk {
        Some(_) => gateway.start().await,
        None => {
            gateway.launch_under(&limited, &[]);
            gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
        }
    }
    let failed = if disk.is_some() { FULL } else { "tidegate_store_state{state=\"failing\"}" };

    // Given a device that is acknowledged, without the broker so that only the disk counts.
    broker.stop().await;
    let device = Arc::new(Device::new(1, TOTAL));
    let (running, address) = (device.clone(), gateway.tcp_address());
    let sending = tokio::spawn(async move { running.run_tcp(&address).await });
    eventually("some readings are acknowledged", async || device.acked() > 50).await;

    // When the disk is full, reserve included, then the state says so and nothing is
    // acknowledged.
    let mut ready = String::new();
    eventually("the disk is full", async || {
        if let Some(disk) = &disk {
            disk.fill();
        }
        let (code, body) = gateway.get("/health/ready").await.expect("it answers");
        ready = body;
        let given_up = disk.is_none() || !place.join("log/reserve").exists();
        code == 503 && given_up && gateway.figure(failed).await == 1.0
    })
    .await;
    assert!(ready.contains("\"part\":\"log\""), "{ready}");
    // Who sends a command then waits as long as it is told to, and learns why.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["send", "-c"]).arg(gateway.config_file()).args(["pump", "open", "--wait=2s"]);
    let began = Instant::now();
    let output = command.output().expect("the program starts");
    let (took, said) = (began.elapsed(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(took < Duration::from_secs(5), "{took:?}: {said}");
    assert!(said.contains("the disk is ") && said.contains("may have accepted the command or not"), "{said}");
    // What the reserve left is used up, too.
    eventually("no reading is acknowledged any more", async || {
        if let Some(disk) = &disk {
            disk.fill();
        }
        let before = device.acked();
        tokio::time::sleep(Duration::from_secs(1)).await;
        device.acked() == before && gateway.figure(failed).await == 1.0
    })
    .await;
    assert!(device.acked() < TOTAL);
    assert!(gateway.process().is_running());

    // And when it is started on the full disk, it waits and says why.
    gateway.kill();
    match &disk {
        Some(disk) => {
            disk.fill();
            gateway.launch();
            eventually("it answers", async || gateway.get("/health/live").await.is_some()).await;
            eventually("it is not ready", async || {
                disk.fill();
                gateway.get("/health/ready").await.is_some_and(|(code, _)| code == 503)
            })
            .await;
            assert!(gateway.process().is_running(), "{}", gateway.log());
            disk.free();
        }
        None => gateway.start().await,
    }

    // Then it recovers by itself, and everything arrives.
    gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
    sending.await.expect("the device does not fail");
    assert_eq!(device.acked(), TOTAL);
    broker.resume().await;
    witness.heard(TOTAL as usize).await;
    let events = witness.look(|heard| heard.events.clone());
    let dropped = events.iter().filter(|event| event["type"] == "gap" && event["reason"] != "restart").count();
    assert_eq!(dropped, 0, "{events:?}");
    gateway.terminate().await;
    if disk.is_none() {
        std::fs::remove_dir_all(place).expect("the directory");
    }
}

/// The disk fills up and is emptied while the gateway runs: it says so upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_are_announced_upstream_once_they_can_be_written() {
    let Some(disk) = SmallDisk::mount(6) else { return low_without_a_mount().await };
    let broker = Broker::start().await;
    let store = format!("[store]\ndirectory = \"{}/log\"\nmax_size = \"8MiB\"\n", disk.path().display());
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &store);
    let witness = Subscriber::start(&options(broker.port())).await;
    gateway.start().await;
    gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
    let device = Arc::new(Device::new(1, TOTAL));
    let (running, address) = (device.clone(), gateway.tcp_address());
    let sending = tokio::spawn(async move { running.run_tcp(&address).await });
    disk.fill();
    gateway.figure_becomes(NORMAL, |normal| normal == 0.0).await;
    disk.free();
    gateway.figure_becomes(NORMAL, |normal| normal == 1.0).await;
    sending.await.expect("the device does not fail");
    eventually("the states are announced", async || {
        witness.look(|heard| {
            let said = |state: &str| heard.events.iter().any(|e| e["type"] == "store" && e["state"] == state);
            (said("low") || said("full")) && said("normal")
        })
    })
    .await;
    gateway.says("the log has room and can be written").await;
    gateway.terminate().await;
}

/// More than any disk has is to be left free: a quarter of it is enough to be normal
/// again, so nothing but the start is seen here.
async fn low_without_a_mount() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "[store]\nmin_free = \"64TiB\"\n").started().await;
    let states = ["normal", "low"].map(|state| format!("tidegate_store_state{{state=\"{state}\"}}"));
    eventually("a state is shown", async || gateway.figure(&states[0]).await + gateway.figure(&states[1]).await == 1.0)
        .await;
}
