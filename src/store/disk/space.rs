//! How much room a filesystem has.

use std::path::Path;
use std::sync::Arc;

/// A filesystem's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this user may still write.
    pub free: u64,
    /// All there are.
    pub total: u64,
}

/// Tells how much room there is where the log lies; `None` if that is not known.
pub type Gauge = Arc<dyn Fn() -> Option<Space> + Send + Sync>;

impl Space {
    /// Of the filesystem on which `directory` lies, as the system tells it.
    pub fn of(directory: &Path) -> Option<Space> {
        let found = rustix::fs::statvfs(directory).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(Space { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
    }

    /// Tells [`Space::of`] the directory each time it is asked.
    pub fn gauge(directory: &Path) -> Gauge {
        let directory = directory.to_owned();
        Arc::new(move || Space::of(&directory))
    }
}
