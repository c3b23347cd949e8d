//! What comes from a broker: batches of readings in either encoding, and events.
//! Whatever it is, a consumer takes it or says why not, and a reading that comes twice
//! counts once.
//!
//! Input: messages, each a byte that chooses the topic, its length (2 bytes, big-endian)
//! and its payload.

use std::time::Duration;
use tidegate::cli::subscribe::consumer::Consumer;

pub fn check(mut input: &[u8]) {
    let mut consumer = Consumer::new(None, Duration::from_secs(1));
    let mut again = Consumer::new(None, Duration::from_secs(1));
    let mut now = Duration::ZERO;
    let mut fresh = 0;
    while let Some(([kind, high, low], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (payload, behind) = rest.split_at(length);
        input = behind;
        now += Duration::from_millis(u64::from(*kind));
        let topic = if kind % 2 == 0 { "tidegate/gw/readings" } else { "tidegate/gw/events" };
        let taken = consumer.take(topic, payload, now);
        fresh += taken.readings.len();
        let shown: usize = taken.readings.iter().map(|reading| reading.to_string().len()).sum();
        assert!(shown >= taken.readings.len());
        taken.notices.iter().for_each(|notice| assert!(!notice.to_string().is_empty()));
        consumer.tick(now).iter().for_each(|notice| assert!(!notice.to_string().is_empty()));

        let twice = [again.take(topic, payload, now), again.take(topic, payload, now)];
        assert_eq!(twice.iter().map(|taken| taken.readings.len()).sum::<usize>(), taken.readings.len());
    }
    let (_, summary) = consumer.finish();
    assert_eq!(summary.readings, fresh as u64);
    assert!(!summary.to_string().is_empty());
}
