//! The resident memory of a process over time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const MIB: u64 = 1 << 20;

/// Watches a process from here on.
pub struct Watch {
    base: u64,
    peak: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watch {
    pub fn start(pid: u32) -> Watch {
        let (base, done) = (resident(pid), Arc::new(AtomicBool::new(false)));
        let peak = Arc::new(AtomicU64::new(base));
        let (seen, stop) = (peak.clone(), done.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(resident(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Watch { base, peak, done }
    }

    /// It took no more than `limit` MiB on top of what it had in the beginning.
    pub fn bounded(&self, limit: u64, what: &str) {
        let (base, peak) = (self.base, self.peak.load(Ordering::Relaxed));
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        println!("{what}: RSS {:.1} MiB before, {:.1} MiB at most, limit {limit} MiB", mib(base), mib(peak));
        assert!(peak <= base + limit * MIB, "{what}: {peak} bytes are more than {base} and the limit");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}
