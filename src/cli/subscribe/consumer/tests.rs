use super::*;
use crate::config::Encoding;
use crate::model::{Basis, ChannelName, DeviceId, Origin, Reading, Seq, Timestamp, Value};
use crate::sink::Identity;
use crate::sink::encode::Entry;
use gaps::{Missing, What};
use proptest::prelude::*;
use std::collections::HashSet;

const TOPIC: &str = "tidegate/gw-01/readings";
const EVENTS: &str = "tidegate/gw-01/events";
const GRACE: Duration = Duration::from_secs(5);

/// A batch of readings with these seqs and device seqs, of one device's session.
fn batch(encoding: Encoding, session: Option<u64>, seqs: impl IntoIterator<Item = (u64, u64)>) -> Vec<u8> {
    let identity = Identity { gateway: GatewayId::new("gw-01").expect("a valid name"), epoch: Epoch(9) };
    let device = DeviceId::new("pump-7").expect("a valid name");
    let channels = [ChannelName::new("t").expect("a valid name")];
    let mut writer = encode::writer(encoding, &identity);
    for (seq, origin) in seqs {
        let values = Box::new([Value::Float(origin as f64 + 0.5)]);
        let time = Timestamp(1_795_395_723_456_000);
        let reading = Reading::new(origin, time, channels.clone().into(), values).expect("one each");
        let origin = session.map(|session| Origin { session, seq: origin });
        writer.add(&Entry {
            seq: Seq(seq),
            device: &device,
            origin,
            replay: false,
            basis: Basis::Wall,
            reading: &reading,
        });
    }
    writer.finish()
}

fn json(seqs: impl IntoIterator<Item = (u64, u64)>) -> Vec<u8> {
    batch(Encoding::Json, Some(7), seqs)
}

fn seqs(taken: &Taken) -> Vec<u64> {
    taken.readings.iter().map(|fresh| fresh.reading.seq.0).collect()
}

fn gap_event(first: u64, last: u64, reason: &str) -> Vec<u8> {
    let event = serde_json::json!({
        "type": "gap", "reason": reason, "first": first, "last": last, "count": last - first + 1,
        "undelivered": {"mqtt": 3}, "gateway": "gw-01", "epoch": 9, "id": 4, "time": "2026-11-23T01:02:03.456000Z",
    });
    event.to_string().into_bytes()
}

#[test]
fn every_encoding_is_decoded_and_duplicates_between_them_are_dropped() {
    let mut consumer = Consumer::new(None, GRACE);
    let taken = consumer.take(TOPIC, &json([(1, 1), (2, 2)]), Duration::ZERO);
    assert_eq!(seqs(&taken), [1, 2]);
    let taken = consumer.take(TOPIC, &batch(Encoding::Postcard, Some(7), [(2, 2), (3, 3)]), Duration::ZERO);
    assert_eq!(seqs(&taken), [3]);
    let (notices, summary) = consumer.finish();
    assert_eq!(notices, []);
    assert_eq!((summary.readings, summary.duplicates, summary.missing), (3, 1, Totals::default()));
}

#[test]
fn a_reading_sent_again_under_a_new_seq_after_a_crash_is_dropped() {
    let mut consumer = Consumer::new(None, GRACE);
    assert_eq!(seqs(&consumer.take(TOPIC, &json([(1, 1), (2, 2)]), Duration::ZERO)), [1, 2]);
    consumer.take(EVENTS, &gap_event(1, 1_048_576, "restart"), Duration::ZERO);
    let again = json([(1_048_577, 2), (1_048_578, 3)]);
    assert_eq!(seqs(&consumer.take(TOPIC, &again, Duration::ZERO)), [1_048_578]);
    let notices: Vec<_> = consumer.tick(GRACE).iter().map(Notice::to_string).collect();
    assert_eq!(notices, ["gap: gw-01 epoch 9: seqs 3 to 1048576 (1048574) are missing, explained: restart"]);
    let explained = Missing { gaps: 1, seqs: 1_048_574 };
    assert_eq!(consumer.finish().1.missing, Totals { explained, ..Totals::default() });
}

#[test]
fn that_another_sink_is_forgotten_explains_nothing_that_is_missing_here() {
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &batch(Encoding::Postcard, None, [(1, 0), (3, 0)]), Duration::ZERO);
    assert_eq!(consumer.take(EVENTS, &gap_event(1, 3, "forgotten"), Duration::ZERO), Taken::default());
    assert_eq!(consumer.finish().1.missing.unexplained, Missing { gaps: 1, seqs: 1 });
}

#[test]
fn a_new_epoch_begins_where_its_event_says_and_the_one_before_ends_there() {
    let event = |body: serde_json::Value| body.to_string().into_bytes();
    let begins = event(serde_json::json!({"type": "epoch", "was": 9, "first": 11, "gateway": "gw-01", "epoch": 12}));
    let reading = |epoch: u32, seq: u64, origin: u64| {
        let text = r#"{"gateway":"gw-01","epoch":EPOCH,"readings":[{"seq":SEQ,"device":"d","origin":[7,ORIGIN],"time":"0","values":{}}]}"#;
        let text = text.replace("EPOCH", &epoch.to_string()).replace("SEQ", &seq.to_string());
        text.replace("ORIGIN", &origin.to_string()).into_bytes()
    };
    let told = |consumer: &mut Consumer| consumer.tick(GRACE * 9).iter().map(Notice::to_string).collect::<Vec<_>>();

    // Everything before the boundary arrived, and the first readings after it.
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &json([(9, 1), (10, 2)]), Duration::ZERO);
    let taken = consumer.take(EVENTS, &begins, Duration::ZERO);
    let notices: Vec<_> = taken.notices.iter().map(Notice::to_string).collect();
    assert_eq!(notices, ["gw-01: epoch 9 ended before seq 11, where epoch 12 begins"]);
    // An old copy of the log was restored: the same seqs are other readings there.
    assert_eq!(seqs(&consumer.take(TOPIC, &reading(12, 11, 3), Duration::ZERO)), [11]);
    assert_eq!(told(&mut consumer), Vec::<String>::new());

    // Two epochs are reported late, under a third; the middle one has no readings.
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &json([(9, 1)]), Duration::ZERO);
    for (was, begins, first) in [(9, 12, 11), (12, 15, 21)] {
        let late = serde_json::json!({
            "type": "epoch", "was": was, "begins": begins, "first": first, "gateway": "gw-01", "epoch": 15,
        });
        consumer.take(EVENTS, &event(late), Duration::ZERO);
    }
    consumer.take(TOPIC, &reading(15, 21, 2), Duration::ZERO);
    let missing = [
        "gap: gw-01 epoch 12: seqs 11 to 20 (10) are missing, unexplained",
        "gap: gw-01 epoch 9: seqs 10 to 10 (1) are missing, unexplained",
    ];
    let mut notices = told(&mut consumer);
    notices.sort_unstable();
    assert_eq!(notices, missing);

    // Readings of the epoch before that are still missing are reported before those of the new one.
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &json([(7, 1)]), Duration::ZERO);
    consumer.take(EVENTS, &begins, Duration::ZERO);
    assert_eq!(told(&mut consumer), Vec::<String>::new());
    consumer.take(TOPIC, &json([(8, 2), (9, 3)]), Duration::ZERO);
    consumer.take(TOPIC, &reading(12, 11, 5), Duration::ZERO);
    assert_eq!(told(&mut consumer), ["gap: gw-01 epoch 9: seqs 10 to 10 (1) are missing, unexplained"]);

    // Readings are missing on both sides.
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &json([(7, 1), (8, 2)]), Duration::ZERO);
    consumer.take(TOPIC, &reading(12, 13, 3), Duration::ZERO);
    consumer.take(EVENTS, &begins, Duration::ZERO);
    let gap = serde_json::json!({
        "type": "gap", "reason": "restart", "first": 9, "last": 12, "gateway": "gw-01", "epoch": 12,
        "parts": [{"epoch": 9, "first": 9, "last": 10}, {"epoch": 12, "first": 11, "last": 11}],
    });
    consumer.take(EVENTS, &event(gap), Duration::ZERO);
    assert_eq!(told(&mut consumer).len(), 3);
    let missing = consumer.finish().1.missing;
    assert_eq!(missing.explained, Missing { gaps: 2, seqs: 3 });
    assert_eq!(missing.unexplained, Missing { gaps: 1, seqs: 1 });

    // A gap of another epoch than the one it is published under.
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &json([(7, 1), (10, 4)]), Duration::ZERO);
    let gap = serde_json::json!({
        "type": "gap", "reason": "max_size", "first": 8, "last": 9, "gateway": "gw-01", "epoch": 12, "of_epoch": 9,
    });
    consumer.take(EVENTS, &event(gap), Duration::ZERO);
    assert_eq!(consumer.finish().1.missing.explained, Missing { gaps: 1, seqs: 2 });
}

#[test]
fn a_lost_reading_is_an_unexplained_gap() {
    let mut consumer = Consumer::new(None, GRACE);
    consumer.take(TOPIC, &batch(Encoding::Postcard, None, [(1, 0), (3, 0)]), Duration::ZERO);
    assert_eq!(consumer.tick(GRACE / 2), []);
    assert!(consumer.is_waiting());
    let (notices, summary) = consumer.finish();
    assert!(matches!(&*notices, [Notice::Gap(gap)] if gap.what == What::Missing && (gap.first, gap.last) == (2, 2)));
    assert_eq!(summary.missing.unexplained, Missing { gaps: 1, seqs: 1 });
}

#[test]
fn a_limit_is_kept_and_what_comes_later_still_fills_gaps() {
    let mut consumer = Consumer::new(Some(3), GRACE);
    assert_eq!(seqs(&consumer.take(TOPIC, &json([(1, 1), (4, 4), (5, 5), (6, 6), (9, 9)]), Duration::ZERO)), [1, 4, 5]);
    assert!(consumer.is_full() && consumer.is_waiting());
    assert_eq!(consumer.take(TOPIC, &json([(2, 2), (3, 3)]), Duration::ZERO), Taken::default());
    assert!(!consumer.is_waiting());
    assert_eq!(consumer.finish().1.missing, Totals::default());
}

#[test]
fn what_cannot_be_decoded_is_told_of_and_counted() {
    let mut consumer = Consumer::new(None, GRACE);
    let bad: [(&str, &[u8]); 7] = [
        (TOPIC, b""),
        (TOPIC, b"{\"gateway\":1}"),
        (TOPIC, b"\x01\xff\xff"),
        (TOPIC, b"\x77"),
        (EVENTS, b"gap"),
        (EVENTS, b"{\"type\":\"gap\"}"),
        (EVENTS, b"{\"type\":\"gap\",\"gateway\":\"g\",\"epoch\":1,\"first\":5,\"last\":4,\"reason\":\"x\"}"),
    ];
    for (topic, payload) in bad {
        let taken = consumer.take(topic, payload, Duration::ZERO);
        let [notice] = &*taken.notices else { panic!("{taken:?}") };
        assert!(notice.to_string().starts_with(&format!("warning: message on {topic:?}")), "{notice}");
    }
    assert_eq!(consumer.take(EVENTS, b"{\"type\":\"alarm\"}", Duration::ZERO), Taken::default());
    assert_eq!(consumer.finish().1.undecodable, 7);
}

#[test]
fn a_reading_prints_as_an_object_or_as_a_line() {
    let mut consumer = Consumer::new(None, GRACE);
    let payload = concat!(
        r#"{"gateway":"gw-01","epoch":9,"readings":[{"seq":1,"device":"hub/a","origin":[7,15],"#,
        r#""time":"2026-11-23T01:02:03.456Z","replay":true,"values":{"t":21.0,"on":true,"a b":"x\u001b","n":-3}}]}"#
    );
    let taken = consumer.take(TOPIC, payload.as_bytes(), Duration::ZERO);
    let fresh = taken.readings.first().expect("one reading");
    let expected = concat!(
        r#"{"gateway":"gw-01","epoch":9,"seq":1,"device":"hub/a","origin":[7,15],"#,
        r#""time":"2026-11-23T01:02:03.456000Z","replay":true,"values":{"t":21.0,"on":true,"a b":"x\u001b","n":-3}}"#
    );
    assert_eq!(serde_json::to_string(fresh).expect("plain fields"), expected);
    let line = r#"2026-11-23T01:02:03.456000Z gw-01/hub/a t=21.0 on=true "a b"="x\u001b" n=-3"#;
    assert_eq!(fresh.to_string(), line);
}

#[test]
fn a_summary_tells_only_of_messages_left_out_if_there_were() {
    let (_, summary) = Consumer::new(None, GRACE).finish();
    assert!(!summary.to_string().contains("left out"));
    let text = Summary { undecodable: 2, ..summary }.to_string();
    assert!(text.ends_with("unexplained 0 (0 seqs)\nmessages left out   2"), "{text}");
}

#[test]
fn it_is_told_when_a_boot_began() {
    let boot = "1057ad3f-6b73-4ba0-b931-e0fffe44996e";
    let event = |began: &str| {
        let body = serde_json::json!({"type": "clock", "gateway": "gw", "boot": boot, "began": began, "id": 3});
        Consumer::new(None, GRACE).take(EVENTS, body.to_string().as_bytes(), Duration::ZERO).notices
    };
    let notices = event("2026-11-23T01:02:03.456000Z");
    let told: Vec<_> = notices.iter().map(Notice::to_string).collect();
    assert_eq!(told, [format!("gw: boot {boot} began at 2026-11-23T01:02:03.456000Z")]);
    assert!(matches!(&*event("tomorrow"), [Notice::Undecodable { .. }]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However batches are cut, repeated and shuffled, each reading comes out once.
    #[test]
    fn each_reading_comes_out_once(
        order in proptest::collection::vec((1..40u64, 1..6u64, any::<bool>()), 1..60), with_origin: bool
    ) {
        let mut consumer = Consumer::new(None, GRACE);
        let (mut sent, mut got, mut total) = (HashSet::new(), Vec::new(), 0);
        for (first, count, json) in order {
            let encoding = if json { Encoding::Json } else { Encoding::Postcard };
            let numbers = first..first + count;
            sent.extend(numbers.clone());
            total += count;
            let payload = batch(encoding, with_origin.then_some(7), numbers.map(|n| (n, n)));
            got.extend(seqs(&consumer.take(TOPIC, &payload, Duration::ZERO)));
        }
        prop_assert_eq!(got.len(), sent.len());
        prop_assert_eq!(got.into_iter().collect::<HashSet<_>>(), sent.clone());
        prop_assert_eq!(consumer.finish().1.duplicates, total - sent.len() as u64);
    }

    #[test]
    fn nothing_that_comes_makes_it_panic(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..10), events: bool
    ) {
        let mut consumer = Consumer::new(None, GRACE);
        for payload in payloads {
            consumer.take(if events { EVENTS } else { TOPIC }, &payload, Duration::ZERO);
        }
        consumer.finish();
    }
}

#[test]
fn the_end_of_a_command_is_told() {
    let mut consumer = Consumer::new(None, GRACE);
    let mut told = |topic: &str, body: serde_json::Value| {
        let taken = consumer.take(topic, body.to_string().as_bytes(), Duration::ZERO);
        taken.notices.iter().map(Notice::to_string).collect::<Vec<_>>()
    };
    let result = serde_json::json!({
        "type": "command-result", "gateway": "gw-01", "epoch": 1, "event": 4, "device": "hub/door", "id": "c-1",
        "name": "open", "state": "failed", "payload": {"error": "stuck"}, "time": "2026-11-23T01:02:03Z",
    });
    let line = "gw-01/hub/door: command \"c-1\" \"failed\" {\"error\":\"stuck\"}";
    assert_eq!(told("tidegate/gw-01/devices/hub/door/result", result), [line]);
    let rejected = serde_json::json!({"type": "command-result", "gateway": "gw-01", "id": null, "state": "rejected"});
    assert_eq!(told("tidegate/gw-01/result", rejected), ["gw-01: command \"without an id\" \"rejected\""]);
}
