//! Text messages of either side: what can be read can be written, and read again as the
//! same message; what cannot is told in a few words.
//!
//! Input: a byte that tells who speaks and what is known of the device, then the text.

use std::fmt::Debug;
use tidegate::wire::message::DeviceClock;
use tidegate::wire::text::{Context, TextError, decode_device, decode_gateway, encode_device, encode_gateway};

/// A name of the device that is repeated, and what else an error may say.
const LONGEST_ERROR: usize = 1000;

fn round_trip<M: Debug>(
    text: &[u8],
    context: Context<'_>,
    decode: impl Fn(&[u8], Context<'_>) -> Result<M, TextError>,
    encode: impl Fn(&M, Context<'_>, &mut Vec<u8>),
) {
    match decode(text, context) {
        Ok(message) => {
            let mut again = Vec::new();
            encode(&message, context, &mut again);
            // As texts, in which NaN equals itself.
            assert_eq!(format!("{:?}", decode(&again, context)), format!("Ok({message:?})"));
        }
        Err(why) => assert!(why.to_string().len() <= LONGEST_ERROR, "{why}"),
    }
}

pub fn check(input: &[u8]) {
    let Some((known, text)) = input.split_first() else { return };
    let context = Context {
        device: (known & 2 != 0).then_some("pump"),
        clock: [None, Some(DeviceClock::Wall), Some(DeviceClock::SinceBoot), None][usize::from(known >> 2 & 3)],
        now: None,
    };
    if known & 1 == 0 {
        round_trip(text, context, decode_device, encode_device);
    } else {
        round_trip(text, context, decode_gateway, encode_gateway);
    }
}
