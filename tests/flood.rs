//! Many commands at once: the connection stands, readings go on, and all of them end.

use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use crate::uplink::DELIVERED;
use std::collections::BTreeSet;

/// A command with QoS 1 under this packet id.
fn command(v5: bool, topic: &str, id: u16) -> Vec<u8> {
    let mut body = vec![0, topic.len() as u8];
    body.extend(topic.as_bytes());
    body.extend(id.to_be_bytes());
    if v5 {
        body.push(0);
    }
    body.extend(format!(r#"{{"id":"c-{id}","name":"open","expires":"1s"}}"#).bytes());
    assert!(body.len() < 128, "one byte of length");
    [vec![0x32, body.len() as u8], body].concat()
}

/// The broker sends so many commands at once, as if it had kept them, while readings come.
async fn flood(v5: bool, count: u16, topic: impl Fn(u16) -> String) {
    let sends = (1..=count).flat_map(|id| command(v5, &topic(id), id)).collect();
    let script = Script::start(Manners { v5, sends, ..Manners::default() }).await;
    let keys = format!("version = \"{}\"\n", if v5 { "5" } else { "3.1.1" });
    let gateway = Gateway::with_broker(&script.url(), &keys).started().await;
    let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 77).await;
    for first in (1..=1000).step_by(100) {
        talk.readings(1, first, 100).await;
    }
    gateway.figure_becomes(DELIVERED, |delivered| delivered == 1000.0).await;
    eventually("every command is confirmed", async || {
        script.look(|seen| seen.confirmed.iter().collect::<BTreeSet<_>>().len()) == usize::from(count)
    })
    .await;
    eventually("every command has ended", async || {
        let ended: BTreeSet<String> = script.look(|seen| {
            let results = seen.acked.iter().filter(|(topic, _)| topic.ends_with("/result"));
            let bodies = results.map(|(_, body)| serde_json::from_slice::<serde_json::Value>(body).expect("JSON"));
            bodies.filter_map(|body| Some(body["id"].as_str()?.to_owned())).collect()
        });
        ended.len() == usize::from(count)
    })
    .await;
    assert_eq!(script.look(|seen| seen.connects.len()), 1, "{}", gateway.log());
}

#[tokio::test]
async fn two_thousand_commands_at_once_end_over_one_connection() {
    flood(false, 2000, |_| "tidegate/gw/devices/valve/command".to_owned()).await;
    flood(true, 2000, |_| "tidegate/gw/devices/valve/command".to_owned()).await;
}

#[tokio::test]
async fn a_command_to_each_of_six_thousand_devices_ends_over_one_connection() {
    flood(false, 6000, |id| format!("tidegate/gw/devices/valve-{id}/command")).await;
}
