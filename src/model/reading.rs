//! Readings and the batches in which they travel.

use super::{Basis, ChannelName, DeviceId, Origin, Seq, Timestamp};
use std::sync::Arc;

/// One measured value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Float(f64),
    Integer(i64),
    Boolean(bool),
    Text(Box<str>),
    Bytes(Box<[u8]>),
}

/// The channels of a reading, in the order of its values. Shared: a device that
/// reports the same channels each time has one list for all its readings.
pub type Channels = Arc<[ChannelName]>;

/// Values that one device measured at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The device's own number of this reading, where it gave one.
    pub origin_seq: u64,
    pub time: Timestamp,
    channels: Channels,
    values: Box<[Value]>,
}

/// A reading was put together from lists of different lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{channels} channels for {values} values")]
pub struct ShapeMismatch {
    pub channels: usize,
    pub values: usize,
}

impl Reading {
    /// A reading whose `values` belong to `channels`, one each.
    pub fn new(
        origin_seq: u64,
        time: Timestamp,
        channels: Channels,
        values: Box<[Value]>,
    ) -> Result<Reading, ShapeMismatch> {
        if channels.len() != values.len() {
            return Err(ShapeMismatch { channels: channels.len(), values: values.len() });
        }
        Ok(Reading { origin_seq, time, channels, values })
    }

    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Each channel with its value.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ChannelName, &Value)> {
        self.channels.iter().zip(self.values.iter())
    }

    /// What this reading takes in memory, in bytes, near enough to bound a queue.
    pub fn memory(&self) -> usize {
        let heap: usize = self
            .values
            .iter()
            .map(|value| match value {
                Value::Text(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
                Value::Float(_) | Value::Integer(_) | Value::Boolean(_) => 0,
            })
            .sum();
        size_of::<Reading>() + size_of_val::<[Value]>(&self.values) + heap
    }
}

/// What a channel's name takes in memory beside its bytes.
const CHANNEL: usize = size_of::<ChannelName>() + 2 * size_of::<usize>();

/// What a list of channels takes in memory, in bytes, near enough to bound a queue.
pub fn channels_memory(channels: &Channels) -> usize {
    channels.iter().map(|name| CHANNEL + name.as_str().len()).sum()
}

/// Readings of one device in the order in which it took them. All of them carry
/// the device's `session` as their origin, or none does.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub device: DeviceId,
    /// The device's session, whose seqs are the readings' `origin_seq`; `None`
    /// if the device numbers nothing, and `origin_seq` is then 0.
    pub session: Option<u64>,
    /// What the readings' times are.
    pub basis: Basis,
    pub readings: Vec<Reading>,
}

impl Batch {
    /// What this batch takes in memory, in bytes, near enough to bound a queue.
    pub fn memory(&self) -> usize {
        let mut bytes = size_of::<Batch>();
        let mut shared: Option<&Channels> = None;
        for reading in &self.readings {
            bytes += reading.memory();
            if shared.is_none_or(|before| !Arc::ptr_eq(before, &reading.channels)) {
                // A list of channels counts once for the readings that have it in common.
                bytes += channels_memory(&reading.channels);
                shared = Some(&reading.channels);
            }
        }
        bytes
    }
}

/// A batch to which the log has given seqs: the reading at index i has
/// `first + i`. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct SequencedBatch {
    pub first: Seq,
    pub batch: Arc<Batch>,
}

impl SequencedBatch {
    /// The seq of the last reading; `first.prev()` if there is none.
    pub fn last(&self) -> Seq {
        Seq((self.first.0 + self.batch.readings.len() as u64).saturating_sub(1))
    }

    /// The readings after `after`, each with its seq and origin.
    pub fn after(&self, after: Seq) -> impl ExactSizeIterator<Item = (Seq, Option<Origin>, &Reading)> {
        let skip = usize::try_from(after.next().0.saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        let first = self.first;
        let session = self.batch.session;
        self.batch.readings.iter().enumerate().skip(skip).map(move |(i, reading)| {
            let origin = session.map(|session| Origin { session, seq: reading.origin_seq });
            (first.plus(i as u64), origin, reading)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequenced(first: u64, count: u64) -> SequencedBatch {
        let readings = (1..=count)
            .map(|seq| Reading::new(seq, Timestamp(0), Arc::new([]), Box::new([])).expect("both lists are empty"))
            .collect();
        let device = DeviceId::new("d").expect("a valid name");
        SequencedBatch {
            first: Seq(first),
            batch: Arc::new(Batch { device, session: Some(9), basis: Basis::Wall, readings }),
        }
    }

    #[test]
    fn a_numbered_batch_yields_only_what_stands_after_a_cursor() {
        let batch = sequenced(10, 3);
        let seqs =
            |after| batch.after(Seq(after)).map(|(seq, origin, _)| (seq.0, origin.map(|o| o.seq))).collect::<Vec<_>>();
        assert_eq!(seqs(0), [(10, Some(1)), (11, Some(2)), (12, Some(3))]);
        assert_eq!(seqs(10), [(11, Some(2)), (12, Some(3))]);
        assert_eq!(seqs(12), []);
        assert_eq!(seqs(u64::MAX), []);
        assert_eq!(batch.last(), Seq(12));
    }

    #[test]
    fn a_reading_needs_one_value_a_channel() {
        let wrong = Reading::new(1, Timestamp(0), Arc::new([]), Box::new([Value::Boolean(true)]));
        assert_eq!(wrong, Err(ShapeMismatch { channels: 0, values: 1 }));
    }
}
