use super::*;
use crate::mqtt::pacing::Learnt;
use proptest::prelude::*;

fn version() -> impl Strategy<Value = Version> {
    proptest::sample::select(&[Version::V3_1_1, Version::V5][..])
}

/// At most `most` of a thousand, mostly none.
fn rarely(most: u32) -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0), 1 => 0..=most]
}

fn at_some_time() -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![2 => Just(None), 1 => (0..60_000u64).prop_map(|ms| Some(Duration::from_millis(ms)))]
}

prop_compose! {
    fn plans()(
        version in version(),
        seed in any::<u64>(),
        rate in proptest::sample::select(&[600u64, 5_000, 100_000, 10_000_000][..]),
        delay in proptest::sample::select(&[0u64, 20, 250, 1000][..]),
        socket in proptest::sample::select(&[300usize, 4_000, 1 << 20][..]),
        receive_maximum in proptest::option::of(1u16..40),
        (forgotten, discarded, doubled, late) in (rarely(200), rarely(200), rarely(300), rarely(300)),
        limit in proptest::option::weighted(0.3, 1u32..300),
        (silent_at, cut_at, paused_at, disconnect_at) in
            (at_some_time(), at_some_time(), at_some_time(), at_some_time()),
    ) -> Plan {
        Plan {
            version, seed, rate, delay: Duration::from_millis(delay), socket, receive_maximum, forgotten, discarded,
            doubled, late, limit, silent_at, cut_at, paused_at, disconnect_at,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    /// Each publish is confirmed once, if the broker has it, or returned to the owner when the
    /// connection ends; and none waits for longer than its deadline.
    #[test]
    fn whatever_broker_and_network_do_no_publish_is_lost_or_confirmed_falsely(plan in plans()) {
        let mut world = World::new(&plan);
        let ended = world.run(300, Duration::from_secs(300));
        if ended.is_none() && !world.outstanding.is_empty() {
            // It ran until the end.
            prop_assert!(world.now.saturating_sub(world.progress) < Duration::from_secs(90));
        }
        for token in 0..world.next_token {
            prop_assert!(world.acked.contains(&token) != world.outstanding.contains_key(&token), "{}", token);
        }
        prop_assert!(world.acked.iter().all(|token| world.taken.contains_key(token)));
    }

    /// A broker that omits confirmations, confirms twice, late and in any order, and a client that
    /// is paused, end no connection.
    #[test]
    fn what_can_be_mended_ends_no_connection(plan in plans(), rate in 20_000..1_000_000u64) {
        let plan = Plan {
            rate, receive_maximum: None, silent_at: None, cut_at: None, disconnect_at: None, late: 0,
            // A publish that is lost many times in a row may take too long.
            forgotten: plan.forgotten.min(10), discarded: plan.discarded.min(10),
            limit: plan.limit.map(|limit| limit.max(20)), ..plan
        };
        let mut world = World::new(&plan);
        let ended = world.run(300, Duration::from_secs(600));
        prop_assert!(ended.is_none(), "{:?} at {:?}", ended, world.now);
        prop_assert_eq!(world.acked.len(), 300);
    }
}

/// Publishes that a broker with a limit refused in the first 20 s of a connection, which started
/// with what another had learnt, or with nothing; and those that it accepted.
fn refused_at_first(learnt: Option<(Learnt, Duration)>) -> (World, usize, usize) {
    let plan = Plan { limit: Some(100), delay: Duration::from_millis(20), ..Plan::good(Version::V5, 10_000_000) };
    let mut world = World::new(&plan);
    if let Some((learnt, ago)) = learnt {
        world.client.pacing.begin_with(learnt, ago, Duration::ZERO);
    }
    let ended = world.run(1_000_000, Duration::from_secs(20));
    assert!(ended.is_none(), "{ended:?}");
    let (refused, acked) = (world.refused.len(), world.acked.len());
    (world, refused, acked)
}

#[test]
fn the_next_connection_to_a_broker_keeps_to_the_limit_that_the_last_one_found() {
    let (first, refused, _) = refused_at_first(None);
    let learnt = first.client.pacing.learnt(first.now);
    let (_, again, acked) = refused_at_first(Some((learnt, Duration::from_secs(1))));
    assert!(again * 2 < refused, "{again} are refused again, of {refused}");
    assert!(acked > 20 * 80, "{acked} of 100 a second");
    // Much later the limit is measured anew.
    let (_, later, _) = refused_at_first(Some((learnt, Duration::from_secs(300))));
    assert_eq!(later, refused);
}

#[test]
fn a_publish_that_is_lost_twice_on_a_slow_link_is_confirmed_in_time() {
    let slow = Plan {
        seed: 5385380640958675466,
        delay: Duration::ZERO,
        socket: 4000,
        discarded: 17,
        ..Plan::good(Version::V3_1_1, 20_220)
    };
    let mut world = World::new(&slow);
    let ended = world.run(300, Duration::from_secs(600));
    assert!(ended.is_none(), "{ended:?} at {:?}", world.now);
    assert_eq!(world.acked.len(), 300);
}

#[test]
fn a_pause_of_the_process_sends_nothing_again() {
    for version in [Version::V3_1_1, Version::V5] {
        for tenths in 0..40 {
            let plan =
                Plan { paused_at: Some(Duration::from_millis(500 + tenths * 100)), ..Plan::good(version, 100_000) };
            let mut world = World::new(&plan);
            assert!(world.run(200, Duration::from_secs(60)).is_none());
            assert_eq!(world.acked.len(), 200);
            assert!(world.taken.values().all(|times| *times == 1), "{tenths}: {:?}", world.taken);
        }
    }
}

/// The figures of `docs/figures.md`; `--nocapture` shows them.
#[test]
fn a_slow_link_carries_mostly_payload_and_hardly_anything_twice() {
    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_secs(600);
    for version in [Version::V3_1_1, Version::V5] {
        for (rate, lasts) in [(600, LONG), (600, SHORT), (1_200, LONG), (1_200, SHORT), (8_000, SHORT), (64_000, SHORT)]
        {
            let mut world = World::new(&Plan::good(version, rate));
            assert!(world.run(u64::MAX, lasts).is_none());
            assert!(world.taken.values().all(|times| *times == 1));
            let all = (rate * lasts.as_secs()) as f64;
            let first = world.acked_bytes as f64 / all;
            // If it ends there, the next connection starts with the unconfirmed publishes.
            let again = world.client.outgoing.bytes() as f64 / all;
            let (shown, shown_again, minutes) = (first * 100.0, again * 100.0, lasts.as_secs() / 60);
            println!("{version:?}, {rate} bytes/s for {minutes} min: {shown:.1} %, then {shown_again:.1} % again");
            assert!(first > 0.8 && again < 0.05, "{first}, {again} at {rate}");
        }
    }
}
