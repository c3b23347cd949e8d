//! Messages from a broker, over one connection after the other.

use crate::backoff::{Backoff, Failure};
use crate::config::Broker;
use crate::mqtt::{Connection, Event, Message, Options};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What to subscribe to, and where.
#[derive(Debug, Clone)]
pub struct Source {
    pub broker: Broker,
    pub options: Options,
    pub filters: Vec<String>,
}

/// An event of the feed.
#[derive(Debug)]
pub enum Fed {
    /// Every filter is subscribed to.
    Subscribed,
    Message(Message),
    /// The broker cannot be reached, or the connection is lost; sent once until it is back.
    Trouble(Failure),
    /// The first connection was refused permanently. Nothing follows.
    Refused(Failure),
}

/// Bounds of the pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Backoff is reset after a connection that lasted this long.
const STABLE: Duration = Duration::from_secs(10);
/// Time for the broker to answer the subscriptions.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Feeds `out` until it is closed or the broker refuses permanently.
pub async fn feed(source: Source, out: mpsc::Sender<Fed>) {
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, STABLE, fastrand::u64(..));
    let mut subscribed_once = false;
    let mut told = false;
    loop {
        let began = Instant::now();
        let failure = match subscribe(&source, &out).await {
            Ok(connection) => {
                (subscribed_once, told) = (true, false);
                if out.send(Fed::Subscribed).await.is_err() {
                    return;
                }
                let Some(failure) = forward(connection, &out).await else { return };
                backoff.worked_for(began.elapsed());
                failure
            }
            Err(failure) if failure.permanent && !subscribed_once => {
                // A closed channel needs no event.
                let _ = out.send(Fed::Refused(failure)).await;
                return;
            }
            Err(failure) => failure,
        };
        if failure.permanent {
            backoff.give_time();
        }
        if !told && out.send(Fed::Trouble(failure)).await.is_err() {
            return;
        }
        told = true;
        tokio::select! {
            () = tokio::time::sleep(backoff.delay()) => {}
            () = out.closed() => return,
        }
    }
}

/// Connects and waits until the broker has accepted every subscription.
async fn subscribe(source: &Source, out: &mpsc::Sender<Fed>) -> Result<Connection, Failure> {
    let mut connection = Connection::open(&source.options).await?;
    for filter in &source.filters {
        connection.subscribe(filter)?;
    }
    let accepted = async {
        let mut waiting = source.filters.len();
        while waiting > 0 {
            match connection.event().await {
                Event::Subscribed(answer) => {
                    answer?;
                    waiting -= 1;
                }
                // Messages of one subscription may arrive before the next is answered.
                Event::Message(message) => drop(out.send(Fed::Message(message)).await),
                Event::Closed(failure) => return Err(failure),
                Event::Unusable { topic, size, why } => unusable(&topic, size, why),
                Event::Acked(_) | Event::Refused(..) | Event::Confirmed(_) | Event::Room => {}
            }
        }
        Ok(())
    };
    match tokio::time::timeout(SUBSCRIBE_TIMEOUT, accepted).await {
        Ok(accepted) => accepted.map(|()| connection),
        Err(_) => Err(Failure::transient("the broker did not answer the subscriptions")),
    }
}

fn unusable(topic: &str, size: usize, why: &str) {
    tracing::warn!(topic, size, "a message of the broker {why} and is left out");
}

/// Forwards messages until the connection ends, and returns why; `None` if `out` is closed.
async fn forward(mut connection: Connection, out: &mpsc::Sender<Fed>) -> Option<Failure> {
    loop {
        let event = tokio::select! {
            event = connection.event() => event,
            () = out.closed() => return None,
        };
        match event {
            Event::Message(message) => out.send(Fed::Message(message)).await.ok()?,
            Event::Closed(failure) => return Some(failure),
            Event::Unusable { topic, size, why } => unusable(&topic, size, why),
            Event::Subscribed(_) | Event::Acked(_) | Event::Refused(..) | Event::Confirmed(_) | Event::Room => {}
        }
    }
}
