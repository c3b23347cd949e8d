//! Devices that hang up while the gateway cannot take what they sent.

use crate::support::device::Talk;
use crate::support::eventually;
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

#[tokio::test]
async fn a_device_whose_large_frame_waits_for_memory_is_gone_when_it_hangs_up_though_none_is_given_back() {
    let store = "[store]\nmax_pending = \"4MiB\"\nsegment_size = \"1MiB\"\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", store);
    gateway.keys("[gateway]", "memory_limit = \"56MiB\"\n");
    gateway.keys("[[tcp]]", "max_frame = \"1MiB\"\nframe_timeout = \"1h\"\n");
    let gateway = gateway.started().await;
    let address = gateway.tcp_address();
    // Each claims a megabyte and sends nothing of it.
    let head = [0x12, 0x34, 0x56, 0x7f, 1, 3, 0, 0x0f, 0xff, 0xff];
    let mut claims = Vec::new();
    let mut waits = false;
    while !waits {
        let (mut talk, _) = Talk::welcomed(&address, &format!("pump-{}", claims.len()), 1).await;
        talk.write(&head).await;
        claims.push(talk);
        eventually("its memory is granted, or waited for", async || {
            waits = gateway.figure("tidegate_memory_refused_total{reason=\"wait\"}").await >= 1.0;
            waits || gateway.figure("tidegate_memory_links_bytes").await >= (claims.len() << 20) as f64
        })
        .await;
    }
    let all = claims.len() as f64;
    gateway.figure_becomes("tidegate_devices_connected", |count| count == all).await;
    drop(claims.pop());
    gateway.figure_becomes("tidegate_devices_connected", |count| count == all - 1.0).await;
}
