//! Limits of the machine for this process: memory and open files.

use super::groups::Groups;
use crate::config::{self, Config, Shares};
use crate::sink::Sink;
use crate::{link, net};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;

/// The machine's memory if the system does not report it.
const UNKNOWN: u64 = 512 << 20;
/// Files other than connections: the log, sinks, HTTP, the runtime.
const OTHER_FILES: u64 = 160;

/// Shares of the memory limit, configured or derived from this machine. `others` are sinks outside
/// the configuration.
pub fn memory(config: &Config, others: &[Sink], groups: &Groups) -> Shares {
    let of_others = others.iter().map(|sink| config::sink_memory(&config.store, sink.memory));
    let more = of_others.fold(0, u64::saturating_add);
    let limit = config::memory_limit(config, more, machine_memory(groups));
    let shares = Shares::new(config, more, limit);
    let mib = |bytes: u64| bytes >> 20;
    tracing::info!(
        limit_mib = mib(limit),
        log_mib = mib(shares.log),
        sinks_mib = mib(shares.sinks),
        connections_mib = mib(shares.links),
        given = config.gateway.memory_limit.is_some(),
        "memory for queues and buffers"
    );
    shares
}

/// This process's control groups.
pub fn groups() -> Groups {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Groups::of(&own, Path::new("/sys/fs/cgroup"), Path::new("/proc"))
}

/// The machine's memory, or the limit of the control groups if that is lower.
fn machine_memory(groups: &Groups) -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(mem_total);
    [total, groups.limit()].into_iter().flatten().min().unwrap_or(UNKNOWN)
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Raises the limit of open files as far as allowed, and lowers the links' limits
/// accordingly: files must be left for log and sinks.
pub fn raise_open_files(config: &mut Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(why) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%why, "the limit of open files cannot be raised");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return };
    let room = affordable(files, config.tcp.len() + usize::from(config.http.serves_devices()));
    let lower = |link: &str, max_connections: &mut usize| {
        if *max_connections > room {
            tracing::warn!(
                link,
                max_connections,
                files,
                used = room,
                "only {files} files may be open (LimitNOFILE): fewer connections are accepted than max_connections"
            );
            *max_connections = room;
        }
    };
    for tcp in &mut config.tcp {
        lower(&tcp.name, &mut tcp.max_connections);
    }
    if config.http.serves_devices() {
        lower(link::websocket::NAME, &mut config.http.max_connections);
    }
}

/// Raises the number of known devices to at least that of connected ones.
pub fn raise_known_devices(config: &mut Config) {
    let mut connections = config.tcp.iter().map(|tcp| tcp.max_connections).sum::<usize>() + config.serial.len();
    if config.http.serves_devices() {
        connections += config.http.max_connections;
    }
    config.devices.max_known = config.devices.max_known.max(connections);
}

/// Devices for each of `links` listeners with this limit of files, with room for connections
/// that are refused.
fn affordable(files: u64, links: usize) -> usize {
    let each = (files.saturating_sub(OTHER_FILES) / (links.max(1) as u64)).saturating_sub(net::MAX_LINGERING as u64);
    usize::try_from(each / 5 * 4).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(mem_total("MemTotal:       24683520 kB\nMemFree: 1 kB\n"), Some(24_683_520 * 1024));
        assert_eq!(mem_total("MemTotal: x kB"), None);
        assert!(machine_memory(&groups()) > 0);
    }

    #[test]
    fn files_are_left_for_log_and_sinks() {
        assert!(affordable(20_000, 1) > 10_000);
        for (files, links) in [(1024, 1), (65_536, 2), (1024, 3)] {
            let max = affordable(files, links);
            let all = links * (max + 2 * net::headroom(max) + net::MAX_LINGERING);
            assert!((all as u64) < files - 100, "{files} {links}: {all}");
        }
        assert_eq!(affordable(10, 1), 1);
    }
}
