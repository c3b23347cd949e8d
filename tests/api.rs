//! The HTTP API, as programs and the command line ask it.

use crate::support::broker::Broker;
use crate::support::device::{Talk, sample};
use crate::support::gateway::Gateway;
use crate::support::listener::Listener;
use crate::support::tls::Certificates;
use crate::support::{PATIENCE, drip, eventually, installed, real_services_are_required};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tidegate::wire::message::{CommandResult, DeviceMessage, GatewayMessage, Readings, ResultState, SubDevice};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What the command line says about the gateway.
fn tidegate(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let (verb, rest) = arguments.split_at(if arguments[0] == "queue" { 2 } else { 1 });
    command.args(verb).arg("-c").arg(gateway.config_file()).args(rest);
    command.output().expect("it runs")
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn the_command_line_asks_over_tls_and_believes_the_configured_certificate_alone() {
    let certificates = Certificates::new();
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let ca = certificates.path("ca.pem");
    gateway.keys("[http]", &format!("{}client_ca_file = {ca:?}\n", certificates.listener()));
    gateway.start().await;
    let (mut pump, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 1).await;
    pump.readings(1, 1, 3).await;
    pump.acked(3).await;
    let devices = tidegate(&gateway, &["devices"]);
    assert!(told(&devices).0 == Some(0) && told(&devices).1.contains("pump "), "{devices:?}");
    let ping = ["send", "--gateway", "ping", "--wait"];
    let sent = tidegate(&gateway, &ping);
    assert!(told(&sent).0 == Some(0) && told(&sent).1.contains(" done"), "{sent:?}");
    // It looks for a second at a gateway that answers.
    let since = Instant::now();
    let stats = tidegate(&gateway, &["queue", "stats"]);
    assert!(told(&stats).0 == Some(0) && since.elapsed() >= Duration::from_secs(1), "{stats:?}");

    // Renewed, perhaps within the second in which the gateway does not look.
    certificates.issue("server", "localhost");
    let sent = tidegate(&gateway, &ping);
    assert_eq!(told(&sent).0, Some(0), "{sent:?}");
    // Renewed, but not its key: the gateway goes on with the old one.
    let key = std::fs::read(certificates.path("server.key")).expect("a key");
    certificates.issue("server", "localhost");
    std::fs::write(certificates.path("server.key"), key).expect("it can be written");
    let (code, said) = told(&tidegate(&gateway, &ping));
    assert_eq!(code, Some(1));
    for words in ["shows another certificate than", "server.pem", "cert_file", "its log tells"] {
        assert!(said.contains(words), "{said}");
    }
    gateway.terminate().await;

    // Something else there.
    let address = gateway.http_address();
    let listener = TcpListener::bind(&address).expect("the port is free");
    let plain = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    let (code, said) = told(&tidegate(&gateway, &ping));
    assert!(code == Some(1) && said.contains(&format!("no TLS with what answers at {address}")), "{said}");
    plain.join().expect("it was asked").expect("it answers");
}

#[tokio::test]
async fn the_curl_commands_of_the_documentation_do_what_it_says() {
    if installed("curl").is_none() {
        assert!(!real_services_are_required(), "curl is not installed");
        return println!("curl is not installed: not tried");
    }
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    let (mut hub, _) = Talk::welcomed(&gateway.tcp_address(), "hub", 7).await;
    hub.say(&DeviceMessage::SubDevice(SubDevice { sub: "door".into(), online: true, reason: None })).await;
    eventually("the door is known", async || matches!(gateway.get("/api/v1/devices/hub%2Fdoor").await, Some((200, _))))
        .await;
    let (mut valve, _) = Talk::welcomed(&gateway.tcp_address(), "valve-3", 7).await;
    let valve = tokio::spawn(async move {
        while let Some(message) = valve.hear().await {
            if let GatewayMessage::Command(command) = message {
                let (id, payload) = (command.id, command.payload);
                let result = CommandResult { id, state: ResultState::Done, payload };
                valve.say(&DeviceMessage::CommandResult(result)).await;
            }
        }
    });

    let certificates = Certificates::new();
    certificates.issue("server", "gateway.local");
    let (mut guarded, token) = guarded(&certificates.listener());
    guarded.start().await;
    let [open, closed] = [gateway.http_address(), guarded.http_address()];
    let port = closed.rsplit_once(':').expect("a port").1;
    let resolve = format!("gateway.local:{port}:127.0.0.1");
    let mut said = String::new();
    let documentation = include_str!("../docs/http.md").split("```sh\n").skip(1);
    for block in documentation.filter_map(|rest| rest.split("```").next()).filter(|block| block.contains("curl ")) {
        let script = block
            .replace("http://127.0.0.1:7412", &format!("http://{open}"))
            .replace("gateway.local:7412", &format!("gateway.local:{port}"))
            .replace("/etc/tidegate/http-token", &token.display().to_string())
            .replace("/etc/tidegate/ca.pem", &certificates.path("ca.pem").display().to_string());
        let curl = format!("curl() {{ command curl --noproxy '*' -fsS --resolve {resolve} \"$@\"; echo; }}");
        let run = tokio::process::Command::new("sh").args(["-ec", &format!("{curl}\n{script}")]).output().await;
        let output = run.expect("there is a shell");
        assert!(output.status.success(), "{script}{output:?}");
        said += &String::from_utf8_lossy(&output.stdout);
    }
    for words in [
        "\"status\":\"ok\"",
        "# EOF",
        "# TYPE tidegate_readings_received_total counter",
        "\"device\":\"hub/door\"",
        "\"history\":[",
        "\"name\":\"ping\"",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    assert!(said.contains("\"id\":\"c-1042\"") && said.contains("\"result\":{\"percent\":40}"), "{said}");
    valve.abort();
}

#[tokio::test]
async fn prometheus_reads_the_figures_whatever_it_accepts() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    is_open(&gateway).await;
    let figures = async |accept: &str| {
        let mut stream = TcpStream::connect(gateway.http_address()).await.expect("the gateway listens");
        let head = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{accept}\r\n");
        stream.write_all(head.as_bytes()).await.expect("it takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.to_lowercase(), body.to_owned())
    };
    let (head, body) = figures("Accept: application/openmetrics-text\r\n").await;
    assert!(head.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    for accept in ["", "Accept: */*\r\n", "Accept: text/plain\r\n"] {
        let (head, body) = figures(accept).await;
        assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{accept}: {head}");
        assert!(!body.contains("# EOF"), "{body}");
        let Some(promtool) = installed("promtool") else { continue };
        let mut command = Command::new(promtool);
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        child.stdin.take().expect("a pipe").write_all(body.as_bytes()).expect("it reads");
        let verdict = child.wait_with_output().expect("it ends");
        assert!(verdict.status.success(), "{accept}: {verdict:?}");
    }
}

/// Waits until the API is: devices are let in after that only.
async fn is_open(gateway: &Gateway) {
    Talk::welcomed(&gateway.tcp_address(), "first", 1).await;
}

/// A gateway that wants a token, with more keys for `[http]`; and the token's file.
fn guarded(keys: &str) -> (Gateway, PathBuf) {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    let file = gateway.directory().join("token");
    std::fs::write(&file, TOKEN).expect("a file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    gateway.keys("[http]", &format!("token_file = {file:?}\n{keys}"));
    (gateway, file)
}

/// An answer to a request.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

/// Sends a request, whose body need not be what its headers say.
async fn ask(gateway: &Gateway, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("the gateway listens");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all((head + body).as_bytes()).await.expect("it takes a request");
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
    read.expect("it answers in time").expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    let body = serde_json::from_str(body).unwrap_or_else(|why| panic!("{method} {path}: {why}: {answer}"));
    Answer { status, head: head.to_lowercase(), body }
}

async fn get(gateway: &Gateway, path: &str) -> Value {
    let answer = ask(gateway, "GET", path, "", "").await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.body
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    ask(gateway, "POST", path, &headers, &body).await
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_json_that_says_why() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "").started().await;
    is_open(&gateway).await;
    let json = "Content-Type: application/json\r\n";
    let long = "x".repeat(65);
    let (long_device, long_id) = (format!("/api/v1/devices/{long}"), format!("/api/v1/commands/{long}"));
    let chunked = format!("{json}Transfer-Encoding: chunked\r\n");
    let huge = format!("28000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x28000));
    let announced = format!("{json}Content-Length: 10000000\r\n");
    for (method, path, headers, body, status, words) in [
        ("GET", "/", "", "", 404, "nothing at /"),
        ("GET", "/api/v1/nothing", "", "", 404, "nothing at /api/v1/nothing"),
        ("GET", "/api/v2/devices", "", "", 404, "nothing at"),
        ("GET", "/api/v1/devices/hub/door", "", "", 404, "HUB%2FSUB"),
        ("GET", "/ws/device", "", "", 404, "[http] devices = true"),
        ("DELETE", "/api/v1/devices", "", "", 405, "/api/v1/devices does not answer to DELETE"),
        ("POST", "/metrics", "Content-Length: 1\r\n", "x", 405, "/metrics"),
        ("PUT", "/api/v1/devices/pump/commands", "", "", 405, "PUT"),
        ("GET", "/api/v1/devices/no%20name", "", "", 400, "' '"),
        ("GET", "/api/v1/devices/%FF", "", "", 400, "UTF-8"),
        ("GET", "/api/v1/devices/a%2Fb%2Fc", "", "", 400, "'/'"),
        ("GET", "/api/v1/devices/hub%252Fdoor", "", "", 400, "'%'"),
        ("GET", &long_device, "", "", 400, "65 bytes long"),
        ("GET", &long_id, "", "", 400, "65 bytes long"),
        ("GET", "/api/v1/devices/no%20name/history", "", "", 400, "' '"),
        ("POST", "/api/v1/devices/no%20name/commands", json, "", 400, "' '"),
        ("GET", "/api/v1/devices?limit=many", "", "", 400, "limit"),
        ("GET", "/api/v1/devices?limit=-1", "", "", 400, "limit"),
        ("GET", "/api/v1/devices?after=a%20b", "", "", 400, "' '"),
        ("GET", "/api/v1/devices?limt=5", "", "", 400, "unknown field `limt`, expected `after` or `limit`"),
        ("GET", "/api/v1/history?before=yesterday", "", "", 400, "before"),
        ("GET", "/api/v1/commands?wait=1s", "", "", 400, "unknown field `wait`"),
        ("GET", "/api/v1/commands/c-1?wait=10", "", "", 400, "which is not a duration; give one such as 5s"),
        ("POST", "/api/v1/commands?wait=soon", json, "", 400, "wait is"),
        ("POST", "/api/v1/commands", json, "", 400, "EOF"),
        ("POST", "/api/v1/commands", "Content-Type: text/plain\r\n", "", 415, "Content-Type: application/json"),
        ("POST", "/api/v1/commands", &announced, "", 413, "more than 131072 bytes"),
        ("POST", "/api/v1/commands", &chunked, &huge, 413, "more than 131072 bytes"),
    ] {
        let answer = ask(&gateway, method, path, headers, body).await;
        let error = answer.body["error"].as_str().expect("an error");
        assert!(answer.status == status && error.contains(words), "{method} {path}: {} {error}", answer.status);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        assert_eq!(answer.head.contains("\r\nallow: "), status == 405, "{}", answer.head);
    }
}

#[tokio::test]
async fn a_page_may_command_devices_from_an_allowed_origin_only_even_with_the_token() {
    let (mut gateway, _) = guarded("allowed_origins = [\"https://plant.example.com\"]\n");
    gateway.start().await;
    is_open(&gateway).await;
    let command = "{\"name\":\"open\"}";
    for (origin, status) in [("https://plant.example.com", 202), ("https://evil.example.com", 403)] {
        let headers = format!(
            "Authorization: Bearer {TOKEN}\r\nOrigin: {origin}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            command.len()
        );
        let answer = ask(&gateway, "POST", "/api/v1/devices/valve/commands", &headers, command).await;
        assert_eq!(answer.status, status, "{origin}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_body_that_drips_is_not_waited_for_longer_than_any_request() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", "");
    gateway.keys("[http]", "handshake_timeout = \"1s\"\n");
    gateway.start().await;
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("it listens");
    let head = "POST /api/v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Content-Length: 1000\r\n\r\n").as_bytes()).await.expect("it is taken");
    let since = Instant::now();
    drip(&mut stream, b' ', since, Duration::from_secs(10)).await;
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
    // One that waits for its command's end has come, and may take longer.
    let since = Instant::now();
    let waited = post(&gateway, "/api/v1/devices/pump/commands?wait=2s", &json!({"name": "open"})).await;
    assert!(waited.status == 202 && since.elapsed() >= Duration::from_secs(2), "{}", waited.body);
}

#[tokio::test]
async fn a_device_behind_a_hub_is_asked_about_and_commanded_like_any_other() {
    const STATUS: &str = "tidegate/gw/devices/hub/door/status";
    let broker = Broker::start().await;
    let sections = "[devices]\noffline_delay = \"100ms\"\n";
    let gateway = Gateway::with_broker(&broker.gateway_url(), sections).started().await;
    let (mut hub, _) = Talk::welcomed(&gateway.tcp_address(), "hub", 7).await;
    let door = Readings { seq: 1, sub: Some("door".into()), samples: vec![sample(1, 1)] };
    hub.say(&DeviceMessage::Readings(door)).await;
    hub.acked(1).await;
    let path = "/api/v1/devices/hub%2fdoor";
    let status = get(&gateway, path).await;
    assert_eq!((&status["device"], &status["state"]), (&json!("hub/door"), &json!("online")));
    let after = get(&gateway, "/api/v1/devices?after=hub&limit=1").await;
    assert_eq!((&after["devices"][0]["device"], &after["next"]), (&json!("hub/door"), &json!("hub/door")));
    let after = get(&gateway, "/api/v1/devices?after=hub%2Fdoor").await;
    assert_eq!(after, json!({"devices": [], "next": null}));

    let commands = format!("{path}/commands");
    let given = post(&gateway, &commands, &json!({"id": "c-1", "name": "open"})).await;
    assert_eq!((given.status, &given.body["device"]), (202, &json!("hub/door")));
    let command = loop {
        match hub.hear().await {
            Some(GatewayMessage::SubCommand(command)) => break command,
            Some(_) => {}
            None => panic!("the connection was closed"),
        }
    };
    assert_eq!((command.sub.as_str(), command.id.as_str()), ("door", "c-1"));
    let result = CommandResult { id: "c-1".into(), state: ResultState::Done, payload: None };
    hub.say(&DeviceMessage::CommandResult(result)).await;
    let ended = get(&gateway, &format!("{commands}/c-1?wait=10s")).await;
    assert_eq!(ended["state"], "done");
    assert_eq!(get(&gateway, &commands).await["commands"], json!([ended]));
    // The hub itself was given none.
    assert_eq!(get(&gateway, "/api/v1/devices/hub/commands").await, json!({"commands": []}));

    let gone = SubDevice { sub: "door".into(), online: false, reason: None };
    hub.say(&DeviceMessage::SubDevice(gone)).await;
    eventually("it is told as offline", async || {
        let history = get(&gateway, &format!("{path}/history")).await;
        let entries = history["history"].as_array().expect("entries");
        assert!(entries.iter().all(|entry| entry["device"] == "hub/door"), "{history}");
        entries.first().is_some_and(|latest| latest["state"] == "offline")
    })
    .await;
    // What is retained of it is what the API says.
    let asked = get(&gateway, path).await;
    assert_eq!((&asked["state"], &asked["reason"]), (&json!("offline"), &json!("hub")));
    eventually("it is retained", async || {
        let late = Listener::start(broker.port(), &[STATUS]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let retained = late.messages(STATUS);
        retained.len() == 1
            && ["device", "state", "reason", "link", "flaps"].iter().all(|key| retained[0][key] == asked[key])
    })
    .await;
}
