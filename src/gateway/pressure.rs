//! Reduces the memory of connections while the system is short of memory, and restores it.

use super::groups::Groups;
use crate::net::Pool;
use crate::stop;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time without shortage before half of the reduction is undone.
const CALM: Duration = Duration::from_secs(30);
/// Most and least memory of connections, in eighths of their share.
const ALL: usize = 8;
const LEAST: usize = 1;

/// The memory of connections, as a part of their share. Pure.
#[derive(Debug)]
struct Reduction {
    eighths: usize,
    /// When memory was last short, or was last increased.
    last: Option<Duration>,
}

impl Reduction {
    /// The new part, if it changes.
    fn look(&mut self, is_short: bool, now: Duration) -> Option<usize> {
        let eighths = if is_short {
            self.last = Some(now);
            (self.eighths / 2).max(LEAST)
        } else if self.eighths < ALL && self.last.is_none_or(|last| now >= last + CALM) {
            self.last = Some(now);
            (self.eighths * 2).min(ALL)
        } else {
            self.eighths
        };
        let changed = eighths != self.eighths;
        self.eighths = eighths;
        changed.then_some(eighths)
    }
}

/// Reduces the memory of connections in `pool` while memory is short, until `stop` turns true.
pub async fn watch(groups: Groups, pool: Pool, mut stop: watch::Receiver<bool>) {
    let mut reduction = Reduction { eighths: ALL, last: None };
    let (began, mut kills) = (Instant::now(), groups.kills());
    stop::every(LOOK_EVERY, &mut stop, || {
        let (before, now, share) = (kills, groups.kills(), groups.pressure());
        kills = now;
        let was_reduced = reduction.eighths < ALL;
        let Some(eighths) = reduction.look(now > before || share.is_some(), began.elapsed()) else { return };
        let mib = pool.set_share(eighths, ALL) >> 20;
        match (was_reduced, eighths == ALL) {
            (false, _) => {
                let share = share.unwrap_or(100.0);
                tracing::warn!(
                    connections_mib = mib,
                    "memory is short: tasks wait for it {share:.0} % of the time; large frames get {mib} MiB until that \
                     is over; lower [gateway] memory_limit, or give the service more (MemoryMax)"
                );
            }
            (true, true) => tracing::info!(connections_mib = mib, "memory is no longer short"),
            (true, false) => tracing::debug!(connections_mib = mib, "memory for connections has changed"),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_is_taken_at_once_is_given_back_in_steps() {
        let mut reduction = Reduction { eighths: ALL, last: None };
        let mut look = |is_short, at| reduction.look(is_short, Duration::from_secs(at));
        assert_eq!(look(false, 0), None);
        assert_eq!((look(true, 5), look(true, 10), look(true, 15), look(true, 20)), (Some(4), Some(2), Some(1), None));
        assert_eq!((look(false, 25), look(false, 49)), (None, None));
        assert_eq!((look(false, 50), look(false, 55), look(false, 80)), (Some(2), None, Some(4)));
        assert_eq!(look(true, 85), Some(2));
        assert_eq!((look(false, 115), look(false, 145), look(false, 500)), (Some(4), Some(8), None));
    }

    #[tokio::test(start_paused = true)]
    async fn large_frames_find_less_memory_while_it_is_short() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        let file = tree.path().join("pressure/memory");
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("it is made");
        let psi = |share| std::fs::write(&file, format!("some avg10={share} avg60=0.00\n")).expect("it is written");
        let pool = Pool::new(64 << 20, Metrics::new());
        let (stop, stopped) = watch::channel(false);
        let watched = tokio::spawn(watch(Groups::of("", tree.path(), tree.path()), pool.clone(), stopped));
        let fits = |mib: usize| pool.another_lease().reserve(mib << 20);
        assert!(fits(40));
        psi("35.20");
        tokio::time::sleep(4 * LOOK_EVERY).await;
        assert!(!fits(8) && fits(1) && pool.admits(), "small ones and new connections go on");
        psi("0.00");
        tokio::time::sleep(5 * CALM).await;
        assert!(fits(40));
        stop.send_replace(true);
        watched.await.expect("it ends");
    }
}
