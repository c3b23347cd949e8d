//! The page of `examples/browser.html` as a device of the real gateway. Its script runs in
//! Node.js with the little that it uses of a browser (`support/page.js`), and its WebSocket
//! is a real one.

use crate::support::broker::Broker;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use crate::support::web::Web;
use crate::support::{PATIENCE, eventually, installed, real_services_are_required};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use tidegate::model::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::protocol::Message;

/// A page that is open; closed when dropped.
struct Page {
    _child: Child,
    _bridge: JoinSet<()>,
    to_page: mpsc::UnboundedSender<Json>,
    seen: mpsc::UnboundedReceiver<String>,
    /// What it sent, beside readings and heartbeats.
    said: mpsc::UnboundedReceiver<Json>,
}

fn node() -> Option<std::path::PathBuf> {
    let node = installed("node");
    assert!(node.is_some() || !real_services_are_required(), "node is not installed; apt-get install nodejs");
    node
}

impl Page {
    fn open(node: &Path, gateway: &str, storage: &Path) -> Page {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(node);
        command.arg(root.join("tests/support/page.js")).arg(root.join("examples/browser.html")).arg(storage);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (to_page, mut for_page) = mpsc::unbounded_channel::<Json>();
        let (show, seen) = mpsc::unbounded_channel();
        let (tell, said) = mpsc::unbounded_channel();
        let mut bridge = JoinSet::new();
        bridge.spawn(async move {
            while let Some(line) = for_page.recv().await {
                if stdin.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let (answers, gateway) = (to_page.clone(), gateway.to_owned());
        bridge.spawn(async move {
            let (mut sockets, mut connections) = (HashMap::new(), JoinSet::new());
            while let Ok(Some(line)) = lines.next_line().await {
                let line: Json = serde_json::from_str(&line).expect("JSON");
                if let Some(seen) = line["seen"].as_str() {
                    let _ = show.send(seen.to_owned());
                } else if let Some(number) = line["open"].as_u64() {
                    let (send, sent) = mpsc::unbounded_channel();
                    sockets.insert(number, send);
                    connections.spawn(connection(number, gateway.clone(), sent, answers.clone()));
                } else if let Some(number) = line["send"].as_u64() {
                    let text = line["text"].as_str().expect("text");
                    let message: Json = serde_json::from_str(text).expect("JSON");
                    if !["readings", "heartbeat"].contains(&message["command"].as_str().expect("a command")) {
                        let _ = tell.send(message);
                    }
                    let _ = sockets[&number].send(Some(text.to_owned()));
                } else if let Some(number) = line["close"].as_u64() {
                    let _ = sockets[&number].send(None);
                }
            }
        });
        Page { _child: child, _bridge: bridge, to_page, seen, said }
    }

    fn tell(&self, what: Json) {
        self.to_page.send(what).expect("the page is open");
    }

    async fn look(&mut self, id: &str) -> String {
        self.tell(json!({"look": id}));
        tokio::time::timeout(PATIENCE, self.seen.recv()).await.expect("in time").expect("the page is open")
    }

    async fn shows(&mut self, id: &str, wanted: impl Fn(&str) -> bool) {
        let mut shown = String::new();
        eventually(&format!("{id} is as wanted"), async || {
            shown = self.look(id).await;
            wanted(&shown)
        })
        .await;
    }

    /// The next message with this command.
    async fn said(&mut self, command: &str) -> Json {
        loop {
            let said = tokio::time::timeout(PATIENCE, self.said.recv()).await.expect("in time").expect("it is open");
            if said["command"] == command {
                return said;
            }
        }
    }
}

/// One WebSocket of the page's.
async fn connection(
    number: u64,
    gateway: String,
    mut sent: mpsc::UnboundedReceiver<Option<String>>,
    answers: mpsc::UnboundedSender<Json>,
) {
    let closed = |code: u16| drop(answers.send(json!({"closed": number, "code": code})));
    if tokio::net::TcpStream::connect(&gateway).await.is_err() {
        return closed(1006);
    }
    let own = format!("http://{gateway}");
    let Ok(Web(mut socket)) = Web::try_connect(&gateway, &[("origin", &own)]).await else { return closed(1006) };
    let _ = answers.send(json!({"opened": number}));
    loop {
        tokio::select! {
            text = sent.recv() => match text.flatten() {
                Some(text) => drop(socket.send(Message::text(text)).await),
                None => {
                    let _ = socket.close(None).await;
                    return closed(1000);
                }
            },
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => drop(answers.send(json!({"message": number, "text": text.as_str()}))),
                Some(Ok(Message::Close(close))) => return closed(close.map_or(1005, |close| close.code.into())),
                Some(Ok(_)) => {}
                _ => return closed(1006),
            },
        }
    }
}

#[tokio::test]
async fn the_example_page_delivers_through_a_kill_and_while_it_is_closed_loses_nothing() {
    let Some(node) = node() else { return };
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let mut gateway = Gateway::with_broker(&broker.gateway_url(), "");
    gateway.keys("[http]", "devices = true\nauthentication = \"hmac\"\n");
    let mut gateway = gateway.started().await;
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["key", "new", "pages", "-c"])
        .arg(gateway.config_file())
        .output()
        .expect("it runs");
    let secret = String::from_utf8(made.stdout).expect("text").trim().to_owned();
    let storage = gateway.directory().join("storage.json");
    let address = gateway.http_address();
    let connect = |page: &Page| {
        page.tell(json!({"set": {"device": "page", "key": "pages", "secret": secret, "level": "21"}}));
        page.tell(json!({"click": "connect"}));
    };

    // It authenticates and is acknowledged; the gateway goes, and comes back.
    let mut page = Page::open(&node, &address, &storage);
    connect(&page);
    page.shows("state", |state| state == "connected").await;
    page.shows("acknowledged", |seq| seq.parse::<u64>().is_ok_and(|seq| seq >= 10)).await;
    gateway.kill();
    page.shows("waiting", |count| count.parse::<u64>().is_ok_and(|count| count >= 20)).await;
    gateway.start().await;
    page.shows("waiting", |count| count.parse::<u64>().is_ok_and(|count| count < 15)).await;

    // It is closed with readings that were not acknowledged, and opened again.
    gateway.kill();
    page.shows("waiting", |count| count.parse::<u64>().is_ok_and(|count| count >= 20)).await;
    drop(page);
    gateway.start().await;
    let mut page = Page::open(&node, &address, &storage);
    connect(&page);
    page.shows("acknowledged", |seq| seq.parse::<u64>().is_ok_and(|seq| seq >= 60)).await;

    subscriber.heard(60).await;
    let readings = subscriber.readings();
    let mut sessions: Vec<u64> = readings.iter().filter_map(|reading| reading.origin).map(|origin| origin.0).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "one numbering goes on: {sessions:?}");
    let mut seqs: Vec<u64> = readings.iter().filter_map(|reading| reading.origin).map(|origin| origin.1).collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "none is missing");
    assert!(readings.iter().all(|reading| reading.values[0].1 == Value::Float(21.0)), "whole numbers are floats too");
}

#[tokio::test]
async fn the_example_page_obeys_commands_once_and_answers_each_time() {
    let Some(node) = node() else { return };
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[http]", "devices = true\n");
    let gateway = gateway.started().await;
    let mut page = Page::open(&node, &gateway.http_address(), &gateway.directory().join("storage.json"));
    page.tell(json!({"set": {"device": "page"}}));
    page.tell(json!({"click": "connect"}));
    page.shows("state", |state| state == "connected").await;
    let command = |id: &str, name: &str, level: Json| {
        let payload = json!({"name": name, "payload": {"level": level}});
        json!({"message": 0, "text": json!({"command": "command", "id": id, "payload": payload}).to_string()})
    };
    let done = json!({"state": "done", "payload": {"level": 50}});
    for (message, id, result) in [
        (command("c-1", "set-level", json!(50)), "c-1", done.clone()),
        (
            command("c-2", "set-level", json!("x")),
            "c-2",
            json!({"state": "failed", "payload": {"error": "give a level from 0 to 100"}}),
        ),
        (command("c-1", "set-level", json!(60)), "c-1", done),
        (
            command("c-3", "dance", json!(1)),
            "c-3",
            json!({"state": "rejected", "payload": {"error": "this page knows set-level only"}}),
        ),
    ] {
        page.tell(message);
        let said = page.said("result").await;
        assert_eq!((&said["id"], &said["payload"], &said["deviceId"]), (&json!(id), &result, &json!("page")));
    }
    assert_eq!(page.look("shown").await, "50");
    // The gateway took the results for what they are.
    assert_eq!(page.look("state").await, "connected");
    page.tell(json!({"click": "disconnect"}));
    page.said("goodbye").await;
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    page.shows("state", |state| state == "not connected").await;
}
