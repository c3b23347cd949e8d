//! `tidegate subscribe`: a consumer in the cloud. Decodes what gateways publish, drops
//! duplicates, and reports gaps.

pub mod consumer;
mod feed;
pub mod gaps;
mod output;
mod ranges;
mod seen;

use crate::config::{self, Broker};
use crate::model::GatewayId;
use crate::mqtt::{self, Options, TlsFiles, Topics, Transport, Version};
use crate::stop;
use anyhow::{Context, Result, bail};
use consumer::{Consumer, Fresh, Taken};
use feed::{Fed, Source};
use output::{Closed, Output};
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Prints the readings that gateways publish to an MQTT broker, each once.
///
/// Gaps in a gateway's seqs are reported on stderr. Messages published while this is not
/// connected arrive later if --client-id is given, otherwise never.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_version_flag = true)]
pub struct Args {
    /// The broker's URL; mqtts:// for TLS, ws:// and wss:// for MQTT over WebSocket
    #[arg(value_name = "mqtt://HOST:PORT", value_parser = parse_broker)]
    pub broker: Broker,
    /// Only this gateway's readings
    #[arg(long, value_name = "GW", value_parser = parse_gateway)]
    pub gateway: Option<GatewayId>,
    /// First levels of every topic, as in the gateways' configuration
    #[arg(long, value_name = "P", default_value = "tidegate", value_parser = parse_prefix)]
    pub prefix: String,
    /// End after this many readings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print each reading as one JSON object
    #[arg(long)]
    pub json: bool,
    /// MQTT version
    #[arg(long, value_enum, default_value_t = MqttVersion::V3_1_1)]
    pub version: MqttVersion,
    /// User name
    #[arg(long, value_name = "U")]
    pub username: Option<String>,
    /// File with the password
    #[arg(long, value_name = "F", requires = "username")]
    pub password_file: Option<PathBuf>,
    /// PEM file of trusted authorities; default: the system's
    #[arg(long, value_name = "F")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate chain
    #[arg(long, value_name = "F", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key
    #[arg(long, value_name = "F", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// Keep a session at the broker under this client id: the broker holds messages while it
    /// is not connected, even after this has ended. Default: a random id without a lasting
    /// session
    #[arg(long, value_name = "ID", value_parser = parse_client_id)]
    pub client_id: Option<String>,
    /// Exit with 1 if --count is not reached in this time, such as "30s"
    #[arg(long, value_name = "D", requires = "count", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MqttVersion {
    #[value(name = "3.1.1")]
    V3_1_1,
    #[value(name = "5")]
    V5,
}

/// The outputs of a run.
pub struct Streams {
    /// Readings.
    pub out: Box<dyn Write + Send>,
    /// Everything else.
    pub err: Box<dyn Write + Send>,
}

/// Younger gaps may be filled: batches in flight overtake each other, and unacknowledged
/// ones are sent again.
const GRACE: Duration = Duration::from_secs(5);
/// Interval of checking for gaps.
const TICK: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may arrive before earlier ones are handled.
const WINDOW: u16 = 100;
/// The most that MQTT allows: the gateways' limits are not known here.
const MAX_PACKET: u32 = (256 << 20) - 1;
/// Time for printing the rest after an interruption.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

fn parse_broker(text: &str) -> Result<Broker, config::InvalidBroker> {
    text.parse()
}

fn parse_gateway(text: &str) -> Result<GatewayId, String> {
    GatewayId::new(text).map_err(|why| why.to_string())
}

fn parse_prefix(text: &str) -> Result<String, String> {
    match config::prefix_fault(text) {
        Some(_) => Err("expected topic levels such as site/tidegate".into()),
        None => Ok(text.into()),
    }
}

fn parse_client_id(text: &str) -> Result<String, String> {
    if !(1..=128).contains(&text.len()) || text.chars().any(char::is_control) || text.trim() != text {
        return Err("expected 1 to 128 bytes of printable text".into());
    }
    Ok(text.into())
}

/// Runs the verb until enough was received, or Ctrl-C or SIGTERM comes, or the reader of the
/// output closes it. False if the time was up before.
///
/// # Errors
/// If the options are invalid, or the broker refuses them.
pub async fn run(args: Args) -> Result<bool> {
    let (stop, stopped) = watch::channel(false);
    let streams = Streams { out: Box::new(std::io::stdout()), err: Box::new(std::io::stderr()) };
    let mut subscription = std::pin::pin!(subscribe(&args, streams, stopped, None));
    tokio::select! {
        outcome = &mut subscription => outcome,
        interrupted = interrupted() => {
            interrupted?;
            stop.send_replace(true);
            subscription.await
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn interrupted() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot listen for Ctrl-C"),
        _ = terminated.recv() => Ok(()),
    }
}

/// Prints received readings to `streams` until enough were received, `stop` turns true, or
/// the reader closes them. False if the time was up before. Completes `ready` once every
/// filter is subscribed to.
///
/// # Errors
/// If the options are invalid, or the broker refuses them.
pub async fn subscribe(
    args: &Args,
    streams: Streams,
    mut stop: watch::Receiver<bool>,
    mut ready: Option<oneshot::Sender<()>>,
) -> Result<bool> {
    let source = source(args)?;
    let broker = source.broker.clone();
    let Streams { out, mut err } = streams;
    let output = Output::start(out)?;
    let (feeding, mut fed) = mpsc::channel(usize::from(WINDOW));
    let mut feeder = JoinSet::new();
    feeder.spawn(feed::feed(source, feeding));
    let began = Instant::now();
    let mut consumer = Consumer::new(args.count, GRACE);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopped = std::pin::pin!(stop::requested(&mut stop));
    let mut time_up = std::pin::pin!(time_up(args.timeout));
    let end = loop {
        if consumer.is_full() && !consumer.is_waiting() {
            break End::Enough;
        }
        let happened = tokio::select! {
            fed = fed.recv() => fed,
            _ = ticks.tick() => {
                for notice in consumer.tick(began.elapsed()) {
                    print_notice(&mut err, &notice);
                }
                continue;
            }
            () = &mut stopped => break End::Stopped,
            () = &mut time_up, if !consumer.is_full() => break End::TimeUp,
        };
        match happened {
            Some(Fed::Message(message)) => {
                let taken = consumer.take(&message.topic, &message.payload, began.elapsed());
                taken.notices.iter().for_each(|notice| print_notice(&mut err, notice));
                let text = print(&taken, args.json)?;
                let printed = tokio::select! {
                    printed = output.print(text) => printed,
                    () = &mut stopped => break End::Stopped,
                };
                if printed == Err(Closed) {
                    break End::Unread;
                }
            }
            Some(Fed::Subscribed) => {
                print_notice(&mut err, &format_args!("subscribed at {broker}"));
                if let Some(ready) = ready.take() {
                    // The receiver may be dropped.
                    let _ = ready.send(());
                }
            }
            Some(Fed::Trouble(why)) => {
                print_notice(&mut err, &format_args!("no connection to {broker}: {why}; retrying"));
            }
            Some(Fed::Refused(why)) => bail!("cannot subscribe at {broker}: {why}"),
            None => bail!("the connection's task ended"),
        }
    };
    tokio::select! {
        written = output.finish((end != End::Enough).then_some(FINISH_TIMEOUT)) => written?,
        () = &mut stopped, if end != End::Stopped => {}
    }
    if end != End::Unread {
        let (notices, summary) = consumer.finish();
        notices.iter().for_each(|notice| print_notice(&mut err, notice));
        print_notice(&mut err, &summary);
    }
    if end == End::TimeUp {
        print_notice(&mut err, &"the time is up");
    }
    Ok(end != End::TimeUp)
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Enough,
    Stopped,
    TimeUp,
    /// The reader of the output closed it.
    Unread,
}

/// Prints a line on stderr in one write, since readings may share the terminal. Without
/// stderr there is nowhere to report a failure.
fn print_notice(err: &mut dyn Write, what: &dyn std::fmt::Display) {
    let _ = err.write_all(format!("{what}\n").as_bytes());
}

fn print(taken: &Taken, json: bool) -> Result<String> {
    let mut text = String::new();
    for fresh in &taken.readings {
        line(&mut text, fresh, json).context("cannot print a reading")?;
    }
    Ok(text)
}

fn line(text: &mut String, fresh: &Fresh, json: bool) -> Result<()> {
    if json {
        text.push_str(&serde_json::to_string(fresh)?);
        text.push('\n');
    } else {
        writeln!(text, "{fresh}")?;
    }
    Ok(())
}

async fn time_up(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

fn source(args: &Args) -> Result<Source> {
    let broker = args.broker.clone();
    let (ca, cert, key) = (args.ca_file.clone(), args.cert_file.clone(), args.key_file.clone());
    let files = TlsFiles { ca, cert, key, ..TlsFiles::default() };
    let tls = match broker.tls {
        true => Some(Arc::new(mqtt::client_config(&files)?)),
        false if files.ca.is_some() || files.cert.is_some() => {
            bail!("--ca-file, --cert-file and --key-file need TLS; write mqtts://")
        }
        false => None,
    };
    let password = args.password_file.as_deref().map(config::read_password).transpose()?.unwrap_or_default();
    let client_id = match &args.client_id {
        Some(id) => id.clone(),
        None => format!("tidegate-{:08x}", getrandom::u32().context("the system has no random numbers")?),
    };
    let options = Options {
        tls,
        transport: Transport::to(&broker),
        version: match args.version {
            MqttVersion::V3_1_1 => Version::V3_1_1,
            MqttVersion::V5 => Version::V5,
        },
        credentials: args.username.clone().map(|username| (username, password)),
        keep_alive: KEEP_ALIVE,
        connect_timeout: CONNECT_TIMEOUT,
        confirm_timeout: CONNECT_TIMEOUT,
        max_packet: MAX_PACKET,
        window: WINDOW,
        clean_session: args.client_id.is_none(),
        ..Options::new(&broker.host, broker.port, client_id)
    };
    let filters = Topics::filters(&args.prefix, args.gateway.as_ref());
    Ok(Source { broker, options, filters })
}

#[cfg(test)]
#[cfg(feature = "demo")]
mod tests;
