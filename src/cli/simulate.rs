//! `tidegate simulate`: devices that speak the real protocol, to try out and measure a
//! gateway.

pub mod access;
pub mod client;
pub mod device;
pub mod pace;
pub mod report;
pub mod values;

use crate::clock::{Clock, SystemClock};
use crate::model::Token;
use crate::wire::frame::BodyEncoding;
use access::{Access, Holder};
use anyhow::{Context, bail};
use client::{Client, Identity, Timeouts};
use device::RunContext;
use pace::{Length, Pace};
use report::{Latencies, Report};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Runs simulated devices against a gateway and prints a summary.
///
/// Each device resends readings that were not acknowledged. Exits with 1 if some were not
/// acknowledged at the end.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The gateway's address
    #[arg(value_name = "tcp://HOST:PORT", value_parser = parse_address)]
    pub gateway: String,
    /// Number of devices
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub devices: u32,
    /// Readings per second over all devices; 0 or "max": as fast as acks allow
    #[arg(long, value_name = "R", default_value = "100")]
    pub rate: Rate,
    /// End when this many readings over all devices are acknowledged
    #[arg(long, value_name = "TOTAL", required_unless_present = "duration", conflicts_with = "duration")]
    pub readings: Option<u64>,
    /// Take readings for this time, such as "30s", and end when they are acknowledged
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Frames, of one reading each, in one write
    #[arg(long, value_name = "FRAMES", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub burst: u16,
    /// Seed of the values, with the device's number and the reading's seq
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// How message bodies are encoded
    #[arg(long, value_enum, default_value_t = Encoding::Postcard)]
    pub encoding: Encoding,
    /// Prefix of the devices' ids: NAME-1, NAME-2 and so on
    #[arg(long, value_name = "NAME", default_value = "sim")]
    pub prefix_id: String,
    /// End this long after the last reading was taken, even if some are not acknowledged
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub give_up: Duration,
    /// Print the summary as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub access: Access,
}

/// Readings a second over all devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// As fast as acks allow.
    Max,
    PerSecond(f64),
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text.parse::<f64>() {
            Ok(0.0) => Ok(Rate::Max),
            Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Rate::PerSecond(rate)),
            _ if text == "max" => Ok(Rate::Max),
            _ => Err("expected a number of readings per second, or \"max\"".into()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    Postcard,
    Json,
    Protobuf,
}

/// Time between two connections: if they came faster than the gateway accepts them, its
/// backlog would overflow.
const APART: Duration = Duration::from_micros(100);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

fn parse_address(text: &str) -> Result<String, String> {
    let address = text.strip_prefix("tcp://").ok_or("expected tcp://HOST:PORT")?;
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(address.into()),
        _ => Err(format!("{address:?} is no HOST:PORT")),
    }
}

/// Runs the verb until all devices are done or Ctrl-C is pressed, and prints the
/// summary. True if every reading was acknowledged.
///
/// # Errors
/// If the run could not be set up.
pub async fn run(args: Args) -> anyhow::Result<bool> {
    let (stop, stopped) = watch::channel(false);
    let report = {
        let mut simulation = std::pin::pin!(simulate(&args, stopped));
        tokio::select! {
            report = &mut simulation => report?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("cannot listen for Ctrl-C")?;
                stop.send_replace(true);
                simulation.await?
            }
        }
    };
    let summary = if args.json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{summary}").context("cannot print the summary")?;
    Ok(report.complete)
}

/// Runs the devices until all are done or `stop` turns true.
///
/// # Errors
/// If the gateway's name cannot be resolved, or the devices' ids are not valid.
pub async fn simulate(args: &Args, stop: watch::Receiver<bool>) -> anyhow::Result<Report> {
    let addresses: Arc<[_]> = tokio::net::lookup_host(&args.gateway)
        .await
        .with_context(|| format!("cannot resolve {}", args.gateway))?
        .collect::<Vec<_>>()
        .into();
    if addresses.is_empty() {
        bail!("{} has no address", args.gateway);
    }
    let (holder, security) = (args.access.holder()?, args.access.security(&args.gateway)?);
    let clock = Arc::new(SystemClock::new());
    let latencies = Arc::new(Latencies::new()?);
    let sessions = getrandom::u64().context("the system has no random numbers")?;
    let told = Arc::new(AtomicBool::new(false));
    let mut devices = JoinSet::new();
    for number in 1..=u64::from(args.devices) {
        let client = Client::new(identity(args, number, sessions, holder.clone())?, pace(args, number), timeouts(args));
        let delay = APART * u32::try_from(number - 1).unwrap_or(u32::MAX); // devices are a u32
        let (clock, latencies, stop, told) = (clock.clone(), latencies.clone(), stop.clone(), told.clone());
        let around = RunContext { clock, latencies, security: security.clone(), stop, told };
        let addresses = addresses.clone();
        devices.spawn(async move { device::run(&addresses, client, delay, around).await });
    }
    let mut outcomes = Vec::new();
    while let Some(outcome) = devices.join_next().await {
        outcomes.push(outcome.context("a device's task failed")?);
    }
    Report::new(&outcomes, &latencies, clock.now().monotonic)
}

fn identity(args: &Args, number: u64, sessions: u64, holder: Option<Arc<Holder>>) -> anyhow::Result<Identity> {
    let id = format!("{}-{number}", args.prefix_id);
    if let Err(why) = Token::check(&id) {
        bail!("--prefix-id {:?}: the device id {id:?} {why}", args.prefix_id);
    }
    let encoding = match args.encoding {
        Encoding::Postcard => BodyEncoding::Postcard,
        Encoding::Json => BodyEncoding::Json,
        Encoding::Protobuf => BodyEncoding::Protobuf,
    };
    // Random in every run, whatever the seed: the seqs of a session start at 1.
    let session = values::mix(sessions.wrapping_add(number));
    Ok(Identity { id, number, session, seed: args.seed, encoding, holder })
}

fn timeouts(args: &Args) -> Timeouts {
    Timeouts { welcome: WELCOME_TIMEOUT, ack: ACK_TIMEOUT, give_up: args.give_up }
}

/// The plan of device `number`; the devices' readings are evenly spread in time.
fn pace(args: &Args, number: u64) -> Pace {
    let devices = u64::from(args.devices);
    let interval = match args.rate {
        Rate::Max => Duration::ZERO,
        // No longer than a Duration can hold.
        Rate::PerSecond(rate) => {
            Duration::try_from_secs_f64(devices as f64 / rate).unwrap_or(Duration::MAX).max(Duration::from_nanos(1))
        }
    };
    let phase = interval.mul_f64((number - 1) as f64 / devices as f64);
    let start = APART * args.devices;
    let length = match (args.readings, args.duration) {
        (Some(total), _) => Length::Readings(total / devices + u64::from(number <= total % devices)),
        (None, time) => Length::For(time.unwrap_or_default()),
    };
    Pace::new(start, interval, u64::from(args.burst), length).delayed(phase)
}

#[cfg(test)]
mod tests;
