//! The configuration and the services that the connections of one link share.

use super::protocol::SessionParameters;
use super::protocol::convert::TimeRules;
use crate::clock::Clock;
use crate::config::{self, Authentication, ListenerConfig};
use crate::device::auth::{AuthError, Authenticator, Origin};
use crate::ingest::Ingest;
use crate::metrics::{LinkLabel, LinkReasonLabel, Metrics};
use crate::net::{ListenerAdmission, LockedOut, Pool};
use crate::notes::Notes;
use crate::wire::frame::{FrameError, FrameRef, Limits, Recovery};
use bytesize::ByteSize;
use prometheus_client::metrics::counter::Counter;
use std::sync::Arc;
use std::time::Duration;

/// The services that every link uses.
#[derive(Clone)]
pub struct Shared {
    pub ingest: Ingest,
    pub authenticator: Authenticator,
    pub devices: config::Devices,
    /// Memory for all connections.
    pub pool: Pool,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub notes: Notes,
}

impl Shared {
    /// The parameters of sessions on a link with these settings, without a handshake timeout, and
    /// without restarts on one line: those the link adds.
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
    /// Limits of a frame before the device is welcomed.
    pub before_hello: Limits,
    /// Limits of a frame afterwards.
    pub limits: Limits,
    pub recovery: Recovery,
    /// Whether devices may send text messages, and are assumed to until they send a frame.
    pub text: bool,
    /// How long a frame may stay incomplete without another byte.
    pub frame_timeout: Duration,
    /// Transmission time of one byte, where it is known.
    pub byte_time: Duration,
    pub shared: Shared,
}

impl LinkContext {
    /// The context of a listener, whose devices begin with a frame of at most `before_hello` bytes.
    pub fn of_listener(
        name: Arc<str>,
        config: &ListenerConfig,
        before_hello: usize,
        text: bool,
        shared: Shared,
    ) -> LinkContext {
        let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
        let ListenerConfig { max_frame, heartbeat_interval, idle_timeout, .. } = *config;
        LinkContext {
            name,
            parameters: SessionParameters {
                handshake_timeout: Some(config.handshake_timeout),
                ..shared.parameters(max_frame, heartbeat_interval, idle_timeout, config.authentication())
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

    /// How long a frame of so many bytes may take before another is looked for in it, at half the
    /// line's speed.
    pub fn frame_within(&self, bytes: usize) -> Duration {
        self.frame_timeout + self.byte_time.saturating_mul(u32::try_from(2 * bytes).unwrap_or(u32::MAX))
    }

    fn label(&self) -> LinkLabel {
        LinkLabel { link: self.name.clone() }
    }

    /// Time from the connection to the end of the handshake.
    pub fn handshake_timeout(&self) -> Duration {
        self.parameters.handshake_timeout.unwrap_or_default()
    }

    /// The counter of whole frames.
    pub fn frames(&self) -> Counter {
        self.shared.metrics.frames_valid.get_or_create(&self.label()).clone()
    }

    /// Counts that a device is not read for a while because it sends too many messages.
    pub fn throttled(&self) {
        self.shared.metrics.devices_throttled.get_or_create(&self.label()).inc();
    }

    /// Counts input that is no frame or no message.
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
            // The line that logs the end of the connection says why.
            Recovery::Fail => tracing::debug!(%link, %error, "a frame is refused"),
        }
    }

    /// Counts bytes that belong to no frame.
    pub fn skipped(&self, bytes: usize) {
        self.shared.metrics.link_skipped_bytes.get_or_create(&self.label()).inc_by(bytes as u64);
    }

    /// Counts that a device is asked again for readings that were lost on the line.
    pub fn count_resend(&self) {
        self.shared.metrics.link_resends.get_or_create(&self.label()).inc();
    }

    /// Whether the frame is the gateway's own, echoed by a serial line; that is counted, and logged
    /// the first time.
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

    /// Loads the keys where devices authenticate by them, and warns where they need not, or send
    /// their secrets in the clear.
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

    /// Loads the keys where devices authenticate by them.
    pub fn prepare(&self) {
        if self.parameters.authentication != Authentication::None {
            self.shared.authenticator.prepare();
        }
    }

    /// Admission to this link's listener, which refuses addresses that are locked out.
    pub fn admission(&self, config: &ListenerConfig) -> ListenerAdmission {
        let Shared { authenticator, pool, clock, metrics, .. } = self.shared.clone();
        let locked_out: LockedOut =
            Arc::new(move |address, now| authenticator.locked_out(&address.into(), now).is_some());
        let locked_out = config.is_guarded().then_some(locked_out);
        ListenerAdmission::new(self.name.clone(), config, locked_out, pool, clock, metrics)
    }

    /// Shows whether devices of other hosts need not authenticate.
    pub fn unauthenticated(&self, unauthenticated: bool) {
        self.shared.metrics.link_unauthenticated.get_or_create(&self.label()).set(i64::from(unauthenticated));
    }

    /// Counts a failed authentication, and logs if it locks its origin out.
    pub fn failed(&self, origin: &Origin, fault: AuthError, from: &str, now: Duration) {
        let lock = self.shared.authenticator.failed(&self.name, origin, fault, now);
        if let Some(time) = lock.map(humantime::format_duration) {
            tracing::warn!(link = %self.name, from, %time, "the address is locked out for a while: too many attempts to authenticate failed; the lines before say why, \
                 and [devices] lock_out_after = 0 locks out nobody");
        }
    }

    /// Counts a connection that is refused.
    pub fn count_refused(&self, reason: &'static str) {
        let label = LinkReasonLabel { link: self.name.clone(), reason };
        self.shared.metrics.connections_refused.get_or_create(&label).inc();
    }
}
