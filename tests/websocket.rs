//! Devices over WebSocket: the same sessions and promises as over TCP, and whom the HTTP
//! server lets ask.

use crate::support::broker::Broker;
use crate::support::device::{JSON, POSTCARD, Talk, hello as frame_hello, sample};
use crate::support::drip;
use crate::support::gateway::Gateway;
use crate::support::subscriber::{Subscriber, options};
use crate::support::tls::Certificates;
use crate::support::web::{START, Web, hello};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use tidegate::device::auth::Secret;
use tidegate::model::Value;
use tidegate::wire::codec::{decode_gateway, encode_device};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, MAX_BODY, Recovery, Version};
use tidegate::wire::message::{DeviceMessage, GatewayMessage, Readings, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// A gateway without any broker to reach, which takes WebSockets.
fn offline(http: &str, sections: &str) -> Gateway {
    open(Gateway::with_broker("mqtt://127.0.0.1:1", sections), http)
}

fn open(mut gateway: Gateway, http: &str) -> Gateway {
    gateway.keys("[http]", &format!("devices = true\n{http}"));
    gateway
}

fn frame(message: &DeviceMessage, format: Format) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_device(message, format, &mut bytes);
    bytes
}

/// The one message in a binary message, and how it is written.
fn unframed(bytes: &[u8]) -> (Format, GatewayMessage) {
    let mut found = Vec::new();
    let limits = Limits { max_body: MAX_BODY, require_checksum: false };
    let pushed = Decoder::new(limits, Recovery::Fail).push(bytes, &mut |event| {
        if let Event::Frame(frame) = event {
            found.push((frame.format, decode_gateway(&frame).expect("a message")));
        }
        std::ops::ControlFlow::Continue(())
    });
    pushed.expect("a frame");
    assert_eq!(found.len(), 1, "one whole frame a message");
    found.remove(0)
}

async fn binary(web: &mut Web) -> (Format, GatewayMessage) {
    match web.next().await {
        Some(Message::Binary(bytes)) => unframed(&bytes),
        other => panic!("no binary message: {other:?}"),
    }
}

#[tokio::test]
async fn readings_over_text_and_binary_messages_are_acknowledged_and_reach_the_broker() {
    let broker = Broker::start().await;
    let subscriber = Subscriber::start(&options(broker.port())).await;
    let gateway = open(Gateway::with_broker(&broker.gateway_url(), ""), "").started().await;
    let address = gateway.http_address();

    let (mut web, settled) = Web::welcomed(&address, "page", 7).await;
    assert_eq!(settled, 0);
    for seq in 1..=3 {
        web.reading(seq).await;
    }
    web.acked(3).await;

    // Frames cut anywhere, as TCP would cut them.
    let mut web = Web::connect(&address).await;
    let samples = (1..=4).map(|seq| sample(2, seq)).collect();
    let readings = DeviceMessage::Readings(Readings { seq: 1, sub: None, samples });
    web.send(Message::binary(frame(&frame_hello("frames", 8, 1), POSTCARD))).await;
    let (format, welcome) = binary(&mut web).await;
    assert!(matches!((format, welcome), (POSTCARD, GatewayMessage::Welcome(_))));
    for piece in frame(&readings, POSTCARD).chunks(7) {
        web.send(Message::binary(piece.to_vec())).await;
    }
    assert!(matches!(binary(&mut web).await, (POSTCARD, GatewayMessage::Ack(_))));

    subscriber.heard(7).await;
    let readings = subscriber.readings();
    let of = |device: &str| readings.iter().filter(|reading| reading.device.as_str() == device).collect::<Vec<_>>();
    assert_eq!((of("page").len(), of("frames").len()), (3, 4));
    let page = of("page")[0];
    assert_eq!(page.values[0].1, Value::Float(1.0), "{page:?}");
    assert_eq!(page.time.to_string(), "2026-01-01T00:00:00.000000Z");
}

#[tokio::test]
async fn the_kind_of_the_last_message_is_the_kind_of_the_answer() {
    let gateway = offline("", "").started().await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", 7).await;
    for format in [JSON, POSTCARD, Format { version: Version::V1, encoding: BodyEncoding::Json }] {
        let heartbeat = DeviceMessage::Heartbeat(tidegate::wire::message::Heartbeat { time: 0 });
        web.send(Message::binary(frame(&heartbeat, format))).await;
        assert!(matches!(binary(&mut web).await, (f, GatewayMessage::HeartbeatReply(_)) if f == format));
        web.say(json!({"command": "heartbeat", "timestamp": START})).await;
        let reply = web.hear("heartbeat-reply").await;
        assert_eq!((&reply["deviceId"], &reply["payload"]), (&json!("page"), &json!({"time_trusted": true})));
        assert!(reply["timestamp"].as_str().is_some_and(|time| time.starts_with("20")), "{reply}");
    }
}

#[tokio::test]
async fn a_page_that_comes_back_goes_on_where_the_gateway_got_to() {
    let mut gateway = offline("", "").started().await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", u64::MAX).await;
    web.reading(1).await;
    web.reading(2).await;
    web.acked(2).await;
    gateway.kill();
    assert!(web.next().await.is_none());
    gateway.start().await;
    let (mut web, settled) = Web::welcomed(&gateway.http_address(), "page", u64::MAX).await;
    assert_eq!(settled, 2);
    web.reading(2).await;
    web.reading(3).await;
    web.acked(3).await;
    gateway.figure_becomes("tidegate_readings_stored_total", |stored| stored == 1.0).await;
    let status = gateway.terminate().await;
    assert!(status.success());
    assert_eq!(web.goodbye().await, ("stopping".into(), "the gateway is stopping".into(), 1001));
}

#[tokio::test]
async fn a_device_takes_over_between_tcp_and_websocket() {
    let gateway = offline("", "").started().await;
    let (mut tcp, _) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "pump", 5).await;
    assert_eq!(tcp.goodbye().await.reason, Reason::TakenOver);
    web.reading(1).await;
    web.acked(1).await;
    let (_tcp, welcome) = Talk::welcomed(&gateway.tcp_address(), "pump", 5).await;
    assert_eq!(welcome.settled, 1);
    let (reason, text, code) = web.goodbye().await;
    assert_eq!((reason.as_str(), text.as_str(), code), ("taken-over", "the same device connected again", 1008));
    assert_eq!(gateway.figure("tidegate_devices_connected").await, 1.0);
}

/// What the gateway says to `message` of a device that was welcomed.
async fn answer_to(gateway: &Gateway, message: Message) -> (String, String, u16) {
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    web.send(message).await;
    web.goodbye().await
}

#[tokio::test]
async fn mistakes_are_answered_with_what_was_wrong() {
    let gateway = offline("", "").started().await;
    let text = |message: Json| Message::text(message.to_string());
    for (message, reason, words, code) in [
        (Message::text("{\"command\":"), "bad-frame", "EOF while parsing a value at line 1 column 11", 1007),
        (text(json!({"command": "dance"})), "bad-frame", "\"dance\" is unknown here", 1007),
        (text(json!({"command": "heartbeat", "timestamp": 1_763_859_723_456_u64})), "bad-frame", "is a number", 1007),
        (text(json!({"deviceId": "other", "command": "heartbeat", "timestamp": START})), "bad-frame", "\"page\"", 1007),
        (text(hello("page", 1)), "protocol", "a second Hello", 1008),
        (Message::binary(b"GET / HTTP/1.1".to_vec()), "bad-frame", "magic", 1007),
        (Message::text("x".repeat(70_000)), "too-large", "70000 bytes is larger than the 65536", 1009),
    ] {
        let (got_reason, text, got_code) = answer_to(&gateway, message).await;
        assert_eq!((got_reason.as_str(), got_code), (reason, code), "{text}");
        assert!(text.contains(words), "{text:?} lacks {words:?}");
    }
    let invalid = gateway.figure("tidegate_frames_invalid_total{link=\"websocket\",reason=\"body\"}").await;
    assert_eq!(invalid, 4.0);

    // Before it is welcomed, less is granted.
    let mut web = Web::connect(&gateway.http_address()).await;
    web.say(json!({"command": "heartbeat", "timestamp": START})).await;
    assert_eq!(web.goodbye().await, ("protocol".into(), "send Hello first".into(), 1008));
    let mut web = Web::connect(&gateway.http_address()).await;
    web.say(json!({"command": "hello", "filler": "x".repeat(1024)})).await;
    assert_eq!(web.goodbye().await.0, "too-large");
}

fn piece(kind: Data, last: bool, payload: &[u8]) -> Message {
    Message::Frame(Frame::message(payload.to_vec(), OpCode::Data(kind), last))
}

#[tokio::test]
async fn messages_in_pieces_are_put_together_and_bounded() {
    let gateway = offline("max_frame = \"4KiB\"\n", "").started().await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    let heartbeat = json!({"command": "heartbeat", "timestamp": START, "filler": "x".repeat(3000)}).to_string();
    let (head, tail) = heartbeat.as_bytes().split_at(1500);
    web.send(piece(Data::Text, false, head)).await;
    web.send(Message::Ping(b"still there?".to_vec().into())).await;
    assert!(matches!(web.next().await, Some(Message::Pong(data)) if data.as_ref() == b"still there?"));
    web.send(piece(Data::Continue, true, tail)).await;
    web.hear("heartbeat-reply").await;

    web.send(piece(Data::Text, false, &[b'x'; 3000])).await;
    web.send(piece(Data::Continue, false, &[b'x'; 3000])).await;
    let (reason, text, code) = web.goodbye().await;
    assert_eq!((reason.as_str(), code), ("too-large", 1009), "{text}");
}

#[tokio::test]
async fn what_is_against_the_rules_of_websocket_is_told_by_its_close_frame() {
    let gateway = offline("", "").started().await;
    let frame = frame(&frame_hello("page", 1, 1), POSTCARD);
    let within = [Message::binary(frame[..15].to_vec()), Message::text("{}")];
    let within_message = [piece(Data::Text, false, b"{"), piece(Data::Text, true, b"}")];
    let lone = [piece(Data::Continue, true, b"x"), Message::Ping(Vec::new().into())];
    for messages in [within, within_message, lone] {
        let mut web = Web::connect(&gateway.http_address()).await;
        for message in messages {
            web.send(message).await;
        }
        assert_eq!(web.closed().await, 1002);
    }
    let name = "tidegate_frames_invalid_total{link=\"websocket\",reason=\"websocket\"}";
    gateway.figure_becomes(name, |count| count == 3.0).await;
}

#[tokio::test]
async fn a_goodbye_or_a_close_frame_of_the_device_ends_its_session() {
    let gateway = offline("", "").started().await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    web.reading(1).await;
    web.acked(1).await;
    web.say(json!({"command": "goodbye", "payload": {"reason": "normal"}})).await;
    assert_eq!(web.closed().await, 1000);
    let (mut web, settled) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    assert_eq!(settled, 1);
    web.send(Message::Close(None)).await;
    assert_eq!(web.closed().await, 1000);
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
}

#[tokio::test]
async fn connections_that_say_nothing_or_drip_are_gone_within_the_handshake_timeout() {
    const HANDSHAKE: Duration = Duration::from_millis(1500);
    let gateway = offline("handshake_timeout = \"1500ms\"\n", "").started().await;
    let address = gateway.http_address();
    let gone = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&address).await.expect("it listens");
        let since = Instant::now();
        stream.write_all(bytes).await.expect("a few bytes are taken");
        // A byte now and then does not prolong it.
        let answer = drip(&mut stream, b'x', since, 20 * HANDSHAKE).await;
        (since.elapsed(), String::from_utf8_lossy(&answer).into_owned())
    };
    let request = "GET /ws/device HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (bytes, answered) in [
        (request.to_owned() + "X-Filler: ", false),
        // Half of a text message, whose other half drips.
        (request.to_owned() + "\r\n\u{1}", true),
    ] {
        let mut bytes = bytes.into_bytes();
        if answered {
            bytes.pop();
            bytes.extend([0x81, 0xfe, 0x03, 0x00, 0, 0, 0, 0]);
        }
        let (after, answer) = gone(&bytes).await;
        assert!(after >= HANDSHAKE && after < 4 * HANDSHAKE, "{after:?}");
        assert_eq!(answer.starts_with("HTTP/1.1 101"), answered, "{answer}");
    }
    let mut web = Web::connect(&address).await;
    let since = Instant::now();
    let (reason, text, code) = web.goodbye().await;
    assert_eq!((reason.as_str(), text.as_str(), code), ("timeout", "no Hello came within 1s 500ms", 1008));
    assert!(since.elapsed() < 4 * HANDSHAKE);
    // Nor do pings, however many, as nobody else is kept waiting by them.
    let mut web = Web::connect(&address).await;
    let since = Instant::now();
    loop {
        web.send(Message::Ping(Vec::new().into())).await;
        match tokio::time::timeout(Duration::from_millis(1), web.next()).await {
            Ok(Some(Message::Text(text))) => break assert!(text.contains("timeout"), "{text}"),
            Ok(None) => panic!("no goodbye"),
            _ => assert!(since.elapsed() < 20 * HANDSHAKE),
        }
    }
}

/// Asks for a WebSocket as slowly as it takes to send so much of the request after a pause;
/// what is answered until the connection is closed, and when that is.
async fn slow(address: &str, before: &str, pause: Duration) -> (Duration, String) {
    const REST: &str = "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let since = Instant::now();
    stream.write_all(before.as_bytes()).await.expect("it is taken");
    tokio::time::sleep(pause).await;
    let request = if before.ends_with("\r\n\r\n") { "GET /ws/device HTTP/1.1\r\n" } else { "" };
    stream.write_all(format!("{request}{REST}").as_bytes()).await.expect("it is taken");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    (since.elapsed(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn the_handshake_timeout_counts_from_where_the_request_began() {
    const HANDSHAKE: Duration = Duration::from_secs(3);
    const PAUSE: Duration = Duration::from_millis(2500);
    let gateway = offline("handshake_timeout = \"3s\"\n", "").started().await;
    let address = gateway.http_address();
    // What a slow request took is not to be had again for the Hello.
    let first = slow(&address, "GET /ws/device HTTP/1.1\r\n", PAUSE);
    // A connection that has served another request is none the worse for that.
    let another = slow(&address, "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", PAUSE);
    let ((first, said), (another, later_said)) = tokio::join!(first, another);
    for answer in [said, later_said] {
        assert!(answer.contains("101 Switching Protocols") && answer.contains("no Hello came within 3s"), "{answer}");
    }
    assert!(first >= HANDSHAKE && first < PAUSE + Duration::from_secs(2), "{first:?}");
    assert!(another >= HANDSHAKE + PAUSE, "{another:?}");
}

#[tokio::test]
async fn a_later_request_of_a_connection_that_drips_is_not_waited_for_either() {
    let gateway = offline("handshake_timeout = \"1s\"\n", "").started().await;
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("it listens");
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it is taken");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let since = Instant::now();
    stream.write_all(b"GET /health/live HTTP/1.1\r\n").await.expect("it has time between requests");
    drip(&mut stream, b'x', since, Duration::from_secs(10)).await;
    assert!(since.elapsed() >= Duration::from_millis(900), "{:?}", since.elapsed());
}

#[tokio::test]
async fn one_address_has_so_many_websockets_as_it_may_and_its_own_heartbeat() {
    let keys = "max_connections_per_address = 2\nheartbeat_interval = \"1s\"\nidle_timeout = \"2s\"\n";
    let gateway = offline(keys, "").started().await;
    let address = gateway.http_address();
    let mut first = Web::connect(&address).await;
    first.say(hello("page-1", 1)).await;
    assert_eq!(first.hear("welcome").await["payload"]["heartbeat_interval"], 1);
    let (mut second, _) = Web::welcomed(&address, "page-2", 1).await;
    let mut third = Web::connect(&address).await;
    let Err((status, why)) = Web::try_connect(&address, &[]).await else { panic!("a fourth") };
    assert!(status == 429 && why.contains("of this address"), "{status} {why}");
    third.say(hello("page-3", 1)).await;
    let (reason, text, _) = third.goodbye().await;
    assert!(reason == "busy" && text.contains("of this address"), "{reason} {text}");
    let name = "tidegate_connections_refused_total{link=\"websocket\",reason=\"address\"}";
    assert_eq!(gateway.figure(name).await, 2.0);
    // It is silent for longer than it may be here, which is more elsewhere; its place is free.
    first.hear("heartbeat-reply").await;
    assert_eq!(first.goodbye().await.1, "nothing was heard within 2s");
    drop(second.next().await);
    gateway.figure_becomes("tidegate_devices_connected", |count| count == 0.0).await;
    Web::welcomed(&address, "page-3", 1).await;
}

#[tokio::test]
async fn a_message_in_pieces_whose_rest_does_not_come_ends_its_connection() {
    let gateway = offline("frame_timeout = \"500ms\"\n", "").started().await;
    let (mut web, _) = Web::welcomed(&gateway.http_address(), "page", 1).await;
    web.send(piece(Data::Text, false, b"{\"command\":")).await;
    let since = Instant::now();
    assert_eq!(web.closed().await, 1008);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[tokio::test]
async fn other_requests_are_answered_while_more_devices_are_there_than_requests_may_be() {
    const DEVICES: u64 = 100;
    let gateway = offline(&format!("max_connections = {DEVICES}\n"), "").started().await;
    let address = gateway.http_address();
    let mut devices = Vec::new();
    for number in 0..DEVICES {
        devices.push(Web::welcomed(&address, &format!("page-{number}"), 1).await.0);
    }
    assert_eq!(gateway.figure("tidegate_devices_connected").await, DEVICES as f64);
    assert_eq!(gateway.get("/health/live").await.map(|(status, _)| status), Some(200));
    // Nor do those keep anybody out that ask for nothing.
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(&address).await.expect("it listens"));
    }
    assert!(gateway.get("/metrics").await.is_some());
    // One more is told so when it says hello.
    let mut web = Web::connect(&address).await;
    web.say(hello("late", 1)).await;
    assert_eq!(web.goodbye().await.0, "busy");
    // But one whose older connection is half open takes its place.
    let (mut again, _) = Web::welcomed(&address, "page-7", 1).await;
    again.reading(1).await;
    again.acked(1).await;
    for web in &mut devices[90..] {
        web.reading(1).await;
        web.acked(1).await;
    }
}

#[tokio::test]
async fn a_device_that_overruns_its_window_is_held_back_and_loses_nothing() {
    const COUNT: u64 = 2000;
    let sections = "[devices]\nwindow = 10\n[store]\ncommit_within = \"20ms\"\n";
    let gateway = offline("", sections).started().await;
    let mut web = Web::connect(&gateway.http_address()).await;
    web.send(Message::binary(frame(&frame_hello("page", 1, 1), JSON))).await;
    assert!(matches!(binary(&mut web).await.1, GatewayMessage::Welcome(welcome) if welcome.window == 10));
    let mut sent = Vec::new();
    for first in (1..=COUNT).step_by(10) {
        let samples = (first..first + 10).map(|seq| sample(1, seq)).collect();
        sent.extend(frame(&DeviceMessage::Readings(Readings { seq: first, sub: None, samples }), JSON));
        if sent.len() > 3000 {
            web.send(Message::binary(std::mem::take(&mut sent))).await;
        }
    }
    web.send(Message::binary(sent)).await;
    loop {
        match web.next().await {
            Some(Message::Binary(bytes)) => match unframed(&bytes).1 {
                GatewayMessage::Ack(ack) if ack.seq == COUNT => break,
                GatewayMessage::Ack(_) => {}
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn only_pages_of_allowed_origins_may_connect() {
    let gateway = offline("allowed_origins = [\"https://plant.example.com\", \"null\"]\n", "").started().await;
    let address = gateway.http_address();
    let own = format!("http://{address}");
    for origin in [own.as_str(), "https://plant.example.com", "null"] {
        assert!(Web::try_connect(&address, &[("origin", origin)]).await.is_ok(), "{origin}");
    }
    for origin in ["https://evil.example.com", "http://plant.example.com", "http://localhost:8000"] {
        let Err((status, why)) = Web::try_connect(&address, &[("origin", origin)]).await else { panic!("{origin}") };
        assert!(status == 403 && why.contains("allowed_origins"), "{status} {why}");
    }
    // A name that somebody else had point here.
    let rebound = [("host", "evil.example.com"), ("origin", "http://evil.example.com")];
    let Err((status, _)) = Web::try_connect(&address, &rebound).await else { panic!("rebound") };
    assert_eq!(status, 403);
    assert_eq!(gateway.figure("tidegate_http_denied_total{reason=\"origin\"}").await, 4.0);
}

/// The status that a request gets, and all of the answer.
async fn ask(address: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    (answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), answer)
}

#[tokio::test]
async fn a_server_without_a_token_answers_to_its_address_only() {
    let gateway = offline("", "").started().await;
    let address = gateway.http_address();
    for path in ["/metrics", "/health/ready"] {
        assert_eq!(ask(&address, path, "Host: localhost\r\n").await.0, 200);
        assert_eq!(ask(&address, path, "Host: evil.example.com\r\n").await.0, 403);
        assert_eq!(ask(&address, path, "Host: localhost\r\nOrigin: http://a.example.com\r\n").await.0, 403);
    }
    assert_eq!(ask(&address, "/health/live", "Host: evil.example.com\r\n").await.0, 200);
    let (status, answer) = ask(&address, "/ws/device", "Host: localhost\r\n").await;
    assert_eq!(status, 426);
    assert!(answer.contains("send Connection: Upgrade"), "{answer}");
}

#[tokio::test]
async fn beyond_loopback_a_token_is_needed_but_for_life_and_for_devices() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("a file");
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
    mode(0o644);
    let mut gateway = offline(&format!("token_file = {file:?}\n"), "");
    gateway.listen_everywhere();

    // A token that others can read is none.
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["check", "-c"])
        .arg(gateway.config_file())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.code() == Some(2) && said.contains("http.token_file") && said.contains("chmod 600"), "{said}");
    mode(0o600);

    let gateway = gateway.started().await;
    let address = gateway.http_address();
    let bearer = |token: &str| format!("Host: gateway.example.com\r\nAuthorization: Bearer {token}\r\n");
    for path in ["/metrics", "/health/ready", "/api/v1/devices"] {
        let (status, answer) = ask(&address, path, "Host: localhost\r\n").await;
        assert_eq!(status, 401);
        assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
        assert_eq!(ask(&address, path, &bearer("0123456789abcdef0123456789abcdee")).await.0, 401);
        assert_eq!(ask(&address, path, &bearer(TOKEN)).await.0, 200);
    }
    assert_eq!(ask(&address, "/health/live", "Host: localhost\r\n").await.0, 200);
    // The command line knows where the token is.
    let devices = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["devices", "-c"])
        .arg(gateway.config_file())
        .output()
        .expect("it runs");
    assert!(devices.status.success(), "{}", String::from_utf8_lossy(&devices.stderr));
    // Devices have keys of their own there.
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["key", "new", "pages", "--device", "page-*", "-c"])
        .arg(gateway.config_file())
        .output()
        .expect("it runs");
    let secret = String::from_utf8(made.stdout).expect("text");
    let secret = Secret(hex(secret.trim()).try_into().expect("32 bytes"));
    for (key, secret, fits) in [("pages", &secret, true), ("pages", &Secret([7; 32]), false), ("none", &secret, false)]
    {
        let mut web = Web::connect(&address).await;
        web.say(hello("page-1", u64::MAX)).await;
        let challenge = web.hear("challenge").await;
        assert_eq!(challenge["deviceId"], "page-1");
        let nonce = STANDARD.decode(challenge["payload"]["nonce"].as_str().expect("text")).expect("base64");
        let proof = STANDARD.encode(secret.hmac(&nonce, "page-1", u64::MAX));
        web.say(json!({"command": "authenticate", "payload": {"key": key, "proof": proof}})).await;
        if fits {
            web.hear("welcome").await;
            web.reading(1).await;
            web.acked(1).await;
        } else {
            assert_eq!(web.goodbye().await, ("unauthorized".into(), "authentication failed".into(), 1008));
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

#[tokio::test]
async fn the_http_server_speaks_tls_and_knows_devices_by_their_certificates() {
    let certificates = Certificates::new();
    certificates.issue("page", "page");
    let http = format!("{}client_ca_file = {:?}\n", certificates.listener(), certificates.path("ca.pem"));
    let mut gateway = offline(&http, "");
    gateway.launch();
    let address = gateway.http_address();
    let connect = async |client: Option<&str>| {
        let mut stream = None;
        crate::support::eventually("it speaks TLS", async || {
            stream = certificates.connect(&address, client).await.ok();
            stream.is_some()
        })
        .await;
        stream.expect("a connection")
    };
    let mut stream = connect(None).await;
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    for (client, device, fits) in
        [(None, "anybody", true), (Some("page"), "page", true), (Some("page"), "other", false)]
    {
        let request = format!("ws://{address}/ws/device").into_client_request().expect("a request");
        let mut web = None;
        crate::support::eventually("devices are taken", async || {
            web = Web::over(Box::new(connect(client).await), request.clone()).await.ok();
            web.is_some()
        })
        .await;
        let mut web = web.expect("a WebSocket");
        web.say(hello(device, 1)).await;
        if fits {
            web.hear("welcome").await;
            web.reading(1).await;
            web.acked(1).await;
        } else {
            assert_eq!(web.goodbye().await.0, "unauthorized");
        }
    }
}
