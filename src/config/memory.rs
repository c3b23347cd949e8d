//! Who gets how much of the memory for queues and buffers. Pure.

use super::{Commands, Config, Store};
use bytesize::ByteSize;

/// What a limit comes to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    pub limit: u64,
    /// The log: readings not yet settled or saved, and what writing them takes.
    pub log: u64,
    /// All sinks: what each took from the log, encoded, and has in flight.
    pub sinks: u64,
    /// The HTTP server.
    pub http: u64,
    /// Commands that have not ended, and what is remembered of others.
    pub commands: u64,
    /// What is remembered of devices' sessions.
    pub sessions: u64,
    /// The rest, for connections.
    pub links: u64,
}

const MIB: u64 = 1 << 20;
/// SQLite's caches, the compressor and the commit's lists.
const LOG_FIXED: u64 = 4 * MIB;
/// A sink's reading connection, its task and its client.
const SINK_FIXED: u64 = 2 * MIB;
/// A few connections with the buffers that the HTTP library may fill.
const HTTP: u64 = 8 * MIB;
/// A command that ended, remembered.
const ENDED: u64 = 256;
/// What a device's session takes in memory, near enough.
const SESSION: u64 = 400;
/// Payloads of live commands, with what goes with them, take no more together.
pub const COMMAND_BYTES: u64 = 2 * MIB;
/// Connections get no less than this.
pub const MIN_LINKS: u64 = 8 * MIB;
/// Without a limit in the file: this share of the machine's memory, between these.
const SHARE_OF_MACHINE: u64 = 4;
const DEFAULT_MIN: u64 = 64 * MIB;
const DEFAULT_MAX: u64 = 1024 * MIB;

impl Shares {
    /// Shares out `limit`, which connections get the rest of, also to sinks beside those of
    /// `config` that take `more` bytes.
    pub fn new(config: &Config, more: u64, limit: u64) -> Shares {
        let log = log(&config.store);
        let sinks = sinks(config).saturating_add(more);
        let http = if config.http.enabled { HTTP } else { 0 };
        let commands = if config.commands.enabled { commands(&config.commands) } else { 0 };
        let sessions = limit / 16;
        let others = [log, sinks, http, commands, sessions].into_iter().fold(0, u64::saturating_add);
        Shares { limit, log, sinks, http, commands, sessions, links: limit.saturating_sub(others) }
    }

    /// How many devices' sessions may be remembered.
    pub fn devices(&self) -> usize {
        usize::try_from(self.sessions / SESSION).unwrap_or(usize::MAX)
    }
}

/// The least limit with which `config` works, and sinks beside it that take `more` bytes.
pub fn least(config: &Config, more: u64) -> u64 {
    let fixed = Shares::new(config, more, 0);
    let needed =
        [fixed.log, fixed.sinks, fixed.http, fixed.commands, MIN_LINKS].into_iter().fold(0, u64::saturating_add);
    // Sessions take a sixteenth of all; whole mebibytes read well.
    (needed.saturating_add(needed / 15)).saturating_add(MIB) / MIB * MIB
}

/// The limit where the file names none: what suits a machine with so much memory, but
/// no less than `config` needs, and sinks beside it that take `more` bytes.
pub fn limit(config: &Config, more: u64, machine: u64) -> u64 {
    match config.gateway.memory_limit {
        Some(ByteSize(limit)) => limit,
        None => (machine / SHARE_OF_MACHINE).clamp(DEFAULT_MIN, DEFAULT_MAX).max(least(config, more)),
    }
}

/// Live ones stand there as they are, and once more while they are written; so do answers.
fn commands(commands: &Commands) -> u64 {
    let live = COMMAND_BYTES.saturating_mul(2).saturating_add(commands.max_result.as_u64().saturating_mul(16));
    live.saturating_add(ENDED.saturating_mul(commands.remember as u64))
}

/// Readings take somewhat more than is counted for them; all that is pending may be
/// written in one segment.
fn log(store: &Store) -> u64 {
    let pending = store.max_pending.as_u64();
    pending.saturating_mul(5).div_euclid(2).saturating_add(LOG_FIXED)
}

fn sinks(config: &Config) -> u64 {
    config.sinks().iter().map(|sink| of_sink(&config.store, sink.memory)).fold(0, u64::saturating_add)
}

/// What a sink takes, `own` of it for what is encoded and in flight. One that lags reads whole
/// segments, and the largest holds all that was pending.
pub fn of_sink(store: &Store, own: u64) -> u64 {
    let segment = store.max_pending.as_u64().saturating_mul(3) / 2;
    segment.saturating_add(own).saturating_add(SINK_FIXED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mqtt;

    fn config(sinks: usize) -> Config {
        Config { mqtt: vec![Mqtt::default(); sinks], ..Config::default() }
    }

    #[test]
    fn shares_add_up_to_the_limit_and_leave_room_for_connections() {
        for sinks in 0..5 {
            let config = config(sinks);
            let shares = Shares::new(&config, 0, least(&config, 0));
            assert_eq!(
                shares.log + shares.sinks + shares.http + shares.commands + shares.sessions + shares.links,
                shares.limit
            );
            assert!((MIN_LINKS..MIN_LINKS + 2 * MIB).contains(&shares.links), "{shares:?}");
        }
    }

    #[test]
    fn the_default_suits_the_machine_and_the_configuration() {
        let one = config(1);
        assert_eq!(limit(&one, 0, 1 << 20), least(&one, 0).max(64 * MIB));
        assert_eq!(limit(&one, 0, 512 * MIB), 128 * MIB);
        assert_eq!(limit(&one, 0, 1 << 40), 1024 * MIB);
        let many = config(10);
        assert_eq!(limit(&many, 0, 512 * MIB), least(&many, 0));
        let mut given = config(1);
        given.gateway.memory_limit = Some(ByteSize::mib(100));
        assert_eq!(limit(&given, 0, 1 << 40), 100 * MIB);
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let mut config = config(3);
        config.store.max_pending = ByteSize(u64::MAX);
        for mqtt in &mut config.mqtt {
            (mqtt.max_batch, mqtt.max_packet) = (ByteSize(u64::MAX), ByteSize(u64::MAX));
        }
        assert!(least(&config, 0) > 1 << 60);
        assert_eq!(Shares::new(&config, 0, 1 << 30).links, 0);
    }
}
