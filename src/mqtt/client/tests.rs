use super::*;
use crate::config::MqttVersion as Version;
use proptest::prelude::*;
use rumqttc::mqttbytes::{QoS, v4};
use rumqttc::v5::mqttbytes::v5;

const CONNACK_4: &[u8] = &[0x20, 2, 0, 0];
const CONNACK_5: &[u8] = &[0x20, 3, 0, 0, 0];
const BOTH: [Version; 2] = [Version::V3_1_1, Version::V5];

pub(super) fn options(version: Version) -> Options {
    Options {
        version,
        keep_alive: Duration::from_secs(60),
        max_packet: 1000,
        window: 50,
        ..Options::new("", 1883, "gw")
    }
}

pub(super) fn publish() -> Publish {
    Publish { topic: "t".into(), payload: vec![1; 60].into(), retain: false, content_type: "", encoding: "" }
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A client that is connected at 0 s and has written everything.
fn connected(version: Version) -> Client {
    answered(&options(version), if version == Version::V5 { CONNACK_5 } else { CONNACK_4 })
}

fn answered(options: &Options, connack: &[u8]) -> Client {
    let mut client = Client::new(options, at(0));
    flush(&mut client, at(0));
    let seen = hear(&mut client, connack, at(0)).expect("a CONNACK");
    assert!(matches!(seen[..], [Seen::Connected]), "{seen:?}");
    client
}

fn flush(client: &mut Client, now: Duration) -> Vec<u8> {
    let bytes = client.output().to_vec();
    client.written(bytes.len(), now);
    bytes
}

fn hear(client: &mut Client, bytes: &[u8], now: Duration) -> Result<Vec<Seen>, Failure> {
    let (mut input, mut all) = (BytesMut::from(bytes), Vec::new());
    client.heard(now);
    while client.take(&mut input, now, &mut all)? {}
    Ok(all)
}

fn pub_ack(packet: u16) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    Codec::pub_ack(packet, &mut bytes);
    bytes.to_vec()
}

/// A broker may end the connection at a confirmation out of order (MQTT 5, 4.6).
#[test]
fn messages_are_confirmed_in_the_order_in_which_they_came() {
    let message = |packet: u8| [0x32, 5, 0, 1, b't', 0, packet];
    let mut client = connected(Version::V3_1_1);
    for packet in 1..=3 {
        let seen = hear(&mut client, &message(packet), at(1)).expect("a message");
        assert!(matches!(seen[..], [Seen::Message(_, _)]), "{seen:?}");
    }
    assert_eq!((client.confirm(2), client.confirm(2), flush(&mut client, at(1))), (0, 0, Vec::new()));
    assert_eq!((client.confirm(1), flush(&mut client, at(1))), (2, [pub_ack(1), pub_ack(2)].concat()));
    let too_large = [&[0x32, 0xd0, 0x0f, 0, 1, b't', 0, 4][..], &[0; 1995]].concat();
    hear(&mut client, &too_large, at(1)).expect("it is passed over");
    assert!(flush(&mut client, at(1)).is_empty());
    assert_eq!((client.confirm(3), flush(&mut client, at(1))), (1, [pub_ack(3), pub_ack(4)].concat()));
}

fn acked(seen: &[Seen]) -> Vec<u64> {
    let token = |seen: &Seen| match seen {
        Seen::Event(Event::Acked(token)) => *token,
        other => panic!("{other:?}"),
    };
    seen.iter().map(token).collect()
}

fn command(version: Version, size: usize, packet: u16) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let written = match version {
        Version::V3_1_1 => {
            let mut publish = v4::Publish::new("p/gw/command", QoS::AtLeastOnce, vec![b'x'; size]);
            publish.pkid = packet;
            publish.write(&mut bytes).is_ok()
        }
        Version::V5 => {
            let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
            let mut publish = v5::Publish::new("p/gw/command", qos, vec![b'x'; size], None);
            publish.pkid = packet;
            publish.write(&mut bytes).is_ok()
        }
    };
    assert!(written);
    bytes.to_vec()
}

#[test]
fn a_confirmation_of_what_is_not_in_flight_is_passed_over() {
    let mut client = connected(Version::V3_1_1);
    assert_eq!(acked(&hear(&mut client, &pub_ack(1), at(1)).expect("no end")), [0; 0]);
    assert!(client.publish(7, publish(), at(1)).expect("room").is_none());
    assert_eq!(acked(&hear(&mut client, &pub_ack(1), at(1)).expect("no end")), [7]);
    assert_eq!(acked(&hear(&mut client, &pub_ack(1), at(1)).expect("no end")), [0; 0], "twice");
    assert_eq!(client.unexpected, 2);
}

#[test]
fn a_message_that_is_too_large_or_malformed_is_named_confirmed_and_passed() {
    for version in BOTH {
        for step in [13, 900, 400_000] {
            let mut client = connected(version);
            let mut bytes = command(version, 300_000, 5);
            // A topic that is not UTF-8.
            let mut malformed = command(version, 10, 6);
            malformed[4] = 0xff;
            bytes.extend(malformed);
            bytes.extend(command(version, 10, 7));
            let (mut input, mut seen) = (BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                input.extend_from_slice(part);
                assert!(input.len() < 100_000 + step, "it is not kept");
                while client.take(&mut input, at(1), &mut seen).expect("no end") {}
            }
            let mut seen = seen.into_iter();
            let Some(Seen::Event(Event::Unusable { topic, size, why })) = seen.next() else { panic!("not named") };
            assert_eq!((&*topic, why), ("p/gw/command", "is larger than max_packet"));
            assert!(size > 300_000 && size < 300_100, "{size}");
            if version == Version::V3_1_1 {
                let Some(Seen::Event(Event::Unusable { why, .. })) = seen.next() else { panic!("not named") };
                assert_eq!(why, "is malformed");
            } else {
                // For MQTT 5, the codec accepts any bytes as topic.
                assert!(matches!(seen.next(), Some(Seen::Message(_, 6))));
            }
            let Some(Seen::Message(message, 7)) = seen.next() else { panic!("what follows is lost") };
            assert_eq!((message.topic.as_str(), message.payload.len()), ("p/gw/command", 10));
            let confirmed = flush(&mut client, at(1));
            let expected = if version == Version::V3_1_1 { [pub_ack(5), pub_ack(6)].concat() } else { pub_ack(5) };
            assert_eq!(confirmed, expected);
        }
    }
}

#[test]
fn a_broker_that_confirms_nothing_is_given_up_and_a_slow_one_is_not() {
    let mut client = connected(Version::V3_1_1);
    for token in 0..10 {
        client.publish(token, publish(), at(100)).expect("room");
    }
    flush(&mut client, at(100));
    // One every 25 s: the last one has waited for 250 s then.
    let mut now = at(100);
    for packet in 1..=9 {
        now += at(25);
        assert!(client.tick(now).is_ok(), "{packet}");
        hear(&mut client, &pub_ack(packet), now).expect("no end");
    }
    // It answers pings only.
    for seconds in 1..=30 {
        client.heard(now + at(seconds));
        assert!(client.tick(now + at(seconds)).is_ok(), "{seconds}");
    }
    assert!(client.due() <= now + at(31), "the time is asked for");
    let why = client.tick(now + at(31)).expect_err("it waits for ever").what;
    assert!(why.contains("did not confirm a publish for 31s (1 are under way)"), "{why}");
}

#[test]
fn one_publish_that_is_left_out_is_not_hidden_by_those_behind_it() {
    let mut client = connected(Version::V5);
    client.publish(1, publish(), at(0)).expect("room");
    for (token, second) in (2..).zip(0..30) {
        client.publish(token, publish(), at(second)).expect("room");
        // Publishes that are sent again use the ids in between.
        let packet = *written(&mut client, Version::V5, at(second)).last().expect("it is written");
        assert_eq!(acked(&hear(&mut client, &pub_ack(packet), at(second)).expect("no end")), [token]);
        assert!(client.tick(at(second)).is_ok());
        written(&mut client, Version::V5, at(second));
    }
    assert!(client.tick(at(31)).is_err());
}

/// The packet ids written at `now`, all of publishes.
fn written(client: &mut Client, version: Version, now: Duration) -> Vec<u16> {
    let (bytes, mut ids) = (flush(client, now), Vec::new());
    let mut rest = &bytes[..];
    while let [0x32, length, 0, 1, b't', high, low, ..] = rest {
        ids.push(u16::from_be_bytes([*high, *low]));
        rest = &rest[usize::from(*length) + 2..];
    }
    assert!(rest.is_empty() || rest == [0xc0, 0], "{version:?}: {rest:?}");
    ids
}

#[test]
fn a_publish_that_is_overtaken_is_sent_again_under_another_id_and_confirmed_by_either() {
    for version in BOTH {
        for late in [1, 3] {
            let mut client = connected(version);
            client.publish(1, publish(), at(10)).expect("room");
            client.publish(2, publish(), at(10)).expect("room");
            assert_eq!(written(&mut client, version, at(10)), [1, 2]);
            assert_eq!(acked(&hear(&mut client, &pub_ack(2), at(10)).expect("no end")), [2]);
            assert!(client.due() <= at(11));
            for _ in 0..3 {
                client.tick(client.due()).expect("no end");
            }
            assert_eq!(written(&mut client, version, at(11)), [3]);
            assert_eq!(acked(&hear(&mut client, &pub_ack(late), at(12)).expect("no end")), [1]);
            assert_eq!(acked(&hear(&mut client, &pub_ack(4 - late), at(12)).expect("no end")), [0; 0], "once only");
            assert_eq!(client.unexpected, 0);
            assert_eq!((client.outgoing.packets(), client.outgoing.superseded()), (0, 0));
        }
    }
}

#[test]
fn where_nothing_is_confirmed_one_publish_is_sent_again_to_find_out() {
    let version = Version::V3_1_1;
    let mut client = connected(version);
    client.publish(0, publish(), at(10)).expect("room");
    assert_eq!(acked(&hear(&mut client, &pub_ack(1), at(10)).expect("no end")), [0]);
    for token in 1..=10 {
        client.publish(token, publish(), at(10)).expect("room");
    }
    written(&mut client, version, at(10));
    let (mut now, mut again) = (at(10), Vec::new());
    while again.len() < 3 {
        now = client.due();
        client.heard(now);
        client.tick(now).expect("no end");
        again.extend(written(&mut client, version, now));
    }
    assert!(again.len() == 3 && now >= at(24), "ever more seldom: {now:?}");
    // It is confirmed: so those before it were lost.
    let mut all = acked(&hear(&mut client, &pub_ack(again[2]), now).expect("no end"));
    while all.len() < 10 {
        let now = client.due();
        client.tick(now).expect("no end");
        for id in written(&mut client, version, now) {
            all.extend(acked(&hear(&mut client, &pub_ack(id), now).expect("no end")));
        }
    }
    all.sort_unstable();
    assert_eq!(all, (1..=10).collect::<Vec<_>>());
}

#[test]
fn what_is_refused_for_a_quota_is_sent_again_and_ever_more_slowly() {
    let mut client = connected(Version::V5);
    for token in 1..=20 {
        client.publish(token, publish(), at(10)).expect("room");
    }
    let first = written(&mut client, Version::V5, at(10));
    assert_eq!(first.len(), 20);
    for id in &first[..10] {
        hear(&mut client, &pub_ack(*id), at(10)).expect("no end");
    }
    for id in &first[10..] {
        let [high, low] = id.to_be_bytes();
        assert!(hear(&mut client, &[0x40, 3, high, low, 0x97], at(10)).expect("no end").is_empty());
    }
    assert!(!client.has_room(at(10)), "its owner waits, too");
    let (mut now, mut all) = (at(10), Vec::new());
    for _ in 0..100 {
        now = now.max(client.due());
        client.tick(now).expect("no end");
        for id in written(&mut client, Version::V5, now) {
            all.extend(acked(&hear(&mut client, &pub_ack(id), now).expect("no end")));
        }
        if all.len() == 10 {
            break;
        }
    }
    assert_eq!(all, (11..=20).collect::<Vec<_>>());
    assert!(now > at(10) + Duration::from_millis(900), "{now:?}");
    let (mut told, mut now) = (false, now);
    while !client.has_room(now) {
        now = client.due();
        told = client.tick(now).expect("no end").iter().any(|seen| matches!(seen, Seen::Event(Event::Room)));
    }
    assert!(told);
}

#[test]
fn a_large_publish_has_the_time_that_the_slowest_link_needs() {
    let mut client = answered(&Options { max_packet: 100_000, ..options(Version::V3_1_1) }, CONNACK_4);
    client.publish(1, Publish { payload: vec![0; 60_000].into(), ..publish() }, at(0)).expect("room");
    client.heard(at(120));
    assert!(client.tick(at(129)).is_ok());
    assert!(client.tick(at(131)).is_err());
}

#[test]
fn a_peer_that_is_gone_is_found_by_pings() {
    let mut client = connected(Version::V3_1_1);
    assert_eq!(client.due(), at(60));
    assert!(client.tick(at(59)).is_ok() && client.output().is_empty());
    assert!(client.tick(at(60)).is_ok());
    assert_eq!(flush(&mut client, at(60)), [0xc0, 0]);
    hear(&mut client, &[0xd0, 0], at(61)).expect("an answer");
    assert_eq!(client.due(), at(120));
    // After a long pause, received bytes are handled before the time.
    client.tick(at(500)).expect("no end");
    assert_eq!(flush(&mut client, at(500)), [0xc0, 0]);
    assert!(client.tick(at(559)).is_ok());
    let why = client.tick(at(560)).expect_err("it is gone").what;
    assert!(why.contains("nothing came from the broker for 8m 19s"), "{why}");
}

#[test]
fn no_more_is_in_flight_than_the_broker_allows_and_the_rest_follows() {
    // Receive Maximum 2, Maximum Packet Size 100, Server Keep Alive 20.
    let connack = [0x20, 14, 0, 0, 11, 0x21, 0, 2, 0x27, 0, 0, 0, 100, 0x13, 0, 20];
    let mut client = answered(&options(Version::V5), &connack);
    assert_eq!(client.due(), at(20));
    for token in 1..=5 {
        let large = if token == 4 { 200 } else { 5 };
        client.publish(token, Publish { payload: vec![0; large].into(), ..publish() }, at(1)).expect("room");
    }
    assert_eq!((client.outgoing.len(), client.waiting.len()), (2, 3));
    assert_eq!(acked(&hear(&mut client, &pub_ack(2), at(1)).expect("no end")), [2]);
    let seen = hear(&mut client, &pub_ack(1), at(1)).expect("no end");
    let [Seen::Event(Event::Acked(1)), Seen::Event(Event::Refused(4, why))] = &seen[..] else { panic!("{seen:?}") };
    assert!(why.what.contains("exceeds the 100 bytes allowed"), "{why}");
    assert_eq!((client.outgoing.len(), client.waiting.len()), (2, 0));
    let full = (6..100).find_map(|token| client.publish(token, publish(), at(1)).err());
    assert!(full.is_some(), "without an end");
}

#[test]
fn what_is_no_broker_is_told_by_what_it_says() {
    for (bytes, expected) in [
        (&b"HTTP/1.1 302 Found\r\nLocation: x\r\n"[..], "does not speak MQTT: it says \"HTTP/1.1 302 Found\""),
        (&[0x15, 3, 1, 0, 2, 2, 70], "write mqtts://"),
        (&[0xff, 0xfd, 0x18], "it says the bytes ff fd 18"),
        (&[0xd0, 0], "does not speak MQTT"),
    ] {
        let mut client = Client::new(&options(Version::V3_1_1), at(0));
        let why = hear(&mut client, bytes, at(0)).expect_err("no CONNACK").what;
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn what_a_broker_says_is_put_into_words() {
    let mut taken_over = connected(Version::V5);
    let why = hear(&mut taken_over, &[0xe0, 1, 0x8e], at(1)).expect_err("an end").what;
    assert!(why.contains("another client connected with the same client id"), "{why}");
    let mut moved = connected(Version::V5);
    let bytes = [&[0xe0, 12, 0x9d, 10, 0x1c, 0, 7][..], b"host:18"].concat();
    let why = hear(&mut moved, &bytes, at(1)).expect_err("an end").what;
    assert!(why.contains("the broker has moved: host:18"), "{why}");
    let mut ended = connected(Version::V5);
    assert!(hear(&mut ended, &[0xe0, 0], at(1)).expect_err("an end").what.contains("no reason"));

    let mut denied = connected(Version::V5);
    denied.publish(1, publish(), at(1)).expect("room");
    let bytes = [&[0x40, 12, 0, 1, 0x87, 8, 0x1f, 0, 5][..], b"10/\ns"].concat();
    let seen = hear(&mut denied, &bytes, at(1)).expect("no end");
    let [Seen::Event(Event::Refused(1, why))] = &seen[..] else { panic!("{seen:?}") };
    let expected =
        "the broker refused a publish to t: this client may not publish to that topic; the broker says \"10/\\ns\"";
    assert_eq!(why.what, expected);

    let mut refused = Client::new(&options(Version::V3_1_1), at(0));
    let why = hear(&mut refused, &[0x20, 2, 0, 5], at(0)).expect_err("refused");
    assert!(why.permanent && why.what.contains("check username"), "{why}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// In whatever order a broker confirms, each token is returned once.
    #[test]
    fn every_publish_gets_its_own_confirmation(order in Just((1..=50u16).collect::<Vec<_>>()).prop_shuffle()) {
        let mut client = connected(Version::V3_1_1);
        for token in 1..=50u64 {
            client.publish(token * 10, publish(), at(0)).expect("room");
        }
        for packet in order {
            prop_assert_eq!(acked(&hear(&mut client, &pub_ack(packet), at(0)).expect("no end")), [u64::from(packet) * 10]);
        }
        prop_assert!(client.outgoing.len() == 0 && client.outgoing.packets() == 0 && client.outgoing.bytes() == 0);
    }

    /// For any bytes: no panic, and the same result however they are split.
    #[test]
    fn no_bytes_confuse_it(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kind in 0..16u8,
        cut in 1..50usize,
        version in proptest::sample::select(&BOTH[..]),
    ) {
        let mut bytes = bytes;
        // Mostly a packet of this length.
        if let [first, length, rest @ ..] = &mut bytes[..] {
            *first = kind << 4 | *first & 15;
            *length = u8::try_from(rest.len()).unwrap_or(127).min(127);
        }
        let whole = hear(&mut connected(version), &bytes, at(1));
        let (mut client, mut input, mut parts) = (connected(version), BytesMut::new(), Ok(Vec::new()));
        for part in bytes.chunks(cut) {
            input.extend_from_slice(part);
            while let Ok(seen) = &mut parts {
                match client.take(&mut input, at(1), seen) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(why) => parts = Err(why),
                }
            }
        }
        prop_assert_eq!(whole.is_ok(), parts.is_ok());
        prop_assert_eq!(whole.map_or(0, |seen| seen.len()), parts.map_or(0, |seen| seen.len()));
    }
}
