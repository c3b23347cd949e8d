//! From a block back to readings.
//!
//! What a segment holds is decoded in pieces that take little memory each, of most segments one.
//! Each piece is a pass over the whole block. A block of format 1 or 2 is decompressed on the way
//! and never in memory as a whole; the streams of one of format 3 are, 8 MiB at most.

use super::basis::Kind;
use super::column::{self, paced};
use super::columns::{Column, Sources, Streams};
use super::source::{Compressed, Input, Source};
use super::{Corrupt, FORMAT, FORMAT_WITH_BASES, Header, MAX_RAW_LENGTH};
use crate::model::{Batch, ChannelName, Channels, DeviceId, Reading, Seq, SequencedBatch, Timestamp, Value};
use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Checks and decodes a segment, giving its readings in the order of their seqs.
///
/// # Errors
/// If the checksum does not match, or the block is not what [`super::Encoder`] writes.
pub fn decode(header: &Header, block: &[u8]) -> Result<Vec<SequencedBatch>, Corrupt> {
    let mut all = Vec::new();
    decode_pieces(header, block, Seq::ZERO, &mut |batches| {
        all.extend(batches);
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

/// Whether the checksum holds: the block is what was written, and reads back.
pub(in crate::store) fn is_sound(header: &Header, block: &[u8]) -> bool {
    header.checksum == header.expected_checksum(block)
}

/// Whether [`decode_pieces`] gives all at once.
pub(in crate::store) fn is_whole(header: &Header) -> bool {
    header.pieces() == 1 || header.span() <= 1
}

/// Checks a segment, and gives its readings in the order of their seqs, as many at a time
/// as take little memory, until `give` breaks. Those up to `after` may be left out.
///
/// # Errors
/// As [`decode`].
pub fn decode_pieces(
    header: &Header,
    block: &[u8],
    after: Seq,
    give: &mut dyn FnMut(Vec<SequencedBatch>) -> ControlFlow<()>,
) -> Result<(), Corrupt> {
    if !is_sound(header, block) {
        return Err(Corrupt("its checksum does not match"));
    }
    let length = header.raw_length as usize; // fits: the target has at least 32 bits
    let (span, pieces) = (header.span(), header.pieces());
    if is_whole(header) {
        if header.raw_length > MAX_RAW_LENGTH {
            return Err(Corrupt("it claims an impossible length"));
        }
        let batches = if Streams::are_in(block) {
            decode_rows(header, &mut Streams::of(block, length)?.sources(), None)?
        } else if block.len() == length {
            decode_rows(header, &mut Sources::one(Input::new(block)), None)?
        } else {
            let raw = zstd::bulk::decompress(block, length).map_err(|_| Corrupt("it does not decompress"))?;
            decode_rows(header, &mut Sources::one(Input::new(&raw)), None)?
        };
        let _ = give(batches);
        return Ok(());
    }
    let streams = Streams::are_in(block).then(|| Streams::of(block, length)).transpose()?;
    let step = span.div_ceil(pieces);
    let mut start = after.next().0.saturating_sub(header.first.0);
    while start < span {
        let piece = start..start.saturating_add(step).min(span);
        start = piece.end;
        let batches = match &streams {
            Some(streams) => decode_rows(header, &mut streams.sources(), Some(&piece))?,
            None if block.len() == length => decode_rows(header, &mut Sources::one(Input::new(block)), Some(&piece))?,
            None => decode_rows(header, &mut Sources::one(Compressed::new(block, length)?), Some(&piece))?,
        };
        if !batches.is_empty() && give(batches).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

struct GroupHead {
    device: DeviceId,
    session: Option<u64>,
    basis: Kind,
    /// How many readings it has, those that are not wanted among them.
    rows: usize,
    /// When each reading was received, in their order, where that is kept.
    received: VecDeque<i64>,
}

/// Decodes the readings whose offsets from the first seq lie in `piece`, or all.
fn decode_rows<S: Source>(
    header: &Header,
    input: &mut Sources<S>,
    piece: Option<&Range<u64>>,
) -> Result<Vec<SequencedBatch>, Corrupt> {
    let has_streams = input.has_streams();
    let head = input.at(Column::Head);
    let has_bases = has_streams
        || match head.byte()? {
            FORMAT => false,
            FORMAT_WITH_BASES => true,
            _ => return Err(Corrupt("its format is unknown")),
        };
    let strings =
        (0..head.count(1)?).map(|_| head.text().map(str::to_owned)).collect::<Result<Vec<String>, Corrupt>>()?;
    let count = header.count as usize; // fits: the target has at least 32 bits
    if count > input.remaining() || header.span() < u64::from(header.count) || count == 0 {
        return Err(Corrupt("its count is impossible"));
    }
    let mut places = match piece {
        None if !header.is_sparse() => Places::dense(count),
        _ => Places::Sparse(Vec::new()),
    };
    let group_count = input.at(Column::Head).count(1)?;
    let mut heads = Vec::with_capacity(group_count);
    let mut list: (Vec<u64>, Channels) = (Vec::new(), Channels::from([]));
    for group in 0..group_count {
        let mut put = |offset, reading| places.put(offset, group, reading);
        heads.push(decode_group(input, has_bases, &strings, &mut list, piece, &mut put)?);
    }
    if input.remaining() != 0 {
        return Err(Corrupt("it is longer than its content"));
    }
    if heads.iter().map(|head| head.rows).sum::<usize>() != count {
        return Err(Corrupt("its count is impossible"));
    }
    match places {
        Places::Dense(slots) => {
            let filled = slots.into_iter().zip(0..).map(|(slot, offset)| slot.map(|(group, r)| (offset, group, r)));
            assemble(header.first, heads, filled)
        }
        Places::Sparse(mut readings) => {
            readings.sort_unstable_by_key(|(offset, ..)| *offset);
            let ascending = readings.windows(2).all(|pair| pair[0].0 < pair[1].0); // pairs
            let all = 0..header.span();
            let piece = piece.unwrap_or(&all);
            let (first, last) = (readings.first().map(|(o, ..)| *o), readings.last().map(|(o, ..)| *o));
            let begins = piece.start > 0 || first == Some(0);
            let ends = piece.end < all.end || last == Some(all.end - 1); // it has a reading
            if !ascending || !begins || !ends {
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
    /// Offset, group and reading.
    Sparse(Vec<(u64, usize, Reading)>),
}

impl Places {
    fn dense(count: usize) -> Places {
        let mut slots = Vec::new();
        slots.resize_with(count, || None);
        Places::Dense(slots)
    }

    fn put(&mut self, offset: u64, group: usize, reading: Reading) -> Result<(), Corrupt> {
        match self {
            Places::Dense(slots) => match usize::try_from(offset).ok().and_then(|offset| slots.get_mut(offset)) {
                Some(slot @ None) => *slot = Some((group, reading)),
                _ => return Err(Corrupt("a reading's place is impossible")),
            },
            Places::Sparse(readings) => readings.push((offset, group, reading)),
        }
        Ok(())
    }
}

/// Joins neighbours of the same group into batches.
fn assemble(
    first: Seq,
    mut heads: Vec<GroupHead>,
    in_order: impl Iterator<Item = Option<(u64, usize, Reading)>>,
) -> Result<Vec<SequencedBatch>, Corrupt> {
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
        batches.push(SequencedBatch { first: first.plus(start), batch: Arc::new(batch) });
    }
    Ok(batches)
}

/// `list` is the list of channels of the group before, by their names' places: many groups have the
/// same, which is then in memory once.
fn decode_group<S: Source>(
    input: &mut Sources<S>,
    has_bases: bool,
    strings: &[String],
    list: &mut (Vec<u64>, Channels),
    piece: Option<&Range<u64>>,
    place: &mut dyn FnMut(u64, Reading) -> Result<(), Corrupt>,
) -> Result<GroupHead, Corrupt> {
    let before = input.begun.device();
    let head = input.at(Column::Head);
    let device = match before {
        Some(before) => column::difference(head, before)?,
        None => head.varint()?,
    };
    let name = DeviceId::new(string(device, strings)?).map_err(|_| Corrupt("a device's name is invalid"))?;
    let has_session = head.byte()?;
    input.begun.set_device(device);
    let session = match has_session {
        0 => None,
        1 => Some(session(input)?),
        _ => return Err(Corrupt("a session is neither there nor absent")),
    };
    let head = input.at(Column::Head);
    let basis = if has_bases { Kind::read(head)? } else { Kind::Wall };
    let indexes = (0..head.count(1)?).map(|_| head.varint()).collect::<Result<Vec<u64>, Corrupt>>()?;
    if list.0 != indexes {
        let name = |index: &u64| {
            ChannelName::new(string(*index, strings)?).map_err(|_| Corrupt("a channel's name is invalid"))
        };
        let channels = indexes.iter().map(name).collect::<Result<Channels, Corrupt>>()?;
        *list = (indexes, channels);
    }
    let channels = &list.1;
    let rows = input.rows()?;
    let (offsets, wanted) = offsets(input, rows, piece)?;
    let origins = paced(input, Column::Origin, rows, |row, _| wanted.contains(&row))?;
    let times = paced(input, Column::Time, rows, |row, _| wanted.contains(&row))?;
    let received = match basis.has_receipts() {
        true => paced(input, Column::Receipt, rows, |row, _| wanted.contains(&row))?.into(),
        false => VecDeque::new(),
    };
    let mut values: Vec<Vec<Value>> = Vec::new();
    values.resize_with(wanted.len(), || Vec::with_capacity(channels.len()));
    if rows > 0 {
        for channel in 0..channels.len() {
            column::values(input, channel, rows, &wanted, &mut values)?;
        }
    }
    for (((offset, origin), time), values) in offsets.into_iter().zip(origins).zip(times).zip(values) {
        let origin_seq = origin as u64; // the same bits, as written
        let reading = Reading::new(origin_seq, Timestamp(time), channels.clone(), values.into_boxed_slice())
            .map_err(|_| Corrupt("values are missing"))?;
        let offset = u64::try_from(offset).map_err(|_| Corrupt("a reading's place is impossible"))?;
        place(offset, reading)?;
    }
    Ok(GroupHead { device: name, session, basis, rows, received })
}

fn session<S: Source>(input: &mut Sources<S>) -> Result<u64, Corrupt> {
    let has_streams = input.has_streams();
    let bytes = input.at(Column::Session);
    if !has_streams {
        return bytes.varint();
    }
    let mut session = [0; 8];
    session.copy_from_slice(bytes.take(8)?);
    Ok(u64::from_le_bytes(session))
}

fn string(index: u64, strings: &[String]) -> Result<&str, Corrupt> {
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    strings.get(index).map(String::as_str).ok_or(Corrupt("a name is missing"))
}

/// The offsets of a group's wanted readings, and which of its rows they are: readings stand
/// in the order of their seqs.
fn offsets<S: Source>(
    input: &mut Sources<S>,
    rows: usize,
    piece: Option<&Range<u64>>,
) -> Result<(Vec<i64>, Range<usize>), Corrupt> {
    let Some(piece) = piece else { return Ok((paced(input, Column::Offset, rows, |_, _| true)?, 0..rows)) };
    let (mut wanted, mut before, mut ascending) = (0..0, -1, true);
    let offsets = paced(input, Column::Offset, rows, |row, offset| {
        ascending &= offset > before;
        before = offset;
        let offset = offset.unsigned_abs();
        wanted.start += usize::from(offset < piece.start);
        wanted.end = if offset < piece.end { row + 1 } else { wanted.end };
        piece.contains(&offset)
    })?;
    match ascending {
        true => Ok((offsets, wanted)),
        false => Err(Corrupt("a reading's place is impossible")),
    }
}
