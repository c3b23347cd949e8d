//! Starts the tasks for time and presence.

use super::parts::{Core, Part};
use super::timekeeper::{self, Witnesses};
use crate::clock::{self, Clock, SystemClock};
use crate::config;
use crate::device::presence_task;
use std::sync::Arc;

/// Trusts the clock at once if a witness confirms it without waiting.
pub(super) fn start(config: &config::Gateway, system_clock: Arc<SystemClock>, core: &Core) -> Part {
    let Core { base, log, registry, .. } = core.clone();
    let witnesses = Witnesses::new(config);
    let earlier = log.is_synchronised().then_some("an earlier run in this boot");
    let wall = system_clock.now().wall;
    if let Some(witness) = earlier.or_else(|| witnesses.at_once()).or_else(|| witnesses.battery(wall)) {
        system_clock.believe();
        tracing::debug!(witness, "the clock is set");
    }
    let mut part = Part::new();
    part.spawn(|stop| clock::keep(base.clock.clone(), stop));
    part.spawn(|stop| timekeeper::keep(system_clock, witnesses, log.clone(), base.metrics, stop));
    part.spawn(|stop| presence_task::run(registry, log, base.clock, stop));
    part
}
