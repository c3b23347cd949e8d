//! The status message of the gateway itself.

use super::super::Identity;
use super::json_publish;
use crate::clock::Clock;
use crate::mqtt::Publish;
use serde_json::json;
use std::sync::Arc;

/// Whose status messages these are.
#[derive(Clone)]
pub(super) struct Status {
    pub topic: String,
    /// Whether the broker is to keep them for whoever subscribes later.
    pub retain: bool,
    pub identity: Identity,
    pub clock: Arc<dyn Clock>,
}

impl Status {
    /// The same, retained if `retain` says so and the configuration does.
    pub fn retained(&self, retain: bool) -> Status {
        Status { retain: self.retain && retain, ..self.clone() }
    }

    pub fn message(&self, state: &str, reason: Option<&str>) -> Publish {
        let mut status = json!({
            "gateway": self.identity.gateway,
            "state": state,
            "version": env!("CARGO_PKG_VERSION"),
            "epoch": self.identity.epoch,
            "time": self.clock.now().wall.to_string(),
        });
        if let (Some(reason), Some(status)) = (reason, status.as_object_mut()) {
            status.insert("reason".into(), reason.into());
        }
        json_publish(self.topic.clone(), &status, self.retain)
    }
}
