//! From a device's Readings to batches for the log: channel indexes become names,
//! the device's times become the gateway's.

mod times;

pub use times::TimeRules;

use crate::clock::Now;
use crate::model::{Basis, Batch, ChannelName, Channels, DeviceId, InvalidName, Reading, Value};
use crate::wire::message::{ChannelDeclaration, ChannelRef, DeviceClock, Readings};
use std::collections::HashSet;
use times::Times;

/// Why Readings, or the channels declared for them, make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("channel name {0:?} {1}")]
    Channel(String, InvalidName),
    #[error("channel index {0} is declared twice")]
    DeclaredTwice(u16),
    #[error("channel index {0} was not declared in Hello")]
    Undeclared(u16),
    #[error("channel {0} appears twice in one sample")]
    Twice(ChannelName),
    #[error("sub-device {0:?} {1}")]
    SubDevice(String, InvalidName),
    #[error("seqs start at 1, not 0")]
    SeqZero,
    #[error("seq {0} leaves no room for the samples behind it")]
    SeqOverflow(u64),
    #[error("expected seq {expected}, got {got}: what stands between was lost on the way; say Hello again")]
    Gap { expected: u64, got: u64 },
}

/// A list of channels as the device wrote it, and what it stands for.
#[derive(Debug)]
struct Shape {
    written: Box<[ChannelRef]>,
    channels: Channels,
    /// What it takes in memory, near enough.
    bytes: usize,
}

/// Shapes remembered; devices rarely have more than one or two.
const MAX_SHAPES: usize = 8;
/// Memory of all shapes remembered, in bytes. What does not fit is resolved anew for
/// each sample.
const MAX_SHAPE_BYTES: usize = 32 * 1024;

/// What one Readings message came to.
#[derive(Debug, PartialEq)]
pub struct Converted {
    pub batch: Batch,
    /// What follows it with times of another kind.
    pub more: Vec<Batch>,
    /// The seq of the message's last sample.
    pub last: u64,
    /// Samples that were left out because they had come before.
    pub repeated: u64,
}

impl Converted {
    /// All batches, in the order of their readings; the first may be empty.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        std::iter::once(&self.batch).chain(&self.more)
    }
}

/// Converts the readings of one session.
#[derive(Debug)]
pub struct Converter {
    device: DeviceId,
    session: u64,
    times: Times,
    declared: Vec<(u16, ChannelName)>,
    shapes: Vec<Shape>,
    next_shape: usize,
    /// The highest seq that came on this connection, or need not come on it.
    seen: u64,
}

impl Converter {
    /// # Errors
    /// If a declared channel has an impossible name or an index is declared twice.
    pub fn new(
        device: DeviceId,
        session: u64,
        clock: DeviceClock,
        rules: TimeRules,
        channels: &[ChannelDeclaration],
    ) -> Result<Converter, ConvertError> {
        let mut declared: Vec<(u16, ChannelName)> = Vec::with_capacity(channels.len());
        for channel in channels {
            let name = name(&channel.name)?;
            match declared.binary_search_by_key(&channel.index, |(index, _)| *index) {
                Ok(_) => return Err(ConvertError::DeclaredTwice(channel.index)),
                Err(at) => declared.insert(at, (channel.index, name)),
            }
        }
        let times = Times::new(clock, rules);
        Ok(Converter { device, session, times, declared, shapes: Vec::new(), next_shape: 0, seen: 0 })
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// What the device's times mean.
    pub fn clock(&self) -> DeviceClock {
        self.times.clock()
    }

    /// Memory that is held to convert faster, in bytes.
    pub fn memory(&self) -> usize {
        self.shapes.iter().map(|shape| shape.bytes).sum()
    }

    /// Gives that memory back.
    pub fn forget(&mut self) {
        self.shapes = Vec::new();
    }

    /// Everything up to `seen` is settled, or given up by the device: readings go on
    /// behind it.
    pub fn go_on_after(&mut self, seen: u64) {
        self.seen = seen;
    }

    /// The device's clock showed `time` just now.
    pub fn synchronise(&mut self, time: i64, now: Now) {
        self.times.synchronise(time, now);
    }

    /// The batches that `readings` hold, which came at `now`. Samples that came on this
    /// connection before are left out.
    ///
    /// # Errors
    /// If a channel or the sub-device cannot be named, if seqs are out of range, or
    /// if some are missing: an Ack is cumulative and must not cover them.
    pub fn convert(&mut self, readings: Readings, now: Now) -> Result<Converted, ConvertError> {
        let Readings { seq: first, sub, samples } = readings;
        if first == 0 {
            return Err(ConvertError::SeqZero);
        }
        let expected = self.seen.saturating_add(1);
        if first > expected {
            return Err(ConvertError::Gap { expected, got: first });
        }
        let count = samples.len() as u64;
        let end = first.checked_add(count).ok_or(ConvertError::SeqOverflow(first))?;
        let device = match sub {
            None => self.device.clone(),
            Some(sub) => self.device.sub_device(&sub).map_err(|why| ConvertError::SubDevice(sub, why))?,
        };
        if let Some(newest) = samples.iter().map(|sample| sample.time).max() {
            self.times.heard(newest, now);
        }
        let session = Some(self.session);
        let begin = |basis, room| Batch { device: device.clone(), session, basis, readings: Vec::with_capacity(room) };
        let mut batch: Option<Batch> = None;
        let mut before: Vec<Batch> = Vec::new();
        let mut fresh = 0;
        for (seq, sample) in (first..end).zip(samples) {
            let channels = self.channels(&sample.values)?;
            if seq <= self.seen {
                continue;
            }
            let values: Box<[Value]> = sample.values.into_iter().map(|(_, value)| value).collect();
            // The channels were made from these very values.
            let (time, basis) = self.times.place(sample.time, now);
            let Ok(reading) = Reading::new(seq, time, channels, values) else { continue };
            fresh += 1;
            let room = usize::try_from(end - seq).unwrap_or(0);
            let open = batch.get_or_insert_with(|| begin(basis, room));
            if open.basis != basis {
                // A hostile device may change at each sample: no room is made in advance.
                let mut done = std::mem::replace(open, begin(basis, 0));
                done.readings.shrink_to_fit();
                before.push(done);
            }
            open.readings.push(reading);
        }
        self.seen = self.seen.max(end - 1);
        let last = batch.unwrap_or_else(|| begin(Basis::Wall, 0));
        // Nearly always there is one batch, and this moves nothing.
        let (batch, more) = match before.is_empty() {
            true => (last, before),
            false => {
                let first = before.remove(0);
                before.push(last);
                (first, before)
            }
        };
        Ok(Converted { batch, more, last: end - 1, repeated: count - fresh })
    }

    fn channels(&mut self, values: &[(ChannelRef, Value)]) -> Result<Channels, ConvertError> {
        let same = |shape: &&Shape| shape.written.iter().eq(values.iter().map(|(channel, _)| channel));
        if let Some(shape) = self.shapes.iter().find(same) {
            return Ok(shape.channels.clone());
        }
        let mut channels: Vec<ChannelName> = Vec::with_capacity(values.len());
        for (channel, _) in values {
            channels.push(self.resolve(channel)?);
        }
        if let Some(twice) = repeated(&channels) {
            return Err(ConvertError::Twice(twice));
        }
        let channels: Channels = channels.into();
        let bytes = channels.iter().map(|name| CHANNEL_BYTES + 2 * name.as_str().len()).sum();
        if bytes > MAX_SHAPE_BYTES {
            return Ok(channels);
        }
        if self.memory() + bytes > MAX_SHAPE_BYTES {
            self.forget();
        }
        let written = values.iter().map(|(channel, _)| channel.clone()).collect();
        let shape = Shape { written, channels: channels.clone(), bytes };
        self.next_shape %= self.shapes.len().max(1);
        if self.shapes.len() < MAX_SHAPES {
            self.shapes.push(shape);
        } else {
            self.shapes[self.next_shape] = shape; // there are MAX_SHAPES
            self.next_shape = (self.next_shape + 1) % MAX_SHAPES;
        }
        Ok(channels)
    }

    fn resolve(&self, channel: &ChannelRef) -> Result<ChannelName, ConvertError> {
        match channel {
            ChannelRef::Name(text) => name(text),
            ChannelRef::Index(index) => match self.declared.binary_search_by_key(index, |(index, _)| *index) {
                Ok(at) => Ok(self.declared[at].1.clone()), // it was found there
                Err(_) => Err(ConvertError::Undeclared(*index)),
            },
        }
    }
}

fn name(text: &str) -> Result<ChannelName, ConvertError> {
    ChannelName::new(text).map_err(|why| ConvertError::Channel(text.to_owned(), why))
}

/// What a channel takes in a shape beside its name's bytes, once as it was written and
/// once resolved.
const CHANNEL_BYTES: usize = size_of::<ChannelRef>() + size_of::<ChannelName>() + 2 * 24;

/// A channel that is there twice. A hostile list may be very long.
fn repeated(channels: &[ChannelName]) -> Option<ChannelName> {
    const FEW: usize = 16;
    if channels.len() <= FEW {
        let twice = channels.iter().enumerate().find(|(i, name)| channels[..*i].contains(name)); // i counts them
        return twice.map(|(_, name)| name.clone());
    }
    let mut seen = HashSet::with_capacity(channels.len());
    channels.iter().find(|name| !seen.insert(*name)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::wire::message::Sample;
    use std::time::Duration;

    const NOW: Now = Now { wall: Timestamp(1_800_000_000_000_000), trusted: true, monotonic: Duration::ZERO };

    fn converter(clock: DeviceClock) -> Converter {
        let declare = |index, name: &str| ChannelDeclaration { index, name: name.into(), unit: None };
        let device = DeviceId::new("hub").expect("a valid name");
        let rules = TimeRules::default();
        Converter::new(device, 5, clock, rules, &[declare(3, "temperature"), declare(1, "level")])
            .expect("valid channels")
    }

    fn readings(seq: u64, count: i64, channels: &[ChannelRef]) -> Readings {
        let values = || channels.iter().map(|channel| (channel.clone(), Value::Integer(1))).collect();
        Readings { seq, sub: None, samples: (0..count).map(|time| Sample { time, values: values() }).collect() }
    }

    #[test]
    fn indexes_and_names_become_channels_that_readings_share() {
        let mut converter = converter(DeviceClock::Wall);
        let written = [ChannelRef::Index(3), ChannelRef::Name("x".into())];
        let Converted { batch, last, .. } = converter.convert(readings(1, 2, &written), NOW).expect("valid readings");
        assert_eq!((last, batch.session), (2, Some(5)));
        let names: Vec<_> = batch.readings[0].channels().iter().map(|c| c.to_string()).collect();
        assert_eq!(names, ["temperature", "x"]);
        assert!(std::sync::Arc::ptr_eq(batch.readings[0].channels(), batch.readings[1].channels()));
    }

    #[test]
    fn what_cannot_be_named_is_refused() {
        let mut converter = converter(DeviceClock::Wall);
        let mut failure =
            |channels: &[ChannelRef]| converter.convert(readings(1, 1, channels), NOW).expect_err("no sense");
        assert_eq!(failure(&[ChannelRef::Index(2)]), ConvertError::Undeclared(2));
        assert!(matches!(failure(&[ChannelRef::Name(String::new())]), ConvertError::Channel(..)));
        assert!(matches!(
            failure(&[ChannelRef::Index(1), ChannelRef::Name("level".into())]),
            ConvertError::Twice(name) if name.as_str() == "level"
        ));
        let sub = Readings { sub: Some("a b".into()), ..readings(1, 1, &[]) };
        assert!(matches!(converter.convert(sub, NOW), Err(ConvertError::SubDevice(..))));
        assert_eq!(converter.convert(readings(0, 1, &[]), NOW), Err(ConvertError::SeqZero));
        converter.go_on_after(u64::MAX - 1);
        assert_eq!(converter.convert(readings(u64::MAX, 2, &[]), NOW), Err(ConvertError::SeqOverflow(u64::MAX)));
    }

    #[test]
    fn a_sub_device_stands_under_its_hub() {
        let readings = Readings { sub: Some("door".into()), ..readings(1, 1, &[]) };
        let Converted { batch, .. } = converter(DeviceClock::Wall).convert(readings, NOW).expect("valid readings");
        assert_eq!(batch.device.as_str(), "hub/door");
    }

    #[test]
    fn samples_that_came_before_are_left_out() {
        let mut converter = converter(DeviceClock::Wall);
        let seqs = |converted: Converted| {
            let seqs: Vec<_> = converted.batch.readings.iter().map(|r| r.origin_seq).collect();
            (seqs, converted.last, converted.repeated)
        };
        converter.go_on_after(4);
        assert_eq!(converter.convert(readings(5, 3, &[]), NOW).map(seqs), Ok((vec![5, 6, 7], 7, 0)));
        assert_eq!(converter.convert(readings(6, 3, &[]), NOW).map(seqs), Ok((vec![8], 8, 2)));
        assert_eq!(converter.convert(readings(1, 2, &[]), NOW).map(seqs), Ok((vec![], 2, 2)));
    }

    /// An Ack of 7 would make the device forget 6 as well.
    #[test]
    fn readings_behind_lost_ones_are_refused() {
        let mut converter = converter(DeviceClock::Wall);
        assert!(converter.convert(readings(1, 5, &[]), NOW).is_ok());
        assert_eq!(converter.convert(readings(7, 1, &[]), NOW), Err(ConvertError::Gap { expected: 6, got: 7 }));
        assert!(converter.convert(readings(6, 2, &[]), NOW).is_ok());
    }

    #[test]
    fn kinds_that_alternate_take_no_more_memory_than_their_readings() {
        let mut converter = converter(DeviceClock::Wall);
        let times = [NOW.wall.0 - 1000, -1].into_iter().cycle().take(4096);
        let samples = times.map(|time| Sample { time, values: Vec::new() }).collect();
        let converted = converter.convert(Readings { seq: 1, sub: None, samples }, NOW).expect("valid readings");
        assert_eq!(converted.batches().count(), 4096);
        let room: usize = converted.batches().map(|batch| batch.readings.capacity()).sum();
        assert!(room <= 2 * 4096, "room for {room}");
    }

    #[test]
    fn readings_with_times_of_different_kinds_become_batches_of_one_kind_each() {
        let mut converter = converter(DeviceClock::Wall);
        let good = NOW.wall.0 - 1000;
        let samples = [good, -1, -5, good].map(|time| Sample { time, values: Vec::new() });
        let readings = Readings { seq: 1, sub: None, samples: samples.to_vec() };
        let Converted { batch, more, last, repeated } = converter.convert(readings, NOW).expect("valid readings");
        let seqs: Vec<(Basis, Vec<u64>)> = std::iter::once(batch)
            .chain(more)
            .map(|batch| (batch.basis, batch.readings.iter().map(|r| r.origin_seq).collect()))
            .collect();
        let absurd = Basis::DeviceClock { received: NOW.wall };
        assert_eq!(seqs, [(Basis::Wall, vec![1]), (absurd, vec![2, 3]), (Basis::Wall, vec![4])]);
        assert_eq!((last, repeated), (4, 0));
    }

    #[test]
    fn readings_tell_what_their_devices_clock_shows_at_least() {
        let mut converter = converter(DeviceClock::SinceBoot);
        let at = |seconds| Now { monotonic: Duration::from_secs(seconds), ..NOW };
        // Under way for 2 s, and the readings for none.
        converter.synchronise(1_000, at(3));
        let samples = [4_000, 5_000].map(|time| Sample { time, values: Vec::new() }).to_vec();
        let converted = converter.convert(Readings { seq: 1, sub: None, samples }, at(5)).expect("valid readings");
        let times: Vec<_> = converted.batch.readings.iter().map(|reading| reading.time.0 - NOW.wall.0).collect();
        assert_eq!((times, converted.batch.basis), (vec![-1_000_000, 0], Basis::Wall));
    }

    #[test]
    fn more_shapes_than_are_remembered_still_convert() {
        let mut converter = converter(DeviceClock::Wall);
        for seq in 1..=40 {
            let channel = ChannelRef::Name(format!("c{}", seq % 20));
            let Converted { batch, .. } = converter.convert(readings(seq, 1, &[channel]), NOW).expect("valid readings");
            assert_eq!(batch.readings[0].channels()[0].as_str(), format!("c{}", seq % 20));
        }
    }
}
