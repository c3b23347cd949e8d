//! Has told what the registry finds worth telling.

use super::Registry;
use crate::clock::Clock;
use crate::stop;
use crate::store::Log;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Changes are gathered for so long: a commit for each would wear the disk.
const GATHER: Duration = Duration::from_secs(1);
/// Changes told at a time.
const AT_A_TIME: usize = 500;
/// Sleep when nothing is to be waited for.
const LONG: Duration = Duration::from_secs(3600);

/// Tells changes of devices' presence until `stop` turns true.
pub async fn keep(registry: Registry, log: Log, clock: Arc<dyn Clock>, mut stop: watch::Receiver<bool>) {
    loop {
        let now = clock.now();
        let told = registry.tell(now, AT_A_TIME);
        if !told.changes.is_empty() || !told.forgotten.is_empty() {
            for status in &told.changes {
                let (device, link) = (&status.device, &status.link);
                let (state, reason) = (status.state.name(), status.reason.name());
                tracing::debug!(%device, state, reason, %link, flapping = status.flapping, "presence");
            }
            log.attend(told.changes, told.forgotten);
            if timeout(GATHER, stop::requested(&mut stop)).await.is_ok() {
                return;
            }
            continue;
        }
        let wait = registry.due().map_or(LONG, |due| due.saturating_sub(now.monotonic));
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => return,
            () = registry.news() => {}
            () = sleep(wait) => {}
        }
    }
}
