//! Devices that hang up while the gateway cannot take what they sent.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::web::Web;
use std::time::{Duration, Instant};

/// Nothing settles: there is no broker, and the log commits once in an hour.
fn gateway() -> Gateway {
    let sections = "[devices]\nwindow = 4\n[store]\ncommit_within = \"1h\"\nhistory_within = \"off\"\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", sections);
    gateway.keys("[http]", "devices = true\n");
    gateway
}

/// Waits until both devices are gone, which is before anything settles.
async fn are_gone(gateway: &Gateway) {
    const NEVER: Duration = Duration::from_secs(50);
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 2.0).await;
    let since = Instant::now();
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    assert!(since.elapsed() < NEVER, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_device_whose_window_is_used_up_is_gone_when_it_hangs_up_though_nothing_settles() {
    let gateway = gateway().started().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    let (mut page, _) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    for seq in 1..=2000 {
        pump.readings(1, seq, 1).await;
        page.reading(seq).await;
    }
    gateway.figure_becomes("tidegate_readings_received_total", |count| count == 8.0).await;
    tokio::join!(async { drop((pump, page)) }, are_gone(&gateway));
}
