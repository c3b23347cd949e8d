//! A client that keeps every JSON message of some topics.

use super::subscriber::options;
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tidegate::mqtt::{Connection, Event};
use tokio::task::JoinSet;

type Messages = Arc<Mutex<Vec<(String, Value)>>>;

pub struct Listener {
    messages: Messages,
    _task: JoinSet<()>,
}

impl Listener {
    /// Listens to what the filters match.
    pub async fn start(port: u16, filters: &[&str]) -> Listener {
        let mut connection = Connection::open(&options(port)).await.expect("the broker answers");
        for filter in filters {
            connection.subscribe(filter).expect("room in the queue");
        }
        let messages = Messages::default();
        for _ in filters {
            // Retained messages may come before the next subscription is answered.
            loop {
                match connection.event().await {
                    Event::Subscribed(outcome) => break outcome.expect("the broker lets everybody subscribe"),
                    Event::Message(message) => take(&messages, &message.topic, &message.payload),
                    other => panic!("{other:?} before the subscription"),
                }
            }
        }
        let mut task = JoinSet::new();
        let kept = messages.clone();
        task.spawn(async move {
            loop {
                match connection.event().await {
                    Event::Message(message) => take(&kept, &message.topic, &message.payload),
                    Event::Closed(_) => return,
                    _ => {}
                }
            }
        });
        Listener { messages, _task: task }
    }

    /// What came on this topic, in order.
    pub fn messages(&self, topic: &str) -> Vec<Value> {
        let messages = self.messages.lock().expect("no test panicked there");
        messages.iter().filter(|(on, _)| on == topic).map(|(_, message)| message.clone()).collect()
    }
}

fn take(messages: &Messages, topic: &str, payload: &[u8]) {
    // What is empty takes a retained message back.
    let message = match payload {
        [] => Value::Null,
        payload => serde_json::from_slice(payload).expect("these messages are JSON"),
    };
    messages.lock().expect("no test panicked there").push((topic.to_owned(), message));
}
