//! Segments from a damaged database: a block that is not what was written is refused
//! without a panic, and what is accepted survives being written again.
//!
//! Input: first seq (8 bytes), count (4), length before compression (4), all little-endian,
//! then the block. The checksum is made to match: it would refuse all else.

use tidegate::model::{Seq, SequencedBatch, Timestamp};
use tidegate::store::segment::{Encoder, Header, decode};

/// Keeps the fuzzer fast: a few bytes can claim to be very many.
const MAX_RAW_LENGTH: u32 = 1 << 20;

fn with_checksum(header: Header, block: &[u8]) -> Header {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&header.first.0.to_le_bytes());
    hash.update(&header.count.to_le_bytes());
    hash.update(&header.oldest.0.to_le_bytes());
    hash.update(&header.newest.0.to_le_bytes());
    hash.update(&header.raw_length.to_le_bytes());
    if header.is_sparse() {
        hash.update(&header.last.0.to_le_bytes());
    }
    hash.update(block);
    Header { checksum: hash.finalize(), ..header }
}

/// Every reading in its order, as text, in which NaN equals itself.
fn flat(batches: &[SequencedBatch]) -> Vec<String> {
    let lines = |numbered: &SequencedBatch| {
        let (device, basis) = (&numbered.batch.device, numbered.batch.basis);
        let line = |(seq, origin, reading)| format!("{device} {basis:?} {seq} {origin:?} {reading:?}");
        numbered.after(Seq::ZERO).map(line).collect::<Vec<_>>()
    };
    batches.iter().flat_map(lines).collect()
}

pub fn check(input: &[u8]) {
    let Some((first, rest)) = input.split_first_chunk() else { return };
    let Some((count, rest)) = rest.split_first_chunk() else { return };
    let Some((raw_length, block)) = rest.split_first_chunk() else { return };
    // Seqs begin with 1, and never come near their end.
    let first = Seq(u64::from_le_bytes(*first) >> 1 | 1);
    let (count, raw_length) = (u32::from_le_bytes(*count), u32::from_le_bytes(*raw_length));
    let holes = raw_length / MAX_RAW_LENGTH % 4;
    let header = Header {
        first,
        last: first.plus(u64::from(count) + u64::from(holes)).prev(),
        count,
        oldest: Timestamp(0),
        newest: Timestamp(0),
        raw_length: raw_length % MAX_RAW_LENGTH,
        checksum: 0,
    };
    let Ok(batches) = decode(&with_checksum(header, block), block) else { return };
    let again = Encoder::new().and_then(|mut encoder| encoder.encode(&batches)).expect("it was a segment");
    let back = again.iter().flat_map(|made| decode(&made.header, &made.block).expect("what was written reads back"));
    assert_eq!(flat(&back.collect::<Vec<_>>()), flat(&batches));
}
