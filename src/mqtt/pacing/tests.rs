use super::*;
use proptest::prelude::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn pacing() -> Pacing {
    Pacing::new(Duration::from_secs(30))
}

/// A link with this throughput, filled for this time by batches of the recommended size; every
/// publish is confirmed `beside` later. Returns the bytes in flight at the end.
fn saturated(pacing: &mut Pacing, bytes_a_second: f64, beside: Duration, from: Duration, until: Duration) -> usize {
    let (mut in_flight, mut bytes): (std::collections::VecDeque<(usize, Duration, Duration)>, _) = Default::default();
    let (mut now, mut link_free) = (from, from);
    while now < until {
        while pacing.has_room(bytes) {
            let size = pacing.batch().min(16_384);
            link_free = link_free.max(now) + Duration::from_secs_f64(size as f64 / bytes_a_second);
            in_flight.push_back((size, now, link_free + beside));
            bytes += size;
            pacing.wrote(now);
            if bytes > 400_000 {
                break;
            }
        }
        let (size, written, confirmed) = in_flight.pop_front().expect("something is in flight");
        now = now.max(confirmed);
        pacing.confirmed(size, bytes, written, now);
        bytes -= size;
    }
    bytes
}

#[test]
fn a_slow_link_holds_a_few_seconds_of_data_and_a_fast_one_as_much_as_there_is() {
    for (rate, beside, least, most) in [
        (600.0, ms(500), 1_000, 6_000),
        (1_200.0, ms(500), 3_000, 12_000),
        (8_000.0, ms(100), 20_000, 70_000),
        (10_000_000.0, ms(1), 300_000, usize::MAX),
        // A satellite: a round trip of 600 ms.
        (1_000_000.0, ms(600), 300_000, usize::MAX),
    ] {
        let mut pacing = pacing();
        let bytes = saturated(&mut pacing, rate, beside, ms(0), ms(600_000));
        assert!(bytes >= least && bytes <= most, "{bytes} at {rate}");
    }
}

#[test]
fn a_broker_that_confirms_late_has_no_less_in_flight() {
    let mut pacing = pacing();
    let bytes = saturated(&mut pacing, 1_000_000.0, Duration::from_secs(12), ms(0), Duration::from_secs(600));
    assert!(bytes > 300_000, "{bytes}");
}

#[test]
fn a_link_that_becomes_slow_holds_less() {
    let mut pacing = pacing();
    saturated(&mut pacing, 100_000.0, ms(100), ms(0), ms(60_000));
    let bytes = saturated(&mut pacing, 1_200.0, ms(100), ms(60_000), ms(2_000_000));
    assert!(bytes < 12_000, "{bytes}");
}

#[test]
fn little_traffic_does_not_show_what_a_link_carries() {
    let mut pacing = pacing();
    for second in 0..1000 {
        pacing.confirmed(100, 100, ms(second * 1000), ms(second * 1000 + 200));
    }
    assert_eq!(pacing.batch(), FIRST / PARTS);
}

#[test]
fn one_missing_confirmation_is_an_accident_and_more_are_a_limit() {
    let mut pacing = pacing();
    for i in 0..100 {
        pacing.confirmed(100, 100, ms(i), ms(i + 1));
    }
    assert!(!pacing.missing(ms(500), ms(1500)));
    assert_eq!(pacing.limit(ms(1500)), None);
    assert!(pacing.missing(ms(510), ms(1500)));
    assert_eq!(pacing.limit(ms(1500)).map(f64::round), Some(95.0));
    assert!(!pacing.missing(ms(520), ms(1500)), "for what was written before once only");
    assert_eq!(pacing.limit(ms(1500)).map(f64::round), Some(95.0));
    assert!(pacing.limit(ms(6_500)).is_some_and(|limit| limit > 100.0), "it grows");
    assert_eq!(pacing.limit(ms(120_000)), None, "without end");
}

#[test]
fn a_broker_that_refuses_everything_is_asked_ever_more_seldom_and_is_never_given_up() {
    let mut pacing = pacing();
    let (mut now, mut asked) = (ms(0), 0);
    while now < Duration::from_secs(600) {
        pacing.wrote(now);
        pacing.refused(now, now + ms(1));
        now = pacing.next().max(now + ms(1));
        asked += 1;
    }
    assert!((50..200).contains(&asked), "{asked}");
}

/// A broker that confirms at most `limit` publishes a second and discards the rest, and a sender
/// that notices missing ones `late` afterwards, with a window of 32.
fn throttled(limit: u32, late: Duration, refuses: bool, seconds: u64) -> (f64, f64) {
    let mut pacing = pacing();
    let (mut taken, mut sent, mut now) = (vec![0u32; seconds as usize + 1], 0u32, ms(0));
    let mut told: std::collections::VecDeque<(Duration, Duration)> = Default::default();
    while now < Duration::from_secs(seconds) {
        while let Some((written, at)) = told.front().copied()
            && at <= now
        {
            told.pop_front();
            if refuses {
                pacing.refused(written, now)
            } else {
                pacing.missing(written, now)
            };
        }
        if pacing.next() <= now && told.len() < 32 {
            pacing.wrote(now);
            sent += 1;
            let this_second = &mut taken[now.as_secs() as usize];
            if *this_second < limit {
                *this_second += 1;
                pacing.confirmed(1000, 1000, now, now + ms(1));
            } else {
                told.push_back((now, now + late));
            }
        }
        now += ms(1);
    }
    let taken: u32 = taken.iter().sum();
    (f64::from(taken) / f64::from(limit) / seconds as f64, f64::from(sent - taken) / f64::from(sent))
}

#[test]
fn a_limit_is_used_to_90_percent_and_little_is_sent_in_vain() {
    for limit in [5, 20, 100, 400] {
        for (late, refuses) in [(ms(1000), false), (ms(20), true)] {
            let (used, in_vain) = throttled(limit, late, refuses, 120);
            println!(
                "limit {limit}/s, refuses {refuses}: used {:.1} %, in vain {:.1} %",
                used * 100.0,
                in_vain * 100.0
            );
            assert!(used > 0.9, "{used} of {limit}/s, refuses {refuses}");
            assert!(in_vain < 0.1, "{in_vain} of {limit}/s, refuses {refuses}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Something can always be sent in bounded time and size.
    #[test]
    fn it_never_stalls(steps in proptest::collection::vec((0..4u8, 0..20_000u64, 0..100_000usize), 0..300)) {
        let mut pacing = pacing();
        let mut now = ms(0);
        for (what, passed, bytes) in steps {
            let written = now;
            now += ms(passed);
            match what {
                0 => pacing.wrote(now),
                1 => pacing.confirmed(bytes, bytes * 2, written, now),
                2 => drop(pacing.missing(written, now)),
                _ => drop(pacing.refused(written, now)),
            }
            prop_assert!(pacing.has_room(0) && pacing.batch() >= LEAST / PARTS);
            prop_assert!(pacing.limit(now).is_none_or(|limit| limit >= SLOWEST));
            prop_assert!(pacing.resend_after(1) <= pacing.resend_after(9) && pacing.resend_after(9) <= LATEST_RESEND);
            if what == 0 {
                // A client writes nothing before its time.
                now = now.max(pacing.next());
            }
            prop_assert!(pacing.next() <= now + Duration::from_secs(21), "{:?} at {now:?}", pacing.next());
        }
    }
}
