//! HTTP requests that wait, that are slow, and that are too many.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::web::Web;
use crate::support::{PATIENCE, eventually};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

async fn gateway(keys: &str) -> Gateway {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[http]", keys);
    let gateway = gateway.started().await;
    // The API is there once devices are.
    Talk::welcomed(&gateway.tcp_address(), "first", 1).await;
    gateway
}

/// Status, head and body of what is answered until the connection is closed.
async fn answered(stream: &mut TcpStream) -> (u16, String, Value) {
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it is closed in time");
    assert!(read.is_ok(), "{read:?} after {answer:?}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or_else(|why| panic!("{why}: {answer}")))
}

async fn ask(address: &str, request: &str) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it takes a request");
    answered(&mut stream).await
}

fn post(path: &str, body: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn requests_that_wait_keep_nobody_from_health_figures_and_devices() {
    const REQUESTS: usize = 70;
    const MAY_WAIT: usize = 16;
    let gateway = gateway("devices = true").await;
    let address = gateway.http_address();
    let command = r#"{"id":"c-1","name":"open","expires":"1h"}"#;
    let given = ask(&address, &post("/api/v1/devices/valve/commands", command, command.len())).await;
    assert_eq!(given.0, 202, "{}", given.2);
    let mut requests = JoinSet::new();
    let wait = || {
        let address = address.clone();
        async move {
            let path = "/api/v1/devices/valve/commands/c-1?wait=10s";
            ask(&address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
        }
    };
    for _ in 0..REQUESTS {
        requests.spawn(wait());
    }
    while requests.len() > MAY_WAIT {
        let (status, head, body) = requests.join_next().await.expect("one more").expect("it does not panic");
        assert!(status == 503 && head.contains("\r\nretry-after: 1"), "{status} {head} {body}");
        let why = body["error"].as_str().expect("why");
        if !why.contains("16 requests wait already") {
            // On a busy machine one may have to go before it is heard.
            assert!(why.contains("too many connections"), "{why}");
            requests.spawn(wait());
        }
    }
    let since = Instant::now();
    for path in ["/health/live", "/health/ready", "/metrics", "/api/v1/devices"] {
        assert_eq!(gateway.get(path).await.map(|(status, _)| status), Some(200), "{path}");
    }
    let (mut page, _) = Web::welcomed(&address, "page", 1).await;
    page.reading(1).await;
    page.acked(1).await;
    assert!(since.elapsed() < Duration::from_secs(5) && requests.len() == MAY_WAIT, "{:?}", since.elapsed());
    let mut send = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    send.args(["send", "-c"]).arg(gateway.config_file()).args(["valve", "open", "--id", "c-1", "--wait=2s"]);
    let sent = tokio::task::spawn_blocking(move || send.output()).await.expect("it does not panic");
    let sent = sent.expect("the program starts");
    let said = (String::from_utf8_lossy(&sent.stdout), String::from_utf8_lossy(&sent.stderr));
    assert!(said.0.contains("c-1 queued") && said.1.is_empty(), "{said:?}");
    drop(requests);
    eventually("another may wait once they are gone", async || {
        let path = "/api/v1/devices/valve/commands/c-1?wait=10ms";
        gateway.get(path).await.map(|(status, _)| status) == Some(202)
    })
    .await;
}

#[tokio::test]
async fn a_request_whose_connection_is_cut_before_it_is_there_is_told_503_or_408() {
    const HANDSHAKE: Duration = Duration::from_secs(3);
    let gateway = gateway("handshake_timeout = \"3s\"").await;
    let address = gateway.http_address();
    let whole = post("/api/v1/devices/valve/commands", "{\"name\":", 1000);
    let (head, _) = whole.split_once("\r\n\r\n").expect("a head");
    for begun in [whole.as_str(), head] {
        let since = Instant::now();
        let mut connections = Vec::new();
        for _ in 0..80 {
            let mut stream = TcpStream::connect(&address).await.expect("the system takes it");
            stream.write_all(begun.as_bytes()).await.expect("it takes the beginning");
            connections.push(stream);
        }
        let mut statuses = BTreeMap::new();
        for stream in &mut connections {
            let (status, head, body) = answered(stream).await;
            let why = body["error"].as_str().expect("why");
            match status {
                503 => assert!(head.contains("\r\nretry-after: 1") && why.contains("too many connections"), "{why}"),
                408 => assert!(why.contains("was not complete in time") && since.elapsed() >= HANDSHAKE, "{why}"),
                _ => panic!("{status} {body}"),
            }
            *statuses.entry(status).or_insert(0) += 1;
        }
        assert!(statuses.contains_key(&503) && statuses.contains_key(&408), "{statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_200_clients_at_once_each_is_answered_and_none_is_told_that_its_request_is_wrong() {
    let gateway = gateway("").await;
    let address = gateway.http_address();
    let command = "{\"name\":\"ping\"}";
    let mut clients = JoinSet::new();
    for _ in 0..200 {
        let address = address.clone();
        clients.spawn(async move { ask(&address, &post("/api/v1/commands", command, command.len())).await });
    }
    let mut done = 0;
    while let Some(answer) = clients.join_next().await {
        let (status, _, body) = answer.expect("it does not panic");
        assert!(matches!(status, 200 | 202 | 429 | 503), "{status} {body}");
        done += u32::from(status < 300);
    }
    // As many as may wait for the part that carries commands out.
    assert!(done >= 32, "{done} were served");
}
