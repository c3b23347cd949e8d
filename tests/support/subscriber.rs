//! A consumer that keeps everything it got, duplicates included.

use super::eventually;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate::model::GatewayId;
use tidegate::mqtt::{Connection, Event, Options, Topics, Version};
use tidegate::sink::encode::{Delivered, Delivery, decode};
use tokio::task::JoinSet;

/// Everything that came, in the order in which it did.
#[derive(Debug, Default)]
pub struct Heard {
    pub deliveries: Vec<(String, Delivery)>,
    pub events: Vec<serde_json::Value>,
    /// Why the connection ended, where the broker keeps no session: nothing will come any more.
    pub closed: Option<String>,
}

pub struct Subscriber {
    heard: Arc<Mutex<Heard>>,
    _task: JoinSet<()>,
}

pub fn options(port: u16) -> Options {
    Options {
        version: Version::V3_1_1,
        // A test that shares its thread with what it computes may be silent for seconds.
        keep_alive: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(5),
        max_packet: 1 << 20,
        window: 100,
        ..Options::new("127.0.0.1", port, format!("test-{}-{port}", fastrand::u64(..)))
    }
}

impl Subscriber {
    /// Listens to the gateway `gw`; over and over if the broker keeps a session.
    pub async fn start(options: &Options) -> Subscriber {
        let mut connection = None;
        // A broker that has just begun to listen may not answer yet.
        eventually("the broker answers", async || {
            connection = Connection::open(options).await.ok();
            connection.is_some()
        })
        .await;
        let mut connection = connection.expect("just set");
        let gateway = GatewayId::new("gw").expect("a valid name");
        let filters = Topics::filters("tidegate", Some(&gateway));
        for filter in &filters {
            connection.subscribe(filter).expect("room in the queue");
        }
        for _ in &filters {
            match connection.event().await {
                Event::Subscribed(outcome) => outcome.expect("the broker lets everybody subscribe"),
                other => panic!("{other:?} before the subscription"),
            }
        }
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mut task = JoinSet::new();
        task.spawn(listen(connection, options.clone(), heard.clone()));
        Subscriber { heard, _task: task }
    }

    /// Looks at what came so far.
    pub fn look<T>(&self, at: impl FnOnce(&Heard) -> T) -> T {
        let heard = self.heard.lock().expect("no test panicked there");
        assert_eq!(heard.closed, None, "the subscriber's connection");
        at(&heard)
    }

    /// Every reading that came, in order.
    pub fn readings(&self) -> Vec<Delivered> {
        self.look(|heard| heard.deliveries.iter().flat_map(|(_, delivery)| delivery.readings.clone()).collect())
    }

    /// Device and its seq of every reading, each with how often it came.
    pub fn origins(&self) -> BTreeMap<(String, u64), usize> {
        let mut origins = BTreeMap::new();
        for reading in self.readings() {
            let (_, seq) = reading.origin.expect("devices number their readings");
            *origins.entry((reading.device.to_string(), seq)).or_default() += 1;
        }
        origins
    }

    /// Waits until `count` different readings came.
    pub async fn heard(&self, count: usize) {
        eventually(&format!("{count} readings are delivered"), async || self.origins().len() >= count).await;
    }
}

async fn listen(mut connection: Connection, options: Options, heard: Arc<Mutex<Heard>>) {
    loop {
        match connection.event().await {
            Event::Message(message) => {
                let mut heard = heard.lock().expect("no test panicked there");
                if message.topic.ends_with("/events") || message.topic.ends_with("/result") {
                    heard.events.push(serde_json::from_slice(&message.payload).expect("events are JSON"));
                } else {
                    let delivery = decode(&message.payload).expect("a valid payload");
                    heard.deliveries.push((message.topic, delivery));
                }
            }
            Event::Closed(cause) if options.clean_session => {
                heard.lock().expect("no test panicked there").closed = Some(format!("{cause:?}"));
                return;
            }
            Event::Closed(_) => {
                connection = loop {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Ok(connection) = Connection::open(&options).await {
                        break connection;
                    }
                };
            }
            _ => {}
        }
    }
}
