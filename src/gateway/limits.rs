//! What the machine grants this process: memory and open files.

use crate::config::{self, Config, Shares};
use crate::link;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::Path;

/// Taken for the machine's memory where the system does not say.
const UNKNOWN: u64 = 512 << 20;
/// Files that are not connections: the log, sinks, HTTP, the runtime.
const OTHER_FILES: u64 = 160;

/// How the memory limit, given or derived from this machine, is shared out.
pub fn memory(config: &Config) -> Shares {
    let limit = config::memory_limit(config, machine_memory());
    let shares = Shares::new(config, limit);
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

/// The machine's memory, or what its control group may use of it.
fn machine_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let total = read("/proc/meminfo").as_deref().and_then(mem_total);
    let own = read("/proc/self/cgroup");
    let group = own.as_deref().and_then(group_path).and_then(|path| read(&format!("/sys/fs/cgroup{path}/memory.max")));
    let group = group.as_deref().and_then(|text| text.trim().parse().ok());
    [total, group].into_iter().flatten().min().unwrap_or(UNKNOWN)
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// This process's group in the unified hierarchy.
fn group_path(own: &str) -> Option<&str> {
    own.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| !path.contains(".."))
}

/// Raises the number of files that may be open as far as is allowed, and lowers the
/// links' limits to what that is enough for: files must be left for log and sinks.
pub fn open_files(config: &mut Config) {
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
                "only {files} files may be open (LimitNOFILE): fewer connections are taken than max_connections"
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

/// How many devices each of `links` listeners can take with so many files, with the
/// connections beyond that are told to go.
fn affordable(files: u64, links: usize) -> usize {
    let each = (files.saturating_sub(OTHER_FILES) / (links.max(1) as u64)).saturating_sub(link::LEAVING as u64);
    usize::try_from(each / 5 * 4).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(mem_total("MemTotal:       24683520 kB\nMemFree: 1 kB\n"), Some(24_683_520 * 1024));
        assert_eq!(mem_total("MemTotal: x kB"), None);
        assert_eq!(group_path("1:cpu:/a\n0::/system.slice/tidegate.service\n"), Some("/system.slice/tidegate.service"));
        assert_eq!(group_path("1:cpu:/a\n"), None);
        assert!(machine_memory() > 0);
    }

    #[test]
    fn files_are_left_for_log_and_sinks() {
        assert!(affordable(20_000, 1) > 10_000);
        for (files, links) in [(1024, 1), (65_536, 2), (1024, 3)] {
            let max = affordable(files, links);
            let all = links * (max + 2 * link::beyond(max) + link::LEAVING);
            assert!((all as u64) < files - 100, "{files} {links}: {all}");
        }
        assert_eq!(affordable(10, 1), 1);
    }
}
