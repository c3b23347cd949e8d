//! The signal by which parts are told to stop: a flag that turns true once.

use tokio::sync::watch;

/// Waits until `stop` turns true, or whoever could turn it is gone. Cancel-safe.
pub async fn requested(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}
