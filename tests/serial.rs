//! Devices over serial lines, which are noisy, and ports that come and go.

use crate::support::device::{Device, JSON, POSTCARD, Talk, hello, sample};
use crate::support::gateway::Gateway;
use crate::support::pty::Line;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate::wire::codec::encode_device;
use tidegate::wire::frame::{BodyEncoding, Format, Version};
use tidegate::wire::message::*;
use tokio_serial::{SerialPortBuilderExt, SerialStream};

fn gateway(line: &Line, keys: &str) -> Gateway {
    let path = line.gateway_end();
    let serial = format!("[[serial]]\npath = {path:?}\nreopen_interval = \"100ms\"\nframe_timeout = \"100ms\"\n{keys}");
    Gateway::with_broker("mqtt://127.0.0.1:1", &serial)
}

const UP: &str = "tidegate_link_up{link=\"serial\"}";

fn open(path: &Path) -> SerialStream {
    tokio_serial::new(path.to_string_lossy(), 115_200).open_native_async().expect("the device's end of the line")
}

async fn talk(line: &Line, format: Format) -> Talk<SerialStream> {
    Talk::over(open(&line.device_end()), format)
}

fn frame(message: &DeviceMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_device(message, POSTCARD, &mut bytes);
    bytes
}

fn reading(seq: u64) -> DeviceMessage {
    DeviceMessage::Readings(Readings { seq, sub: None, samples: vec![sample(1, seq)] })
}

#[tokio::test]
async fn noise_is_skipped_and_counted_and_costs_no_good_frame() {
    let line = Line::new().await;
    let gateway = gateway(&line, "").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    talk.write(b"\x00\xff boot message of some ROM \x12\x34\r\n").await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    for seq in 1..=50 {
        let noise: Vec<u8> = (0..fastrand::usize(0..40)).map(|_| fastrand::u8(..)).collect();
        // Part of a frame before a whole one, whose magic must not be swallowed.
        let torn = frame(&reading(seq));
        talk.write(&noise).await;
        talk.write(&torn[..fastrand::usize(..torn.len())]).await;
        talk.say(&reading(seq)).await;
        talk.acked(seq).await;
    }
    let skipped = gateway.figure("tidegate_link_skipped_bytes_total{link=\"serial\"}").await;
    assert!(skipped > 500.0, "{skipped} bytes were skipped");
    assert_eq!(gateway.figure("tidegate_readings_received_total").await, 50.0);
}

#[tokio::test]
async fn a_frame_that_is_lost_is_not_acknowledged_with_those_behind_it() {
    let line = Line::new().await;
    let gateway = gateway(&line, "").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    talk.say(&reading(1)).await;
    talk.acked(1).await;
    let mut damaged = frame(&reading(2));
    damaged[12] ^= 0x40;
    talk.write(&damaged).await;
    talk.say(&reading(3)).await;
    assert_eq!(talk.hear().await, Some(GatewayMessage::Ack(Ack { seq: 1 })), "it asks for what is missing");
    // A device that does not know what that means is told in another way.
    let mut seq = 4;
    let goodbye = loop {
        talk.say(&reading(seq)).await;
        seq += 1;
        match tokio::time::timeout(Duration::from_millis(50), talk.hear()).await {
            Ok(Some(GatewayMessage::Goodbye(goodbye))) => break goodbye,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    };
    assert!(goodbye.text.contains("expected seq 2, got"), "{}", goodbye.text);
    let invalid = "tidegate_frames_invalid_total{link=\"serial\",reason=\"checksum\"}";
    assert_eq!(gateway.figure(invalid).await, 1.0);
    talk.say(&hello("pump", 1, 2)).await;
    assert_eq!(talk.welcome().await.settled, 1);
    talk.say(&reading(2)).await;
    talk.say(&reading(3)).await;
    talk.acked(3).await;
}

#[tokio::test]
async fn a_device_that_goes_back_for_what_was_lost_keeps_its_session() {
    let line = Line::new().await;
    let gateway = gateway(&line, "").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    for lost in [2, 6, 10] {
        talk.say(&reading(lost - 1)).await;
        talk.acked(lost - 1).await;
        for seq in lost + 1..lost + 4 {
            talk.say(&reading(seq)).await;
        }
        assert_eq!(talk.hear().await, Some(GatewayMessage::Ack(Ack { seq: lost - 1 })));
        for seq in lost..lost + 3 {
            talk.say(&reading(seq)).await;
        }
        talk.acked(lost + 2).await;
    }
    assert_eq!(gateway.figure("tidegate_link_resends_total{link=\"serial\"}").await, 3.0);
    assert_eq!(gateway.figure("tidegate_readings_stored_total").await, 12.0);
    assert!(!gateway.log().contains("device disconnected"), "{}", gateway.log());
}

/// A device that browns out again and again leaves the heads of what it was about to say.
#[tokio::test]
async fn a_hello_is_welcomed_within_a_second_whatever_has_begun_before_it() {
    let line = Line::new().await;
    let path = line.gateway_end();
    let serial = format!("[[serial]]\npath = {path:?}\nreopen_interval = \"100ms\"\n");
    let gateway = Gateway::with_broker("mqtt://127.0.0.1:1", &serial).started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    let readings = DeviceMessage::Readings(Readings { seq: 1, sub: None, samples: vec![sample(1, 1); 40] });
    let largest = frame(&readings);
    for (session, heads) in [1, 20, 80, 250].into_iter().enumerate() {
        talk.write(&largest[..14].repeat(heads)).await;
        talk.say(&hello("pump", session as u64 + 1, 1)).await;
        let said = Instant::now();
        talk.welcome().await;
        assert!(said.elapsed() < Duration::from_secs(1), "{:?} behind {heads} heads", said.elapsed());
    }
}

#[tokio::test]
async fn a_line_that_brings_back_what_the_gateway_says_ends_no_session() {
    let line = Line::new().await;
    let gateway = gateway(&line, "heartbeat_interval = \"1s\"\nidle_timeout = \"3s\"\n").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, JSON).await;
    talk.say(&hello("pump", 1, 1)).await;
    for seq in 1..=10 {
        let message = talk.echoed().await;
        assert!(!matches!(message, GatewayMessage::Goodbye(_)), "{message:?}");
        talk.say(&reading(seq)).await;
    }
    // No device is heard any more, but the gateway hears itself.
    let mut echoes = 10.0;
    let goodbye = loop {
        echoes += 1.0;
        if let GatewayMessage::Goodbye(goodbye) = talk.echoed().await {
            break goodbye;
        }
    };
    assert_eq!(goodbye.reason, Reason::Timeout, "{}", goodbye.text);
    assert_eq!(talk.formats().last(), Some(&JSON), "an echo's encoding is no device's");
    gateway.figure_becomes("tidegate_link_echoes_total{link=\"serial\"}", |count| count == echoes).await;
    assert_eq!(gateway.figure("tidegate_frames_valid_total{link=\"serial\"}").await, 11.0);
    gateway.says("the line brings back what the gateway sends").await;
    assert_eq!(gateway.log().matches("the line brings back what the gateway sends").count(), 1);
}

#[tokio::test]
async fn a_device_that_restarts_or_met_a_new_gateway_says_hello_again() {
    let line = Line::new().await;
    let mut gateway = gateway(&line, "").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    for session in 1..=3 {
        talk.say(&hello("pump", session, 1)).await;
        assert_eq!(talk.welcome().await.settled, 0);
        talk.say(&reading(1)).await;
        talk.acked(1).await;
    }
    gateway.kill();
    gateway.start().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    talk.say(&reading(2)).await;
    assert_eq!(talk.goodbye().await.text, "send Hello first");
    talk.say(&hello("pump", 3, 2)).await;
    assert_eq!(talk.welcome().await.settled, 1);
}

#[tokio::test]
async fn frames_without_a_checksum_are_refused_unless_allowed() {
    let unchecked = Format { version: Version::V1, encoding: BodyEncoding::Postcard };
    let line = Line::new().await;
    let strict = gateway(&line, "").started().await;
    strict.figure_becomes(UP, |up| up == 1.0).await;
    let mut refused = talk(&line, unchecked).await;
    refused.say(&hello("pump", 1, 1)).await;
    let label = "tidegate_frames_invalid_total{link=\"serial\",reason=\"checksum_required\"}";
    strict.figure_becomes(label, |count| count == 1.0).await;
    drop((strict, refused));

    let line = Line::new().await;
    let lenient = gateway(&line, "require_checksum = false\n").started().await;
    lenient.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, unchecked).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
}

#[tokio::test]
async fn frames_that_a_line_refuses_stand_in_the_log_and_repeated_ones_are_summed_up() {
    let line = Line::new().await;
    let gateway = gateway(&line, "require_checksum = false\nmax_frame = \"256B\"\n").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let mut talk = talk(&line, POSTCARD).await;
    let head = |version: u8, length: [u8; 4]| [&[0x12, 0x34, 0x56, 0x7f, version, 3][..], &length].concat();
    // Least significant byte first.
    talk.write(&head(1, [10, 0, 0, 0])).await;
    talk.say(&hello("pump", 1, 1)).await;
    talk.welcome().await;
    let mut broken = frame(&reading(1));
    *broken.last_mut().expect("a checksum") ^= 1;
    for _ in 0..20 {
        talk.write(&broken).await;
    }
    talk.say(&reading(1)).await;
    talk.acked(1).await;
    let figure = "tidegate_frames_invalid_total{link=\"serial\",reason=\"checksum\"}";
    assert_eq!(gateway.figure(figure).await, 20.0);
    let log = gateway.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("a frame is refused")).collect();
    let (first, of_checksums) = told.split_first().expect("a line");
    assert!(first.contains("serial") && first.contains("larger than the 256 accepted"), "{first}");
    assert!(first.contains("most significant one first"), "{first}");
    assert!((1..20).contains(&of_checksums.len()), "{told:#?}");
}

#[tokio::test]
async fn a_port_that_vanishes_is_opened_again_when_it_comes_back() {
    let mut line = Line::new().await;
    line.unplug();
    let gateway = gateway(&line, "").started().await;
    assert_eq!(gateway.figure(UP).await, 0.0);
    line.plug().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;

    let device = Arc::new(Device::new(1, 400));
    let (sending, end) = (device.clone(), line.device_end());
    let sending = tokio::spawn(async move { sending.run_serial(&end).await });
    for upto in [100, 200] {
        crate::support::eventually("readings are acknowledged", async || device.acked() >= upto).await;
        line.unplug();
        gateway.figure_becomes(UP, |up| up == 0.0).await;
        line.plug().await;
        gateway.figure_becomes(UP, |up| up == 1.0).await;
    }
    sending.await.expect("the device gets rid of everything");
    gateway.figure_becomes("tidegate_readings_stored_total", |stored| stored == 400.0).await;
    let log = gateway.log();
    let said = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!(said("serial port opened"), 3, "{log}");
    assert_eq!(said("serial port vanished"), 2, "{log}");
    assert!((1..=3).contains(&said("cannot open the serial port")), "once each time it is away at most:\n{log}");
}

#[tokio::test]
async fn a_port_is_locked_against_other_programs() {
    let line = Line::new().await;
    let gateway = gateway(&line, "").started().await;
    gateway.figure_becomes(UP, |up| up == 1.0).await;
    let other = tokio_serial::new(line.gateway_end().to_string_lossy(), 115_200).open_native_async();
    assert!(other.is_err(), "another program opened the port");
}
