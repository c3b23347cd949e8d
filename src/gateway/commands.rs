//! Starts the task that carries out commands.

use super::gateway_commands::GatewayCommandHandler;
use super::parts::{Core, Part};
use crate::config;
use crate::downlink::{Downlink, Handle};
use crate::model::InboundCommand;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Carries out commands from `inbound` and from the handle; `handler` carries out those to the
/// gateway itself.
pub(super) fn start(
    config: &config::Commands,
    core: &Core,
    handler: GatewayCommandHandler,
    inbound: mpsc::Receiver<InboundCommand>,
) -> (Part, Handle) {
    let Core { base, log, registry, .. } = core.clone();
    let handler = Arc::new(handler);
    let (downlink, handle) = Downlink::new(config, log, registry, base.clock, base.metrics, handler, inbound);
    let mut part = Part::new();
    part.spawn(|stop| downlink.run(stop));
    (part, handle)
}
