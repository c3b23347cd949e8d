//! What the connections of one link have in common.

use super::pool::Pool;
use crate::clock::Clock;
use crate::config::{self, Authentication};
use crate::device::auth::{Doorman, Fault, Origin};
use crate::device::{Grants, Registry, TimeRules};
use crate::metrics::{LinkLabel, LinkReasonLabel, Metrics};
use crate::store::Log;
use crate::wire::frame::{FrameError, Limits, Recovery};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What every link works with.
#[derive(Clone)]
pub struct Shared {
    pub log: Log,
    pub registry: Registry,
    pub doorman: Doorman,
    pub devices: config::Devices,
    /// Memory for what connections hold.
    pub pool: Pool,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

impl Shared {
    /// How devices' times are taken, by the configuration and this machine's boot.
    pub(super) fn time_rules(&self) -> TimeRules {
        TimeRules {
            boot: self.clock.boot(),
            max_ahead: self.devices.max_clock_ahead,
            earliest: self.devices.earliest_time,
        }
    }
}

/// One configured link.
pub(super) struct Line {
    pub name: Arc<str>,
    pub grants: Grants,
    /// What is accepted before a device is welcomed.
    pub before_hello: Limits,
    /// What is accepted afterwards.
    pub limits: Limits,
    pub recovery: Recovery,
    /// Whether devices may speak in text messages, and do until they show otherwise.
    pub text: bool,
    /// How long a frame may stay incomplete without another byte.
    pub frame_timeout: Duration,
    pub shared: Shared,
}

impl Line {
    /// From the connection to the end of the handshake.
    pub fn handshake_timeout(&self) -> Duration {
        self.grants.handshake_timeout.unwrap_or_default()
    }

    /// Counts whole frames.
    pub fn frames(&self) -> Counter {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.frames_valid.get_or_create(&label).clone()
    }

    /// Counts a device that is read no further for a while.
    pub fn throttled(&self) {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.devices_throttled.get_or_create(&label).inc();
    }

    /// Counts what came in and is no frame or no message.
    pub fn count_invalid(&self, reason: &'static str) {
        let label = LinkReasonLabel { link: self.name.clone(), reason };
        self.shared.metrics.frames_invalid.get_or_create(&label).inc();
    }

    /// Counts and logs a frame that was refused.
    pub fn invalid(&self, error: FrameError) {
        self.count_invalid(error.label());
        tracing::debug!(link = %self.name, %error, "invalid frame");
    }

    /// Counts bytes that belong to no frame.
    pub fn skipped(&self, bytes: usize) {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.link_skipped_bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    /// Shows whether the listener or port is open.
    pub fn up(&self, up: bool) {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.link_up.get_or_create(&label).set(i64::from(up));
    }

    /// Has keys ready where devices prove who they are by them, and says what is weak about
    /// how they do at `listen`: they need not, or send their secrets in the clear.
    pub fn guard(&self, listen: SocketAddr, is_open: bool, is_tapped: bool) {
        let link = &self.name;
        self.unauthenticated(is_open);
        if is_open {
            tracing::warn!(%link, %listen, "authentication = \"none\": whoever reaches this address is let in");
        }
        if is_tapped {
            tracing::warn!(%link, "tokens are sent in the clear: give cert_file and key_file, or authentication = \"hmac\"");
        }
        if self.grants.authentication != Authentication::None {
            self.shared.doorman.prepare();
        }
    }

    /// Shows how many connections wait for their device to be welcomed.
    pub fn waiting(&self) -> Gauge {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.connections_waiting.get_or_create(&label).clone()
    }

    /// Shows whether devices from elsewhere need not prove who they are.
    pub fn unauthenticated(&self, unauthenticated: bool) {
        let label = LinkLabel { link: self.name.clone() };
        self.shared.metrics.link_unauthenticated.get_or_create(&label).set(i64::from(unauthenticated));
    }

    /// Counts that somebody did not get in, and tells if that locked out where it came from.
    pub fn failed(&self, origin: &Origin, fault: Fault, from: &str, now: Duration) {
        let lock = self.shared.doorman.failed(&self.name, origin, fault, now);
        if let Some(time) = lock.map(humantime::format_duration) {
            tracing::warn!(link = %self.name, from, %time, "locked out: too many attempts to authenticate failed");
        }
    }

    /// Counts a connection that was turned away.
    pub fn turned_away(&self, reason: &'static str) {
        let label = LinkReasonLabel { link: self.name.clone(), reason };
        self.shared.metrics.connections_refused.get_or_create(&label).inc();
    }
}
