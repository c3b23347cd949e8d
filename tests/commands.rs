//! Commands, from whoever gives them to the device and back, with a real broker and the
//! real binary.

use crate::support::broker::Broker;
use crate::support::cloud::Cloud;
use crate::support::device::Talk;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::script::{Manners, Script};
use serde_json::{Value, json};
use std::process::{Command as Process, Output};
use std::time::{Duration, Instant};
use tidegate::model::Timestamp;
use tidegate::wire::message::{Command, CommandResult, DeviceMessage, GatewayMessage, ResultState, SubCommand};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Short times, so that nobody waits.
const QUICK: &str = "[commands]\nretry_after = \"1s\"\nanswer_within = \"1s\"\n";

async fn start(broker: &Broker, sections: &str) -> Gateway {
    let gateway = Gateway::with_broker(&broker.gateway_url(), sections).started().await;
    gateway.connected().await;
    gateway
}

async fn device(gateway: &Gateway, name: &str) -> Talk<TcpStream> {
    Talk::welcomed(&gateway.tcp_address(), name, fastrand::u64(..)).await.0
}

/// The next command that the device gets.
async fn next(talk: &mut Talk<TcpStream>) -> Command {
    loop {
        match talk.hear().await {
            Some(GatewayMessage::Command(command)) => return command,
            Some(_) => {}
            None => panic!("the connection was closed"),
        }
    }
}

async fn answer(talk: &mut Talk<TcpStream>, id: &str, state: ResultState, payload: Option<&str>) {
    let result = CommandResult { id: id.to_owned(), state, payload: payload.map(str::to_owned) };
    talk.say(&DeviceMessage::CommandResult(result)).await;
}

async fn ended(gateway: &Gateway, state: &str) -> f64 {
    gateway.figure(&format!("tidegate_commands_ended_total{{state=\"{state}\"}}")).await
}

/// Status and JSON of a request.
async fn request(gateway: &Gateway, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let address = gateway.http_address();
    let mut stream = TcpStream::connect(&address).await.expect("the gateway listens");
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, serde_json::from_str(body).unwrap_or_default())
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> (u16, Value) {
    request(gateway, "POST", path, "Content-Type: application/json\r\n", &body.to_string()).await
}

#[tokio::test]
async fn a_device_does_what_it_is_told_over_mqtt_and_the_sender_learns_how_that_ended() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = start(&broker, QUICK).await;
    let mut pump = device(&gateway, "pump").await;
    for (id, state, payload, told) in [
        ("c-1", ResultState::Done, Some("{\"speed\":1.5}"), json!({"speed": 1.5})),
        ("c-2", ResultState::Failed, Some("valve stuck"), json!("valve stuck")),
        ("c-3", ResultState::Rejected, None, json!(null)),
    ] {
        cloud.command("pump", &json!({"id": id, "name": "set-speed", "payload": {"to": 1.5}, "expires": "1m"})).await;
        let command = next(&mut pump).await;
        assert_eq!((command.id.as_str(), command.name.as_str()), (id, "set-speed"));
        assert_eq!(command.payload.as_deref(), Some("{\"to\":1.5}"));
        assert!(command.expires_in.is_some_and(|left| left > 50_000 && left <= 60_000), "{command:?}");
        answer(&mut pump, id, state, payload).await;
        let (topic, result) = cloud.result(id).await;
        assert_eq!(topic, "tidegate/gw/devices/pump/result");
        assert_eq!(result["state"], json!(state));
        assert_eq!((&result["name"], &result["payload"]), (&json!("set-speed"), &told));
        assert_eq!((&result["gateway"], &result["device"]), (&json!("gw"), &json!("pump")));
    }
    assert_eq!(gateway.figure("tidegate_commands_received_total{source=\"mqtt\"}").await, 3.0);
    assert_eq!(ended(&gateway, "done").await, 1.0);
    assert_eq!(gateway.figure("tidegate_commands_live").await, 0.0);
    assert_eq!(gateway.figure("tidegate_command_seconds_count").await, 2.0);

    // An answer nobody waits for.
    answer(&mut pump, "c-1", ResultState::Failed, None).await;
    gateway.figure_becomes("tidegate_commands_late_results_total", |late| late == 1.0).await;
    assert_eq!(cloud.all().len(), 3);
}

#[tokio::test]
async fn one_behind_a_hub_is_commanded_by_its_hub() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = start(&broker, QUICK).await;
    let mut hub = device(&gateway, "hub").await;
    cloud.command("hub/door", &json!({"id": "d-1", "name": "open"})).await;
    let command = loop {
        match hub.hear().await {
            Some(GatewayMessage::SubCommand(command)) => break command,
            Some(_) => {}
            None => panic!("the connection was closed"),
        }
    };
    assert!(matches!(&command, SubCommand { sub, id, .. } if sub == "door" && id == "d-1"), "{command:?}");
    answer(&mut hub, "d-1", ResultState::Done, None).await;
    assert_eq!(cloud.result("d-1").await.0, "tidegate/gw/devices/hub/door/result");
}

#[tokio::test]
async fn an_absent_device_gets_what_is_still_wanted_in_order_and_nothing_else() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = start(&broker, QUICK).await;
    cloud.command("pump", &json!({"id": "late", "name": "open", "expires": "1s"})).await;
    for id in ["a", "b", "a"] {
        cloud.command("pump", &json!({"id": id, "name": "open"})).await;
    }
    cloud.command("pump", &json!({"id": "past", "name": "open", "expires": "2026-01-02T00:00:00Z"})).await;
    assert_eq!(cloud.state("past").await, "expired");
    assert_eq!(cloud.state("late").await, "expired");
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, "a");
    answer(&mut pump, "a", ResultState::Done, None).await;
    assert_eq!(next(&mut pump).await.id, "b");
    assert_eq!(next(&mut pump).await.id, "b", "it is asked again until it answers");
    assert!(gateway.figure("tidegate_commands_repeated_total").await >= 1.0);
    answer(&mut pump, "b", ResultState::Done, None).await;
    assert_eq!((cloud.state("a").await, cloud.state("b").await), ("done".into(), "done".into()));
    cloud.command("pump", &json!({"id": "a", "name": "open"})).await;
    cloud.command("pump", &json!({"id": "c", "name": "open"})).await;
    assert_eq!(next(&mut pump).await.id, "c", "a was done already");
    assert_eq!(cloud.results("a").len(), 1);
}

#[tokio::test]
async fn a_device_that_never_answers_is_unreachable() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = start(&broker, QUICK).await;
    let mut pump = device(&gateway, "pump").await;
    cloud.command("pump", &json!({"id": "c-1", "name": "open", "expires": "1s"})).await;
    assert_eq!(next(&mut pump).await.id, "c-1");
    drop(pump);
    assert_eq!(cloud.state("c-1").await, "unreachable");
    assert_eq!(ended(&gateway, "unreachable").await, 1.0);
}

#[tokio::test]
async fn what_may_not_be_is_rejected_with_the_reason() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let sections = "[commands]\ndevices = [\"pump*\"]\nmax_queued = 1\nmax_payload = \"20B\"\nmax_expiry = \"1h\"\n";
    let gateway = start(&broker, &format!("{sections}default_expiry = \"1m\"\n")).await;
    cloud.command("pump", &json!({"id": "waits", "name": "open"})).await;
    for (device, body, why) in [
        ("fan", json!({"id": "x-1", "name": "open"}), "[commands] devices"),
        ("pump", json!({"id": "x-2", "name": "open"}), "max_queued"),
        ("pump1", json!({"id": "x-3", "name": "open", "payload": "0123456789012345678"}), "max_payload"),
        ("pump1", json!({"id": "x-4", "name": "open", "expires": "2h"}), "max_expiry"),
        ("pump1", json!({"id": "x-5", "name": "open", "expires": "soon"}), "soon"),
        ("pump1", json!({"id": "x-6", "name": "open the door"}), "the name"),
    ] {
        cloud.command(device, &body).await;
        let (topic, result) = cloud.result(body["id"].as_str().expect("an id")).await;
        assert_eq!(topic, format!("tidegate/gw/devices/{device}/result"));
        assert_eq!(result["state"], "rejected");
        assert!(result["payload"]["error"].as_str().is_some_and(|error| error.contains(why)), "{result}");
    }
    // What is asked for shows in what was rejected; what makes no sense does not.
    for (path, lasts) in
        [("pump1/commands/x-3", Some(60)), ("pump1/commands/x-4", Some(7200)), ("pump1/commands/x-5", None)]
    {
        let (_, shown) = request(&gateway, "GET", &format!("/api/v1/devices/{path}"), "", "").await;
        let time = |field: &str| shown[field].as_str().map(|text| text.parse::<Timestamp>().expect("a time"));
        let wanted = time("expires").map(|expires| expires.since(time("received").expect("it came")).as_secs());
        assert_eq!(wanted, lasts, "{shown}");
    }
    // One that is too large in all is still known by its id, wherever that stands.
    let filler = "x".repeat(6000);
    let large = format!("{{\"payload\":\"{filler}\",\"name\":\"open\",\"id\":\"x-7\"}}");
    cloud.publish("tidegate/gw/devices/pump1/command", &large, false).await;
    let (_, result) = cloud.result("x-7").await;
    assert_eq!((&result["device"], &result["name"]), (&json!("pump1"), &json!("open")), "{result}");
    assert!(result["payload"]["error"].as_str().is_some_and(|error| error.contains("max_payload")), "{result}");
    let (status, answer) =
        request(&gateway, "POST", "/api/v1/devices/pump1/commands", "Content-Type: application/json\r\n", &large).await;
    assert!(status == 400 && answer["error"].as_str().is_some_and(|error| error.contains("max_payload")), "{answer}");
    cloud.publish("tidegate/gw/devices/pump1/command", "{\"name\":\"open\"}", false).await;
    eventually("a command without an id is rejected", async || {
        cloud.all().iter().any(|(_, result)| result["id"].is_null() && result["state"] == "rejected")
    })
    .await;
    cloud.command("fan", &json!({"id": "x-1", "name": "open"})).await;
    // It would come anew with every connection.
    cloud.publish("tidegate/gw/devices/pump1/command", "{\"id\":\"kept\",\"name\":\"open\"}", true).await;
    assert_eq!(cloud.results("x-1").len(), 1);
    assert_eq!(gateway.figure("tidegate_commands_live").await, 2.0, "{}", gateway.log());
}

/// The gateway is killed at each step of a command's way; it is done once as far as
/// anybody is told, and nobody hears of it twice.
#[tokio::test]
async fn a_command_survives_a_kill_at_each_step_and_ends_once() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let mut gateway = start(&broker, QUICK).await;
    gateway.kill();
    // Before it came: it waits at the broker.
    cloud.command("pump", &json!({"id": "c-1", "name": "open"})).await;
    gateway.start().await;
    gateway.figure_becomes("tidegate_commands_live", |live| live == 1.0).await;
    // Once it is taken over.
    gateway.kill();
    gateway.start().await;
    gateway.figure_becomes("tidegate_commands_live", |live| live == 1.0).await;
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, "c-1");
    // Once it was handed over.
    gateway.kill();
    gateway.start().await;
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, "c-1");
    answer(&mut pump, "c-1", ResultState::Done, None).await;
    assert_eq!(cloud.state("c-1").await, "done");
    // Once it ended.
    gateway.kill();
    gateway.start().await;
    gateway.connected().await;
    cloud.command("pump", &json!({"id": "c-1", "name": "open"})).await;
    cloud.command("pump", &json!({"id": "c-2", "name": "open"})).await;
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, "c-2");
    answer(&mut pump, "c-2", ResultState::Done, None).await;
    assert_eq!(cloud.state("c-2").await, "done");
    let states: Vec<Value> = cloud.results("c-1").into_iter().map(|(_, result)| result["event"].clone()).collect();
    assert!(states.iter().all(|event| *event == states[0]), "one event, at least once: {states:?}");
}

#[tokio::test]
async fn commands_are_given_and_looked_up_over_http() {
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", QUICK).started().await;
    let path = "/api/v1/devices/pump/commands";
    let (status, given) = post(&gateway, path, &json!({"name": "open", "payload": [1, 2]})).await;
    assert_eq!((status, &given["state"]), (202, &json!("queued")));
    let id = given["id"].as_str().expect("an id").to_owned();
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, id);
    let one = format!("{path}/{id}");
    assert_eq!(request(&gateway, "GET", &one, "", "").await.1["state"], "sent");
    answer(&mut pump, &id, ResultState::Done, Some("{\"ok\":true}")).await;
    let (status, done) = request(&gateway, "GET", &format!("{one}?wait=5s"), "", "").await;
    assert_eq!((status, &done["state"], &done["result"]), (200, &json!("done"), &json!({"ok": true})));
    assert_eq!(done["payload"], json!([1, 2]));
    let (_, again) = post(&gateway, path, &json!({"id": id, "name": "open"})).await;
    assert_eq!(again["state"], "done", "it changes nothing");

    let behind = "/api/v1/devices/hub%2Fdoor/commands?wait=100ms";
    let (status, waited) = post(&gateway, behind, &json!({"id": "w", "name": "open"})).await;
    assert_eq!((status, &waited["state"], &waited["device"]), (202, &json!("queued"), &json!("hub/door")));
    let (_, list) = request(&gateway, "GET", path, "", "").await;
    assert_eq!(list["commands"].as_array().map(Vec::len), Some(1));

    for (method, path, headers, body, status) in [
        ("POST", path, "Content-Type: text/plain\r\n", "{\"name\":\"open\"}", 415),
        ("POST", path, "Content-Type: application/json\r\nOrigin: http://evil.example\r\n", "{\"name\":\"open\"}", 403),
        ("POST", path, "Content-Type: application/json\r\n", "open", 400),
        ("POST", path, "Content-Type: application/json\r\n", "{\"name\":\"open\",\"expires\":\"30days\"}", 400),
        ("GET", "/api/v1/devices/pump/commands/none", "", "", 404),
        ("GET", "/api/v1/commands/none", "", "", 404),
    ] {
        let (got, answer) = request(&gateway, method, path, headers, body).await;
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    for _ in 0..16 {
        assert_eq!(post(&gateway, "/api/v1/devices/fan/commands", &json!({"name": "open"})).await.0, 202);
    }
    assert_eq!(post(&gateway, "/api/v1/devices/fan/commands", &json!({"name": "open"})).await.0, 429);
}

/// The bodies of ended commands take more than their share of the smallest log there is.
#[tokio::test]
async fn a_command_that_ended_long_ago_is_known_in_a_small_log_after_a_restart() {
    let small = "[store]\nmax_size = \"8MiB\"\nmax_pending = \"64KiB\"\nsegment_size = \"64KiB\"\n";
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", small).started().await;
    let path = "/api/v1/devices/pump/commands";
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(post(&gateway, path, &json!({"id": "c-1", "name": "open"})).await.0, 202);
    assert_eq!(next(&mut pump).await.id, "c-1");
    answer(&mut pump, "c-1", ResultState::Done, Some("{\"ok\":true}")).await;
    gateway.figure_becomes("tidegate_commands_live", |live| live == 0.0).await;
    for n in 0..100 {
        let large = json!({"id": format!("g-{n}"), "name": "nonsense", "payload": "x".repeat(4000)});
        assert_eq!(post(&gateway, "/api/v1/commands?wait=10s", &large).await.1["state"], "rejected");
    }
    let (_, latest) = request(&gateway, "GET", "/api/v1/commands?limit=1000", "", "").await;
    let whole = latest["commands"].as_array().expect("a list").len();
    assert!((30..90).contains(&whole), "{whole} of them are remembered as a whole");

    gateway.kill();
    gateway.start().await;
    let known = (200, json!({"device": "pump", "id": "c-1", "state": "done"}));
    assert_eq!(post(&gateway, path, &json!({"id": "c-1", "name": "open"})).await, known);
    assert_eq!(post(&gateway, &format!("{path}?wait=1s"), &json!({"id": "c-1", "name": "open"})).await, known);
    assert_eq!(request(&gateway, "GET", &format!("{path}/c-1"), "", "").await, known);
    assert_eq!(post(&gateway, path, &json!({"id": "c-2", "name": "open"})).await.0, 202);
    let mut pump = device(&gateway, "pump").await;
    assert_eq!(next(&mut pump).await.id, "c-2", "c-1 is not done again");
}

fn send(gateway: &Gateway, arguments: &[&str]) -> Output {
    let mut command = Process::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["send", "-c"]).arg(gateway.config_file()).args(arguments);
    command.output().expect("the program starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sends_commands_and_waits_for_their_end() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", QUICK).started().await;
    let text = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let accepted = send(&gateway, &["pump", "open", "{\"to\":1}", "--id", "c-1", "--expires", "1m"]);
    assert!(accepted.status.success() && text(&accepted).contains("c-1 queued"), "{}", text(&accepted));
    let mut pump = device(&gateway, "pump").await;
    let command = next(&mut pump).await;
    assert_eq!((command.id.as_str(), command.payload.as_deref()), ("c-1", Some("{\"to\":1}")));
    answer(&mut pump, "c-1", ResultState::Failed, Some("\"stuck\"")).await;
    let failed = send(&gateway, &["pump", "open", "--id", "c-1", "--wait=10s", "--json"]);
    let shown: Value = serde_json::from_slice(&failed.stdout).expect("JSON");
    assert_eq!((failed.status.code(), &shown["state"], &shown["result"]), (Some(1), &json!("failed"), &json!("stuck")));
    let unanswered = send(&gateway, &["hub/door", "open", "--wait=300ms"]);
    assert_eq!(unanswered.status.code(), Some(1), "{}", text(&unanswered));

    let ping = send(&gateway, &["--gateway", "ping", "--wait"]);
    assert!(ping.status.success() && text(&ping).contains("done"), "{}", text(&ping));
    for (wrong, why) in [
        (&["pump"][..], "DEVICE NAME"),
        (&["a/b/c", "open"], "the device"),
        (&["pump", "open", "{"], "no JSON"),
        (&["pump", "open", "--wait", "5s"], "--wait="),
    ] {
        let output = send(&gateway, wrong);
        assert!(output.status.code() == Some(2) && text(&output).contains(why), "{wrong:?}: {}", text(&output));
    }
    gateway.terminate().await;
    let alone = send(&gateway, &["pump", "open"]);
    assert!(alone.status.code() == Some(1) && text(&alone).contains("no gateway answers"), "{}", text(&alone));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_nobody_confirms_keeps_its_sender_no_longer_than_it_would_wait() {
    let mut gateway = Gateway::with_broker("mqtt://127.0.0.1:1", QUICK).started().await;
    gateway.process().signal("STOP");
    let began = Instant::now();
    let output = send(&gateway, &["pump", "open", "--id", "c-1", "--wait=2s"]);
    let took = began.elapsed();
    gateway.process().signal("CONT");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(took < Duration::from_secs(4), "{took:?}: {said}");
    assert!(said.contains("gives no answer within 1s 500ms") && said.contains("--id c-1"), "{said}");
    assert!(said.contains("may have accepted the command or not") && !said.contains("os error"), "{said}");
}

#[tokio::test]
async fn the_gateway_itself_can_be_commanded() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let gateway = start(&broker, QUICK).await;
    let _pump = device(&gateway, "pump").await;
    let mut tell = async |id: &str, body: Value| {
        let mut command = json!({"id": id});
        command.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        cloud.publish("tidegate/gw/command", &command.to_string(), false).await;
        let (topic, result) = cloud.result(id).await;
        assert_eq!(topic, "tidegate/gw/result");
        result
    };
    assert_eq!(tell("g-1", json!({"name": "ping"})).await["state"], "done");
    let status = tell("g-2", json!({"name": "status"})).await;
    assert_eq!((&status["payload"]["devices"], &status["payload"]["disk"]), (&json!(1), &json!("normal")), "{status}");
    assert_eq!(status["payload"]["sinks"][0]["sink"], "mqtt");
    // Whose result it is stands in all of them, as over HTTP.
    assert_eq!(status.as_object().and_then(|result| result.get("device")), Some(&Value::Null), "{status}");
    let (_, shown) = request(&gateway, "GET", "/api/v1/commands/g-2", "", "").await;
    assert_eq!(shown.as_object().and_then(|shown| shown.get("device")), Some(&Value::Null), "{shown}");
    let rejected = tell("g-3", json!({"name": "dance"})).await;
    assert!(rejected["payload"]["error"].as_str().is_some_and(|error| error.contains("restart-sink")), "{rejected}");

    assert!(!gateway.log().contains("DEBUG"));
    assert_eq!(tell("g-4", json!({"name": "set-log-level", "payload": {"level": "debug"}})).await["state"], "done");
    assert_eq!(tell("g-5", json!({"name": "set-log-level", "payload": {"level": "inof"}})).await["state"], "rejected");
    for (number, (level, why)) in [
        ("warning", "did you mean `warn`?"),
        ("verbose", "did you mean `debug`?"),
        ("warn tidegate=debug", "a comma between two"),
        ("tidegate", "write a level (off, error, warn, info, debug, trace)"),
        ("hyper=trace", "no module of tidegate"),
        (&["tidegate=trace"; 20].join(","), "200 at most"),
        ("[{a=(a|b)*a(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)}]=info", "write it like"),
    ]
    .into_iter()
    .enumerate()
    {
        let command = json!({"name": "set-log-level", "payload": {"level": level}});
        let result = tell(&format!("level-{number}"), command).await;
        assert_eq!(result["state"], "rejected", "{result}");
        assert!(result["payload"]["error"].as_str().is_some_and(|error| error.contains(why)), "{result}");
    }
    assert_eq!(tell("g-6", json!({"name": "ping"})).await["state"], "done");
    eventually("more is logged", async || gateway.log().contains("DEBUG")).await;

    let connections = |gateway: &Gateway| gateway.log().matches("connected to the broker").count();
    let before = connections(&gateway);
    let none = tell("g-7", json!({"name": "restart-sink", "payload": {"sink": "cloud"}})).await;
    assert_eq!(none["state"], "rejected");
    for (id, payload) in [("g-9", Value::Null), ("g-10", json!({"name": "mqtt"}))] {
        let bare = tell(id, json!({"name": "restart-sink", "payload": payload})).await;
        let said = bare["payload"]["error"].as_str().expect("a reason").to_owned();
        assert!(
            said.contains("restart-sink") && said.contains("give") && said.contains("{\"sink\":\"mqtt\"}"),
            "{said}"
        );
        assert!(!said.contains("expected struct") && !said.contains("line 1"), "{said}");
    }
    assert_eq!(tell("g-8", json!({"name": "restart-sink", "payload": {"sink": "mqtt"}})).await["state"], "done");
    eventually("the sink connects anew", async || connections(&gateway) > before).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cloud_results(&cloud, "g-8"), 1);
}

#[tokio::test]
async fn a_broker_that_allows_no_subscription_gets_readings_all_the_same() {
    for manners in [
        Manners { refuses_subscriptions: true, ..Manners::default() },
        Manners { refuses_subscriptions: true, v5: true, ..Manners::default() },
        Manners { ends_subscribers: true, ..Manners::default() },
    ] {
        let version = if manners.v5 { "5" } else { "3.1.1" };
        let script = Script::start(manners).await;
        let sections = format!("version = \"{version}\"\n");
        let gateway = Gateway::with_broker(&script.url(), &sections).started().await;
        let mut pump = device(&gateway, "pump").await;
        pump.readings(1, 1, 10).await;
        pump.acked(10).await;
        gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 10.0).await;
        eventually("it is told what to do", async || gateway.log().contains("commands = false")).await;
        eventually("and noted", async || {
            let (status, body) = gateway.get("/health/ready").await.expect("an answer");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            let notes = body["notes"].as_array().expect("notes");
            let tells = |note: &Value| note["reason"].as_str().is_some_and(|why| why.contains("commands = false"));
            status == 200 && notes.iter().any(|note| note["part"] == "mqtt" && tells(note) && note["since"].is_string())
        })
        .await;
    }
}

/// How many different events told of this command.
fn cloud_results(cloud: &Cloud, id: &str) -> usize {
    let events: std::collections::BTreeSet<String> =
        cloud.results(id).iter().map(|(_, result)| result["event"].to_string()).collect();
    events.len()
}

/// A crash leaves them at the broker, which sends as many at once as it likes.
#[tokio::test]
async fn three_hundred_commands_that_waited_over_kills_end_once_each_and_readings_go_on() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let mut gateway = start(&broker, &format!("{QUICK}max_queued = 300\n")).await;
    gateway.kill();
    let ids: Vec<String> = (1..=300).map(|number| format!("c-{number}")).collect();
    for id in &ids {
        cloud.publish("tidegate/gw/command", &json!({"id": id, "name": "ping"}).to_string(), false).await;
    }
    gateway.start().await;
    eventually("some have ended", async || cloud.all().len() >= 20).await;
    gateway.kill();
    gateway.start().await;
    let mut pump = device(&gateway, "pump").await;
    pump.readings(1, 1, 50).await;
    pump.acked(50).await;
    gateway.figure_becomes("tidegate_sink_delivered_total{sink=\"mqtt\"}", |delivered| delivered == 50.0).await;
    let mut in_doubt = 0;
    for id in &ids {
        match cloud.state(id).await.as_str() {
            "done" => {}
            // The one that was carried out at the second kill.
            "unreachable" => in_doubt += 1,
            other => panic!("{id}: {other}"),
        }
    }
    assert!(in_doubt <= 1, "{in_doubt} are in doubt");
    gateway.figure_becomes("tidegate_commands_live", |live| live == 0.0).await;
    for id in &ids {
        assert_eq!(cloud_results(&cloud, id), 1, "{id}: {:?}", cloud.results(id));
    }
}

#[tokio::test]
async fn turned_off_nothing_is_taken_and_what_waited_is_rejected() {
    let broker = Broker::start().await;
    let mut cloud = Cloud::start(broker.port()).await;
    let mut gateway = start(&broker, "[commands]\n").await;
    cloud.command("pump", &json!({"id": "c-1", "name": "open", "expires": "1h"})).await;
    gateway.figure_becomes("tidegate_commands_live", |live| live == 1.0).await;
    gateway.terminate().await;
    gateway.keys("[commands]", "enabled = false");
    gateway.start().await;
    assert_eq!(cloud.state("c-1").await, "rejected");
    assert_eq!(post(&gateway, "/api/v1/devices/pump/commands", &json!({"name": "open"})).await.0, 403);
    cloud.command("pump", &json!({"id": "c-2", "name": "open"})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cloud.results("c-2").is_empty());
}
