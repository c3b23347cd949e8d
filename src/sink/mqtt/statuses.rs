//! Devices' presence as retained messages, one topic a device.
//!
//! What was told of each device has a version, increasing with each change
//! ([`Registry::told_after`]). A broker is told in that order, a few at a time, beside
//! the readings and without holding them up; what it confirmed is remembered for as long
//! as it remembers this client. One that does not is told of every device anew: so its
//! retained messages are made true after a restart of either side.
//!
//! A broker of MQTT 3.1.1 that does not allow them closes the connection. After a few that
//! ended so, one goes without them for a while; readings never wait for them.

use super::feature_breaker::FeatureBreaker;
use crate::backoff::Failure;
use crate::device::{PresenceUpdate, Registry};
use crate::model::GatewayId;
use crate::mqtt::{Connection, Publish, Topics};
use crate::notes::Note;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Statuses under way at a time.
pub const WINDOW: u16 = 4;
/// Tokens from here on are those of statuses.
const FIRST_TOKEN: u64 = 1 << 62;

/// The version up to which one broker knows devices' presence. Clones share it.
pub type Position = Arc<AtomicU64>;

/// What one connection tells of devices.
pub struct Statuses {
    registry: Registry,
    told: watch::Receiver<()>,
    topics: Topics,
    gateway: GatewayId,
    position: Position,
    /// Whether the broker is to keep them for whoever subscribes later.
    retain: bool,
    /// The last version that was sent.
    sent: u64,
    /// Token and version of what is not confirmed, oldest first; whether it is by now.
    under_way: VecDeque<(u64, u64, bool)>,
    next_token: u64,
    /// Whether it was logged that the broker does not take them.
    refusal_told: bool,
    feature_breaker: FeatureBreaker,
    /// Whether one was confirmed or refused, so that they end no connection.
    answered: bool,
    /// Until when this connection goes without.
    rests_until: Option<Instant>,
    note: Note,
}

impl Statuses {
    /// Those that a broker gets which knows them up to `position`. `note` tells, by the
    /// monotonic clock as it is `now`, if this connection goes without them.
    pub fn new(
        registry: Registry,
        topics: Topics,
        gateway: GatewayId,
        (position, feature_breaker): (Position, FeatureBreaker),
        retain: bool,
        note: Note,
        now: Duration,
    ) -> Statuses {
        let rest = feature_breaker.rest(now);
        if let Some(rest) = rest {
            let rest = humantime::format_duration(rest);
            let why = format!(
                "the broker ends connections when devices' presence is published; it goes without that for {rest}: let \
                 the gateway publish to PREFIX/GATEWAY/devices/+/status, or set presence = false"
            );
            tracing::warn!(why, "presence is left out");
            note.is_down(why, now);
        }
        let told = registry.told();
        let sent = position.load(Ordering::Relaxed);
        Statuses {
            registry,
            told,
            topics,
            gateway,
            position,
            retain,
            sent,
            under_way: VecDeque::new(),
            next_token: FIRST_TOKEN,
            refusal_told: false,
            feature_breaker,
            answered: false,
            rests_until: rest.map(|rest| Instant::now() + rest),
            note,
        }
    }

    /// Sends what there is to tell, as far as the window goes.
    pub fn send(&mut self, connection: &mut Connection) {
        if self.rests_until.is_some() {
            return;
        }
        while self.under_way.len() < usize::from(WINDOW) {
            let Some((version, told)) = self.registry.told_after(self.sent) else { return };
            if !self.retain && matches!(told, PresenceUpdate::Forgotten(_)) {
                // There is nothing that the broker could forget.
                self.under_way.push_back((self.next_token, version, true));
                self.settle();
                self.next_token += 1;
                self.sent = version;
                continue;
            }
            let publish = self.publish(told);
            // When too much is queued it is sent later; when the connection is gone, on the next.
            if connection.publish(self.next_token, publish).is_err() {
                return;
            }
            self.under_way.push_back((self.next_token, version, false));
            self.next_token += 1;
            self.sent = version;
        }
    }

    /// Takes note that `token` was confirmed; false if it is no status's.
    pub fn confirmed(&mut self, token: u64) -> bool {
        let Some(found) = self.under_way.iter_mut().find(|(sent, ..)| *sent == token) else { return false };
        found.2 = true;
        if !std::mem::replace(&mut self.answered, true) {
            self.feature_breaker.confirmed();
            self.note.works();
        }
        self.settle();
        true
    }

    fn settle(&mut self) {
        while let Some((_, version, true)) = self.under_way.front() {
            self.position.store(*version, Ordering::Relaxed);
            self.under_way.pop_front();
        }
    }

    /// As [`Statuses::confirmed`], of one that the broker refused. It is passed over: the
    /// readings must not wait for what no broker has to take.
    pub fn refused(&mut self, token: u64, why: &Failure) -> bool {
        let is_ours = self.confirmed(token);
        if is_ours && !std::mem::replace(&mut self.refusal_told, true) {
            tracing::warn!(
                %why,
                "the broker does not take devices' presence; let the gateway publish to it, or set presence = false"
            );
        }
        is_ours
    }

    /// The connection ended.
    pub fn lost(&self) {
        if !self.answered && !self.under_way.is_empty() {
            self.feature_breaker.lost();
        }
    }

    /// Waits until there may be something to tell that was not there before; for ever
    /// while as much is under way as may be. Cancel-safe.
    pub async fn news(&mut self) {
        if let Some(until) = self.rests_until {
            sleep_until(until).await;
            self.rests_until = None;
            return;
        }
        if self.under_way.len() >= usize::from(WINDOW) || self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn publish(&self, told: PresenceUpdate) -> Publish {
        let (device, payload) = match told {
            PresenceUpdate::Status(status) => {
                let mut payload = serde_json::json!({ "gateway": self.gateway });
                if let (Some(payload), Ok(serde_json::Value::Object(status))) =
                    (payload.as_object_mut(), serde_json::to_value(&*status))
                {
                    payload.extend(status);
                }
                (status.device, Bytes::from(payload.to_string()))
            }
            // An empty retained message is how a broker is told to forget one.
            PresenceUpdate::Forgotten(device) => (device, Bytes::new()),
        };
        Publish {
            topic: self.topics.device_status(&device),
            payload,
            retain: self.retain,
            content_type: "application/json",
            encoding: "json",
        }
    }
}
