//! What the device protocol costs a frame: decoding frames and messages, encoding
//! them, and finding the next frame in noise.
//!
//! `cargo bench --bench wire`. A reading has four values, as in `docs/figures.md`;
//! frames are version 2 and hold one.

#![allow(clippy::expect_used, reason = "a benchmark fails by panicking")]

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use std::ops::ControlFlow;
use tidegate::model::Value;
use tidegate::wire::codec::{decode_device, encode_device};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, Recovery, Version};
use tidegate::wire::message::{ChannelRef, DeviceMessage, Readings, Sample};

fn main() {
    divan::main();
}

const LIMITS: Limits = Limits { max_body: 64 << 10, require_checksum: true };
const ENCODINGS: [BodyEncoding; 3] = [BodyEncoding::Postcard, BodyEncoding::Json, BodyEncoding::Protobuf];

fn readings(seq: u16) -> DeviceMessage {
    let values = [
        Value::Float((2150.0 + f64::from(seq % 16)).round() / 100.0),
        Value::Float((455.0 - f64::from(seq % 16)).round() / 10.0),
        Value::Integer(i64::from(seq)),
        Value::Boolean(seq % 1000 < 500),
    ];
    let time = 1_763_859_723_000_000 + i64::from(seq) * 10_000;
    let values = (0..).map(ChannelRef::Index).zip(values).collect();
    DeviceMessage::Readings(Readings { seq: u64::from(seq), sub: None, samples: vec![Sample { time, values }] })
}

fn stream(frames: u16, encoding: BodyEncoding) -> Vec<u8> {
    let mut out = Vec::new();
    for seq in 1..=frames {
        encode_device(&readings(seq), Format { version: Version::V2, encoding }, &mut out);
    }
    out
}

/// Pushes `input` and counts the messages in it.
fn decode(decoder: &mut Decoder, input: &[u8]) -> usize {
    let mut messages = 0;
    let pushed = decoder.push(black_box(input), &mut |event| {
        if let Event::Frame(frame) = event {
            let _ = black_box(decode_device(&frame).expect("it was encoded here"));
            messages += 1;
        }
        ControlFlow::Continue(())
    });
    pushed.expect("the stream is whole");
    messages
}

#[divan::bench(args = ENCODINGS)]
fn decode_a_frame_a_push(bencher: Bencher, encoding: BodyEncoding) {
    let input = stream(1, encoding);
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| assert_eq!(decode(&mut decoder, &input), 1));
}

#[divan::bench(args = ENCODINGS)]
fn decode_16_frames_a_push(bencher: Bencher, encoding: BodyEncoding) {
    let input = stream(16, encoding);
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    bencher.counter(ItemsCount::new(16usize)).bench_local(|| assert_eq!(decode(&mut decoder, &input), 16));
}

/// Every frame comes in two pieces, so it is copied.
#[divan::bench(args = ENCODINGS)]
fn decode_a_frame_in_two_pushes(bencher: Bencher, encoding: BodyEncoding) {
    let input = stream(1, encoding);
    let (head, tail) = input.split_at(input.len() / 2);
    let mut decoder = Decoder::new(LIMITS, Recovery::Fail);
    bencher
        .counter(ItemsCount::new(1usize))
        .bench_local(|| assert_eq!(decode(&mut decoder, head) + decode(&mut decoder, tail), 1));
}

#[divan::bench(args = ENCODINGS)]
fn encode_a_frame(bencher: Bencher, encoding: BodyEncoding) {
    let (message, format) = (readings(1), Format { version: Version::V2, encoding });
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        out.clear();
        encode_device(black_box(&message), format, &mut out);
        black_box(out.len())
    });
}

/// A frame behind 64 KiB of noise, which holds first bytes of magics but no whole one.
#[divan::bench]
fn resync_over_noise(bencher: Bencher) {
    let mut input: Vec<u8> = (0u32..64 << 10).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    input.extend(stream(1, BodyEncoding::Postcard));
    let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
    bencher.counter(BytesCount::new(input.len())).bench_local(|| assert_eq!(decode(&mut decoder, &input), 1));
}
