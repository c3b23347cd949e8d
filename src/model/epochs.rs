//! The epochs of a log's seqs.

use super::Seq;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Identifies the life of a log that a seq belongs to: drawn at random when a database is
/// created, and anew whenever a start cannot prove that the database is the latest state of the
/// log. So no copy of it reuses an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The epochs of a log. Each has a range of seqs, which continue from one epoch to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs {
    /// Past epochs with their last seqs, oldest first.
    former: Arc<[(Seq, Epoch)]>,
    current: Epoch,
}

/// A range of seqs of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRange {
    pub epoch: Epoch,
    pub first: Seq,
    pub last: Seq,
}

impl Epochs {
    /// `former` are the past epochs with their last seqs, oldest first.
    pub fn new(former: Vec<(Seq, Epoch)>, current: Epoch) -> Epochs {
        Epochs { former: former.into(), current }
    }

    /// The epoch of new readings.
    pub fn current(&self) -> Epoch {
        self.current
    }

    /// The past epochs that are remembered, with their last seqs, oldest first.
    pub fn former(&self) -> &[(Seq, Epoch)] {
        &self.former
    }

    /// The epoch of `seq`, and its last seq.
    pub fn of(&self, seq: Seq) -> (Epoch, Seq) {
        let place = self.former.partition_point(|(last, _)| *last < seq);
        self.former.get(place).map_or((self.current, Seq(u64::MAX)), |(last, epoch)| (*epoch, *last))
    }

    /// Splits the seqs from `first` to `last` into ranges of one epoch each.
    pub fn parts(&self, mut first: Seq, last: Seq) -> Vec<EpochRange> {
        let mut parts = Vec::new();
        while first <= last {
            let (epoch, end) = self.of(first);
            let end = end.min(last);
            parts.push(EpochRange { epoch, first, last: end });
            if end == last {
                break;
            }
            first = end.next();
        }
        parts
    }
}

impl From<Epoch> for Epochs {
    fn from(current: Epoch) -> Epochs {
        Epochs::new(Vec::new(), current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_seq_is_of_one_epoch_and_a_range_is_divided_where_one_ends() {
        let (a, b, c) = (Epoch(7), Epoch(3), Epoch(9));
        let epochs = Epochs::new(vec![(Seq(10), a), (Seq(20), b)], c);
        assert_eq!(epochs.of(Seq(1)), (a, Seq(10)));
        assert_eq!(epochs.of(Seq(10)), (a, Seq(10)));
        assert_eq!(epochs.of(Seq(11)), (b, Seq(20)));
        assert_eq!(epochs.of(Seq(21)), (c, Seq(u64::MAX)));
        let parts: Vec<_> = epochs.parts(Seq(5), Seq(25)).iter().map(|p| (p.epoch, p.first.0, p.last.0)).collect();
        assert_eq!(parts, [(a, 5, 10), (b, 11, 20), (c, 21, 25)]);
        assert_eq!(epochs.parts(Seq(21), Seq(u64::MAX)).len(), 1);
        assert_eq!(Epochs::from(c).of(Seq(1)), (c, Seq(u64::MAX)));
    }
}
