//! Somebody upstream who gives commands over MQTT and keeps what comes of them.

use super::eventually;
use super::subscriber::options;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tidegate::mqtt::{Connection, Event, Publish};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub struct Cloud {
    publishes: mpsc::UnboundedSender<Publish>,
    results: Arc<Mutex<Vec<(String, Value)>>>,
    taken: Arc<Mutex<u64>>,
    sent: u64,
    _task: JoinSet<()>,
}

const FILTERS: [&str; 3] = ["tidegate/gw/devices/+/result", "tidegate/gw/devices/+/+/result", "tidegate/gw/result"];

impl Cloud {
    pub async fn start(port: u16) -> Cloud {
        let mut connection = Connection::open(&options(port)).await.expect("the broker answers");
        for filter in FILTERS {
            connection.subscribe(filter).expect("room in the queue");
        }
        for _ in FILTERS {
            let Event::Subscribed(outcome) = connection.event().await else { panic!("no subscription") };
            outcome.expect("everybody may subscribe");
        }
        let (publishes, mut publish) = mpsc::unbounded_channel::<Publish>();
        let (results, taken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let mut task = JoinSet::new();
        let (heard, acked) = (results.clone(), taken.clone());
        task.spawn(async move {
            let mut token = 0;
            loop {
                tokio::select! {
                    Some(publish) = publish.recv() => {
                        token += 1;
                        connection.publish(token, publish).expect("room in the queue");
                    }
                    event = connection.event() => match event {
                        Event::Message(message) => {
                            let result = serde_json::from_slice(&message.payload).expect("results are JSON");
                            heard.lock().expect("no panic").push((message.topic, result));
                        }
                        Event::Acked(_) => *acked.lock().expect("no panic") += 1,
                        Event::Closed(_) => return,
                        _ => {}
                    }
                }
            }
        });
        Cloud { publishes, results, taken, sent: 0, _task: task }
    }

    /// Publishes a command and waits until the broker has it.
    pub async fn command(&mut self, device: &str, body: &Value) {
        self.publish(&format!("tidegate/gw/devices/{device}/command"), &body.to_string(), false).await;
    }

    pub async fn publish(&mut self, topic: &str, payload: &str, retain: bool) {
        let payload = payload.to_owned().into();
        let publish = Publish { topic: topic.to_owned(), payload, retain, content_type: "", encoding: "" };
        self.publishes.send(publish).expect("the task runs");
        self.sent += 1;
        let sent = self.sent;
        eventually("the broker has the command", async || *self.taken.lock().expect("no panic") >= sent).await;
    }

    /// Topic and content of all results that came so far with this id.
    pub fn results(&self, id: &str) -> Vec<(String, Value)> {
        let results = self.results.lock().expect("no panic");
        results.iter().filter(|(_, result)| result["id"] == id).cloned().collect()
    }

    /// Everything that came.
    pub fn all(&self) -> Vec<(String, Value)> {
        self.results.lock().expect("no panic").clone()
    }

    /// Waits for the result with this id.
    pub async fn result(&self, id: &str) -> (String, Value) {
        eventually(&format!("the result of {id} comes"), async || !self.results(id).is_empty()).await;
        self.results(id).remove(0)
    }

    /// Waits for its state.
    pub async fn state(&self, id: &str) -> String {
        self.result(id).await.1["state"].as_str().expect("a state").to_owned()
    }
}
