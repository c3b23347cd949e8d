//! A segment: many readings in one compressed, checksummed, columnar block.
//!
//! A segment holds readings in the order of their seqs: consecutive ones as it is
//! first written, with holes once retention has taken some of them away. Inside,
//! readings of the same device, session and channels form a group, and each group is stored column by
//! column, which is where a block's small size comes from. The order across
//! groups is kept as each reading's offset from the segment's first seq, so a
//! segment with holes ("sparse") has the same format.
//!
//! ```text
//! block  = format strings groups
//! strings= n (length utf8)*             device and channel names, each once
//! groups = n group*
//! group  = device session [basis] channels rows offsets origins times [received] column*
//! ```
//!
//! Format 1 is for readings with good times only. In format 2 each group has a basis:
//!
//! | basis | the times are |
//! |---|---|
//! | 0 | good |
//! | 1, a boot's 16 bytes | counted from that boot |
//! | 2 | by an absurd device clock; there is a column of times of receipt |
//! | 3 | good, found once the clock could be believed |
//! | 4, a boot's 16 bytes | as 2, the times of receipt counted from that boot |
//!
//! In format 3, of many groups, each kind of column has a stream of its own; see `segment/columns.rs`.
//!
//! All numbers are LEB128. The block is compressed with zstd where that helps;
//! the checksum is a CRC-32 over the header's numbers and the stored block, so
//! a row moved, cut or flipped anywhere is noticed before it is decoded.

mod basis;
mod column;
mod columns;
mod decoding;
mod header;
mod source;

pub use decoding::{decode, decode_pieces};
pub(super) use decoding::{is_sound, is_whole};
pub use header::Header;

use crate::model::{Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, channels_memory};
use basis::Kind;
use column::{put_blob, put_difference, put_paced, put_values};
use columns::{Column, Output, put_varint};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A segment cannot be what was written: why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segment is damaged: {0}")]
pub struct Corrupt(pub(super) &'static str);

const FORMAT: u8 = 1;
/// Of a block in which not all times are good.
const FORMAT_WITH_BASES: u8 = 2;
/// Above what any segment has; a larger claim is damage where it is to be read as a whole.
const MAX_RAW_LENGTH: u32 = 256 << 20;
/// What a segment's readings take in memory at most, unless it is one alone; and what a block with
/// streams has before compression.
const MAX_MEMORY: usize = 8 << 20;
const ZSTD_LEVEL: i32 = 1;
/// Below this, compression's own header eats what it saves.
const MIN_COMPRESSED: usize = 64;

/// A segment as it is to be stored, and the readings in it.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub header: Header,
    pub block: Vec<u8>,
    pub batches: Vec<SequencedBatch>,
}

/// From so many groups on each kind of column has a stream of its own.
const MANY_GROUPS: usize = 64;

/// Writes segments; keeps its compression context between them.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    many_groups: usize,
    /// Bytes before compression that a block with streams may have.
    max_streams: usize,
}

/// Readings that share device, session and channels.
struct Group<'a> {
    device: &'a DeviceId,
    session: Option<u64>,
    basis: Kind,
    channels: &'a Channels,
    /// Offset from the segment's first seq, and the reading.
    rows: Vec<(u64, &'a Reading)>,
    /// The device's group of the same kind that began before this one.
    older: Option<usize>,
    /// When each of them was received, where that is kept.
    received: Vec<i64>,
}

impl Encoder {
    /// # Errors
    /// If zstd cannot allocate its context.
    pub fn new() -> std::io::Result<Encoder> {
        Ok(Encoder {
            compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?,
            many_groups: MANY_GROUPS,
            max_streams: MAX_MEMORY,
        })
    }

    /// Encodes `batches`, which stand in the order of their seqs, as one segment or as
    /// many as it takes for each of them to be read in little memory. There is none if
    /// there is no reading.
    ///
    /// # Errors
    /// If a reading is more than a segment can hold, or compression fails.
    pub fn encode(&mut self, batches: &[SequencedBatch]) -> std::io::Result<Vec<Encoded>> {
        split(batches, MAX_MEMORY).into_iter().filter_map(|part| self.encode_part(part).transpose()).collect()
    }

    fn encode_part(&mut self, batches: Vec<SequencedBatch>) -> std::io::Result<Option<Encoded>> {
        let mut filled = batches.iter().filter(|b| !b.batch.readings.is_empty());
        let Some(first) = filled.next() else { return Ok(None) };
        let (first, last) = (first.first, filled.next_back().unwrap_or(first).last());
        let too_large = || std::io::Error::other("a reading is too large for a segment");
        let fits = |number: usize| u32::try_from(number).ok().filter(|number| *number <= MAX_RAW_LENGTH);
        let mut count = 0usize;
        let (mut oldest, mut newest) = (Timestamp(i64::MAX), Timestamp(i64::MIN));
        for SequencedBatch { batch, .. } in batches.iter().filter(|b| !b.batch.readings.is_empty()) {
            count += batch.readings.len();
            let (from, to) = basis::range(batch);
            (oldest, newest) = (oldest.min(from), newest.max(to));
        }
        let groups = group(first, &batches);
        let mut has_streams = groups.len() >= self.many_groups;
        let mut out = if has_streams { Output::streams() } else { Output::one() };
        encode_groups(&mut out, &groups);
        // Streams are read as a whole. Many groups of long names and no values are longer than in memory.
        if has_streams && out.len() > self.max_streams {
            (has_streams, out) = (false, Output::one());
            encode_groups(&mut out, &groups);
        }
        let raw_length = out.len();
        let block = if has_streams {
            out.into_block(|stream| self.compressor.compress(stream))?
        } else {
            let raw = out.into_one();
            let compressed = if raw.len() < MIN_COMPRESSED { None } else { Some(self.compressor.compress(&raw)?) };
            compressed.filter(|compressed| compressed.len() < raw.len()).unwrap_or(raw)
        };
        let mut header = Header {
            first,
            last,
            count: fits(count).ok_or_else(too_large)?,
            oldest,
            newest,
            raw_length: fits(raw_length).ok_or_else(too_large)?,
            checksum: 0,
        };
        header.checksum = header.expected_checksum(&block);
        Ok(Some(Encoded { header, block, batches }))
    }
}

/// Divides batches, and large ones among them, into parts of at most so many bytes of memory,
/// or of one reading.
fn split(batches: &[SequencedBatch], most: usize) -> Vec<Vec<SequencedBatch>> {
    if batches.iter().map(|batch| batch.batch.memory()).sum::<usize>() <= most {
        return vec![batches.to_vec()];
    }
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    // Lists of channels that the part has already: they are in memory once.
    let mut lists: HashSet<*const ChannelName> = HashSet::new();
    let mut left: Vec<SequencedBatch> = batches.iter().rev().cloned().collect();
    while let Some(next) = left.pop() {
        let memory = next.batch.memory();
        if memory > most && next.batch.readings.len() > 1 {
            let (one, other) = halves(&next);
            left.extend([other, one]);
            continue;
        }
        let list = next.batch.readings.first().map(Reading::channels);
        let known = list.filter(|list| !lists.insert(list.as_ptr()));
        let more = memory - known.map_or(0, channels_memory);
        if bytes + more > most {
            parts.extend(Some(std::mem::take(&mut part)).filter(|part| !part.is_empty()));
            bytes = memory;
            lists = list.map(|list| list.as_ptr()).into_iter().collect();
        } else {
            bytes += more;
        }
        part.push(next);
    }
    parts.push(part);
    parts
}

fn halves(whole: &SequencedBatch) -> (SequencedBatch, SequencedBatch) {
    let Batch { device, session, basis, readings } = &*whole.batch;
    let (one, other) = readings.split_at(readings.len() / 2);
    let part = |first: Seq, readings: &[Reading]| {
        let batch = Batch { device: device.clone(), session: *session, basis: *basis, readings: readings.to_vec() };
        SequencedBatch { first, batch: Arc::new(batch) }
    };
    (part(whole.first, one), part(whole.first.plus(one.len() as u64), other))
}

/// Groups of a device that are looked at for one with the same channels. A device that
/// invents new channels for each reading must not make a commit take for ever.
const LOOK_BACK: usize = 32;

fn group(first: Seq, batches: &[SequencedBatch]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut newest_of: HashMap<(&str, Option<u64>, Kind), usize> = HashMap::new();
    for SequencedBatch { first: batch_first, batch } in batches {
        let basis = Kind::of(batch.basis);
        let receipt = basis::receipt(batch.basis);
        let key = (batch.device.as_str(), batch.session, basis);
        let mut newest = newest_of.get(&key).copied();
        let mut current = newest;
        for (offset, reading) in (batch_first.0.saturating_sub(first.0)..).zip(&batch.readings) {
            let channels = reading.channels();
            let fits = |i: &usize| Arc::ptr_eq(groups[*i].channels, channels) || groups[*i].channels == channels;
            let index = current.filter(fits).or_else(|| {
                // A device that alternates between channel lists has one group for each.
                let older = std::iter::successors(newest, |i| groups[*i].older);
                older.take(LOOK_BACK).find(fits)
            });
            let index = index.unwrap_or_else(|| {
                let (device, session) = (&batch.device, batch.session);
                let (rows, received) = (Vec::new(), Vec::new());
                groups.push(Group { device, session, basis, channels, rows, older: newest, received });
                newest = Some(groups.len() - 1);
                groups.len() - 1
            });
            groups[index].rows.push((offset, reading));
            groups[index].received.extend(receipt);
            current = Some(index);
        }
        if let Some(newest) = newest {
            newest_of.insert(key, newest);
        }
    }
    groups
}

fn encode_groups(out: &mut Output, groups: &[Group<'_>]) {
    let mut strings: Vec<&str> = Vec::new();
    let mut index_of: HashMap<&str, u64> = HashMap::new();
    for group in groups {
        for name in std::iter::once(group.device.as_str()).chain(group.channels.iter().map(|c| c.as_str())) {
            index_of.entry(name).or_insert_with(|| {
                strings.push(name);
                strings.len() as u64 - 1
            });
        }
    }
    let has_bases = out.has_streams() || groups.iter().any(|group| group.basis != Kind::Wall);
    if !out.has_streams() {
        out.at(Column::Head).push(if has_bases { FORMAT_WITH_BASES } else { FORMAT });
    }
    let head = out.at(Column::Head);
    put_varint(head, strings.len() as u64);
    strings.iter().for_each(|name| put_blob(head, name.as_bytes()));
    put_varint(head, groups.len() as u64);
    let mut integers = Vec::new();
    for group in groups {
        let device = index_of[group.device.as_str()];
        match out.begun.device() {
            Some(before) => put_difference(out.at(Column::Head), device, before),
            None => put_varint(out.at(Column::Head), device),
        }
        out.begun.set_device(device);
        out.at(Column::Head).push(u8::from(group.session.is_some()));
        if let Some(session) = group.session {
            put_session(out, session);
        }
        let head = out.at(Column::Head);
        if has_bases {
            group.basis.put(head);
        }
        put_varint(head, group.channels.len() as u64);
        group.channels.iter().for_each(|channel| put_varint(head, index_of[channel.as_str()]));
        put_varint(head, group.rows.len() as u64);
        let fields: [(Column, fn(&(u64, &Reading)) -> i64); 3] = [
            (Column::Offset, |(offset, _)| *offset as i64),             // under 2^32
            (Column::Origin, |(_, reading)| reading.origin_seq as i64), // the same bits, and back again
            (Column::Time, |(_, reading)| reading.time.0),
        ];
        for (column, field) in fields {
            integers.clear();
            integers.extend(group.rows.iter().map(field));
            put_paced(out, column, &integers);
        }
        if group.basis.has_receipts() {
            put_paced(out, Column::Receipt, &group.received);
        }
        for channel in 0..group.channels.len() {
            // One value a channel.
            put_values(out, channel, group.rows.iter().map(|(_, reading)| &reading.values()[channel]));
        }
    }
}

/// Sessions are mostly random numbers, of which shorter ones gain nothing in a stream of such.
fn put_session(out: &mut Output, session: u64) {
    let has_streams = out.has_streams();
    let bytes = out.at(Column::Session);
    match has_streams {
        true => bytes.extend_from_slice(&session.to_le_bytes()),
        false => put_varint(bytes, session),
    }
}

/// A segment as versions made them before there was a bound.
#[cfg(test)]
pub(super) fn too_large() -> (Header, Vec<u8>) {
    tests::encode_as_one(&tests::constant(110_000, &[].into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, BootId, Value};
    use proptest::prelude::*;

    fn channels(names: &[&str]) -> Channels {
        names.iter().map(|name| ChannelName::new(name).expect("a valid name")).collect()
    }

    /// Origin, time, list of channels and values.
    type Drawn = (u64, i64, usize, Vec<Value>);

    /// Batches of several devices, sessions and channel lists, in any mixture.
    fn any_batches() -> impl Strategy<Value = Vec<SequencedBatch>> {
        let value = prop_oneof![
            any::<u64>().prop_map(|bits| Value::Float(f64::from_bits(bits))),
            any::<i64>().prop_map(Value::Integer),
            ".{0,8}".prop_map(|text| Value::Text(text.into())),
        ];
        let reading = (any::<u64>(), any::<i64>(), 0usize..3, proptest::collection::vec(value, 2));
        let basis = prop_oneof![
            4 => Just(Basis::Wall),
            1 => (0u8..2).prop_map(|boot| Basis::Boot(BootId([boot; 16]))),
            1 => any::<i64>().prop_map(|received| Basis::DeviceClock { received: Timestamp(received) }),
            1 => Just(Basis::Resynchronised),
            1 => (0u8..2, any::<i64>()).prop_map(|(boot, received)| {
                Basis::DeviceClockSince { boot: BootId([boot; 16]), received: Timestamp(received) }
            }),
        ];
        let batch = (0u8..4, proptest::option::of(0u64..2), basis, proptest::collection::vec(reading, 0..6));
        (1u64..u64::MAX / 2, proptest::collection::vec(batch, 0..20)).prop_map(|(first, batches)| {
            let lists = [channels(&[]), channels(&["a"]), channels(&["a", "b"])];
            let mut next = Seq(first);
            let number = |(device, session, basis, readings): (u8, Option<u64>, Basis, Vec<Drawn>)| {
                let readings: Vec<_> = readings
                    .into_iter()
                    .map(|(origin, time, list, mut values)| {
                        values.truncate(list);
                        Reading::new(origin, Timestamp(time), lists[list].clone(), values.into()).expect("cut to fit")
                    })
                    .collect();
                let device = DeviceId::new(&format!("device-{device}")).expect("a valid name");
                let numbered =
                    SequencedBatch { first: next, batch: Arc::new(Batch { device, session, basis, readings }) };
                next = next.plus(numbered.batch.readings.len() as u64);
                numbered
            };
            batches.into_iter().map(number).collect()
        })
    }

    /// One line a reading, floats by their bits, so that NaN equals itself.
    fn flat(batches: &[SequencedBatch]) -> Vec<String> {
        let line = |n: &SequencedBatch| {
            let device = format!("{} {:?}", n.batch.device, n.batch.basis);
            n.after(Seq::ZERO)
                .map(|(seq, origin, reading)| {
                    let values: Vec<_> = reading
                        .iter()
                        .map(|(channel, value)| match value {
                            Value::Float(float) => format!("{channel}={:x}", float.to_bits()),
                            other => format!("{channel}={other:?}"),
                        })
                        .collect();
                    let origin = origin.map(|o| (o.session, o.seq));
                    format!("{seq} {device} {origin:?} {:?} {values:?}", reading.time)
                })
                .collect::<Vec<_>>()
        };
        batches.iter().flat_map(line).collect()
    }

    fn encode(batches: &[SequencedBatch]) -> Option<(Header, Vec<u8>)> {
        let segments = Encoder::new().and_then(|mut encoder| encoder.encode(batches)).expect("zstd works");
        assert!(segments.len() <= 1, "they are few");
        segments.into_iter().next().map(|segment| (segment.header, segment.block))
    }

    /// The same as a block with streams, however few groups there are.
    fn encode_in_streams(batches: &[SequencedBatch]) -> Option<(Header, Vec<u8>)> {
        let mut encoder = Encoder { many_groups: 1, ..Encoder::new().expect("zstd works") };
        let segments = encoder.encode(batches).expect("zstd works");
        segments.into_iter().next().map(|segment| (segment.header, segment.block))
    }

    proptest! {
        #[test]
        fn any_batches_come_back_as_they_were(batches in any_batches()) {
            for encoded in [encode(&batches), encode_in_streams(&batches)] {
                match encoded {
                    None => prop_assert!(flat(&batches).is_empty()),
                    Some((header, block)) => {
                        let back = decode(&header, &block).expect("what was written reads back");
                        prop_assert_eq!(flat(&back), flat(&batches));
                        prop_assert_eq!(back.last().map(SequencedBatch::last), Some(header.last()));
                    }
                }
            }
        }

        #[test]
        fn streams_of_garbage_with_a_right_checksum_never_panic(batches in any_batches(), at in any::<prop::sample::Index>(), to in any::<u8>(), count in 0u32..50, longer in -3i64..4) {
            if let Some((header, mut block)) = encode_in_streams(&batches) {
                let at = at.index(block.len());
                block[at] = to;
                let raw_length = u32::try_from(i64::from(header.raw_length) + longer).unwrap_or(0);
                let mut header = Header { raw_length, count: if longer == 0 { header.count } else { count }, ..header };
                header.checksum = header.expected_checksum(&block);
                let _ = decode(&header, &block);
            }
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(batches in any_batches(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            if let Some((header, mut block)) = encode(&batches) {
                let at = at.index(block.len());
                block[at] ^= 1 << bit;
                prop_assert!(decode(&header, &block).is_err());
            }
        }

        #[test]
        fn garbage_with_a_right_checksum_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300), count in 0u32..50, holes in 0u32..3, compressed in any::<bool>()) {
            let raw_length = if compressed { 500 } else { garbage.len() as u32 };
            let last = Seq(u64::from(count) + u64::from(holes));
            let mut header = Header { first: Seq(1), last, count, oldest: Timestamp(0), newest: Timestamp(0), raw_length, checksum: 0 };
            header.checksum = header.expected_checksum(&garbage);
            let _ = decode(&header, &garbage);
        }
    }

    proptest! {
        #[test]
        fn any_readings_that_are_left_come_back_with_their_seqs(batches in any_batches(), keep in 1u64..5, from in 0u64..5) {
            let left = super::super::retention::rewriting::filtered(&batches, &mut |seq, _, _| seq.0 % keep == from);
            let expected: Vec<_> = flat(&batches).into_iter().filter(|line| {
                line.split(' ').next().and_then(|seq| seq.parse::<u64>().ok()).is_some_and(|seq| seq % keep == from)
            }).collect();
            prop_assert_eq!(&flat(&left), &expected);
            if let Some((header, mut block)) = encode(&left) {
                let back = decode(&header, &block).expect("what was written reads back");
                prop_assert_eq!(flat(&back), expected);
                let wrong = Header { last: header.last.next(), ..header };
                prop_assert!(decode(&wrong, &block).is_err());
                let middle = block.len() / 2;
                block[middle] ^= 1;
                prop_assert!(decode(&header, &block).is_err());
            }
        }
    }

    #[test]
    fn a_header_that_was_changed_is_noticed() {
        let device = DeviceId::new("d").expect("a valid name");
        let reading = Reading::new(1, Timestamp(5), channels(&["a"]), Box::new([Value::Integer(1)])).expect("it fits");
        let batch = Arc::new(Batch { device, session: None, basis: Basis::Wall, readings: vec![reading] });
        let (header, block) = encode(&[SequencedBatch { first: Seq(7), batch }]).expect("one reading");
        for wrong in [
            Header { first: Seq(8), ..header },
            Header { last: Seq(8), ..header },
            Header { last: Seq(6), ..header },
            Header { count: 2, ..header },
            Header { oldest: Timestamp(4), ..header },
            Header { newest: Timestamp(6), ..header },
            Header { raw_length: header.raw_length + 1, ..header },
        ] {
            assert!(decode(&wrong, &block).is_err(), "{wrong:?}");
        }
        assert!(decode(&header, &block).is_ok());
    }

    #[test]
    fn a_thousand_readings_of_four_values_take_under_ten_bytes_each() {
        let list = channels(&["temperature", "humidity", "pressure", "open"]);
        let batches: Vec<_> = (0..1000u32)
            .map(|i| {
                let device = DeviceId::new(&format!("device-{}", i % 20)).expect("a valid name");
                let noise = f64::from(i.wrapping_mul(2_654_435_761) >> 28);
                let values = [
                    Value::Float((2150.0 + noise).round() / 100.0),
                    Value::Float((455.0 - noise).round() / 10.0),
                    Value::Integer(101_325 + i64::from(i % 5)),
                    Value::Boolean(i % 100 < 50),
                ];
                let time = Timestamp(1_763_859_723_000_000 + i64::from(i) * 10_000 + noise as i64);
                let reading = Reading::new(u64::from(i / 20), time, list.clone(), values.into()).expect("it fits");
                let batch = Batch {
                    device,
                    session: Some(u64::from(i % 20) << 40),
                    basis: Basis::Wall,
                    readings: vec![reading],
                };
                SequencedBatch { first: Seq(5000 + u64::from(i)), batch: Arc::new(batch) }
            })
            .collect();
        let (_, block) = encode(&batches).expect("there are readings");
        assert!(block.len() < 10_000, "{} bytes", block.len());
    }

    /// Of many devices of long names they are longer than in memory, where the name is not counted.
    #[test]
    fn streams_that_are_too_long_to_be_read_are_not_written() {
        let channels = channels(&[]);
        let batch = |n: u64| {
            let device = DeviceId::new(&format!("{:x<64}/{n:x<64}", "hub")).expect("a valid name");
            let reading = Reading::new(n, Timestamp(n as i64), channels.clone(), Box::new([])).expect("it fits");
            let batch = Batch { device, session: Some(n << 40), basis: Basis::Wall, readings: vec![reading] };
            SequencedBatch { first: Seq(n), batch: Arc::new(batch) }
        };
        let batches: Vec<_> = (1..=100).map(batch).collect();
        let (header, _) = encode_in_streams(&batches).expect("there are readings");
        let raw = header.raw_length as usize;
        assert!(raw > batches.iter().map(|batch| batch.batch.memory()).sum(), "{raw}");
        for (max_streams, first) in [(raw, Some(&columns::FORMAT_WITH_STREAMS)), (raw - 1, None)] {
            let mut encoder = Encoder { many_groups: 1, max_streams, ..Encoder::new().expect("zstd works") };
            let made = encoder.encode(&batches).expect("zstd works").remove(0);
            let is_format = made.block.first().filter(|byte| **byte == columns::FORMAT_WITH_STREAMS);
            assert_eq!(is_format, first);
            assert_eq!(flat(&decode(&made.header, &made.block).expect("it reads back")), flat(&batches));
        }
    }

    /// As versions before there was a bound made them.
    pub fn encode_as_one(batches: &[SequencedBatch]) -> (Header, Vec<u8>) {
        let made = Encoder::new().and_then(|mut encoder| encoder.encode_part(batches.to_vec()));
        made.expect("zstd works").map(|made| (made.header, made.block)).expect("there are readings")
    }

    /// Readings of two devices in turn, whose values never change.
    pub fn constant(count: u64, channels: &Channels) -> Vec<SequencedBatch> {
        let batch = |n: u64| {
            let device = DeviceId::new(["even", "odd"][n as usize % 2]).expect("a valid name");
            let reading = |at: u64| {
                let values: Vec<Value> = channels.iter().map(|_| Value::Float(0.1)).collect();
                Reading::new(at, Timestamp(at as i64), channels.clone(), values.into()).expect("it fits")
            };
            let readings = (n * 100..n * 100 + 100).map(reading).collect();
            let batch = Batch { device, session: Some(1), basis: Basis::Wall, readings };
            SequencedBatch { first: Seq(n * 100 + 1), batch: Arc::new(batch) }
        };
        (0..count / 100).map(batch).collect()
    }

    #[test]
    fn a_segment_of_any_length_is_decoded_in_little_memory() {
        let wide: Vec<String> = (0..100).map(|n| format!("c{n}")).collect();
        let wide = channels(&wide.iter().map(String::as_str).collect::<Vec<_>>());
        for (count, channels) in [(110_000, channels(&["a"])), (12_000, wide)] {
            let all = constant(count, &channels);
            let thinned =
                super::super::retention::rewriting::filtered(&all, &mut |seq, _, _| seq.0 % 3 > 0 || seq.0 % 100 < 2);
            for batches in [all, thinned] {
                let (header, block) = encode_as_one(&batches);
                assert!(block.len() < 100_000, "{} bytes", block.len());
                let whole: usize = batches.iter().map(|batch| batch.batch.memory()).sum();
                let mut back = Vec::new();
                decode_pieces(&header, &block, Seq::ZERO, &mut |piece| {
                    let memory: usize = piece.iter().map(|batch| batch.batch.memory()).sum();
                    assert!(memory < whole / 4 * 3 && memory < 32 << 20, "{memory} of {whole} bytes");
                    back.extend(piece);
                    std::ops::ControlFlow::Continue(())
                })
                .expect("what was written reads back");
                let seqs = |batches: &[SequencedBatch]| -> Vec<(Seq, u64)> {
                    batches.iter().flat_map(|b| b.after(Seq::ZERO).map(|(seq, _, r)| (seq, r.origin_seq))).collect()
                };
                assert_eq!(seqs(&back), seqs(&batches));

                // From the middle on, what stands well before it is passed over.
                let middle = Seq(count / 2 + 17);
                let mut first = None;
                decode_pieces(&header, &block, middle, &mut |piece| {
                    first = piece.first().map(|batch| batch.first);
                    std::ops::ControlFlow::Break(())
                })
                .expect("what was written reads back");
                assert_eq!(first, seqs(&back).into_iter().map(|(seq, _)| seq).find(|seq| *seq > middle));
            }
        }
    }

    #[test]
    fn a_long_segment_with_streams_is_decoded_in_pieces() {
        let channels = channels(&["a"]);
        let mut batches = Vec::new();
        for (n, first) in (0..700u64).zip((1..).step_by(100)) {
            let device = DeviceId::new(&format!("d{}", n % 70)).expect("a valid name");
            let reading = |at: u64| {
                let value = Value::Float((at % 13) as f64 / 10.0);
                Reading::new(n * 100 + at, Timestamp(at as i64), channels.clone(), [value].into()).expect("it fits")
            };
            let batch =
                Batch { device, session: Some(n % 70), basis: Basis::Wall, readings: (0..100).map(reading).collect() };
            batches.push(SequencedBatch { first: Seq(first), batch: Arc::new(batch) });
        }
        let (header, block) = encode(&batches).expect("there are readings");
        assert!(header.pieces() > 1, "{header:?}");
        let mut pieces = Vec::new();
        decode_pieces(&header, &block, Seq::ZERO, &mut |piece| {
            pieces.push(piece);
            std::ops::ControlFlow::Continue(())
        })
        .expect("what was written reads back");
        assert_eq!(pieces.len() as u64, header.pieces());
        assert_eq!(flat(&pieces.concat()), flat(&batches));
    }

    #[test]
    fn what_takes_much_memory_is_written_as_several_segments() {
        let channels = channels(&["a", "b", "c"]);
        let all = constant(200_000, &channels);
        let one = {
            let readings = all.iter().flat_map(|batch| batch.batch.readings.clone()).collect();
            vec![SequencedBatch { first: Seq(1), batch: Arc::new(Batch { readings, ..(*all[0].batch).clone() }) }]
        };
        for batches in [all, one] {
            let made = Encoder::new().and_then(|mut encoder| encoder.encode(&batches)).expect("zstd works");
            // The list of channels is in memory once.
            let memory = |batches: &[SequencedBatch]| -> usize {
                let all: usize = batches.iter().map(|batch| batch.batch.memory() - channels_memory(&channels)).sum();
                all + channels_memory(&channels)
            };
            assert!(made.len() > memory(&batches) / MAX_MEMORY, "{} segments", made.len());
            let mut next = Seq(1);
            for segment in &made {
                assert!(memory(&segment.batches) <= MAX_MEMORY && segment.header.raw_length as usize <= MAX_MEMORY);
                assert_eq!(segment.header.first, next);
                let back = decode(&segment.header, &segment.block).expect("it reads back");
                assert_eq!(back.last().map(SequencedBatch::last), Some(segment.header.last));
                next = segment.header.last.next();
            }
            assert_eq!(next, Seq(200_001));
        }
    }

    const BOOT: BootId = BootId([0xb0; 16]);

    /// One reading of each of some kinds; frozen, as old logs must be read for ever.
    fn golden() -> Vec<SequencedBatch> {
        let received = Timestamp(1_795_395_723_000_000);
        one_of_each(&[Basis::Wall, Basis::Boot(BOOT), Basis::DeviceClock { received }])
    }

    fn one_of_each(bases: &[Basis]) -> Vec<SequencedBatch> {
        let number = |(seq, basis): (u64, Basis)| {
            let device = DeviceId::new("d").expect("a valid name");
            let value = Box::new([Value::Integer(5)]);
            let time = Timestamp(i64::try_from(seq).expect("small") * 1_000_000);
            let reading = Reading::new(seq, time, channels(&["a"]), value).expect("it fits");
            SequencedBatch {
                first: Seq(seq),
                batch: Arc::new(Batch { device, session: Some(7), basis, readings: vec![reading] }),
            }
        };
        (1..).zip(bases.iter().copied()).map(number).collect()
    }

    fn block(batches: &[SequencedBatch]) -> String {
        let mut out = Output::one();
        encode_groups(&mut out, &group(batches[0].first, batches));
        out.into_one().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn blocks_are_laid_out_as_ever() {
        let golden = golden();
        assert_eq!(block(&golden[..1]), GOLDEN_1);
        assert_eq!(block(&golden), GOLDEN_2);
        assert_eq!(decoded(GOLDEN_2, 3), golden);
    }

    #[test]
    fn blocks_with_streams_are_laid_out_as_ever() {
        let golden = golden();
        let (header, block) = encode_in_streams(&golden).expect("there are readings");
        assert_eq!(block.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), GOLDEN_STREAMS);
        assert_eq!(header.raw_length, GOLDEN_STREAMS_LENGTH);
        assert_eq!(decode(&header, &block), Ok(golden));
    }

    #[test]
    fn a_few_readings_of_each_of_many_devices_take_few_bytes() {
        let list = channels(&["temperature", "humidity", "pressure", "open"]);
        let mix =
            |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let batches: Vec<_> = (0..3000u64)
            .map(|n| {
                let (device, round) = (n % 1000, n / 1000);
                let noise = |place: u32| (mix(n) >> (8 * place) & 7) as f64;
                let values = [
                    Value::Float((2150.0 + (mix(device) % 400) as f64 + noise(1)) / 100.0),
                    Value::Float((455.0 + (mix(device) % 150) as f64 - noise(2)) / 10.0),
                    Value::Integer(101_325 + (mix(device) % 250) as i64 + noise(3) as i64),
                    Value::Boolean(device % 100 < 50),
                ];
                let time = Timestamp(1_763_859_723_000_000 + (n * 500 + mix(n) % 300) as i64);
                let reading = Reading::new(1000 + round, time, list.clone(), values.into()).expect("it fits");
                let batch = Batch {
                    device: DeviceId::new(&format!("device-{device:05}")).expect("a valid name"),
                    session: Some(mix(device * 77)),
                    basis: Basis::Wall,
                    readings: vec![reading],
                };
                SequencedBatch { first: Seq(5000 + n), batch: Arc::new(batch) }
            })
            .collect();
        let (header, block) = encode(&batches).expect("there are readings");
        let sessions = 8 * 1000;
        assert!(block.len() < sessions + 7 * 3000, "{} bytes", block.len());
        assert_eq!(flat(&decode(&header, &block).expect("it reads back")), flat(&batches));
    }

    #[test]
    fn blocks_with_later_kinds_are_laid_out_as_ever() {
        let since = Basis::DeviceClockSince { boot: BOOT, received: Timestamp(100) };
        let later = one_of_each(&[Basis::Resynchronised, since]);
        assert_eq!(block(&later), GOLDEN_3);
        assert_eq!(decoded(GOLDEN_3, 2), later);
    }

    fn decoded(block: &str, count: u32) -> Vec<SequencedBatch> {
        let byte = |at| u8::from_str_radix(&block[at..at + 2], 16).expect("hex");
        let raw: Vec<u8> = (0..block.len()).step_by(2).map(byte).collect();
        let (time, raw_length) = (Timestamp(0), raw.len() as u32);
        let last = Seq(u64::from(count));
        let header = Header { first: Seq(1), last, count, oldest: time, newest: time, raw_length, checksum: 0 };
        let header = Header { checksum: header.expected_checksum(&raw), ..header };
        decode(&header, &raw).expect("frozen bytes")
    }

    const GOLDEN_1: &str = "01020164016101000107010101c0843d000102c0843d02030a";
    const GOLDEN_2: &str = concat!(
        "0202016401610300010700010101c0843d000102c0843d02030a00010701b0b0b0b0b0b0b0b0b0b0",
        "b0b0b0b0b0b001010101020104c0843d04030a0001070201010101040106c0843d06c0843d96c29c",
        "b00d030a",
    );

    /// Lengths and streams: names and groups, sessions, units and kinds, offsets, origins, times,
    /// receipts, values.
    const GOLDEN_STREAMS: &str = concat!(
        "03282818181717030303030303050503030000000000000000000000000000020164016103000100",
        "010101000101b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0010101000102010101070000000000000007",
        "000000000000000700000000000000c0843d01c0843d030101c0843d030101c0843dc0843d030002",
        "0202020202020296c29cb00d0a0000",
    );
    const GOLDEN_STREAMS_LENGTH: u32 = 104;

    const GOLDEN_3: &str = concat!(
        "0202016401610200010703010101c0843d000102c0843d02030a00010704b0b0b0b0b0b0b0b0b0b0",
        "b0b0b0b0b0b001010101020104c0843d0401c801030a",
    );

    #[test]
    fn a_time_that_is_not_known_may_lie_anywhere() {
        let golden = golden();
        let range = |batches: &[SequencedBatch]| encode(batches).map(|(header, _)| (header.oldest.0, header.newest.0));
        assert_eq!(range(&golden[..1]), Some((1_000_000, 1_000_000)));
        assert_eq!(range(&golden[1..]), Some((i64::MIN, i64::MAX)));
        assert_eq!(range(&golden[2..]), Some((1_795_395_723_000_000, 1_795_395_723_000_000)));
    }
}
