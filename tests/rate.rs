//! Devices that send more messages than they may.

use crate::support::device::{Device, Talk};
use crate::support::gateway::Gateway;
use crate::support::pty::Line;
use std::time::{Duration, Instant};
use tidegate::wire::message::{DeviceMessage, GatewayMessage, Heartbeat};
use tokio::io::{AsyncRead, AsyncWrite};

const LIMIT: &str = "[devices]\nmax_message_rate = 50\nmessage_burst = 20\n";

fn throttled(link: &str) -> String {
    format!("tidegate_devices_throttled_total{{link=\"{link}\"}}")
}

/// Sends so many Heartbeats at once and waits for their replies.
async fn beat<S: AsyncRead + AsyncWrite + Unpin>(talk: &mut Talk<S>, count: usize) {
    for _ in 0..count {
        talk.say(&DeviceMessage::Heartbeat(Heartbeat { time: 0 })).await;
    }
    let mut replies = 0;
    while replies < count {
        match talk.hear().await {
            Some(GatewayMessage::HeartbeatReply(_)) => replies += 1,
            other => panic!("{other:?} after {replies} replies"),
        }
    }
}

#[tokio::test]
async fn a_device_that_babbles_is_read_more_slowly_and_others_are_not() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", LIMIT).started().await;
    let address = gateway.tcp_address();
    let (mut babbler, _) = Talk::welcomed(&address, "babbler", 1).await;
    let (mut other, _) = Talk::welcomed(&address, "other", 1).await;
    let began = Instant::now();
    let babbling = tokio::spawn(async move {
        beat(&mut babbler, 120).await;
        beat(&mut babbler, 1).await;
        babbler.readings(1, 1, 5).await;
        babbler.acked(5).await;
        began.elapsed()
    });
    gateway.figure_becomes(&throttled("tcp"), |times| times >= 1.0).await;
    let asked = Instant::now();
    beat(&mut other, 5).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "the other waited for {:?}", asked.elapsed());
    // 123 messages, of which 20 pass at once, Hello included.
    let took = babbling.await.expect("it is not disconnected");
    assert!(took > Duration::from_millis(1900), "it took {took:?}");
    gateway.says("more messages a second than allowed").await;
    let log = gateway.log();
    assert_eq!(log.matches("more messages a second than allowed").count(), 1, "{log}");
}

#[tokio::test]
async fn without_a_limit_nobody_waits() {
    let limit = "[devices]\nmax_message_rate = 0\nmessage_burst = 1\n";
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", limit).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    beat(&mut talk, 500).await;
    assert_eq!(gateway.figure(&throttled("tcp")).await, 0.0);
}

/// A line cannot hold its device back: what it has no room for is lost on the way, and
/// the device is told to send it again.
#[tokio::test]
async fn what_a_device_sends_too_fast_over_a_serial_line_is_acknowledged_in_the_end() {
    let line = Line::new().await;
    let limit = "[devices]\nmax_message_rate = 20\nmessage_burst = 5\n";
    let serial = format!("{limit}[[serial]]\npath = {:?}\n", line.gateway_end());
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &serial).started().await;
    gateway.figure_becomes("tidegate_link_up{link=\"serial\"}", |up| up == 1.0).await;
    // Four readings a message or, again, more; fifty messages a second.
    Device::new(1, 240).run_serial(&line.device_end()).await;
    assert!(gateway.figure(&throttled("serial")).await >= 1.0);
    gateway.figure_becomes("tidegate_readings_stored_total", |stored| stored == 240.0).await;
}
