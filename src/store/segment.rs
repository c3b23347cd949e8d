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
//! All numbers are LEB128. The block is compressed with zstd where that helps;
//! the checksum is a CRC-32 over the header's numbers and the stored block, so
//! a row moved, cut or flipped anywhere is noticed before it is decoded.

mod basis;
mod column;
mod header;

pub use header::Header;

use crate::model::{Batch, ChannelName, Channels, DeviceId, Numbered, Reading, Seq, Timestamp, Value};
use basis::Kind;
use column::{Input, paced, put_blob, put_paced, put_values, put_varint};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A segment cannot be what was written: why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segment is damaged: {0}")]
pub struct Corrupt(pub(super) &'static str);

const FORMAT: u8 = 1;
/// Of a block in which not all times are good.
const FORMAT_WITH_BASES: u8 = 2;
/// Above what any commit holds; a larger claim is damage.
const MAX_RAW_LENGTH: u32 = 256 << 20;
const ZSTD_LEVEL: i32 = 1;
/// Below this, compression's own header eats what it saves.
const MIN_COMPRESSED: usize = 64;

/// Writes segments; keeps its compression context and buffers between them.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
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
        Ok(Encoder { compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)?, raw: Vec::new() })
    }

    /// Encodes `batches`, which stand in the order of their seqs. Returns `None` if there
    /// is no reading in them.
    ///
    /// # Errors
    /// If there is more than a segment can hold, or compression fails.
    pub fn encode(&mut self, batches: &[Numbered]) -> std::io::Result<Option<(Header, Vec<u8>)>> {
        let mut filled = batches.iter().filter(|b| !b.batch.readings.is_empty());
        let Some(first) = filled.next() else { return Ok(None) };
        let (first, last) = (first.first, filled.next_back().unwrap_or(first).last());
        let too_large = |_| std::io::Error::other("too many readings for one segment");
        let mut count = 0usize;
        let (mut oldest, mut newest) = (Timestamp(i64::MAX), Timestamp(i64::MIN));
        for Numbered { batch, .. } in batches.iter().filter(|b| !b.batch.readings.is_empty()) {
            count += batch.readings.len();
            let (from, to) = basis::range(batch);
            (oldest, newest) = (oldest.min(from), newest.max(to));
        }
        self.raw.clear();
        encode_groups(&mut self.raw, &group(first, batches));

        let block = if self.raw.len() < MIN_COMPRESSED {
            self.raw.clone()
        } else {
            let compressed = self.compressor.compress(&self.raw)?;
            if compressed.len() < self.raw.len() { compressed } else { self.raw.clone() }
        };
        let mut header = Header {
            first,
            last,
            count: u32::try_from(count).map_err(too_large)?,
            oldest,
            newest,
            raw_length: u32::try_from(self.raw.len()).map_err(too_large)?,
            checksum: 0,
        };
        header.checksum = header.expected_checksum(&block);
        Ok(Some((header, block)))
    }
}

/// Groups of a device that are looked at for one with the same channels. A device that
/// invents new channels for each reading must not make a commit take for ever.
const LOOK_BACK: usize = 32;

fn group(first: Seq, batches: &[Numbered]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut newest_of: HashMap<(&str, Option<u64>, Kind), usize> = HashMap::new();
    for Numbered { first: batch_first, batch } in batches {
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

fn encode_groups(out: &mut Vec<u8>, groups: &[Group<'_>]) {
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
    let plain = groups.iter().all(|group| group.basis == Kind::Wall);
    out.push(if plain { FORMAT } else { FORMAT_WITH_BASES });
    put_varint(out, strings.len() as u64);
    strings.iter().for_each(|name| put_blob(out, name.as_bytes()));
    put_varint(out, groups.len() as u64);
    let mut integers = Vec::new();
    for group in groups {
        put_varint(out, index_of[group.device.as_str()]);
        match group.session {
            None => out.push(0),
            Some(session) => {
                out.push(1);
                put_varint(out, session);
            }
        }
        if !plain {
            group.basis.put(out);
        }
        put_varint(out, group.channels.len() as u64);
        group.channels.iter().for_each(|channel| put_varint(out, index_of[channel.as_str()]));
        put_varint(out, group.rows.len() as u64);
        for field in [
            |(offset, _): &(u64, &Reading)| *offset as i64,             // under 2^32
            |(_, reading): &(u64, &Reading)| reading.origin_seq as i64, // the same bits, and back again
            |(_, reading): &(u64, &Reading)| reading.time.0,
        ] {
            integers.clear();
            integers.extend(group.rows.iter().map(field));
            put_paced(out, &integers);
        }
        if group.basis.has_receipts() {
            put_paced(out, &group.received);
        }
        for channel in 0..group.channels.len() {
            put_values(out, group.rows.iter().map(|(_, reading)| &reading.values()[channel])); // one value a channel
        }
    }
}

/// Checks and decodes a segment, giving its readings in the order of their seqs.
///
/// # Errors
/// If the checksum does not match, or the block is not what [`Encoder`] writes.
pub fn decode(header: &Header, block: &[u8]) -> Result<Vec<Numbered>, Corrupt> {
    if header.checksum != header.expected_checksum(block) {
        return Err(Corrupt("its checksum does not match"));
    }
    if header.raw_length > MAX_RAW_LENGTH {
        return Err(Corrupt("it claims an impossible length"));
    }
    let raw_length = header.raw_length as usize; // 256 MiB at most
    if block.len() == raw_length {
        return decode_raw(header, block);
    }
    let raw = zstd::bulk::decompress(block, raw_length).map_err(|_| Corrupt("it does not decompress"))?;
    decode_raw(header, &raw)
}

struct GroupHead {
    device: DeviceId,
    session: Option<u64>,
    basis: Kind,
    /// When each reading was received, in their order, where that is kept.
    received: VecDeque<i64>,
}

fn decode_raw(header: &Header, raw: &[u8]) -> Result<Vec<Numbered>, Corrupt> {
    let mut input = Input::new(raw);
    let has_bases = match input.byte()? {
        FORMAT => false,
        FORMAT_WITH_BASES => true,
        _ => return Err(Corrupt("its format is unknown")),
    };
    let strings = (0..input.count(1)?).map(|_| input.text()).collect::<Result<Vec<_>, _>>()?;
    let count = header.count as usize; // fits: the target has at least 32 bits
    if count > raw.len() {
        return Err(Corrupt("its count is impossible"));
    }
    let mut places = if header.is_sparse() { Places::sparse(header)? } else { Places::dense(count) };
    let group_count = input.count(1)?;
    let mut heads = Vec::with_capacity(group_count);
    for group in 0..group_count {
        heads
            .push(decode_group(&mut input, has_bases, &strings, |offset, reading| places.put(offset, group, reading))?);
    }
    if input.remaining() != 0 {
        return Err(Corrupt("it is longer than its content"));
    }
    match places {
        Places::Dense(slots) => {
            let filled = slots.into_iter().zip(0..).map(|(slot, offset)| slot.map(|(group, r)| (offset, group, r)));
            assemble(header.first, heads, filled)
        }
        Places::Sparse { mut readings, end } => {
            readings.sort_unstable_by_key(|(offset, ..)| *offset);
            let ascending = readings.windows(2).all(|pair| pair[0].0 < pair[1].0); // pairs
            let bounds =
                readings.first().map(|(o, ..)| *o) == Some(0) && readings.last().map(|(o, ..)| *o) == Some(end);
            if readings.len() != count || !ascending || !bounds {
                return Err(Corrupt("a reading's place is impossible"));
            }
            assemble(header.first, heads, readings.into_iter().map(Some))
        }
    }
}

/// Readings with their groups, by their offsets from the first seq.
enum Places {
    /// One for each offset.
    Dense(Vec<Option<(usize, Reading)>>),
    /// Offset, group and reading, for offsets from 0 to `end` with holes.
    Sparse { readings: Vec<(u64, usize, Reading)>, end: u64 },
}

impl Places {
    fn dense(count: usize) -> Places {
        let mut slots = Vec::new();
        slots.resize_with(count, || None);
        Places::Dense(slots)
    }

    fn sparse(header: &Header) -> Result<Places, Corrupt> {
        if header.span() < u64::from(header.count) || header.count == 0 {
            return Err(Corrupt("its count is impossible"));
        }
        Ok(Places::Sparse { readings: Vec::new(), end: header.span() - 1 })
    }

    fn put(&mut self, offset: u64, group: usize, reading: Reading) -> Result<(), Corrupt> {
        match self {
            Places::Dense(slots) => match usize::try_from(offset).ok().and_then(|offset| slots.get_mut(offset)) {
                Some(slot @ None) => *slot = Some((group, reading)),
                _ => return Err(Corrupt("a reading's place is impossible")),
            },
            Places::Sparse { readings, .. } => readings.push((offset, group, reading)),
        }
        Ok(())
    }
}

/// Joins neighbours of the same group into batches.
fn assemble(
    first: Seq,
    mut heads: Vec<GroupHead>,
    in_order: impl Iterator<Item = Option<(u64, usize, Reading)>>,
) -> Result<Vec<Numbered>, Corrupt> {
    let mut batches = Vec::new();
    let mut rest = in_order.peekable();
    while let Some(slot) = rest.next() {
        let (start, group, reading) = slot.ok_or(Corrupt("a reading is missing"))?;
        let mut readings = vec![reading];
        let head = &mut heads[group]; // groups were counted up to the number of heads
        let received = head.received.pop_front();
        let mut next = start + 1;
        let fits = |slot: &Option<(u64, usize, Reading)>, head: &GroupHead, next: u64| {
            matches!(slot, Some((offset, other, _)) if *other == group && *offset == next)
                && head.received.front().copied() == received
        };
        while let Some(Some((_, _, reading))) = rest.next_if(|slot| fits(slot, head, next)) {
            head.received.pop_front();
            readings.push(reading);
            next += 1;
        }
        let basis = head.basis.basis(received.unwrap_or_default());
        let batch = Batch { device: head.device.clone(), session: head.session, basis, readings };
        batches.push(Numbered { first: first.plus(start), batch: Arc::new(batch) });
    }
    Ok(batches)
}

fn decode_group(
    input: &mut Input<'_>,
    has_bases: bool,
    strings: &[&str],
    mut place: impl FnMut(u64, Reading) -> Result<(), Corrupt>,
) -> Result<GroupHead, Corrupt> {
    let string = |input: &mut Input<'_>| {
        let index = usize::try_from(input.varint()?).unwrap_or(usize::MAX);
        strings.get(index).copied().ok_or(Corrupt("a name is missing"))
    };
    let device = DeviceId::new(string(input)?).map_err(|_| Corrupt("a device's name is invalid"))?;
    let session = match input.byte()? {
        0 => None,
        1 => Some(input.varint()?),
        _ => return Err(Corrupt("a session is neither there nor absent")),
    };
    let basis = if has_bases { Kind::read(input)? } else { Kind::Wall };
    let channels: Channels = (0..input.count(1)?)
        .map(|_| ChannelName::new(string(input)?).map_err(|_| Corrupt("a channel's name is invalid")))
        .collect::<Result<_, _>>()?;
    let rows = input.count(1)?;
    let offsets = paced(input, rows)?;
    let origins = paced(input, rows)?;
    let times = paced(input, rows)?;
    let received = if basis.has_receipts() { paced(input, rows)?.into() } else { VecDeque::new() };
    let mut values: Vec<Vec<Value>> = Vec::new();
    values.resize_with(rows, || Vec::with_capacity(channels.len()));
    if rows > 0 {
        for _ in 0..channels.len() {
            column::values(input, &mut values)?;
        }
    }
    for (((offset, origin), time), values) in offsets.into_iter().zip(origins).zip(times).zip(values) {
        let origin_seq = origin as u64; // the same bits, as written
        let reading = Reading::new(origin_seq, Timestamp(time), channels.clone(), values.into_boxed_slice())
            .map_err(|_| Corrupt("values are missing"))?;
        let offset = u64::try_from(offset).map_err(|_| Corrupt("a reading's place is impossible"))?;
        place(offset, reading)?;
    }
    Ok(GroupHead { device, session, basis, received })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Basis, BootId};
    use proptest::prelude::*;

    fn channels(names: &[&str]) -> Channels {
        names.iter().map(|name| ChannelName::new(name).expect("a valid name")).collect()
    }

    /// Origin, time, list of channels and values.
    type Drawn = (u64, i64, usize, Vec<Value>);

    /// Batches of several devices, sessions and channel lists, in any mixture.
    fn any_batches() -> impl Strategy<Value = Vec<Numbered>> {
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
                let numbered = Numbered { first: next, batch: Arc::new(Batch { device, session, basis, readings }) };
                next = next.plus(numbered.batch.readings.len() as u64);
                numbered
            };
            batches.into_iter().map(number).collect()
        })
    }

    /// One line a reading, floats by their bits, so that NaN equals itself.
    fn flat(batches: &[Numbered]) -> Vec<String> {
        let line = |n: &Numbered| {
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

    fn encode(batches: &[Numbered]) -> Option<(Header, Vec<u8>)> {
        Encoder::new().and_then(|mut encoder| encoder.encode(batches)).expect("zstd works")
    }

    proptest! {
        #[test]
        fn any_batches_come_back_as_they_were(batches in any_batches()) {
            match encode(&batches) {
                None => prop_assert!(flat(&batches).is_empty()),
                Some((header, block)) => {
                    let back = decode(&header, &block).expect("what was written reads back");
                    prop_assert_eq!(flat(&back), flat(&batches));
                    prop_assert_eq!(back.last().map(Numbered::last), Some(header.last()));
                }
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
            let left = super::super::evict::filtered(&batches, &mut |seq, _, _| seq.0 % keep == from);
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
        let (header, block) = encode(&[Numbered { first: Seq(7), batch }]).expect("one reading");
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
                Numbered { first: Seq(5000 + u64::from(i)), batch: Arc::new(batch) }
            })
            .collect();
        let (_, block) = encode(&batches).expect("there are readings");
        assert!(block.len() < 10_000, "{} bytes", block.len());
    }

    const BOOT: BootId = BootId([0xb0; 16]);

    /// One reading of each of some kinds; frozen, as old logs must be read for ever.
    fn golden() -> Vec<Numbered> {
        let received = Timestamp(1_795_395_723_000_000);
        one_of_each(&[Basis::Wall, Basis::Boot(BOOT), Basis::DeviceClock { received }])
    }

    fn one_of_each(bases: &[Basis]) -> Vec<Numbered> {
        let number = |(seq, basis): (u64, Basis)| {
            let device = DeviceId::new("d").expect("a valid name");
            let value = Box::new([Value::Integer(5)]);
            let time = Timestamp(i64::try_from(seq).expect("small") * 1_000_000);
            let reading = Reading::new(seq, time, channels(&["a"]), value).expect("it fits");
            Numbered {
                first: Seq(seq),
                batch: Arc::new(Batch { device, session: Some(7), basis, readings: vec![reading] }),
            }
        };
        (1..).zip(bases.iter().copied()).map(number).collect()
    }

    fn block(batches: &[Numbered]) -> String {
        let mut raw = Vec::new();
        encode_groups(&mut raw, &group(batches[0].first, batches));
        raw.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn blocks_are_laid_out_as_ever() {
        let golden = golden();
        assert_eq!(block(&golden[..1]), GOLDEN_1);
        assert_eq!(block(&golden), GOLDEN_2);
        assert_eq!(decoded(GOLDEN_2, 3), golden);
    }

    #[test]
    fn blocks_with_later_kinds_are_laid_out_as_ever() {
        let since = Basis::DeviceClockSince { boot: BOOT, received: Timestamp(100) };
        let later = one_of_each(&[Basis::Resynchronised, since]);
        assert_eq!(block(&later), GOLDEN_3);
        assert_eq!(decoded(GOLDEN_3, 2), later);
    }

    fn decoded(block: &str, count: u32) -> Vec<Numbered> {
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

    const GOLDEN_3: &str = concat!(
        "0202016401610200010703010101c0843d000102c0843d02030a00010704b0b0b0b0b0b0b0b0b0b0",
        "b0b0b0b0b0b001010101020104c0843d0401c801030a",
    );

    #[test]
    fn a_time_that_is_not_known_may_lie_anywhere() {
        let golden = golden();
        let range = |batches: &[Numbered]| encode(batches).map(|(header, _)| (header.oldest.0, header.newest.0));
        assert_eq!(range(&golden[..1]), Some((1_000_000, 1_000_000)));
        assert_eq!(range(&golden[1..]), Some((i64::MIN, i64::MAX)));
        assert_eq!(range(&golden[2..]), Some((1_795_395_723_000_000, 1_795_395_723_000_000)));
    }
}
