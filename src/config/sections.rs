//! The sections of the configuration file. Every key is explained for users in
//! `config/tidegate.toml`.

use super::broker::Broker;
use super::keys::keys_of;
use super::listener::Tcp;
use super::{Commands, Devices, FileSink, Http, Profile, Serial, Start};
use crate::model::GatewayId;
use bytesize::ByteSize;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Reads sections out of a file by their names.
pub(super) trait ReadSections {
    /// One that stands at most once, `[name]`.
    fn one<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> T;

    /// One that may stand several times, `[[name]]`.
    fn many<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> Vec<T>;
}

macro_rules! sections {
    ($($name:ident: $number:ident $section:ty,)*) => {
        /// A whole configuration.
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $(pub $name: sections!(@type $number $section),)*
        }

        impl Config {
            pub(super) fn read(reader: &mut impl ReadSections) -> Config {
                Config { $($name: reader.$number(stringify!($name)),)* }
            }

            /// Each section's header and keys.
            pub(super) fn sections() -> Vec<(&'static str, &'static [&'static str])> {
                vec![$((sections!(@header $number $name), keys_of::<$section>()),)*]
            }
        }
    };
    (@type one $section:ty) => { $section };
    (@type many $section:ty) => { Vec<$section> };
    (@header one $name:ident) => { concat!("[", stringify!($name), "]") };
    (@header many $name:ident) => { concat!("[[", stringify!($name), "]]") };
}

// The sections, and whether there can be several of each.
sections! {
    gateway: one Gateway,
    tcp: many Tcp,
    serial: many Serial,
    http: one Http,
    devices: one Devices,
    commands: one Commands,
    store: one Store,
    route: many Route,
    mqtt: many Mqtt,
    file: many FileSink,
}

/// `[gateway]`: the process as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// This gateway's name in topics and payloads; the host's name if not given.
    pub id: Option<GatewayId>,
    /// A level, or levels of modules; the environment variable `RUST_LOG` wins.
    pub log_level: String,
    /// Threads for network work; the number of processors, at most 4, if not given.
    pub worker_threads: Option<usize>,
    /// All queues and buffers together stay below this; derived from the machine if not
    /// given.
    pub memory_limit: Option<ByteSize>,
    /// How long a graceful stop may take before what is left is cut off.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    pub clock: ClockTrust,
    /// Its existence says that the system's clock is set.
    pub clock_file: PathBuf,
}

/// What makes the gateway believe the system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockTrust {
    /// As `Synchronised`, or a battery-backed clock that says the same.
    Auto,
    /// The kernel's flag, or the file.
    Synchronised,
    /// The file alone.
    File,
    /// Nothing more than that it is plausible.
    Trusted,
}

/// When a sink is shown a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deliver {
    /// As soon as it arrives.
    AtOnce,
    /// Once it is on disk.
    AfterCommit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Every commit is flushed to the medium: a power cut loses nothing acknowledged.
    Full,
    /// A power cut may lose the commits since the last checkpoint.
    Normal,
}

/// By when delivered readings are written to disk as history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryWithin {
    /// Delivered readings are never written.
    Off,
    Within(Duration),
}

/// `[store]`: the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Directory of the log's files.
    pub directory: PathBuf,
    /// In memory: what shows that the log is no old copy of itself is noted there.
    pub runtime_directory: Option<PathBuf>,
    /// A reading that not every sink has confirmed is on disk this soon.
    #[serde(with = "humantime_serde")]
    pub commit_within: Duration,
    pub history_within: HistoryWithin,
    pub deliver: Deliver,
    pub durability: Durability,
    /// The log's files stay below this; the oldest readings are dropped first.
    pub max_size: ByteSize,
    /// Readings are dropped when they are older than this.
    #[serde(with = "humantime_serde")]
    pub max_age: Option<Duration>,
    /// Bytes to leave free on the filesystem; with less, the log does not grow.
    pub min_free: ByteSize,
    /// Keep one in so many of a device's oldest readings before they are dropped.
    pub thin: Option<u32>,
    /// Memory for readings that are not settled; devices wait when it is used up.
    pub max_pending: ByteSize,
    /// Memory of readings not on disk that makes a commit due at once; twice as much of those that
    /// come slowly and are confirmed.
    pub segment_size: ByteSize,
    /// Changes of devices' presence that are kept.
    pub audit: u32,
    /// Events that are kept for sinks that do not take them.
    pub max_events: u32,
    /// How long the place of a sink is kept that is not configured any more.
    #[serde(with = "humantime_serde")]
    pub forget_sinks_after: Duration,
}

/// Which readings outlive others in a log that reaches its bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    #[default]
    Normal,
    High,
}

/// `[[route]]`: what holds for some readings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    pub name: String,
    /// Patterns of which one must match the device's name; none: every device.
    pub devices: Vec<String>,
    /// Patterns of which one must match one of the reading's channels; none: every
    /// reading.
    pub channels: Vec<String>,
    pub priority: Priority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MqttVersion {
    #[serde(rename = "3.1.1")]
    V3_1_1,
    #[serde(rename = "5")]
    V5,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    Json,
    Postcard,
}

/// Which topics readings are published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topics {
    /// `PREFIX/GATEWAY/readings`
    Gateway,
    /// `PREFIX/GATEWAY/devices/DEVICE/readings`
    Device,
}

/// `[[mqtt]]`: a broker, or several that stand in for each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mqtt {
    /// Names the sink in the log's cursors, logs and metrics.
    pub name: String,
    pub start: Start,
    /// The cloud service that it is, if it is one of those that want things their way.
    pub profile: Option<Profile>,
    /// [`Broker`]s, tried in turn.
    pub brokers: Vec<String>,
    /// MQTT 5, and 3.1.1 where the broker refuses it, if not given.
    pub version: Option<MqttVersion>,
    /// `tidegate-GATEWAY-NAME` if not given; with a profile the gateway's name.
    pub client_id: Option<String>,
    /// First levels of every topic.
    pub prefix: String,
    pub topics: Topics,
    pub encoding: Encoding,
    /// Whether devices' presence is published, retained.
    pub presence: bool,
    /// Whether statuses are retained, where the broker takes that.
    /// The default is true, and false with a profile.
    pub retain: Option<bool>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// File with the key that Azure IoT Hub shares with the device.
    pub shared_access_key_file: Option<PathBuf>,
    /// How long a token is good that is made from it.
    #[serde(with = "humantime_serde")]
    pub token_lifetime: Duration,
    /// PEM file of the authorities to trust; the system's if not given.
    pub ca_file: Option<PathBuf>,
    /// [`Pin`](super::Pin)s of the brokers, in place of authorities.
    pub broker_pins: Vec<String>,
    /// PEM file of the client's certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// `NAME: VALUE` each, sent when a WebSocket begins.
    pub websocket_headers: Vec<String>,
    /// A [`Proxy`](super::Proxy); none if not given.
    pub proxy: Option<String>,
    pub proxy_username: Option<String>,
    pub proxy_password_file: Option<PathBuf>,
    /// [`Bind`](super::Bind)s in order of preference; the system chooses if none is given.
    #[serde(deserialize_with = "super::forms::one_or_more")]
    pub bind: Vec<String>,
    /// Differentiated services code point of what is sent (RFC 2474), 0 to 63.
    pub dscp: u8,
    /// Publishes awaiting a PUBACK at one time, 1 to 100.
    pub window: u16,
    /// Largest payload that is put together, in bytes.
    pub max_batch: ByteSize,
    /// Largest MQTT packet sent or accepted, in bytes.
    pub max_packet: ByteSize,
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long the publish that has waited longest may go unconfirmed, beside what it takes
    /// on a slow link.
    #[serde(with = "humantime_serde")]
    pub confirm_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// How long a connection must last before the back-off starts over.
    #[serde(with = "humantime_serde")]
    pub stable_after: Duration,
    /// How long one broker is used before those that stand before it are looked at.
    #[serde(with = "humantime_serde")]
    pub return_after: Duration,
    /// Readings that are sent later than this are marked `replay`.
    #[serde(with = "humantime_serde")]
    pub replay_after: Duration,
    /// Take commands from there, too.
    pub commands: bool,
    /// Watch the gateway's own status there: repeat it where it is wrong, notice others.
    pub watch_status: bool,
    /// Try under MQTT 3.1.1 whether what is confirmed is delivered.
    pub self_test: bool,
}

impl Default for Gateway {
    fn default() -> Gateway {
        Gateway {
            id: None,
            log_level: "info".into(),
            worker_threads: None,
            memory_limit: None,
            shutdown_timeout: Duration::from_secs(10),
            clock: ClockTrust::Auto,
            clock_file: "/run/systemd/timesync/synchronized".into(),
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store {
            directory: "/var/lib/tidegate".into(),
            runtime_directory: None,
            commit_within: Duration::from_millis(250),
            history_within: HistoryWithin::Within(Duration::from_secs(300)),
            deliver: Deliver::AtOnce,
            durability: Durability::Full,
            max_size: ByteSize::gib(1),
            max_age: None,
            min_free: ByteSize::mib(64),
            thin: None,
            max_pending: ByteSize::mib(16),
            segment_size: ByteSize::mib(4),
            audit: 10_000,
            max_events: 10_000,
            forget_sinks_after: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Default for Route {
    fn default() -> Route {
        Route { name: "route".into(), devices: Vec::new(), channels: Vec::new(), priority: Priority::Normal }
    }
}

impl Mqtt {
    /// Whether one of its brokers is reached over TLS.
    pub fn uses_tls(&self) -> bool {
        self.brokers.iter().any(|broker| broker.parse().is_ok_and(|broker: Broker| broker.tls))
    }
}

impl Default for Mqtt {
    fn default() -> Mqtt {
        Mqtt {
            name: "mqtt".into(),
            start: Start::Oldest,
            profile: None,
            brokers: Vec::new(),
            version: None,
            client_id: None,
            prefix: "tidegate".into(),
            topics: Topics::Gateway,
            encoding: Encoding::Json,
            presence: true,
            retain: None,
            username: None,
            password_file: None,
            shared_access_key_file: None,
            token_lifetime: Duration::from_secs(3600),
            ca_file: None,
            broker_pins: Vec::new(),
            cert_file: None,
            key_file: None,
            websocket_headers: Vec::new(),
            proxy: None,
            proxy_username: None,
            proxy_password_file: None,
            bind: Vec::new(),
            dscp: 0,
            window: 32,
            max_batch: ByteSize::kib(16),
            max_packet: ByteSize::kib(256),
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            stable_after: Duration::from_secs(30),
            return_after: Duration::from_secs(30 * 60),
            replay_after: Duration::from_secs(60),
            commands: true,
            watch_status: true,
            self_test: true,
        }
    }
}
