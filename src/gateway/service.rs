//! The gateway as a service: signals, and notifications to systemd.

use super::{Environment, Gateway};
use crate::config::Config;
use crate::http::Health;
use crate::logging::Logging;
use anyhow::{Context, Result};
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval_at};

/// Interval of feeding the watchdog, unless systemd requires a shorter one.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// Further time for the start, in microseconds, requested from systemd.
const EXTEND_USEC: u32 = 60_000_000;

/// Runs the gateway until SIGTERM or SIGINT, and stops it gracefully; at once on a
/// second signal. If the log turns out to be damaged, the gateway is started again in the same
/// process, which recovers the log.
///
/// # Errors
/// If it cannot be started.
pub async fn run(config: Config, logging: Logging) -> Result<()> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let mut again = false;
    loop {
        let Some(gateway) = start(config.clone(), &logging, &mut signals, again).await? else { return Ok(()) };
        again = true;
        tell(&[NotifyState::Ready, NotifyState::Status("running")]);
        let why = watch(&gateway, &mut signals).await;
        match why {
            Why::Asked => {
                tracing::info!("stopping; a second signal stops at once");
                tell(&[NotifyState::Stopping]);
            }
            Why::Damaged => tracing::warn!("stopping, to start again at once and recover the damaged log"),
        }
        tokio::select! {
            () = gateway.stop() => {}
            () = signals.next() => {
                tracing::warn!("stopped at once; what was not acknowledged will be sent again");
                return Ok(());
            }
        }
        if why == Why::Asked {
            return Ok(());
        }
    }
}

/// Why the gateway stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// A signal.
    Asked,
    /// Its log is damaged; opening it again recovers it.
    Damaged,
}

/// Starts the gateway, waiting for a full disk or a long check of the log; `None` if a signal
/// comes first.
async fn start(config: Config, logging: &Logging, signals: &mut Signals, again: bool) -> Result<Option<Gateway>> {
    let environment = Environment { logging: Some(logging.clone()), again, ..Environment::default() };
    let mut starting = std::pin::pin!(Gateway::start_in(environment, config));
    let every = watch_every();
    let mut tick = interval_at(Instant::now() + every, every);
    loop {
        tokio::select! {
            gateway = &mut starting => return gateway.map(Some),
            () = signals.next() => return Ok(None),
            // After the first start, the watchdog is active already.
            _ = tick.tick() => tell(&[
                NotifyState::ExtendTimeoutUsec(EXTEND_USEC),
                NotifyState::Watchdog,
                NotifyState::Status("opening the log"),
            ]),
        }
    }
}

/// Feeds the watchdog while there is progress, until the gateway is to stop.
async fn watch(gateway: &Gateway, signals: &mut Signals) -> Why {
    let mut tick = tokio::time::interval(watch_every());
    loop {
        tokio::select! {
            () = signals.next() => return Why::Asked,
            () = gateway.log.damaged() => return Why::Damaged,
            _ = tick.tick() => {
                let problems = gateway.overview.live().problems;
                match problems.first() {
                    None => tell(&[NotifyState::Watchdog]),
                    Some(first) => tracing::error!(part = first.part, reason = first.reason, "no progress"),
                }
            }
        }
    }
}

/// Interval of feeding the watchdog.
fn watch_every() -> Duration {
    let every = sd_notify::watchdog_enabled().map_or(WATCH_EVERY, |limit| WATCH_EVERY.min(limit / 3));
    every.max(Duration::from_millis(10))
}

/// Notifies systemd, if it listens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(state) {
        tracing::debug!(%why, "cannot notify systemd");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Signals without a function, by name. Unhandled, they would end the process like a crash.
    ignored: [(&'static str, Signal); 3],
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            ignored: [
                ("SIGHUP", signal(SignalKind::hangup())?),
                ("SIGUSR1", signal(SignalKind::user_defined1())?),
                ("SIGUSR2", signal(SignalKind::user_defined2())?),
            ],
        })
    }

    /// Waits for a signal to stop. Cancel-safe.
    async fn next(&mut self) {
        let [(hangup, hung_up), (user_1, first), (user_2, second)] = &mut self.ignored;
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = hung_up.recv() => &**hangup,
                _ = first.recv() => &**user_1,
                _ = second.recv() => &**user_2,
            };
            tracing::info!(
                "{ignored} is ignored: the configuration is read only at the start; restart the gateway for a change to \
                 take effect (systemctl restart tidegate)"
            );
        }
    }
}
