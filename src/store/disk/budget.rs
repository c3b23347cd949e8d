//! How `max_size` is shared out among the store's files. Pure.
//!
//! Seven eighths are for the content, see [`crate::store::retention::eviction::Bounds`]. The rest is for the
//! reserve file, the write-ahead log, and one commit more than that may have.

/// The least and the most that the reserve file takes.
const RESERVE: (u64, u64) = (256 << 10, 8 << 20);
/// The most that the write-ahead log's file keeps once it begins anew.
pub(in crate::store) const KEPT: u64 = 16 << 20;
/// The write-ahead log may always take this much, or nothing could be written.
const LEAST: u64 = 128 << 10;

/// The bound of everything in the store's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Budget {
    max_size: u64,
}

impl Budget {
    pub fn new(max_size: u64) -> Budget {
        Budget { max_size }
    }

    pub fn whole(self) -> u64 {
        self.max_size
    }

    /// What the reserve file takes.
    pub fn reserve(self) -> u64 {
        (self.max_size / 32).clamp(RESERVE.0, RESERVE.1)
    }

    /// Readings that one commit writes take about this much at most; what it writes beside
    /// them takes no more than that.
    pub fn commit(self) -> u64 {
        self.max_size / 32
    }

    /// What there is beside the database as a rule.
    pub fn outside(self) -> u64 {
        self.reserve() + self.kept()
    }

    /// The write-ahead log is cut to this when it begins anew.
    pub fn kept(self) -> u64 {
        (self.max_size / 16).min(KEPT)
    }

    /// The write-ahead log may take this much before a commit, beside a database of
    /// `file` bytes: what is left, but no more than a start reads in a moment.
    pub fn write_ahead(self, file: u64) -> u64 {
        let left = self.max_size.saturating_sub(file + self.reserve() + 2 * self.commit());
        left.min(self.max_size / 8).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_shares_of_a_full_log_stay_within_its_bound() {
        for max_size in [8 * MIB, 24 * MIB, 64 * MIB, 1024 * MIB, 1 << 40] {
            let budget = Budget::new(max_size);
            let content = max_size - max_size / 8;
            let all = content + budget.reserve() + budget.write_ahead(content) + 2 * budget.commit();
            assert!(all <= max_size, "{max_size}: {all}");
            assert!(budget.kept() + content + budget.reserve() <= max_size, "{max_size}");
        }
    }

    #[test]
    fn a_log_that_is_nearly_empty_leaves_more_to_its_write_ahead_log() {
        let budget = Budget::new(8 * MIB);
        assert_eq!(budget.write_ahead(0), MIB);
        assert_eq!(budget.write_ahead(7 * MIB), 256 << 10);
        assert_eq!(budget.write_ahead(u64::MAX / 2), LEAST);
    }
}
