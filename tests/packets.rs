//! The packets that a gateway really sends, as another implementation of MQTT reads them, and what
//! that writes, as the gateway understands it: `mqtt-packet` of npm, in Debian `node-mqtt-packet`.

use crate::support::device::Talk;
use crate::support::gateway::Gateway;
use crate::support::{eventually, installed, real_services_are_required, script};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

/// Where Debian has it.
const MODULES: &str = "/usr/share/nodejs";

fn node() -> Option<PathBuf> {
    let node = installed("node").filter(|_| Path::new(MODULES).join("mqtt-packet").is_dir());
    let what = "node or mqtt-packet is not installed; apt-get install nodejs node-mqtt-packet";
    assert!(node.is_some() || !real_services_are_required(), "{what}");
    node
}

/// The other implementation.
struct Peer {
    _process: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(node: &Path) -> Peer {
        let mut command = Command::new(node);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/mqtt.js")).env("NODE_PATH", MODULES);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap_or_else(|why| panic!("{command:?}: {why}"));
        let questions = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Peer { _process: process, questions, answers }
    }

    async fn ask(&mut self, question: Json) -> Json {
        self.questions.write_all(format!("{question}\n").as_bytes()).await.expect("it reads");
        let answer = self.answers.next_line().await.expect("it writes").expect("an answer");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// What the packet with this first byte and body is.
    async fn read(&mut self, first: u8, body: &[u8]) -> Json {
        let mut packet = vec![first];
        let mut length = body.len();
        while length > 0x7f {
            packet.push(length as u8 | 0x80);
            length >>= 7;
        }
        packet.push(length as u8);
        packet.extend(body);
        self.ask(json!({ "parse": hex(&packet) })).await
    }

    async fn write(&mut self, version: u8, packet: Json) -> Vec<u8> {
        let answer = self.ask(json!({ "make": packet, "version": version })).await;
        unhex(answer.as_str().unwrap_or_else(|| panic!("{packet}: {answer}")))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
}

fn text(digits: &Json) -> String {
    String::from_utf8(unhex(digits.as_str().expect("digits"))).expect("text")
}

type Came = Arc<Mutex<Vec<Json>>>;

/// Lets the first connection not in, ends the second once a command was confirmed and something
/// published as its result, and keeps the third. Everything that comes is noted.
async fn broker(listener: TcpListener, node: PathBuf, version: u8, came: Came) {
    for connection in 1.. {
        let (stream, _) = listener.accept().await.expect("a connection");
        converse(stream, Peer::start(&node), version, connection, &came).await;
    }
}

async fn converse(mut stream: TcpStream, mut peer: Peer, version: u8, connection: u32, came: &Came) -> Option<()> {
    let of_5 = |properties: Json| if version == 5 { properties } else { Json::Null };
    loop {
        let (first, body) = script::packet(&mut stream).await?;
        let packet = peer.read(first, &body).await;
        assert_eq!(packet["error"], Json::Null, "{packet}");
        came.lock().expect("no panic").push(packet.clone());
        let id = &packet["messageId"];
        let mut answers = Vec::new();
        match packet["cmd"].as_str().expect("a type") {
            "connect" if connection == 1 => answers.push(json!({
                "cmd": "connack", "sessionPresent": false, "returnCode": 3, "reasonCode": 0x88,
                "properties": of_5(json!({ "reasonString": "closed for lunch", "userProperties": { "a": "b" } })),
            })),
            "connect" => answers.push(json!({
                "cmd": "connack", "sessionPresent": false, "returnCode": 0, "reasonCode": 0,
                "properties": of_5(json!({
                    "receiveMaximum": 7, "maximumPacketSize": 100_000, "serverKeepAlive": 2, "topicAliasMaximum": 3,
                    "assignedClientIdentifier": "x", "sharedSubscriptionAvailable": false, "reasonString": "hello",
                })),
            })),
            "publish" => answers.push(json!({
                "cmd": "puback", "messageId": id, "reasonCode": 0x10,
                "properties": of_5(json!({ "reasonString": "nobody listens", "userProperties": { "a": ["b", "c"] } })),
            })),
            "subscribe" => {
                answers.push(json!({
                    "cmd": "suback", "messageId": id, "granted": [1],
                    "properties": of_5(json!({ "reasonString": "welcome" })),
                }));
                if packet["subscriptions"][0]["topic"] == "tidegate/gw/command" && connection == 2 {
                    answers.push(json!({
                        "cmd": "publish", "topic": "tidegate/gw/command", "qos": 1, "messageId": 777, "dup": true,
                        "retain": false, "payload": r#"{"id":"c-1","name":"ping"}"#,
                        "properties": of_5(json!({
                            "messageExpiryInterval": 600, "contentType": "application/json", "payloadFormatIndicator": true,
                            "responseTopic": "elsewhere", "userProperties": { "who": "me" },
                        })),
                    }));
                }
            }
            "pingreq" => answers.push(json!({ "cmd": "pingresp" })),
            _ => {}
        }
        for answer in answers {
            let bytes = peer.write(version, answer).await;
            stream.write_all(&bytes).await.ok()?;
        }
        if connection == 1 {
            return None;
        }
        let has = |name: &str, value: &str| came.lock().expect("no panic").iter().any(|packet| packet[name] == value);
        if connection == 2 && has("cmd", "puback") && has("topic", "tidegate/gw/result") {
            if version == 5 {
                let end = json!({
                    "cmd": "disconnect", "reasonCode": 0x8b, "properties": { "reasonString": "back in a minute" },
                });
                let bytes = peer.write(version, end).await;
                stream.write_all(&bytes).await.ok()?;
            }
            return None;
        }
    }
}

#[tokio::test]
async fn another_implementation_reads_what_the_gateway_sends_and_is_understood() {
    let Some(node) = node() else { return };
    for (version, name) in [(4, "3.1.1"), (5, "5")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("mqtt://127.0.0.1:{}", listener.local_addr().expect("an address").port());
        let came = Came::default();
        let mut task = JoinSet::new();
        task.spawn(broker(listener, node.clone(), version, came.clone()));

        let keys =
            format!("version = \"{name}\"\nself_test = false\nusername = \"me\"\npassword_file = \"PASSWORD\"\n");
        let mut gateway = Gateway::with_broker(&url, &keys);
        let password = gateway.directory().join("password");
        std::fs::write(&password, "s3cret\n").expect("a file");
        gateway.replace("PASSWORD", &password.display().to_string());
        let mut gateway = gateway.started().await;
        let (mut talk, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 7).await;
        talk.readings(1, 1, 10).await;
        talk.acked(10).await;

        let count = |cmd: &str| came.lock().expect("no panic").iter().filter(|packet| packet["cmd"] == cmd).count();
        gateway.says(if version == 5 { "closed for lunch" } else { "says that it is not available" }).await;
        eventually("there are three connections", async || count("connect") == 3).await;
        if version == 5 {
            gateway.says("it shuts down; the broker says \\\"back in a minute\\\"").await;
        }
        eventually("it pings", async || count("pingreq") > 0).await;
        gateway.terminate().await;
        eventually("it takes leave", async || count("disconnect") == 1).await;

        let came = came.lock().expect("no panic");
        let of = |cmd: &str| came.iter().filter(|packet| packet["cmd"] == cmd).cloned().collect::<Vec<_>>();
        for connect in of("connect") {
            let part = |name: &str| connect[name].clone();
            assert_eq!((part("protocolId"), part("protocolVersion")), (json!("MQTT"), json!(version)), "{connect}");
            assert_eq!((part("clientId"), part("clean")), (json!("tidegate-gw-mqtt"), json!(false)), "{connect}");
            assert_eq!((part("keepalive"), part("username")), (json!(5), json!("me")), "{connect}");
            assert_eq!(text(&connect["password"]), "s3cret", "{connect}");
            let will = &connect["will"];
            assert_eq!((&will["topic"], &will["qos"]), (&json!("tidegate/gw/status"), &json!(1)), "{connect}");
            assert_eq!(will["retain"], true, "{connect}");
            let payload: Json = serde_json::from_str(&text(&will["payload"])).expect("JSON");
            assert_eq!((&payload["state"], &payload["reason"]), (&json!("offline"), &json!("connection lost")));
            let properties = match version {
                5 => {
                    let max = connect["properties"]["maximumPacketSize"].as_u64().expect("it is told");
                    assert!(max >= 64 << 10, "{connect}");
                    json!({ "sessionExpiryInterval": u32::MAX, "receiveMaximum": 64, "maximumPacketSize": max })
                }
                _ => Json::Null,
            };
            assert_eq!(connect["properties"], properties, "{connect}");
        }

        let publishes = of("publish");
        let to = |topic: &str| publishes.iter().filter(|packet| packet["topic"] == topic).cloned().collect::<Vec<_>>();
        for publish in &publishes {
            let is_status = publish["topic"].as_str().is_some_and(|topic| topic.ends_with("/status"));
            assert_eq!((&publish["qos"], &publish["dup"]), (&json!(1), &json!(false)), "{publish}");
            assert_eq!(publish["retain"], is_status, "{publish}");
            assert!(publish["messageId"].as_u64().is_some_and(|id| id > 0), "{publish}");
            let properties = match version {
                5 => json!({
                    "contentType": "application/json", "userProperties": { "encoding": "json", "compression": "none" },
                }),
                _ => Json::Null,
            };
            assert_eq!(publish["properties"], properties, "{publish}");
        }
        let states: Vec<_> = to("tidegate/gw/status").iter().map(|status| text(&status["payload"])).collect();
        let (last, others) = states.split_last().expect("statuses");
        assert!(last.contains("\"offline\"") && last.contains("\"stopped\""), "{last}");
        assert!(others.iter().all(|state| state.contains("\"online\"")), "{others:?}");
        let readings = to("tidegate/gw/readings");
        let decoded = readings.iter().map(|publish| {
            tidegate::sink::encode::decode(&unhex(publish["payload"].as_str().expect("digits")))
                .expect("a payload of ours")
        });
        let seqs: std::collections::BTreeSet<u64> =
            decoded.flat_map(|delivery| delivery.readings).filter_map(|reading| Some(reading.origin?.1)).collect();
        assert_eq!(seqs, (1..=10).collect());
        let result = text(&to("tidegate/gw/result").first().expect("the command's result")["payload"]);
        assert!(result.contains("\"c-1\""), "{result}");

        let subscriptions = of("subscribe");
        for subscribe in &subscriptions {
            let [asked] = &subscribe["subscriptions"].as_array().expect("a list")[..] else { panic!("{subscribe}") };
            assert_eq!(asked["qos"], 1, "{subscribe}");
            assert!(subscribe["messageId"].as_u64().is_some_and(|id| id > 0), "{subscribe}");
            if version == 5 {
                assert_eq!((&asked["nl"], &asked["rap"], &asked["rh"]), (&json!(false), &json!(false), &json!(0)));
            }
        }
        for filter in ["devices/+/command", "devices/+/+/command", "command", "status"] {
            let filter = format!("tidegate/gw/{filter}");
            assert!(subscriptions.iter().any(|packet| packet["subscriptions"][0]["topic"] == filter), "{filter}");
        }
        for confirmation in of("puback") {
            assert_eq!(confirmation["messageId"], 777, "{confirmation}");
            assert!(version == 4 || confirmation["reasonCode"] == 0, "{confirmation}");
        }
        assert!(version == 4 || of("disconnect")[0]["reasonCode"] == 0, "{:?}", of("disconnect"));
    }
}
