//! Devices that hang up while the gateway cannot take what they sent.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::web::Web;

/// Nothing settles: there is no broker, and the log commits once in an hour.
fn gateway() -> Gateway {
    let sections = "[devices]\nwindow = 4\n[store]\ncommit_within = \"1h\"\nhistory_within = \"off\"\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", sections);
    gateway.keys("[http]", "devices = true\n");
    gateway
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
    // What is told of the devices is committed, and may settle some more.
    gateway.figure_becomes("tidegate_readings_received_total", |count| count >= 8.0).await;
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 2.0).await;
    drop((pump, page));
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    let received = gateway.figure("tidegate_readings_received_total").await;
    assert!(received < 100.0, "{received} were taken, and nobody was held back");
}
