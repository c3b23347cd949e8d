//! Extracts the valid samples of Readings that contain invalid ones.
//!
//! Only a message that cannot be decoded as a whole comes here: an invalid sample must not
//! keep the following ones from being stored. In JSON and Protobuf the end of a sample is
//! known whatever it contains; in postcard only if the whole sample is decoded, so that the
//! samples after an invalid one stay hidden.

use super::codec;
use super::frame::{BodyEncoding, FrameRef, Version};
use super::message::Sample;
pub use super::samples::{KEPT, Sifted, Unreadable};
use super::samples::{hexadecimal, members, one, sifted};
use super::text::{self, Context};

/// Whether a frame holds Readings, by its type.
pub fn may_be_readings(frame: &FrameRef<'_>) -> bool {
    frame.format.version == Version::Text || frame.kind == codec::READINGS
}

/// Splits Readings that could not be decoded; `None` if their seq or the bounds of their
/// samples are unknown, or if no sample is invalid.
pub fn sift(frame: &FrameRef<'_>, context: Context<'_>) -> Option<Sifted> {
    if !may_be_readings(frame) {
        return None;
    }
    let sifted = match (frame.format.version, frame.format.encoding) {
        (Version::Text, _) => text::sift(frame.body, context)?,
        (_, BodyEncoding::Json) => json(frame.body)?,
        (_, BodyEncoding::Postcard) => postcard(frame.body)?,
        (_, BodyEncoding::Protobuf) => codec::sift_protobuf(frame.body)?,
    };
    sifted.samples.iter().any(Result::is_err).then_some(sifted)
}

fn postcard(body: &[u8]) -> Option<Sifted> {
    /// A time and no values.
    const SMALLEST: u64 = 2;
    let ((seq, sub, count), mut rest) = ::postcard::take_from_bytes::<(u64, Option<String>, u64)>(body).ok()?;
    if count > (rest.len() as u64).div_ceil(SMALLEST) {
        return None;
    }
    let (mut samples, mut cut) = (Vec::new(), false);
    while (samples.len() as u64) < count {
        match ::postcard::take_from_bytes::<Sample>(rest) {
            Ok((sample, behind)) => {
                samples.push(Ok(sample));
                rest = behind;
            }
            Err(why) => {
                cut = why == ::postcard::Error::DeserializeUnexpectedEnd;
                let time = ::postcard::take_from_bytes::<i64>(rest).ok().map(|(time, _)| time);
                samples.push(Err(Unreadable { time, why: why.to_string(), sent: hexadecimal(rest) }));
                break;
            }
        }
    }
    let hidden = count - samples.len() as u64;
    Some(Sifted { seq, sub, samples, hidden, cut })
}

fn json(body: &[u8]) -> Option<Sifted> {
    let fields = members(body)?;
    let seq = serde_json::from_slice(one(&fields, "seq")?).ok()?;
    let sub = match one(&fields, "sub") {
        Some(sub) => serde_json::from_slice(sub).ok()?,
        None => None,
    };
    let read = |sent: &[u8]| serde_json::from_slice(sent).map_err(|why| why.to_string());
    let time = |sent: &[u8]| serde_json::from_slice(sent).ok();
    sifted(seq, sub, one(&fields, "samples")?, &read, &time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Value;
    use crate::wire::codec::{decode_device_in, encode_device};
    use crate::wire::frame::{Format, HEADER};
    use crate::wire::message::{ChannelRef, DeviceClock, DeviceMessage, Readings};

    const CONTEXT: Context<'_> = Context { device: Some("hub"), clock: Some(DeviceClock::SinceBoot), now: None };

    fn format(encoding: BodyEncoding) -> Format {
        Format { version: Version::V2, encoding }
    }

    fn frame(encoding: BodyEncoding, body: &[u8]) -> FrameRef<'_> {
        FrameRef { format: format(encoding), kind: codec::READINGS, body }
    }

    /// Which samples are valid, and the report of the first invalid one.
    fn told(frame: &FrameRef<'_>) -> (u64, Vec<bool>, u64, Unreadable) {
        assert!(decode_device_in(frame, CONTEXT).is_err(), "it decodes");
        let sifted = sift(frame, CONTEXT).expect("its samples show");
        let bad = sifted.samples.iter().find_map(|sample| sample.clone().err()).expect("one is at fault");
        (sifted.seq, sifted.samples.iter().map(Result::is_ok).collect(), sifted.hidden, bad)
    }

    #[test]
    fn in_json_each_sample_stands_by_itself() {
        for (bad, word) in [
            (r#"{"time":2,"values":{"a":null}}"#, "null"),
            (r#"{"time":2,"values":{"a":NaN}}"#, "expected"),
            (r#"{"time":2,"values":{"a":"x}],\"","b":[1,{}]}}"#, "sequence"),
            (r#"{"time":2,"values":{"a":1e999}}"#, "out of range"),
            (r##"{"time":2,"values":{"#70000":1}}"##, "no channel index"),
            (r#"{"time":2,"values":5}"#, "object of channels"),
            (r#"{"time":2}"#, "values"),
        ] {
            let body = format!(
                r#"{{"seq":7,"sub":null,"samples":[{{"time":1,"values":{{"a":1}}}}, {bad} ,{{"time":3,"values":{{}}}}]}}"#
            );
            let (seq, fine, hidden, why) = told(&frame(BodyEncoding::Json, body.as_bytes()));
            assert_eq!((seq, fine, hidden, why.time), (7, vec![true, false, true], 0, Some(2)), "{bad}");
            assert!(why.why.contains(word) && why.sent == bad, "{why:?}");
        }
        let latin = b"{\"seq\":1,\"samples\":[{\"time\":1,\"values\":{\"\xb0C\":1}},{\"time\":2,\"values\":{}}]}";
        assert_eq!(told(&frame(BodyEncoding::Json, latin)).1, [false, true]);
    }

    #[test]
    fn in_text_messages_too() {
        let text = r#"{"deviceId":"hub/door","command":"readings","payload":{"seq":3,"samples":[
            {"time":"2026-11-23T01:02:03Z","values":{}},{"time":5,"values":{"a":1}}]}}"#;
        let format = Format { version: Version::Text, encoding: BodyEncoding::Json };
        let (seq, fine, _, why) = told(&FrameRef { format, kind: 0, body: text.as_bytes() });
        assert_eq!((seq, fine), (3, vec![false, true]));
        assert!(why.why.contains("since-boot"), "{why:?}");
        assert_eq!(sift(&FrameRef { format, kind: 0, body: br#"{"command":"goodbye","payload":{}}"# }, CONTEXT), None);
    }

    fn encoded(encoding: BodyEncoding) -> Vec<u8> {
        let sample =
            |time, text: &str| Sample { time, values: vec![(ChannelRef::Name("a".into()), Value::Text(text.into()))] };
        let samples = vec![sample(1, "fine"), sample(2, "BAD!"), sample(3, "fine")];
        let mut out = Vec::new();
        let readings = Readings { seq: 7, sub: Some("s".into()), samples };
        encode_device(
            &DeviceMessage::Readings(readings),
            Format { version: Version::V1, ..format(encoding) },
            &mut out,
        );
        out.split_off(HEADER)
    }

    fn replaced(body: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
        let at = body.windows(what.len()).position(|bytes| bytes == what).expect("it is there");
        [&body[..at], by, &body[at + what.len()..]].concat()
    }

    #[test]
    fn in_protobuf_each_sample_stands_by_itself() {
        let body = replaced(&encoded(BodyEncoding::Protobuf), b"BAD!", b"\xff\xff\xff\xff");
        let (seq, fine, hidden, why) = told(&frame(BodyEncoding::Protobuf, &body));
        assert_eq!((seq, fine, hidden, why.time), (7, vec![true, false, true], 0, Some(2)));
        assert!(why.why.contains("UTF-8") && why.sent.contains("ffffffff"), "{why:?}");
    }

    #[test]
    fn in_postcard_a_sample_that_is_not_understood_hides_those_behind_it() {
        // A value of type 9.
        let body = replaced(&encoded(BodyEncoding::Postcard), b"\x03\x04BAD!", b"\x09\x04BAD!");
        let (seq, fine, hidden, why) = told(&frame(BodyEncoding::Postcard, &body));
        assert_eq!((seq, fine, hidden, why.time), (7, vec![true, false], 1, Some(2)));
        assert!(why.sent.contains("09"), "{why:?}");
    }

    #[test]
    fn where_it_does_not_show_what_a_message_holds_it_is_left_alone() {
        let postcard = encoded(BodyEncoding::Postcard);
        for body in [&b""[..], b"\x01", b"\x01\x00\xff\xff\xff\xff\x0f\x00"] {
            assert_eq!(sift(&frame(BodyEncoding::Postcard, body), CONTEXT), None, "{body:?}");
        }
        assert_eq!(sift(&frame(BodyEncoding::Postcard, &postcard), CONTEXT), None, "nothing is wrong with it");
        for body in [
            "",
            "{",
            "[]",
            r#"{"seq":1}"#,
            r#"{"seq":-1,"samples":[1]}"#,
            r#"{"seq":1,"samples":[1}"#,
            r#"{"seq":1,"seq":2,"samples":[1]}"#,
            r#"{"seq":1,"samples":["]}"#,
            r#"{"seq":1,"sub":3,"samples":[1]}"#,
            r#"{"seq":1,"samples":[}]}"#,
        ] {
            assert_eq!(sift(&frame(BodyEncoding::Json, body.as_bytes()), CONTEXT), None, "{body}");
        }
    }
}
