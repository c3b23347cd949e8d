//! Devices on serial lines. A line is noisy, does not close when the device restarts, and its port
//! may vanish and come back under another name.

mod choice;
mod claims;
mod counted;
mod open;
mod ports;

pub use choice::closeness;
pub use claims::Ports;
pub use ports::{Port, Usb, list};

use super::context::{LinkContext, Shared};
use super::protocol::SessionParameters;
use super::remote::RemoteInfo;
use super::session::{self, Closed};
use crate::config;
use crate::metrics::{LinkLabel, Metrics};
use crate::net::AdmissionSlot;
use crate::stop;
use crate::wire::frame::{Limits, Recovery};
use claims::Claim;
use counted::Counted;
use open::{Opened, open};
use prometheus_client::metrics::counter::Counter;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// With start, parity and two stop bits.
const BITS_OF_A_BYTE: u64 = 12;

/// Serves the port until `stop` turns true, looking it up and opening it again whenever
/// it vanishes.
pub async fn serve(config: config::Serial, ports: Ports, shared: Shared, mut stop: watch::Receiver<bool>) {
    let link = link_context(&config, shared);
    let counts = Counts::new(&link.shared.metrics, &config.name);
    link.prepare();
    let note = link.shared.notes.about(link.name.clone());
    let now = || link.shared.clock.now().monotonic;
    // A port that stays away is logged once.
    let mut told = None;
    while !*stop.borrow() {
        match ports.claim(&config).and_then(|claim| Ok((open(&claim.path, &config)?, claim))) {
            Ok((opened, claim)) => {
                told = None;
                counts.opened.inc();
                link.up(true);
                note.works();
                let lost = serve_port(opened, &claim, &link, &counts, config.baud, stop.clone()).await;
                link.up(false);
                if let Some(why) = lost {
                    link.lost();
                    note.failed(why.as_str(), now());
                    note.is_down(why, now());
                }
            }
            Err(why) => {
                link.up(false);
                counts.open_failed.inc();
                note.is_down(why.as_str(), now());
                if told.as_ref() != Some(&why) {
                    tracing::warn!(link = %link.name, why, "cannot open the serial port; trying on");
                    told = Some(why);
                }
            }
        }
        let pause = tokio::time::sleep(config.reopen_interval);
        tokio::select! {
            () = stop::requested(&mut stop) => {}
            () = pause => {}
        }
    }
}

/// Serves an open port. Returns why it was lost, if it was.
async fn serve_port(
    opened: Opened,
    claim: &Claim,
    link: &LinkContext,
    counts: &Counts,
    baud: u32,
    stop: watch::Receiver<bool>,
) -> Option<String> {
    let path = claim.path.display().to_string();
    let device = claim.device().display();
    tracing::info!(link = %link.name, path, %device, baud, "serial port opened");
    if let Some(settings) = opened.adjusted {
        tracing::warn!(link = %link.name, path, settings, "the port's driver takes other RS-485 settings");
    }
    let mut port = Counted { stream: opened.stream, read: counts.read.clone(), written: counts.written.clone() };
    match session::drive(&mut port, |_| false, link, RemoteInfo::named(path.as_str()), AdmissionSlot::exclusive(), stop)
        .await
    {
        // An exclusive slot is never evicted.
        Closed::Ended | Closed::Evicted => {
            tracing::debug!(link = %link.name, path, "session ended");
            None
        }
        Closed::Gone => {
            tracing::warn!(link = %link.name, path, "serial port vanished; waiting for it");
            Some(format!("{path}: the port vanished; see whether its device is plugged in and has power"))
        }
        Closed::Failed(why) => {
            tracing::warn!(link = %link.name, path, %why, "serial port failed; opening it again");
            Some(format!("{path}: the port failed ({why}); see whether its device is plugged in and has power"))
        }
    }
}

/// Serves one device as [`serve`] does, over a stream that is no port, until the stream ends or
/// `stop` turns true.
pub async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    from: &str,
    config: &config::Serial,
    shared: Shared,
    stop: watch::Receiver<bool>,
) {
    super::serve_stream(stream, from, &link_context(config, shared), stop).await;
}

fn link_context(config: &config::Serial, shared: Shared) -> LinkContext {
    let max_body = usize::try_from(config.max_frame.as_u64()).unwrap_or(usize::MAX);
    let (heartbeat, idle) = (config.heartbeat_interval, config.idle_timeout);
    let parameters = shared.parameters(config.max_frame, heartbeat, idle, config.authentication);
    let limits = Limits { max_body, require_checksum: config.require_checksum };
    LinkContext {
        name: config.name.as_str().into(),
        parameters: SessionParameters { restart: true, ..parameters },
        before_hello: limits,
        limits,
        recovery: Recovery::Resync,
        text: false,
        frame_timeout: config.frame_timeout,
        byte_time: Duration::from_secs(BITS_OF_A_BYTE) / config.baud.max(1),
        shared,
    }
}

/// The metrics of one port.
struct Counts {
    opened: Counter,
    open_failed: Counter,
    read: Counter,
    written: Counter,
}

impl Counts {
    fn new(metrics: &Metrics, name: &str) -> Counts {
        let label = LinkLabel { link: name.into() };
        let of = |family: &prometheus_client::metrics::family::Family<LinkLabel, Counter>| {
            family.get_or_create(&label).clone()
        };
        Counts {
            opened: of(&metrics.serial_opened),
            open_failed: of(&metrics.serial_open_failures),
            read: of(&metrics.serial_read_bytes),
            written: of(&metrics.serial_written_bytes),
        }
    }
}
