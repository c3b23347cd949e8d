//! The verb against a real broker.

use super::*;
use crate::cli::demo::broker::Broker as Embedded;
use crate::cli::printed::Printed;
use crate::config::Encoding;
use crate::model::{Basis, ChannelName, DeviceId, Epoch, Origin, Reading, Seq, Timestamp, Value};
use crate::mqtt::{Connection, Event, Publish};
use crate::sink::Identity;
use crate::sink::encode::{self, Entry};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, clap::Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Subscribe(Args),
}

fn try_args(line: &str) -> Result<Args, clap::Error> {
    let cli = Cli::try_parse_from(["tidegate", "subscribe"].into_iter().chain(line.split_whitespace()))?;
    let Verb::Subscribe(args) = cli.verb;
    Ok(args)
}

fn args(line: &str) -> Args {
    try_args(line).expect("valid arguments")
}

/// A publisher's connection.
async fn publisher(url: &str, version: Version) -> Connection {
    let Source { options, .. } = source(&args(url)).expect("a valid source");
    Connection::open(&Options { version, ..options }).await.expect("the broker answers")
}

async fn publish(connection: &mut Connection, topic: &str, payload: impl Into<bytes::Bytes>) {
    let publish = Publish {
        topic: topic.into(),
        payload: payload.into(),
        retain: false,
        content_type: "application/json",
        encoding: "json",
    };
    connection.publish(1, publish).expect("room");
    loop {
        match connection.event().await {
            Event::Acked(1) => return,
            Event::Closed(why) => panic!("the broker closed the connection: {why}"),
            _ => {}
        }
    }
}

/// A batch of readings with these seqs, which are the device's own seqs too.
fn batch(encoding: Encoding, seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let identity = Identity { gateway: GatewayId::new("gw-01").expect("a valid name"), epoch: Epoch(9) };
    let device = DeviceId::new("pump-7").expect("a valid name");
    let channels = [ChannelName::new("t").expect("a valid name")];
    let mut writer = encode::writer(encoding, &identity);
    for seq in seqs {
        let values = Box::new([Value::Integer(seq as i64)]);
        let reading = Reading::new(seq, Timestamp(0), channels.clone().into(), values).expect("one each");
        let origin = Some(Origin { session: 7, seq });
        writer.add(&Entry {
            seq: Seq(seq),
            device: &device,
            origin,
            replay: false,
            basis: Basis::Wall,
            reading: &reading,
        });
    }
    writer.finish()
}

fn gap_event(first: u64, last: u64) -> String {
    format!(r#"{{"type":"gap","reason":"restart","first":{first},"last":{last},"gateway":"gw-01","epoch":9}}"#)
}

struct Subscriber {
    out: Printed,
    err: Printed,
    stop: watch::Sender<bool>,
    ready: oneshot::Receiver<()>,
    task: tokio::task::JoinHandle<Result<bool>>,
}

fn subscriber(args: Args) -> Subscriber {
    let (out, err) = (Printed::default(), Printed::default());
    let streams = Streams { out: Box::new(out.clone()), err: Box::new(err.clone()) };
    let (stop, stopped) = watch::channel(false);
    let (subscribed, ready) = oneshot::channel();
    let task = tokio::spawn(async move { subscribe(&args, streams, stopped, Some(subscribed)).await });
    Subscriber { out, err, stop, ready, task }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reading_is_printed_once_and_gaps_are_told_of() {
    let broker = Embedded::start(0, 0).await.expect("free ports");
    for (url, version) in [(broker.url(), Version::V3_1_1), (broker.v5_url(), Version::V5)] {
        // given a subscriber that wants eight readings
        let number = if version == Version::V5 { "5" } else { "3.1.1" };
        let subscriber = subscriber(args(&format!("{url} --json --count 8 --version {number}")));
        let mut connection = publisher(&url, version).await;
        subscriber.ready.await.expect("it subscribes");
        // when batches come in both encodings, twice, out of order, and with seqs missing
        publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Json, 1..=3)).await;
        publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Postcard, [7, 8])).await;
        publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Json, 2..=4)).await;
        publish(&mut connection, "tidegate/gw-01/readings", "rubbish").await;
        publish(&mut connection, "tidegate/gw-01/events", gap_event(5, 6)).await;
        publish(&mut connection, "other/gw-01/readings", batch(Encoding::Json, [99])).await;
        publish(&mut connection, "tidegate/gw-01/devices/pump-7/readings", batch(Encoding::Postcard, [9, 10])).await;
        publish(&mut connection, "tidegate/gw-01/devices/hub/a/readings", batch(Encoding::Json, [11])).await;
        // then it prints each once, and reports the rest
        let complete = subscriber.task.await.expect("no panic").expect("it works");
        assert!(complete);
        let out = subscriber.out.text();
        let seqs: Vec<u64> = out
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a JSON object"))
            .map(|reading| reading["values"]["t"].as_u64().expect("its number"))
            .collect();
        assert_eq!(seqs, [1, 2, 3, 7, 8, 4, 9, 10]);
        let err = subscriber.err.text();
        assert!(err.contains("gap: gw-01 epoch 9: seqs 5 to 6 (2) are missing, explained: restart"), "{err}");
        assert!(err.contains("warning: message on \"tidegate/gw-01/readings\" is left out"), "{err}");
        assert!(err.contains("explained 1 (2 seqs), unexplained 0 (0 seqs)"), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_s_readings_are_not_printed_if_one_is_named() {
    let broker = Embedded::start(0, 0).await.expect("free ports");
    let subscriber = subscriber(args(&format!("{} --gateway first --prefix a/b", broker.url())));
    let mut connection = publisher(&broker.url(), Version::V3_1_1).await;
    let payload = r#"{"gateway":"first","epoch":1,"readings":[{"seq":1,"device":"d","time":"0","values":{"t":1}}]}"#;
    subscriber.ready.await.expect("it subscribes");
    publish(&mut connection, "a/b/gw-01/readings", batch(Encoding::Json, [1])).await;
    publish(&mut connection, "tidegate/first/readings", batch(Encoding::Json, [2])).await;
    publish(&mut connection, "a/b/first/readings", payload).await;
    while subscriber.out.text().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    subscriber.stop.send_replace(true);
    assert!(subscriber.task.await.expect("no panic").expect("it works"));
    assert_eq!(subscriber.out.text(), "1970-01-01T00:00:00.000000Z first/d t=1\n");
}

/// Forwards connections to `target` one after the other, and cuts one for each message.
async fn relay(listener: TcpListener, target: String, mut cut: mpsc::Receiver<()>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut server = TcpStream::connect(&target).await.expect("the broker listens");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = cut.recv() => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again() {
    let broker = Embedded::start(0, 0).await.expect("free ports");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (cut, cuts) = mpsc::channel(1);
    let relay = tokio::spawn(relay(listener, broker.url().replace("mqtt://", ""), cuts));
    let subscriber = subscriber(args(&format!("mqtt://{address} --count 2")));
    let mut connection = publisher(&broker.url(), Version::V3_1_1).await;
    subscriber.ready.await.expect("it subscribes");
    publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Json, [1])).await;
    while subscriber.out.text().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cut.send(()).await.expect("the relay runs");
    while subscriber.err.text().matches("subscribed at").count() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Json, [1, 2])).await;
    assert!(subscriber.task.await.expect("no panic").expect("it works"));
    relay.abort();
    let (out, err) = (subscriber.out.text(), subscriber.err.text());
    assert_eq!(out.matches("gw-01/pump-7").count(), 2, "{out}");
    assert_eq!(err.matches("no connection to").count(), 1, "{err}");
    assert!(err.contains("duplicates dropped  1"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_nobody_is_connected_is_held_for_a_named_client() {
    let broker = Embedded::start(0, 0).await.expect("free ports");
    let line = format!("{} --client-id consumer --count 2", broker.url());
    let first = subscriber(args(&line));
    first.ready.await.expect("it subscribes");
    first.stop.send_replace(true);
    first.task.await.expect("no panic").expect("it works");
    let mut connection = publisher(&broker.url(), Version::V3_1_1).await;
    publish(&mut connection, "tidegate/gw-01/readings", batch(Encoding::Json, 1..=2)).await;
    let second = subscriber(args(&line));
    assert!(second.task.await.expect("no panic").expect("it works"));
    assert_eq!(second.out.text().lines().count(), 2);
}

/// A broker that answers every connection with this return code.
async fn refusing(code: u8) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("mqtt://{}", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut connect = [0; 256];
            let _ = stream.read(&mut connect).await;
            let _ = stream.write_all(&[0x20, 2, 0, code]).await;
        }
    });
    url
}

#[tokio::test]
async fn refused_credentials_end_it_at_once() {
    let url = refusing(5).await;
    let why = subscriber(args(&url)).task.await.expect("no panic").expect_err("it is refused");
    assert!(why.to_string().contains(&format!("{url}: the broker refused the credentials")), "{why}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_tried_again_until_the_time_is_up() {
    let unavailable = refusing(3).await;
    let subscriber = subscriber(args(&format!("{unavailable} --count 1 --timeout 1s")));
    assert!(!subscriber.task.await.expect("no panic").expect("it runs"));
    let err = subscriber.err.text();
    assert_eq!(err.matches("no connection to").count(), 1, "{err}");
    assert!(err.ends_with("the time is up\n"), "{err}");
}

#[test]
fn arguments_are_checked() {
    assert_eq!(args("mqtt://h").prefix, "tidegate");
    for bad in [
        "",
        "h:1883",
        "mqtt://h --prefix a//b",
        "mqtt://h --prefix a/+",
        "mqtt://h --gateway a/b",
        "mqtt://h --count 0",
        "mqtt://h --timeout 5s",
        "mqtt://h --version 4",
        "mqtt://h --password-file f",
        "mqtts://h --cert-file f",
    ] {
        assert!(try_args(bad).is_err(), "{bad:?} was accepted");
    }
    let why = source(&args("mqtt://h --ca-file f")).expect_err("no TLS").to_string();
    assert!(why.contains("write mqtts://"), "{why}");
    let why = source(&args("mqtts://h --ca-file /nonexistent.pem")).expect_err("no file").to_string();
    assert!(why.contains("/nonexistent.pem"), "{why}");
}
