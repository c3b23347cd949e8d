//! Transports over which devices connect. Each drives the sessions of `session` over a stream; see
//! `docs/links.md`.

// In dependency order: each refers only to those above it (`tests/architecture.rs`).

pub mod protocol;

mod context;

mod remote;

mod session;

pub mod serial;

pub mod tcp;

pub mod websocket;

pub use context::Shared;

use crate::net::AdmissionSlot;
use context::LinkContext;
use remote::RemoteInfo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Serves one device over a stream that no listener accepted, until either side closes it or `stop`
/// turns true.
async fn serve_stream<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    from: &str,
    link: &LinkContext,
    stop: watch::Receiver<bool>,
) {
    let (remote, slot) = (RemoteInfo::named(from), AdmissionSlot::exclusive());
    session::drive(stream, |_| false, link, remote, slot, stop).await;
}
