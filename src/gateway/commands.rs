//! Starts the task that carries out commands.

use super::gateway_commands::GatewayCommandHandler;
use super::parts::{Core, Part};
use crate::config;
use crate::downlink::{Downlink, Handle};
use crate::model::InboundCommand;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Carries out commands from `inbound` and from the handle; `operator` carries out those to the
/// gateway itself.
pub(super) fn start(
    config: &config::Commands,
    core: &Core,
    operator: GatewayCommandHandler,
    inbound: mpsc::Receiver<InboundCommand>,
) -> (Part, Handle) {
    let Core { base, log, registry, .. } = core.clone();
    let operator = Arc::new(operator);
    let (downlink, handle) = Downlink::new(config, log, registry, base.clock, base.metrics, operator, inbound);
    let mut part = Part::new();
    part.spawn(|stop| downlink.run(stop));
    (part, handle)
}
