//! Decides when the system's clock is trusted, and reports it to the other parts.
//!
//! A plausible time proves nothing: machines without a battery-backed clock boot at the
//! time of their last stop. So a witness has to confirm it ([`Witnesses`]), once in a
//! boot. See `docs/time.md`.

use crate::clock::{Clock, SystemClock};
use crate::config::{self, ClockTrust};
use crate::metrics::Metrics;
use crate::model::Timestamp;
use crate::stop;
use crate::store::Log;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Interval of checking the clock.
const EVERY: Duration = Duration::from_secs(1);
/// Expensive witnesses are asked at every so many checks.
const ASK_EVERY: u32 = 10;
/// Time for a witness that is another process.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Without a witness by then, a warning is logged.
const WARN_AFTER: Duration = Duration::from_secs(120);
/// A battery-backed clock in local time differs by up to this.
const TIME_ZONES: Duration = Duration::from_secs(15 * 3600);
/// The kernel's directory of battery-backed clocks.
const CLOCKS: &str = "/sys/class/rtc";

/// The witnesses that may confirm that the clock is set.
#[derive(Debug)]
pub struct Witnesses {
    trust: ClockTrust,
    file: PathBuf,
}

impl Witnesses {
    pub fn new(config: &config::Gateway) -> Witnesses {
        Witnesses { trust: config.clock, file: config.clock_file.clone() }
    }

    /// A witness that confirms it now, of those that answer at once.
    pub fn at_once(&self) -> Option<&'static str> {
        match self.trust {
            ClockTrust::Trusted => Some("the configuration"),
            _ => self.file.exists().then_some("the clock file"),
        }
    }

    /// A battery-backed clock that agrees with the system's.
    pub fn battery(&self, wall: Timestamp) -> Option<&'static str> {
        let asked = self.trust == ClockTrust::Auto;
        let agrees = || rtc_times(Path::new(CLOCKS)).into_iter().any(|rtc| agree(rtc, wall));
        (asked && agrees()).then_some("a battery-backed clock")
    }

    /// The kernel's flag, read by systemd-timedated: few programs may read it from the kernel,
    /// and this service may not.
    async fn kernel(&self) -> Option<&'static str> {
        if !matches!(self.trust, ClockTrust::Auto | ClockTrust::Synchronised) {
            return None;
        }
        let mut command = Command::new("timedatectl");
        command.args(["show", "--property=NTPSynchronized", "--value"]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        // Not every system has it; that is no fault.
        let output = timeout(ANSWER_WITHIN, command.output()).await.ok()?.ok()?;
        (output.stdout.trim_ascii() == b"yes").then_some("the kernel")
    }
}

/// Times of the battery-backed clocks. One that cannot be read is ignored.
fn rtc_times(directory: &Path) -> Vec<Timestamp> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let time = |path: PathBuf| {
        let seconds: u64 = std::fs::read_to_string(path.join("since_epoch")).ok()?.trim().parse().ok()?;
        Some(Timestamp(0).plus(Duration::from_secs(seconds)))
    };
    entries.filter_map(|entry| time(entry.path())).collect()
}

/// A clock with an empty battery restarts far from the system's time.
fn agree(rtc: Timestamp, wall: Timestamp) -> bool {
    rtc.since(wall).max(wall.since(rtc)) <= TIME_ZONES
}

/// Checks the clock until `stop` turns true.
pub async fn keep(
    clock: Arc<SystemClock>,
    witnesses: Witnesses,
    log: Log,
    metrics: Metrics,
    mut stop: watch::Receiver<bool>,
) {
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0u32;
    let began = clock.now().monotonic;
    let (mut was_trusted, mut warned) = (None, false);
    loop {
        tokio::select! {
            () = stop::requested(&mut stop) => return,
            _ = every.tick() => {}
        }
        if !clock.is_believed() {
            let witness = match witnesses.at_once() {
                None if looks.is_multiple_of(ASK_EVERY) => match witnesses.battery(clock.now().wall) {
                    None => tokio::select! {
                        () = stop::requested(&mut stop) => return,
                        witness = witnesses.kernel() => witness,
                    },
                    witness => witness,
                },
                witness => witness,
            };
            if let Some(witness) = witness {
                clock.believe();
                tracing::info!(witness, "the clock is set");
            }
            looks = looks.wrapping_add(1);
        }
        let now = clock.now();
        metrics.clock_trusted.set(i64::from(now.trusted));
        if now.trusted {
            log.synchronised(now);
        }
        if was_trusted == Some(true) && !now.trusted {
            tracing::warn!(time = %now.wall, "the clock shows an impossible time and is not trusted");
        }
        was_trusted = Some(now.trusted);
        if !now.trusted && !warned && now.monotonic.saturating_sub(began) >= WARN_AFTER {
            warned = true;
            tracing::warn!(
                time = %now.wall,
                "no witness confirms the clock: readings of devices without one get no time yet; if it is right \
                 anyway, set [gateway] clock = \"trusted\""
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_395_723_000_000);

    #[test]
    fn a_battery_backed_clock_vouches_only_if_it_agrees() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(rtc_times(&directory.path().join("none")), []);
        for (name, content) in [("rtc0", "1795395720\n"), ("rtc1", "no number"), ("rtc2", "77\n")] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
            std::fs::write(directory.path().join(name).join("since_epoch"), content).expect("a file");
        }
        std::fs::create_dir(directory.path().join("rtc3")).expect("a directory");
        let mut times = rtc_times(directory.path());
        times.sort_unstable();
        assert_eq!(times, [Timestamp(77_000_000), Timestamp(1_795_395_720_000_000)]);
        assert_eq!(times.iter().map(|rtc| agree(*rtc, NOW)).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn each_setting_hears_its_own_witnesses() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("set");
        let witnesses = |trust| Witnesses { trust, file: file.clone() };
        assert_eq!(witnesses(ClockTrust::Trusted).at_once(), Some("the configuration"));
        for trust in [ClockTrust::Auto, ClockTrust::Synchronised, ClockTrust::File] {
            assert_eq!(witnesses(trust).at_once(), None);
        }
        assert_eq!(witnesses(ClockTrust::File).battery(NOW), None);
        std::fs::write(&file, "").expect("a file");
        for trust in [ClockTrust::Auto, ClockTrust::Synchronised, ClockTrust::File] {
            assert_eq!(witnesses(trust).at_once(), Some("the clock file"));
        }
    }
}
