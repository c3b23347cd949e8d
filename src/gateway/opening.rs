//! Opens the log on a thread of its own: that may take long, while health, signals and systemd
//! are served.

use super::health::Overview;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::sink::Sink;
use crate::store::{ConfiguredSink, Log, OpenError, Opened};
use anyhow::{Context, Result};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// Pause after the first failed attempt that may succeed later; doubles with each further
/// one.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A longer attempt is reported.
const LONG: Duration = Duration::from_secs(10);

/// Opens the log as soon as possible; with `again`, also waits for an earlier writer of this
/// process, which a slow disk may delay.
///
/// # Errors
/// If it can never be opened.
pub(super) async fn open_log(
    config: &Config,
    sinks: &[Sink],
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    overview: &Overview,
    again: bool,
) -> Result<Opened> {
    let mut pause = PAUSE;
    loop {
        match attempt(config, sinks, clock, metrics, overview).await {
            Ok(opened) => return Ok(opened),
            Err(why) if why.may_pass() || (again && matches!(why, OpenError::InUse { .. })) => {
                if overview.set_waiting(&why.to_string()) {
                    tracing::error!(error = %why, "the log cannot be opened; devices are not served until it is open");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(why) => return Err(why).context("cannot open the log"),
        }
    }
}

async fn attempt(
    config: &Config,
    sinks: &[Sink],
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
    overview: &Overview,
) -> Result<Opened, OpenError> {
    let failed = |why| OpenError::Directory { path: config.store.directory.clone(), why };
    let (done, opened) = oneshot::channel();
    let sinks: Vec<_> = sinks.iter().map(|sink| (sink.name.clone(), sink.start)).collect();
    let (store, routes, clock, metrics) = (config.store.clone(), config.route.clone(), clock.clone(), metrics.clone());
    let open = move || {
        let sinks: Vec<_> = sinks.iter().map(|(name, start)| ConfiguredSink { name, start: *start }).collect();
        let result = Log::open_with(&store, &routes, &sinks, clock, metrics);
        // The gateway was stopped during its start.
        if let Err(Ok(unwanted)) = done.send(result) {
            unwanted.log.close();
            unwanted.writer.join();
        }
    };
    std::thread::Builder::new().name("log-opener".into()).spawn(open).map_err(failed)?;
    let mut opened = std::pin::pin!(opened);
    let result = match timeout(LONG, &mut opened).await {
        Ok(result) => result,
        Err(_) => {
            if overview.set_waiting("the log is being checked, which takes long") {
                tracing::warn!("opening the log takes long; devices are served once it is open");
            }
            opened.await
        }
    };
    result.unwrap_or_else(|_| Err(failed(io::Error::other("the thread that opened the log has ended"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config;
    use crate::notes::Notes;

    #[tokio::test]
    async fn a_log_whose_earlier_writer_is_late_is_opened_once_that_is_gone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = config::Store { directory: directory.path().to_owned(), ..config::Store::default() };
        let config = Config { store, ..Config::default() };
        let (clock, metrics): (Arc<dyn Clock>, _) = (Arc::new(SystemClock::new()), Metrics::new());
        let late = Log::open(&config.store, &[], clock.clone(), metrics.clone()).expect("a new log");
        let overview = Overview::new(Notes::default(), metrics.clone(), clock.clone());
        let refused = open_log(&config, &[], &clock, &metrics, &overview, false).await;
        assert!(refused.is_err(), "another process may have it");
        let mut opening = std::pin::pin!(open_log(&config, &[], &clock, &metrics, &overview, true));
        assert!(timeout(Duration::ZERO, &mut opening).await.is_err(), "it waits");
        late.log.close();
        late.writer.join();
        let opened = opening.await.expect("it opens");
        opened.log.close();
        opened.writer.join();
    }
}
