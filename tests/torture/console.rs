//! What a machine says on its console. Pure.

/// What its `init` says right before it gives way to the gateway.
const STARTING: &str = "starting the gateway";
/// What busybox says when it cannot mount the disk.
const NOT_MOUNTED: &str = "mounting /dev/vda on /data failed";

/// Why the machine's file system could not be mounted, if that is why no gateway runs.
/// `said` begins with the machine's start.
pub fn refused_disk(said: &str) -> Option<String> {
    if said.contains(STARTING) {
        return None;
    }
    let told = said.lines().find(|line| line.contains(NOT_MOUNTED))?;
    let reasons = said.lines().filter(|line| line.contains("JBD2") || line.contains("EXT4-fs"));
    let lines: Vec<_> = reasons.chain([told]).map(str::trim).collect();
    Some(lines.join("; "))
}
