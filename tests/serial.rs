//! Devices over serial lines, which are noisy, and ports that come and go.

use crate::support::device::{Device, POSTCARD, Talk, hello, sample};
use crate::support::gateway::Gateway;
use crate::support::pty::Line;
use std::path::Path;
use std::sync::Arc;
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
    let goodbye = talk.goodbye().await;
    assert!(goodbye.text.contains("expected seq 2, got 3"), "{}", goodbye.text);
    let invalid = "tidegate_frames_invalid_total{link=\"serial\",reason=\"checksum\"}";
    assert_eq!(gateway.figure(invalid).await, 1.0);
    talk.say(&hello("pump", 1, 2)).await;
    assert_eq!(talk.welcome().await.settled, 1);
    talk.say(&reading(2)).await;
    talk.say(&reading(3)).await;
    talk.acked(3).await;
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
