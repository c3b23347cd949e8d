//! From a device's Readings to batches for the log: channel indexes become names,
//! the device's times become the gateway's.

mod refused;
mod times;

pub use refused::Refusals;
pub use times::TimeRules;

use crate::clock::Now;
use crate::model::{Basis, Batch, ChannelName, Channels, DeviceId, InvalidName, Reading, Value};
use crate::wire::message::{ChannelDeclaration, ChannelRef, DeviceClock, Readings, Sample};
use crate::wire::sift::{Sifted, Unreadable};
use refused::Why;
use std::collections::HashSet;
use std::time::Duration;
use times::Times;

/// Why Readings, one of their samples, or the channels declared for them make no sense.
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
    #[error(
        "expected seq {expected}, got {got}: what stands between was lost on the way; say Hello again, with `first` = \
         {got} if nothing before it is left"
    )]
    Gap { expected: u64, got: u64 },
}

impl ConvertError {
    /// A short constant name for metrics.
    fn label(&self) -> &'static str {
        match self {
            ConvertError::Channel(..) => "channel_name",
            ConvertError::DeclaredTwice(_) | ConvertError::Twice(_) => "channel_twice",
            ConvertError::Undeclared(_) => "channel_index",
            ConvertError::SubDevice(..) => "sub_device",
            ConvertError::SeqZero | ConvertError::SeqOverflow(_) | ConvertError::Gap { .. } => "seq",
        }
    }
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
    /// Samples that can never be taken: readings without values stand in their places.
    pub refused: Refusals,
    /// Where readings were to go on, if the device goes on elsewhere and may.
    pub skipped_from: Option<u64>,
}

impl Converted {
    /// All batches, in the order of their readings; the first may be empty.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        std::iter::once(&self.batch).chain(&self.more)
    }
}

/// What indexes stand for, as the device said: names are looked at when they are used, and many
/// devices say nothing for long.
#[derive(Debug)]
struct Declared {
    /// All of them, one behind the other.
    names: Box<str>,
    by_index: Box<[(u16, Declaration)]>,
}

#[derive(Debug)]
enum Declaration {
    /// Where the name begins and ends.
    Unused(u32, u32),
    Used(ChannelName),
    Twice,
}

impl Declared {
    fn new(channels: &[ChannelDeclaration]) -> Declared {
        let mut names = String::with_capacity(channels.iter().map(|channel| channel.name.len()).sum());
        let mut by_index: Vec<(u16, Declaration)> = Vec::with_capacity(channels.len());
        for channel in channels {
            match by_index.binary_search_by_key(&channel.index, |(index, _)| *index) {
                Ok(at) => by_index[at].1 = Declaration::Twice, // it was found there
                Err(at) => {
                    let start = names.len();
                    names.push_str(&channel.name);
                    // No message is longer.
                    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
                    by_index.insert(at, (channel.index, Declaration::Unused(place(start), place(names.len()))));
                }
            }
        }
        Declared { names: names.into(), by_index: by_index.into() }
    }

    fn name(&mut self, index: u16) -> Result<ChannelName, ConvertError> {
        let found = self.by_index.binary_search_by_key(&index, |(index, _)| *index);
        let (_, declaration) =
            found.ok().and_then(|at| self.by_index.get_mut(at)).ok_or(ConvertError::Undeclared(index))?;
        match declaration {
            Declaration::Used(name) => Ok(name.clone()),
            Declaration::Twice => Err(ConvertError::DeclaredTwice(index)),
            Declaration::Unused(start, end) => {
                let text = self.names.get(*start as usize..*end as usize); // at least 32 bits on every target
                let name = name(text.unwrap_or_default())?;
                *declaration = Declaration::Used(name.clone());
                Ok(name)
            }
        }
    }
}

/// Converts the readings of one session.
#[derive(Debug)]
pub struct Converter {
    device: DeviceId,
    session: u64,
    times: Times,
    declared: Declared,
    shapes: Vec<Shape>,
    next_shape: usize,
    /// The highest seq that came on this connection, or need not come on it.
    seen: u64,
    /// Whether the first Readings may begin behind that.
    anywhere: bool,
}

impl Converter {
    /// A session with these declared channels. Samples are refused whose channels have
    /// impossible names, or indexes that are declared twice.
    pub fn new(
        device: DeviceId,
        session: u64,
        clock: DeviceClock,
        rules: TimeRules,
        channels: &[ChannelDeclaration],
    ) -> Converter {
        let declared = Declared::new(channels);
        let times = Times::new(clock, rules);
        Converter { device, session, times, declared, shapes: Vec::new(), next_shape: 0, seen: 0, anywhere: false }
    }

    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The gateway did not listen to the device for a while.
    pub fn excuse(&mut self, by: Duration, now: Now) {
        self.times.excuse(by, now);
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

    /// As the device names it.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Everything up to `seen` is settled, or given up by the device: readings go on
    /// behind it, or `anywhere` at first, where nothing is lost on the way and the device
    /// did not say what it still has.
    pub fn go_on_after(&mut self, seen: u64, anywhere: bool) {
        (self.seen, self.anywhere) = (seen, anywhere);
    }

    /// Everything up to `acked` was acknowledged, some of which an earlier connection brought:
    /// nothing before it is waited for.
    pub fn acknowledged(&mut self, acked: u64) {
        self.seen = self.seen.max(acked);
    }

    /// The device's clock showed `time` just now.
    pub fn synchronise(&mut self, time: i64, now: Now) {
        self.times.synchronise(time, now);
    }

    /// The batches that `readings` hold, which came at `now`. Samples that came on this
    /// connection before are left out; those whose channels or sub-device cannot be named
    /// are refused.
    ///
    /// # Errors
    /// If seqs are out of range, or if some are missing: an Ack is cumulative and must not
    /// cover them.
    pub fn convert(&mut self, readings: Readings, now: Now) -> Result<Converted, ConvertError> {
        let Readings { seq, sub, samples } = readings;
        let newest = samples.iter().map(|sample| sample.time).max();
        self.take(seq, sub, newest, samples.into_iter().map(Ok), now)
    }

    /// As [`Converter::convert`], of Readings of which some samples cannot be read: those
    /// are refused. The second is the seq of one behind which nothing can be found, if there
    /// is such a one: what stands there is to come again in another message. A device that
    /// knows that, and sends the same message, does not do so: then all of it is refused.
    ///
    /// # Errors
    /// As of [`Converter::convert`].
    pub fn sift(&mut self, sifted: Sifted, now: Now) -> Result<(Converted, Option<u64>), ConvertError> {
        let Sifted { seq, sub, mut samples, hidden, cut } = sifted;
        let last = seq.saturating_add(samples.len() as u64).saturating_sub(1);
        let is_new = last > self.seen;
        let newest = samples.iter().flatten().map(|sample| sample.time).max();
        if cut && is_new && samples.len() > 1 && last - 1 > self.seen {
            // It may be that the message had no room for it.
            samples.pop();
            let samples = samples.into_iter().map(|sample| sample.map_err(Some));
            return Ok((self.take(seq, sub, newest, samples, now)?, Some(last)));
        }
        let behind = if is_new { 0 } else { usize::try_from(hidden).unwrap_or(usize::MAX) };
        let mut samples: Vec<_> = samples.into_iter().map(|sample| sample.map_err(Some)).collect();
        samples.extend(std::iter::repeat_n(Err(None), behind));
        let converted = self.take(seq, sub, newest, samples.into_iter(), now)?;
        Ok((converted, (is_new && (hidden > 0 || cut)).then_some(last)))
    }

    /// Of some samples nothing is known but that they are there; `newest` is the latest of
    /// their times.
    fn take(
        &mut self,
        first: u64,
        sub: Option<String>,
        newest: Option<i64>,
        samples: impl ExactSizeIterator<Item = Result<Sample, Option<Unreadable>>>,
        now: Now,
    ) -> Result<Converted, ConvertError> {
        if first == 0 {
            return Err(ConvertError::SeqZero);
        }
        let count = samples.len() as u64;
        let end = first.checked_add(count).ok_or(ConvertError::SeqOverflow(first))?;
        let expected = self.seen.saturating_add(1);
        let anywhere = std::mem::take(&mut self.anywhere);
        let skipped_from = (first > expected).then_some(expected);
        match skipped_from {
            Some(_) if anywhere => self.seen = first - 1,
            Some(expected) => return Err(ConvertError::Gap { expected, got: first }),
            None => {}
        }
        let sub = sub.map(|sub| self.device.sub_device(&sub).map_err(|why| ConvertError::SubDevice(sub, why)));
        let (device, nameless) = match sub {
            None => (self.device.clone(), None),
            Some(Ok(device)) => (device, None),
            Some(Err(why)) => (self.device.clone(), Some(why)),
        };
        if let Some(newest) = newest {
            self.times.heard(newest, now);
        }
        let session = Some(self.session);
        let begin = |basis, room| Batch { device: device.clone(), session, basis, readings: Vec::with_capacity(room) };
        let mut batch: Option<Batch> = None;
        let mut before: Vec<Batch> = Vec::new();
        let mut refused = Refusals::default();
        let mut fresh = 0;
        for (seq, sample) in (first..end).zip(samples) {
            if seq <= self.seen {
                continue;
            }
            let (time, basis) = match &sample {
                Ok(Sample { time, .. }) | Err(Some(Unreadable { time: Some(time), .. })) => {
                    self.times.place(*time, now)
                }
                Err(_) => self.times.unknown(now),
            };
            let (channels, values) = match self.contents(sample, nameless.as_ref(), seq, &mut refused) {
                Some(contents) => contents,
                None => (self.nothing(), Box::default()),
            };
            // The channels were made from these very values.
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
        Ok(Converted { batch, more, last: end - 1, repeated: count - fresh, refused, skipped_from })
    }

    /// What a sample holds, unless it is refused.
    fn contents(
        &mut self,
        sample: Result<Sample, Option<Unreadable>>,
        nameless: Option<&ConvertError>,
        seq: u64,
        refused: &mut Refusals,
    ) -> Option<(Channels, Box<[Value]>)> {
        let sample = match sample {
            Ok(sample) => sample,
            Err(unreadable) => {
                refused.push(seq, &unreadable.as_ref().map_or(Why::Hidden, Why::Unreadable));
                return None;
            }
        };
        let channels = match nameless {
            Some(why) => Err(why.clone()),
            None => self.channels(&sample.values),
        };
        match channels {
            Ok(channels) => Some((channels, sample.values.into_iter().map(|(_, value)| value).collect())),
            Err(why) => {
                refused.push(seq, &Why::Senseless(&why, &sample));
                None
            }
        }
    }

    /// The channels of a reading without values.
    fn nothing(&mut self) -> Channels {
        self.channels(&[]).unwrap_or_else(|_| Channels::from([]))
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

    fn resolve(&mut self, channel: &ChannelRef) -> Result<ChannelName, ConvertError> {
        match channel {
            ChannelRef::Name(text) => name(text),
            ChannelRef::Index(index) => self.declared.name(*index),
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
        let bad = "x".repeat(65);
        let channels =
            [declare(3, "temperature"), declare(1, "level"), declare(8, &bad), declare(9, "a"), declare(9, "b")];
        Converter::new(device, 5, clock, rules, &channels)
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

    /// The seqs and numbers of values of what is stored, and what is refused.
    fn taken(converted: &Converted) -> (Vec<(u64, usize)>, Vec<(u64, u64, &'static str)>) {
        let readings = converted.batches().flat_map(|batch| &batch.readings);
        let stored = readings.map(|reading| (reading.origin_seq, reading.values().len())).collect();
        (stored, converted.refused.runs().iter().map(|run| (run.seq, run.count, run.reason)).collect())
    }

    #[test]
    fn what_cannot_be_named_is_refused_and_keeps_its_place() {
        let mut converter = converter(DeviceClock::Wall);
        let good = [ChannelRef::Index(1)];
        let twice = [ChannelRef::Index(1), ChannelRef::Name("level".into())];
        let written: [&[ChannelRef]; 9] = [
            &good,
            &[ChannelRef::Index(2)],
            &[ChannelRef::Name(String::new())],
            &[ChannelRef::Name("x".repeat(65))],
            &[ChannelRef::Name("x".repeat(65))],
            &twice,
            &[ChannelRef::Index(8)],
            &[ChannelRef::Index(9)],
            &good,
        ];
        let samples = written.map(|channels| readings(1, 1, channels).samples.remove(0)).to_vec();
        let converted = converter.convert(Readings { seq: 1, sub: None, samples }, NOW).expect("the others are taken");
        let (stored, refused) = taken(&converted);
        let values: Vec<usize> = stored.iter().map(|(_, values)| *values).collect();
        assert_eq!(values, [1, 0, 0, 0, 0, 0, 0, 0, 1]);
        let expected = [
            (2, 1, "channel_index"),
            (3, 1, "channel_name"),
            (4, 2, "channel_name"),
            (6, 1, "channel_twice"),
            (7, 1, "channel_name"),
            (8, 1, "channel_twice"),
        ];
        assert_eq!((refused, converted.refused.count()), (expected.to_vec(), 7));
        assert_eq!(converted.refused.runs()[0].text, "channel index 2 was not declared in Hello");
        assert_eq!(converted.refused.runs()[0].sample, r##"{"time":0,"values":{"#2":1}}"##);

        let sub = Readings { sub: Some("a b".into()), ..readings(10, 2, &good) };
        let converted = converter.convert(sub, NOW).expect("they keep their places");
        assert_eq!(taken(&converted), (vec![(10, 0), (11, 0)], vec![(10, 2, "sub_device")]));
        assert_eq!(converted.batch.device.as_str(), "hub");

        assert_eq!(converter.convert(readings(0, 1, &[]), NOW), Err(ConvertError::SeqZero));
        converter.go_on_after(u64::MAX - 1, false);
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
        converter.go_on_after(4, false);
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
    fn a_device_that_does_not_say_what_it_has_may_begin_anywhere_once() {
        let mut converter = converter(DeviceClock::Wall);
        converter.go_on_after(3, true);
        let converted = converter.convert(readings(31, 2, &[]), NOW).expect("it goes on there");
        assert_eq!((converted.skipped_from, converted.last), (Some(4), 32));
        assert_eq!(converter.convert(readings(34, 1, &[]), NOW), Err(ConvertError::Gap { expected: 33, got: 34 }));
        converter.go_on_after(3, true);
        assert_eq!(converter.convert(readings(2, 4, &[]), NOW).map(|c| (c.skipped_from, c.repeated)), Ok((None, 2)));
        assert!(converter.convert(readings(7, 1, &[]), NOW).is_err());
    }

    fn unreadable() -> std::result::Result<Sample, Unreadable> {
        Err(Unreadable { time: None, why: "no sense".into(), sent: "00".into() })
    }

    fn sifted(seq: u64, fine: usize, hidden: u64, cut: bool) -> Sifted {
        let mut samples: Vec<_> = readings(seq, 10, &[ChannelRef::Index(1)]).samples.into_iter().map(Ok).collect();
        samples.truncate(fine);
        samples.push(unreadable());
        Sifted { seq, sub: None, samples, hidden, cut }
    }

    #[test]
    fn a_sample_that_cannot_be_read_is_refused_and_what_it_hides_comes_again() {
        let mut converter = converter(DeviceClock::Wall);
        let (converted, end) = converter.sift(sifted(1, 2, 3, false), NOW).expect("two are taken");
        assert_eq!(taken(&converted), (vec![(1, 1), (2, 1), (3, 0)], vec![(3, 1, "unreadable")]));
        assert_eq!((converted.last, end), (3, Some(3)));
        assert!(matches!(converted.more[0].basis, Basis::DeviceClock { received } if received == NOW.wall));
        // The device was told that 3 is settled, and cannot but send the message again.
        converter.go_on_after(3, false);
        let (converted, end) = converter.sift(sifted(1, 2, 3, false), NOW).expect("it gets by");
        assert_eq!(taken(&converted), (vec![(4, 0), (5, 0), (6, 0)], vec![(4, 3, "hidden")]));
        assert_eq!((converted.last, end), (6, None));
    }

    /// A message that ends too early may have had no room for its last sample.
    #[test]
    fn a_sample_that_is_cut_off_is_refused_only_if_nothing_new_stands_before_it() {
        let mut converter = converter(DeviceClock::Wall);
        let (converted, end) = converter.sift(sifted(1, 2, 0, true), NOW).expect("two are taken");
        assert_eq!((taken(&converted), end), ((vec![(1, 1), (2, 1)], vec![]), Some(3)));
        let (converted, end) = converter.sift(sifted(3, 0, 0, true), NOW).expect("it is refused");
        assert_eq!((taken(&converted), end), ((vec![(3, 0)], vec![(3, 1, "unreadable")]), Some(3)));
    }

    #[test]
    fn refused_samples_take_little_memory_however_many_there_are() {
        let mut converter = converter(DeviceClock::Wall);
        let name = |seq: i64| ChannelRef::Name(format!("{seq}{}", "x".repeat(64)));
        let samples = (0..4096).map(|seq| Sample { time: seq, values: vec![(name(seq), Value::Integer(1))] }).collect();
        let refused =
            converter.convert(Readings { seq: 1, sub: None, samples }, NOW).expect("they are settled").refused;
        assert_eq!((refused.runs().len(), refused.count()), (16, 4096));
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
        let Converted { batch, more, last, repeated, .. } = converter.convert(readings, NOW).expect("valid readings");
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
