//! Addresses to listen on that cannot be had yet.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::web::Web;
use crate::support::{eventually, free_port};
use serde_json::Value;
use std::net::TcpListener;

/// The reason of the note about this part; none if there is no such note.
async fn noted(gateway: &Gateway, part: &str) -> Option<String> {
    let (_, body) = gateway.get("/health/ready").await?;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let note = body["notes"].as_array().expect("notes").iter().find(|note| note["part"] == part)?;
    Some(note["reason"].as_str().expect("a reason").to_owned())
}

#[tokio::test]
async fn a_port_that_another_program_has_and_an_address_that_is_not_there_yet_keep_nothing_else_from_working() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address");
    let sections = format!(
        "[[tcp]]\nname = \"other\"\nlisten = \"{taken}\"\n\
         [[tcp]]\nname = \"away\"\nlisten = \"192.0.2.7:{}\"\nauthentication = \"none\"\n",
        free_port()
    );
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &sections).started().await;
    Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    let said = [
        ("other", format!("cannot listen on {taken}: another program listens there"), "ss -ltnp"),
        ("away", "cannot listen on 192.0.2.7:".to_owned(), "does not have the address 192.0.2.7 now"),
    ];
    for (part, what, advice) in &said {
        let why = noted(&gateway, part).await.expect("a note");
        assert!(why.contains(what) && why.contains(advice), "{why}");
        gateway.says(what).await;
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("no {what} in {log}"));
        assert!(line.contains(&format!("[[tcp]] \"{part}\"")) && line.contains(advice), "{line}");
        assert_eq!(gateway.figure(&format!("tidegate_link_up{{link=\"{part}\"}}")).await, 0.0);
    }
    drop(holder);
    gateway.figure_becomes("tidegate_link_up{link=\"other\"}", |up| up == 1.0).await;
    Talk::welcomed(&taken.to_string(), "valve", 1).await;
    assert_eq!(noted(&gateway, "other").await, None);
    assert!(noted(&gateway, "away").await.is_some());
    assert_eq!(gateway.log().matches("cannot listen on 192.0.2.7:").count(), 1, "{}", gateway.log());
}

#[tokio::test]
async fn devices_are_served_before_the_http_port_can_be_had_and_it_is_served_once_it_can() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[http]", "devices = true");
    let holder = TcpListener::bind(gateway.http_address()).expect("the port is free");
    gateway.launch();
    let tcp = gateway.tcp_address();
    eventually("devices are served", async || tokio::net::TcpStream::connect(&tcp).await.is_ok()).await;
    Talk::welcomed(&tcp, "pump", 1).await;
    let what = format!("[http] cannot listen on {}: another program listens there", gateway.http_address());
    gateway.says(&what).await;
    drop(holder);
    gateway.figure_becomes("tidegate_link_up{link=\"websocket\"}", |up| up == 1.0).await;
    Web::welcomed(&gateway.http_address(), "page", 1).await;
    assert_eq!(noted(&gateway, "http").await, None);
    assert!(gateway.terminate().await.success());
}
