//! Memory limits of this process's control groups, and memory pressure: in its own group, in those
//! around it, and on the machine.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Memory is short when tasks wait for it this share of the time, in percent over the last ten
/// seconds.
const SHORT: f64 = 10.0;

/// The memory controller's directories of this process's group and all groups around it.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    directories: Vec<PathBuf>,
    /// The machine's pressure.
    pressure: PathBuf,
}

impl Groups {
    /// For a process whose `/proc/self/cgroup` is `own`; control groups of either version or both
    /// are mounted at `mounts`, and the kernel's files are at `proc`.
    pub fn of(own: &str, mounts: &Path, proc: &Path) -> Groups {
        let mut directories = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let tops = match controllers {
                "" if id == "0" => vec![mounts.to_owned(), mounts.join("unified")],
                _ if controllers.split(',').any(|controller| controller == "memory") => vec![mounts.join("memory")],
                _ => continue,
            };
            // In a container the path may be that of the host, of which only the top is visible.
            let path = Path::new(path.trim_start_matches('/'));
            let seen = |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            for top in tops {
                directories.extend(path.ancestors().filter(|path| seen(path)).map(|path| top.join(path)));
            }
        }
        directories.retain(|directory| directory.is_dir());
        Groups { directories, pressure: proc.join("pressure/memory") }
    }

    /// The lowest limit, in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        let limits = self.directories.iter().flat_map(|directory| {
            let number = |name: &str| read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
            // Above `high`, a process is throttled to a standstill.
            [number("memory.max"), number("memory.high"), number("memory.limit_in_bytes")]
        });
        limits.flatten().min()
    }

    /// Number of times that a limit was reached and tasks were killed, of all groups together.
    pub fn kills(&self) -> u64 {
        let ends = self.directories.iter().flat_map(|directory| {
            [("memory.events", "oom "), ("memory.oom_control", "oom_kill ")]
                .map(|(file, key)| counted(&read_to_string(directory.join(file)).unwrap_or_default(), key))
        });
        ends.flatten().fold(0, u64::saturating_add)
    }

    /// The largest share of time that tasks waited for memory, if it is [`SHORT`] or more.
    pub fn pressure(&self) -> Option<f64> {
        let own = self.directories.iter().map(|directory| directory.join("memory.pressure"));
        let shares = own.chain([self.pressure.clone()]).filter_map(|file| some_avg10(&read_to_string(file).ok()?));
        shares.filter(|share| *share >= SHORT).max_by(f64::total_cmp)
    }
}

fn counted(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

/// From the kernel's pressure stall information.
fn some_avg10(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    const MIB: u64 = 1 << 20;

    fn put(root: &Path, file: &str, content: &str) {
        let file = root.join(file);
        create_dir_all(file.parent().expect("a directory")).expect("it is made");
        write(file, content).expect("it is written");
    }

    #[test]
    fn the_least_limit_on_the_way_up_counts_in_both_versions() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        let root = tree.path();
        let groups = |own: &str| Groups::of(own, root, root);
        put(root, "plant.slice/memory.max", "100663296\n");
        put(root, "plant.slice/tidegate.service/memory.max", "max\n");
        let own = "0::/plant.slice/tidegate.service\n";
        assert_eq!(groups(own).limit(), Some(96 * MIB), "that of the slice");
        put(root, "plant.slice/tidegate.service/memory.high", "67108864\n");
        assert_eq!(groups(own).limit(), Some(64 * MIB));
        assert_eq!(groups("0::/other.slice\n").limit(), None);
        assert_eq!(groups("0::/../../outside\n").limit(), None);

        put(root, "memory/memory.limit_in_bytes", "9223372036854771712\n");
        put(root, "memory/a/memory.limit_in_bytes", "50331648\n");
        put(root, "memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(groups("5:cpu:/x\n4:cpuset,memory:/a/b\n").limit(), Some(48 * MIB), "that of the group around it");
        // A container sees its own group as the top, and the host's path.
        assert_eq!(groups("4:memory:/docker/0123\n").limit(), Some(9_223_372_036_854_771_712));
        assert_eq!(groups("no such line\n").limit(), None);
    }

    #[test]
    fn pressure_and_kills_are_seen_in_every_group() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        let root = tree.path();
        let psi = |share: &str| format!("some avg10={share} avg60=0.00 avg300=0.00 total=1\nfull avg10=99.00\n");
        put(root, "a/b/memory.pressure", &psi("0.00"));
        let groups = Groups::of("0::/a/b\n", root, root);
        assert_eq!((groups.pressure(), groups.kills()), (None, 0));
        put(root, "a/memory.pressure", &psi("12.50"));
        put(root, "a/memory.events", "low 0\nhigh 3\nmax 7\noom 2\noom_kill 1\n");
        assert_eq!((groups.pressure(), groups.kills()), (Some(12.5), 2));
        put(root, "pressure/memory", &psi("40.00"));
        assert_eq!(groups.pressure(), Some(40.0), "the machine's");
    }
}
