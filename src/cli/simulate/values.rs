//! Values of simulated devices: a pure function of seed, device and seq, so that a receiver
//! can check them.

use crate::model::Value;
use crate::wire::message::ChannelRef;

/// Channels of a simulated device.
pub const CHANNELS: usize = 4;

const NAMES: [&str; CHANNELS] = ["temperature", "pressure", "humidity", "voltage"];
const UNITS: [&str; CHANNELS] = ["°C", "hPa", "%", "V"];

/// The channels' names, by index.
pub fn channel_names() -> [&'static str; CHANNELS] {
    NAMES
}

/// The channels' units, by index.
pub fn channel_units() -> [&'static str; CHANNELS] {
    UNITS
}

/// The values that device number `device` (from 1) sends with `seq`, by index.
pub fn sample(seed: u64, device: u64, seq: u64) -> Vec<(ChannelRef, Value)> {
    (0..)
        .zip(measure(seed, device, seq))
        .map(|(index, value)| (ChannelRef::Index(index), Value::Float(value)))
        .collect()
}

/// The same values without their channels. They drift slowly and jitter a little, with the
/// decimals of such sensors.
pub fn measure(seed: u64, device: u64, seq: u64) -> [f64; CHANNELS] {
    let place = mix(seed ^ mix(device));
    let [n0, n1, n2, n3, p0, p1, p2, p3] = mix(place ^ seq).to_le_bytes();
    let fine = |noise: u8, phase: u8| i32::from(noise % 7) - i32::from(phase % 4);
    let offset = |range: u64| i32::try_from(place % range).unwrap_or(0); // every range below is small
    let at = seq.wrapping_add(place % 3_600);
    [
        f64::from(1_950 + offset(400) + wave(at, 1_200, 250) + fine(n0, p0)) / 100.0,
        f64::from(10_000 + offset(250) + wave(at, 3_600, 120) + fine(n1, p1)) / 10.0,
        f64::from(380 + offset(150) + wave(at, 1_800, 90) + fine(n2, p2)) / 10.0,
        f64::from(3_250 + offset(50) + wave(at, 900, 20) + fine(n3, p3)) / 1_000.0,
    ]
}

/// A triangle from 0 to `height` and back in `2 * period` steps.
fn wave(at: u64, period: u64, height: u64) -> i32 {
    let step = at % (2 * period);
    let level = step.min(2 * period - step) * height / period;
    i32::try_from(level).unwrap_or(0) // at most height
}

/// Spreads a number over 64 bits, one to one (splitmix64's finaliser).
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_are_plausible_and_have_few_decimals(seed: u64, device: u64, seq: u64) {
            let ranges = [(19.0, 27.0), (995.0, 1_040.0), (37.0, 63.0), (3.2, 3.4)];
            for (value, (low, high)) in measure(seed, device, seq).into_iter().zip(ranges) {
                prop_assert!((low..high).contains(&value), "{} is not within {}..{}", value, low, high);
                prop_assert!(value.to_string().len() <= 6, "{}", value);
            }
        }
    }

    #[test]
    fn the_same_reading_always_has_the_same_values_and_others_have_others() {
        assert_eq!(sample(1, 2, 3), sample(1, 2, 3));
        let all: Vec<_> = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)].map(|(a, b, c)| sample(a, b, c)).into();
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one), "{one:?} stands twice");
        }
    }
}
