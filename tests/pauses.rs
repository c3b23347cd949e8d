//! The gateway stands still for a while, by SIGSTOP: what others say meanwhile waits in its
//! sockets.

use crate::support::broker::Broker;
use crate::support::cloud::Cloud;
use crate::support::device::{POSTCARD, Talk, hello};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::listener::Listener;
use serde_json::json;
use std::time::{Duration, Instant};
use tidegate::wire::codec::encode_device;
use tidegate::wire::message::*;
use tokio::net::TcpStream;
use tokio::time::sleep;

const QUICK: &str = "[devices]\nheartbeat_interval = \"1s\"\nidle_timeout = \"3s\"\noffline_delay = \"100ms\"\n";

/// Stops the gateway while `meanwhile` happens, and for so long.
async fn pause(gateway: &mut Gateway, time: Duration, meanwhile: impl AsyncFnOnce()) {
    gateway.process().signal("STOP");
    tokio::join!(sleep(time), meanwhile());
    gateway.process().signal("CONT");
}

fn heartbeat() -> DeviceMessage {
    DeviceMessage::Heartbeat(Heartbeat { time: 0 })
}

/// What came until nothing has come for a moment.
async fn heard(talk: &mut Talk<TcpStream>) -> Vec<GatewayMessage> {
    let mut heard = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(300), talk.hear()).await {
        heard.push(message);
    }
    heard
}

#[tokio::test]
async fn nobody_is_thrown_out_or_told_gone_who_spoke_while_the_gateway_stood_still() {
    let broker = Broker::start().await;
    let listener = Listener::start(broker.port(), &["tidegate/gw/devices/+/status"]).await;
    let sections = QUICK.replace("\"1s\"", "\"2s\"").replace("\"3s\"", "\"6s\"");
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &sections).started().await;
    let mut devices: Vec<Talking> = Vec::new();
    for n in 0..100 {
        let name = format!("d{n}");
        let (talk, _) = Talk::welcomed(&gateway.tcp_address(), &name, 7).await;
        devices.push(Talking { name, talk, said: 0 });
        if n % 10 == 0 {
            everybody_speaks(&mut devices).await;
        }
    }
    let told = |device: &str| listener.messages(&format!("tidegate/gw/devices/{device}/status"));
    while devices.iter().any(|device| told(&device.name).is_empty()) {
        everybody_speaks(&mut devices).await;
        sleep(Duration::from_millis(500)).await;
    }
    pause(&mut gateway, Duration::from_secs(15), async || {
        for _ in 0..9 {
            everybody_speaks(&mut devices).await;
            sleep(Duration::from_millis(1500)).await;
        }
    })
    .await;
    everybody_speaks(&mut devices).await;
    for device in &mut devices {
        // There may be reminders as well.
        for _ in 0..device.said {
            let reply = device.talk.hear().await;
            assert!(matches!(reply, Some(GatewayMessage::HeartbeatReply(_))), "{}: {reply:?}", device.name);
        }
        let told = told(&device.name);
        assert!(told.iter().all(|status| status["state"] != "offline"), "{told:?}");
    }
    let (status, body) = gateway.get("/health/live").await.expect("an answer");
    assert_eq!(status, 200, "{body}");
    gateway.says("the gateway stood still").await;
}

struct Talking {
    name: String,
    talk: Talk<TcpStream>,
    /// Heartbeats said.
    said: u32,
}

async fn everybody_speaks(devices: &mut [Talking]) {
    for device in devices {
        device.talk.say(&heartbeat()).await;
        device.said += 1;
    }
}

/// Over that some devices give up and connect again. To everybody else that is nothing, as
/// a restart of the gateway is.
#[tokio::test]
async fn devices_that_came_again_and_again_while_the_gateway_stood_still_were_never_gone() {
    let broker = Broker::start().await;
    let listener = Listener::start(broker.port(), &["tidegate/gw/devices/+/status"]).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), &QUICK.replace("100ms", "2s")).started().await;
    let address = gateway.tcp_address();
    let mut talk = Talk::welcomed(&address, "pump", 7).await.0;
    let told = |device: &str| listener.messages(&format!("tidegate/gw/devices/{device}/status"));
    eventually("it is told", async || told("pump").len() == 1).await;
    pause(&mut gateway, Duration::from_secs(5), async || {
        for _ in 0..5 {
            talk = Talk::connect(&address, POSTCARD).await;
            talk.say(&hello("pump", 7, 1)).await;
            sleep(Duration::from_millis(900)).await;
        }
    })
    .await;
    drop(talk);
    gateway.figure_becomes("tidegate_devices_connected", |n| n == 0.0).await;
    let _talk = Talk::welcomed(&address, "pump", 7).await;
    // Whatever there was to tell is told before this one.
    let _last = Talk::welcomed(&address, "last", 7).await;
    eventually("the last is told", async || told("last").len() == 1).await;
    assert_eq!(told("pump").len(), 1, "{:?}", told("pump"));
}

#[tokio::test]
async fn handshakes_and_frames_that_were_under_way_go_on_after_a_pause() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[[tcp]]", "handshake_timeout = \"5s\"\nframe_timeout = \"4s\"");
    let mut gateway = gateway.started().await;
    let address = gateway.tcp_address();
    let mut frame = Vec::new();
    encode_device(&heartbeat(), POSTCARD, &mut frame);
    let (head, rest) = frame.split_at(6);
    let (mut silent, mut torn) = (Vec::new(), Vec::new());
    for n in 0..20 {
        silent.push(Talk::connect(&address, POSTCARD).await);
        let (mut talk, _) = Talk::welcomed(&address, &format!("torn-{n}"), 7).await;
        talk.write(head).await;
        torn.push(talk);
    }
    // One that comes last of all is let in when the others have been.
    let _last = Talk::welcomed(&address, "last", 7).await;
    pause(&mut gateway, Duration::from_secs(7), async || {
        for (n, (silent, torn)) in silent.iter_mut().zip(&mut torn).enumerate() {
            silent.say(&hello(&format!("silent-{n}"), 7, 1)).await;
            torn.write(rest).await;
        }
    })
    .await;
    for (silent, torn) in silent.iter_mut().zip(&mut torn) {
        silent.welcome().await;
        let reply = torn.hear().await;
        assert!(matches!(reply, Some(GatewayMessage::HeartbeatReply(_))), "{reply:?}");
    }
}

#[tokio::test]
async fn who_is_really_gone_is_given_up_after_a_pause_too() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", QUICK).started().await;
    let (mut talk, begun) = loop {
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
        let (begun, mut early) = (Instant::now(), Vec::new());
        pause(&mut gateway, Duration::from_secs(4), async || early = heard(&mut talk).await).await;
        // A machine under load may have been that slow: what came then came before the pause.
        if early.is_empty() {
            break (talk, begun);
        }
    };
    assert_eq!(talk.goodbye().await.reason, Reason::Timeout);
    // Of the idle timeout of 3 s, nothing ran out in the 4 s of the pause.
    let silent = begun.elapsed();
    assert!(silent >= Duration::from_millis(6500), "given up {silent:?} after the pause began");
}

#[tokio::test]
async fn an_answer_to_a_command_that_waited_through_a_pause_counts() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let sections = "[commands]\nretry_after = \"1s\"\nanswer_within = \"1s\"\n";
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), sections).started().await;
    gateway.connected().await;
    let mut talks = Vec::new();
    for n in 0..20 {
        let device = format!("d{n}");
        talks.push(Talk::welcomed(&gateway.tcp_address(), &device, 7).await.0);
        cloud.command(&device, &json!({"id": device, "name": "open", "expires": "2s"})).await;
    }
    for talk in &mut talks {
        while !matches!(talk.hear().await, Some(GatewayMessage::Command(_))) {}
    }
    pause(&mut gateway, Duration::from_secs(4), async || {
        for (n, talk) in talks.iter_mut().enumerate() {
            let result = CommandResult { id: format!("d{n}"), state: ResultState::Done, payload: None };
            talk.say(&DeviceMessage::CommandResult(result)).await;
        }
    })
    .await;
    for n in 0..20 {
        assert_eq!(cloud.state(&format!("d{n}")).await, "done");
    }
}
