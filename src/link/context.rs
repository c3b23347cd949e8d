//! What the connections of one link have in common.

use crate::clock::Clock;
use crate::config::{self, Authentication, ListenerConfig};
use crate::device::auth::{Doorman, Fault, Origin};
use crate::device::{Registry, SessionParameters, TimeRules};
use crate::metrics::{LinkLabel, LinkReasonLabel, Metrics};
use crate::net::Pool;
use crate::notes::Notes;
use crate::store::Log;
use crate::wire::frame::{FrameError, FrameRef, Limits, Recovery};
use bytesize::ByteSize;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
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
    pub notes: Notes,
}

impl Shared {
    /// What devices are granted on a link with these settings. A handshake that has to end,
    /// and a Hello that may begin anew, are for the link to add.
    pub(super) fn parameters(
        &self,
        max_frame: ByteSize,
        heartbeat_interval: Option<Duration>,
        idle_timeout: Option<Duration>,
        authentication: Authentication,
    ) -> SessionParameters {
        let silence = self.devices.silence(heartbeat_interval, idle_timeout);
        SessionParameters {
            handshake_timeout: None,
            heartbeat_interval: silence.heartbeat_interval,
            idle_after: silence.idle_after(),
            idle_timeout: silence.idle_timeout,
            window: self.devices.window,
            max_frame: u32::try_from(max_frame.as_u64()).unwrap_or(u32::MAX),
            restart: false,
            times: TimeRules {
                boot: self.clock.boot(),
                max_ahead: self.devices.max_clock_ahead,
                earliest: self.devices.earliest_time,
            },
            authentication,
        }
    }
}

/// One configured link.
pub(super) struct LinkContext {
    pub name: Arc<str>,
    pub parameters: SessionParameters,
    /// What is accepted before a device is welcomed.
    pub before_hello: Limits,
    /// What is accepted afterwards.
    pub limits: Limits,
    pub recovery: Recovery,
    /// Whether devices may speak in text messages, and do until they show otherwise.
    pub text: bool,
    /// How long a frame may stay incomplete without another byte.
    pub frame_timeout: Duration,
    /// How long a byte is on its way, where that is known.
    pub byte_time: Duration,
    pub shared: Shared,
}

impl LinkContext {
    /// The line of a listener, on which a device begins with at most `before_hello` bytes.
    pub fn of_listener(
        name: Arc<str>,
        config: &ListenerConfig,
        before_hello: usize,
        text: bool,
        shared: Shared,
    ) -> LinkContext {
        let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
        let ListenerConfig { max_frame, heartbeat_interval, idle_timeout, authentication, .. } = *config;
        LinkContext {
            name,
            parameters: SessionParameters {
                handshake_timeout: Some(config.handshake_timeout),
                ..shared.parameters(max_frame, heartbeat_interval, idle_timeout, authentication)
            },
            before_hello: Limits { max_body: before_hello.min(max_body), require_checksum: false },
            limits: Limits { max_body, require_checksum: false },
            recovery: Recovery::Fail,
            text,
            frame_timeout: config.frame_timeout,
            byte_time: Duration::ZERO,
            shared,
        }
    }

    /// How long a frame of so many bytes may take that hides another, at half the line's speed.
    pub fn frame_within(&self, bytes: usize) -> Duration {
        self.frame_timeout + self.byte_time.saturating_mul(u32::try_from(2 * bytes).unwrap_or(u32::MAX))
    }

    fn label(&self) -> LinkLabel {
        LinkLabel { link: self.name.clone() }
    }

    /// From the connection to the end of the handshake.
    pub fn handshake_timeout(&self) -> Duration {
        self.parameters.handshake_timeout.unwrap_or_default()
    }

    /// Counts whole frames.
    pub fn frames(&self) -> Counter {
        self.shared.metrics.frames_valid.get_or_create(&self.label()).clone()
    }

    /// Counts a device that is read no further for a while.
    pub fn throttled(&self) {
        self.shared.metrics.devices_throttled.get_or_create(&self.label()).inc();
    }

    /// Counts what came in and is no frame or no message.
    pub fn count_invalid(&self, reason: &'static str) {
        let label = LinkReasonLabel { link: self.name.clone(), reason };
        self.shared.metrics.frames_invalid.get_or_create(&label).inc();
    }

    /// Counts and logs a frame that was refused.
    pub fn invalid(&self, error: FrameError) {
        self.count_invalid(error.label());
        let link = &self.name;
        match self.recovery {
            Recovery::Resync => tracing::warn!(%link, %error, "a frame is refused"),
            // The end of the connection says why.
            Recovery::Fail => tracing::debug!(%link, %error, "a frame is refused"),
        }
    }

    /// Counts bytes that belong to no frame.
    pub fn skipped(&self, bytes: usize) {
        self.shared.metrics.link_skipped_bytes.get_or_create(&self.label()).inc_by(bytes as u64);
    }

    /// Counts that a device was asked for readings that were lost on the way.
    pub fn asked_again(&self) {
        self.shared.metrics.link_resends.get_or_create(&self.label()).inc();
    }

    /// Whether the frame is the gateway's own, which a serial line may bring back to it; that is
    /// counted, and told the first time.
    pub fn is_echo(&self, frame: &FrameRef<'_>) -> bool {
        let echo = frame.is_from_gateway() && self.recovery == Recovery::Resync;
        if echo && self.shared.metrics.link_echoes.get_or_create(&self.label()).inc() == 0 {
            tracing::info!(link = %self.name, "the line brings back what the gateway sends; that is passed over");
        }
        echo
    }

    /// Shows whether the listener or port is open.
    pub fn up(&self, up: bool) {
        self.shared.metrics.link_up.get_or_create(&self.label()).set(i64::from(up));
    }

    /// Counts that the port was lost.
    pub fn lost(&self) {
        self.shared.metrics.link_losses.get_or_create(&self.label()).inc();
    }

    /// Has keys ready where devices prove who they are by them, and says what is weak about
    /// how they do: they need not, or send their secrets in the clear.
    pub fn guard(&self, config: &ListenerConfig) {
        let (link, listen) = (&self.name, config.listen);
        self.unauthenticated(config.is_open());
        if config.is_open() {
            tracing::warn!(%link, %listen, "authentication = \"none\": whoever reaches this address is let in");
        }
        if config.is_tapped() {
            tracing::warn!(%link, "tokens are sent in the clear: give cert_file and key_file, or authentication = \"hmac\"");
        }
        self.prepare();
    }

    /// Has keys ready where devices prove who they are by them.
    pub fn prepare(&self) {
        if self.parameters.authentication != Authentication::None {
            self.shared.doorman.prepare();
        }
    }

    /// Shows how many connections wait for their device to be welcomed.
    pub fn waiting(&self) -> Gauge {
        self.shared.metrics.connections_waiting.get_or_create(&self.label()).clone()
    }

    /// Shows whether devices from elsewhere need not prove who they are.
    pub fn unauthenticated(&self, unauthenticated: bool) {
        self.shared.metrics.link_unauthenticated.get_or_create(&self.label()).set(i64::from(unauthenticated));
    }

    /// Counts that somebody did not get in, and tells if that locked out where it came from.
    pub fn failed(&self, origin: &Origin, fault: Fault, from: &str, now: Duration) {
        let lock = self.shared.doorman.failed(&self.name, origin, fault, now);
        if let Some(time) = lock.map(humantime::format_duration) {
            tracing::warn!(link = %self.name, from, %time, "the address is locked out for a while: too many attempts to authenticate failed; the lines before say why, \
                 and [devices] lock_out_after = 0 locks out nobody");
        }
    }

    /// Counts a connection that was turned away.
    pub fn turned_away(&self, reason: &'static str) {
        let label = LinkReasonLabel { link: self.name.clone(), reason };
        self.shared.metrics.connections_refused.get_or_create(&label).inc();
    }
}
