//! The stop signal of the parts: a flag that turns true once.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// Waits until `stop` turns true, or its sender is dropped. Cancel-safe.
pub async fn requested(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Calls `look` at once and then after each `period`, until `stop` turns true. Missed calls are
/// not made up for.
pub async fn every(period: Duration, stop: &mut watch::Receiver<bool>, mut look: impl FnMut()) {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = requested(stop) => return,
            _ = tick.tick() => look(),
        }
    }
}
