//! What is known of a segment without its block, and what proves the two.

use crate::model::{Seq, Timestamp};

/// What is decoded at a time. A byte may be a value, and takes 24 in memory then.
const PIECE_READINGS: u32 = 64 << 10;
const PIECE_RAW_LENGTH: u32 = 512 << 10;

/// What stands in a segment's row beside its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seq of the first reading.
    pub first: Seq,
    /// Seq of the last reading.
    pub last: Seq,
    /// Number of readings; fewer than seqs from first to last if there are holes.
    pub count: u32,
    /// Smallest and largest time among the readings: of receipt where a device's clock
    /// is absurd, `i64::MIN` and `MAX` where some real one is not known.
    pub oldest: Timestamp,
    pub newest: Timestamp,
    /// Length of the block before compression; equal to the stored length if it is not compressed.
    pub raw_length: u32,
    /// CRC-32 (ISO-HDLC) over all of the above and the stored block; `last` takes part
    /// only where `first` and `count` do not give it.
    pub checksum: u32,
}

impl Header {
    /// Of a segment of which only that is known. No block is proven by it.
    pub(in crate::store) fn unknown(first: Seq) -> Header {
        let (oldest, newest) = (Timestamp(i64::MIN), Timestamp(i64::MAX));
        Header { first, last: first, count: 1, oldest, newest, raw_length: 0, checksum: 0 }
    }

    /// Seq of the last reading.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// How many seqs there are from the first to the last reading.
    pub(super) fn span(&self) -> u64 {
        (self.last.0.saturating_add(1)).saturating_sub(self.first.0)
    }

    /// Into how many pieces its readings are divided so that none takes much memory.
    pub(super) fn pieces(&self) -> u64 {
        u64::from(self.count.div_ceil(PIECE_READINGS).max(self.raw_length.div_ceil(PIECE_RAW_LENGTH)).max(1))
    }

    /// How many readings it has after `after` and up to `upto`; about, if there are holes
    /// and one of the two lies between the first and the last.
    pub fn within(&self, after: Seq, upto: Seq) -> u64 {
        let (first, last) = (self.first.max(after.next()), self.last.min(upto));
        u64::from(self.count).min(last.next().0.saturating_sub(first.0))
    }

    /// Whether seqs between the first and the last have no reading.
    pub fn is_sparse(&self) -> bool {
        self.span() != u64::from(self.count)
    }

    /// Whether `oldest` and `newest` are times.
    pub(in crate::store) fn has_known_times(&self) -> bool {
        (self.oldest, self.newest) != (Timestamp(i64::MIN), Timestamp(i64::MAX))
    }

    pub(super) fn expected_checksum(&self, block: &[u8]) -> u32 {
        let mut hash = crc32fast::Hasher::new();
        hash.update(&self.first.0.to_le_bytes());
        hash.update(&self.count.to_le_bytes());
        hash.update(&self.oldest.0.to_le_bytes());
        hash.update(&self.newest.0.to_le_bytes());
        hash.update(&self.raw_length.to_le_bytes());
        if self.is_sparse() {
            hash.update(&self.last.0.to_le_bytes());
        }
        hash.update(block);
        hash.finalize()
    }
}
