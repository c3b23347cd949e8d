//! All that a device can say, from its first byte on: what a link does with it before
//! the log sees a reading. What is stored is what was sent, in order and named.
//!
//! Input: a byte that tells how large the pieces are, then the stream.

use std::ops::ControlFlow;
use std::time::Duration;
use tidegate::clock::Now;
use tidegate::device::{Grants, Session, Step, TimeRules};
use tidegate::model::{BootId, Timestamp};
use tidegate::wire::codec::{decode_device, encode_gateway};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, Recovery, Version};

const LIMITS: Limits = Limits { max_body: 64 * 1024, require_checksum: false };
const GRANTS: Grants = Grants {
    handshake_timeout: Some(Duration::from_secs(5)),
    heartbeat_interval: Duration::from_secs(30),
    idle_after: Duration::from_secs(45),
    idle_timeout: Duration::from_secs(90),
    window: 4096,
    max_frame: 64 * 1024,
    restart: true,
    times: TimeRules { boot: BootId([7; 16]), max_ahead: Duration::from_secs(600), earliest: Timestamp(0) },
};
const ANSWER: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    // Whether the gateway knows the time changes what readings are, not which.
    let trusted = size & 1 == 0;
    let now = Now { wall: Timestamp(1_767_225_600_000_000), trusted, monotonic: Duration::from_secs(1) };
    let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
    let mut session = Session::new(GRANTS, now);
    let mut last = 0;
    let mut answers = Vec::new();
    for piece in stream.chunks(usize::from(*size).max(1)) {
        let pushed = decoder.push(piece, &mut |event| {
            let Event::Frame(frame) = event else { return ControlFlow::Continue(()) };
            let Ok(message) = decode_device(&frame) else { return ControlFlow::Continue(()) };
            match session.take(message, now) {
                Ok(Step::Establish { first, .. }) => {
                    encode_gateway(&session.welcome(first, 0, now), ANSWER, &mut answers);
                    last = first.saturating_sub(1);
                }
                Ok(Step::Store(converted)) => {
                    for reading in converted.batches().flat_map(|batch| &batch.readings) {
                        assert_eq!(reading.origin_seq, last + 1, "readings are stored without a gap");
                        assert_eq!(reading.channels().len(), reading.values().len());
                        last += 1;
                    }
                    assert!(converted.last <= last || converted.batch.readings.is_empty());
                }
                Ok(Step::Reply(reply)) => encode_gateway(&reply, ANSWER, &mut answers),
                Ok(Step::Answer(_) | Step::SubDevice { .. } | Step::Leave) => {}
                Err(refusal) => {
                    assert!(!refusal.text.is_empty());
                    session.reset(now);
                }
            }
            ControlFlow::Continue(())
        });
        assert_eq!(pushed, Ok(()), "resynchronising does not fail");
    }
}
