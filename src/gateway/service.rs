//! The gateway as a service: signals, and what systemd is told.

use super::{Gateway, Surroundings};
use crate::config::Config;
use crate::http::Health;
use crate::logging::Logging;
use anyhow::{Context, Result};
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, interval_at};

/// How often the watchdog is fed if systemd asks for it less often.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// How much longer than until now a start may take, in microseconds, as systemd is told.
const EXTEND_USEC: u32 = 60_000_000;

/// Runs the gateway until SIGTERM or SIGINT, and stops it gracefully; at once on a
/// second signal. A log that turns out to be damaged is healed by starting over, in
/// the same process.
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
            Why::Damaged => tracing::warn!("stopping, to start again at once with a log that is healed"),
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

/// Why a gateway is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// By a signal.
    Asked,
    /// Its log is damaged, and heals when it is opened again.
    Damaged,
}

/// Starts the gateway, however long the disk is full or the log is looked through; `None` if
/// a signal comes first.
async fn start(config: Config, logging: &Logging, signals: &mut Signals, again: bool) -> Result<Option<Gateway>> {
    let surroundings = Surroundings { logging: Some(logging.clone()), again, ..Surroundings::default() };
    let mut starting = std::pin::pin!(Gateway::start_in(surroundings, config));
    let every = watch_every();
    let mut tick = interval_at(Instant::now() + every, every);
    loop {
        tokio::select! {
            gateway = &mut starting => return gateway.map(Some),
            () = signals.next() => return Ok(None),
            // The watchdog waits already if this is not the first start.
            _ = tick.tick() => tell(&[
                NotifyState::ExtendTimeoutUsec(EXTEND_USEC),
                NotifyState::Watchdog,
                NotifyState::Status("opening the log"),
            ]),
        }
    }
}

/// Feeds the watchdog as long as there is progress, until the gateway is to stop.
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

/// How often the watchdog is fed.
fn watch_every() -> Duration {
    let every = sd_notify::watchdog_enabled().map_or(WATCH_EVERY, |limit| WATCH_EVERY.min(limit / 3));
    every.max(Duration::from_millis(10))
}

/// Tells systemd, if it listens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(state) {
        tracing::debug!(%why, "systemd could not be told");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Those that mean nothing to the gateway, by name. Unheard, they would end it as a crash.
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

    /// Waits for one that asks for a stop. Cancel-safe.
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
                "{ignored} is ignored: the configuration is read at the start alone; restart the gateway for a change to \
                 take effect (systemctl restart tidegate)"
            );
        }
    }
}
