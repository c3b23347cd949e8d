//! Where the columns of a block's groups stand.
//!
//! In formats 1 and 2 they stand one behind the other, group by group, and each begins anew. In
//! format 3 each kind of column has a stream of its own, in which each group goes on from where the
//! group before began: many groups of a few readings each, as of thousands of devices, are alike.
//! Each stream is compressed by itself where that helps.
//!
//! ```text
//! block  = 3 (length stored)* stream*      lengths before compression and as it is stored
//! ```

use super::source::{Input, Source};
use super::{Corrupt, MAX_MEMORY, MIN_COMPRESSED};
use std::borrow::Cow;
use std::collections::HashMap;

/// Of a block whose columns have streams. A compressed block of another format begins otherwise.
pub(super) const FORMAT_WITH_STREAMS: u8 = 3;

/// Which column of a group something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Names, and what groups there are.
    Head,
    Session,
    /// Units and kinds of values.
    Kind,
    Offset,
    Origin,
    Time,
    Receipt,
    /// The values of the channel with this place in the group's list.
    Value(usize),
}

/// Channels behind so many share the streams of those before.
const VALUES: usize = 8;
const STREAMS: usize = 7 + VALUES;

impl Column {
    fn stream(self) -> usize {
        match self {
            Column::Head => 0,
            Column::Session => 1,
            Column::Kind => 2,
            Column::Offset => 3,
            Column::Origin => 4,
            Column::Time => 5,
            Column::Receipt => 6,
            Column::Value(channel) => 7 + channel % VALUES,
        }
    }
}

/// How the columns of the group before began, from where the next one goes on. In formats 1 and 2
/// each begins at 0.
#[derive(Debug, Default)]
pub(super) struct Begun {
    goes_on: bool,
    device: u64,
    /// The first number and the first difference.
    paced: [(i64, i64); STREAMS],
    /// The first number of a channel's place and a kind of values.
    values: HashMap<(usize, u8), i64>,
}

impl Begun {
    /// The device of the group before, among the names, if it is told from that.
    pub fn device(&self) -> Option<u64> {
        self.goes_on.then_some(self.device)
    }

    /// The group is of that device.
    pub fn set_device(&mut self, device: u64) {
        self.device = device;
    }

    /// What the first number of a column and the first difference are told from, in `unit`s; no
    /// difference if that is told from the first number itself.
    pub fn start(&self, column: Column, unit: i64) -> (i64, Option<i64>) {
        if !self.goes_on {
            return (0, None);
        }
        let (first, difference) = self.paced[column.stream()]; // one for each
        (first.wrapping_div(unit), Some(difference.wrapping_div(unit)))
    }

    /// A column began so.
    pub fn set_start(&mut self, column: Column, first: i64, difference: Option<i64>) {
        let (before, difference_before) = &mut self.paced[column.stream()]; // one for each
        *before = first;
        *difference_before = difference.unwrap_or(*difference_before);
    }

    /// What the first number of a channel's values of this kind is told from.
    pub fn value(&self, channel: usize, kind: u8) -> i64 {
        self.values.get(&(channel, kind)).copied().unwrap_or(0)
    }

    /// Such values began so.
    pub fn set_value(&mut self, channel: usize, kind: u8, first: i64) {
        if self.goes_on {
            self.values.insert((channel, kind), first);
        }
    }
}

/// A block that is written.
pub(super) struct Output {
    streams: Vec<Vec<u8>>,
    pub begun: Begun,
}

impl Output {
    /// Of format 1 or 2.
    pub fn one() -> Output {
        Output { streams: vec![Vec::new()], begun: Begun::default() }
    }

    /// Of format 3.
    pub fn streams() -> Output {
        Output { streams: vec![Vec::new(); STREAMS], begun: Begun { goes_on: true, ..Begun::default() } }
    }

    pub fn has_streams(&self) -> bool {
        self.begun.goes_on
    }

    /// Where the column's bytes go.
    pub fn at(&mut self, column: Column) -> &mut Vec<u8> {
        let stream = if self.begun.goes_on { column.stream() } else { 0 };
        &mut self.streams[stream] // as many as there are columns, or one
    }

    /// Bytes before compression.
    pub fn len(&self) -> usize {
        self.streams.iter().map(Vec::len).sum()
    }

    /// What a block of format 1 or 2 has before compression.
    pub fn into_one(mut self) -> Vec<u8> {
        self.streams.swap_remove(0) // there is one at least
    }

    /// A block of format 3.
    ///
    /// # Errors
    /// If `compress` fails.
    pub fn into_block(self, mut compress: impl FnMut(&[u8]) -> std::io::Result<Vec<u8>>) -> std::io::Result<Vec<u8>> {
        let (mut block, mut contents) = (vec![FORMAT_WITH_STREAMS], Vec::new());
        for stream in &self.streams {
            let compressed = if stream.len() < MIN_COMPRESSED { None } else { Some(compress(stream)?) };
            let stored = compressed.as_ref().filter(|compressed| compressed.len() < stream.len()).unwrap_or(stream);
            put_varint(&mut block, stream.len() as u64);
            put_varint(&mut block, stored.len() as u64);
            contents.extend_from_slice(stored);
        }
        block.extend(contents);
        Ok(block)
    }
}

/// A block that is read.
pub(super) struct Sources<S> {
    sources: Vec<S>,
    pub begun: Begun,
}

impl<S: Source> Sources<S> {
    /// Of format 1 or 2.
    pub fn one(source: S) -> Sources<S> {
        Sources { sources: vec![source], begun: Begun::default() }
    }

    pub fn has_streams(&self) -> bool {
        self.begun.goes_on
    }

    /// Where the column's bytes come from.
    pub fn at(&mut self, column: Column) -> &mut S {
        let source = if self.begun.goes_on { column.stream() } else { 0 };
        &mut self.sources[source] // as many as there are columns, or one
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.sources.iter().map(S::remaining).sum()
    }

    /// How many readings a group has, each of which has a byte at least.
    pub fn rows(&mut self) -> Result<usize, Corrupt> {
        let rows = usize::try_from(self.at(Column::Head).varint()?).unwrap_or(usize::MAX);
        let most = self.at(Column::Offset).remaining();
        if rows > most { Err(Corrupt("count out of range")) } else { Ok(rows) }
    }
}

/// The streams of a block of format 3, decompressed.
pub(super) struct Streams<'a>(Vec<Cow<'a, [u8]>>);

impl Streams<'_> {
    /// Whether a block has such.
    pub fn are_in(block: &[u8]) -> bool {
        block.first() == Some(&FORMAT_WITH_STREAMS)
    }

    /// Those of `block`, which had `length` bytes before compression.
    pub fn of(block: &[u8], length: usize) -> Result<Streams<'_>, Corrupt> {
        if length > MAX_MEMORY {
            return Err(Corrupt("it claims an impossible length"));
        }
        let mut input = Input::new(block);
        input.skip(1)?;
        let mut lengths = Vec::with_capacity(STREAMS);
        let mut left = length;
        for _ in 0..STREAMS {
            let whole = usize::try_from(input.varint()?).unwrap_or(usize::MAX);
            left = left.checked_sub(whole).ok_or(Corrupt("it claims an impossible length"))?;
            lengths.push((whole, input.count(1)?));
        }
        let mut streams = Vec::with_capacity(STREAMS);
        let mut rest = block.get(block.len() - input.remaining()..).unwrap_or_default();
        for (whole, stored) in lengths {
            let (stream, behind) = rest.split_at_checked(stored).ok_or(Corrupt("ends early"))?;
            rest = behind;
            streams.push(match whole == stored {
                true => Cow::Borrowed(stream),
                false => {
                    let stream =
                        zstd::bulk::decompress(stream, whole).map_err(|_| Corrupt("it does not decompress"))?;
                    Cow::Owned(Some(stream).filter(|s| s.len() == whole).ok_or(Corrupt("it does not decompress"))?)
                }
            });
        }
        if left > 0 || !rest.is_empty() {
            return Err(Corrupt("it is longer than its content"));
        }
        Ok(Streams(streams))
    }

    pub fn sources(&self) -> Sources<Input<'_>> {
        let sources = self.0.iter().map(|stream| Input::new(stream)).collect();
        Sources { sources, begun: Begun { goes_on: true, ..Begun::default() } }
    }
}

/// Appends a number as LEB128.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80); // the low seven bits, and "more follows"
        value >>= 7;
    }
    out.push(value as u8); // under 0x80 here
}
