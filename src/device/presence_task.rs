//! Has told what the registry finds worth telling.

use super::Registry;
use crate::clock::{Clock, LONGEST_NAP};
use crate::stop;
use crate::store::Log;
use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Changes are gathered for so long: a commit for each would wear the disk.
const GATHER: Duration = Duration::from_secs(1);
/// Changes told at a time.
const AT_A_TIME: usize = 500;
/// Sleep when nothing is to be waited for.
const LONG: Duration = Duration::from_secs(3600);

/// Tells changes of devices' presence until `stop` turns true. Everybody else may hear of
/// them when they are on disk: what was told before would be forgotten by a crash, and
/// nobody could take it back.
pub async fn run(registry: Registry, log: Log, clock: Arc<dyn Clock>, mut stop: watch::Receiver<bool>) {
    let mut next = Instant::now();
    let mut gathering = false;
    // What is being written, as calls of the log and the version of what they told.
    let mut unwritten = VecDeque::new();
    loop {
        if Instant::now() >= next {
            let now = clock.now();
            let told = registry.tell(AT_A_TIME);
            let version = registry.version();
            gathering = !told.changes.is_empty() || !told.forgotten.is_empty();
            if gathering {
                for status in &told.changes {
                    let (device, link) = (&status.device, &status.link);
                    let (state, reason) = (status.state.name(), status.reason.name());
                    tracing::debug!(%device, state, reason, %link, flapping = status.flapping, "presence");
                }
                let count = log.record_presence(told.changes, told.forgotten);
                // While the disk cannot be written, the oldest and the newest are enough.
                unwritten.truncate(1);
                unwritten.push_back((count, version));
            } else if unwritten.is_empty() {
                registry.publish(version);
            }
            let due = || registry.due().map_or(LONG, |due| due.saturating_sub(now.monotonic).min(LONGEST_NAP));
            next = Instant::now() + if gathering { GATHER } else { due() };
        }
        let oldest = unwritten.front().copied();
        let written = async {
            match oldest {
                Some((count, _)) => log.presence_written(count).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => return,
            () = written => {
                unwritten.pop_front();
                oldest.into_iter().for_each(|(_, version)| registry.publish(version));
            }
            () = registry.news(), if !gathering => next = Instant::now(),
            () = sleep_until(next) => {}
        }
    }
}
