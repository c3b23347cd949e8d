//! All that a device can say, from its first byte on: what a link does with it before
//! the log sees a reading. What is stored is what was sent, in order and named.
//!
//! Where devices authenticate, nothing of a device is taken before it proved, to a nonce of
//! its own, that it has the key.
//!
//! Input: a byte that tells how large the pieces are, and by its highest bit whether
//! devices authenticate, then the stream.

use std::ops::ControlFlow;
use std::time::Duration;
use tidegate::clock::Now;
use tidegate::config::Authentication;
use tidegate::device::auth::{Key, Keys, Material, Nonce, Secret};
use tidegate::link::protocol::convert::TimeRules;
use tidegate::link::protocol::{Session, SessionParameters, Step};
use tidegate::model::{BootId, Timestamp};
use tidegate::wire::codec::{decode_device, encode_gateway};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, Recovery, Version};
use tidegate::wire::sift::sift;

const LIMITS: Limits = Limits { max_body: 64 * 1024, require_checksum: false };
const PARAMETERS: SessionParameters = SessionParameters {
    handshake_timeout: Some(Duration::from_secs(5)),
    heartbeat_interval: Duration::from_secs(30),
    idle_after: Duration::from_secs(45),
    idle_timeout: Duration::from_secs(90),
    window: 4096,
    max_frame: 64 * 1024,
    restart: true,
    times: TimeRules { boot: BootId([7; 16]), max_ahead: Duration::from_secs(600), earliest: Timestamp(0) },
    authentication: Authentication::None,
};
const ANSWER: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };

pub fn check(input: &[u8]) {
    let Some((size, stream)) = input.split_first() else { return };
    // Whether the gateway knows the time changes what readings are, not which.
    let trusted = size & 1 == 0;
    let now = Now { wall: Timestamp(1_767_225_600_000_000), trusted, monotonic: Duration::from_secs(1) };
    let mut decoder = Decoder::new(LIMITS, Recovery::Resync);
    let authentication = if size & 0x80 == 0 { Authentication::None } else { Authentication::Token };
    let mut session = Session::new(SessionParameters { authentication, ..PARAMETERS }, now);
    let keys = keys();
    // The nonce of the challenge that is open, and whether the device may send readings.
    let (mut open, mut admitted, mut challenges) = (None, authentication == Authentication::None, 0_u8);
    let mut last = 0;
    let mut answers = Vec::new();
    for piece in stream.chunks(usize::from(*size).max(1)) {
        let pushed = decoder.push(piece, &mut |event| {
            let Event::Frame(frame) = event else { return ControlFlow::Continue(()) };
            let step = match decode_device(&frame) {
                Ok(message) => session.take(message, now),
                Err(_) => match sift(&frame, session.context()) {
                    Some(sifted) => session.sift(sifted, now),
                    None => return ControlFlow::Continue(()),
                },
            };
            // What is left of a message is to come in the next session.
            let ends = matches!(step, Ok(Step::StorePart(..)));
            match step {
                Ok(Step::Introduced(device)) => {
                    assert!(session.device().is_none(), "{device} has still to prove who it is");
                    challenges = challenges.wrapping_add(1);
                    let nonce: Nonce = [challenges; 32];
                    encode_gateway(&session.challenge(nonce), ANSWER, &mut answers);
                    (open, admitted) = (Some(nonce), false);
                }
                Ok(Step::Authenticate(attempt)) => {
                    assert_eq!(Some(attempt.nonce), open.take(), "a nonce is good for one attempt");
                    match keys.verify(&attempt, authentication) {
                        Ok(key) => {
                            assert!(key.is_for(&attempt.device));
                            let Some(Step::Establish { device, first, .. }) = session.admit(now) else {
                                panic!("nobody to admit")
                            };
                            assert_eq!(device, attempt.device);
                            encode_gateway(&session.welcome(first, 0, now), ANSWER, &mut answers);
                            (admitted, last) = (true, first.saturating_sub(1));
                        }
                        Err(_) => session.reset(now),
                    }
                }
                Ok(Step::Establish { first, .. }) => {
                    assert_eq!(authentication, Authentication::None);
                    encode_gateway(&session.welcome(first, 0, now), ANSWER, &mut answers);
                    last = first.saturating_sub(1);
                }
                Ok(Step::Store(converted) | Step::StorePart(converted, _)) => {
                    assert!(admitted && session.device().is_some());
                    for reading in converted.batches().flat_map(|batch| &batch.readings) {
                        assert_eq!(reading.origin_seq, last + 1, "readings are stored without a gap");
                        assert_eq!(reading.channels().len(), reading.values().len());
                        last += 1;
                    }
                    assert!(converted.last <= last || converted.batch.readings.is_empty());
                    assert!(converted.refused.count() <= last);
                }
                Ok(Step::Reply(reply)) => encode_gateway(&reply, ANSWER, &mut answers),
                Ok(Step::Answer(_) | Step::SubDevice { .. } | Step::Lost { .. } | Step::Leave) => {}
                Err(refusal) => {
                    assert!(!refusal.text.is_empty());
                    session.reset(now);
                    (open, admitted) = (None, authentication == Authentication::None);
                }
            }
            if ends {
                session.reset(now);
                (open, admitted) = (None, authentication == Authentication::None);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(pushed, Ok(()), "resynchronising does not fail");
    }
}

/// One key of each kind, whose holders are not hard to guess.
fn keys() -> Keys {
    let key =
        |name: &str, material| Key { name: name.into(), devices: vec!["p*".into()], created: Timestamp(0), material };
    let secret = Secret([0; 32]);
    Keys::new([key("t", Material::Token(secret.token_hash())), key("h", Material::Hmac(secret))])
}
