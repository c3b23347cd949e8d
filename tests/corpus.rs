//! Every input that fuzzing kept goes through its check once more, without the fuzzer.

use std::path::Path;

#[path = "../fuzz/checks/broker.rs"]
mod broker;
#[path = "../fuzz/checks/certificate.rs"]
mod certificate;
#[path = "../fuzz/checks/config.rs"]
mod config;
#[path = "../fuzz/checks/delivery.rs"]
mod delivery;
#[path = "../fuzz/checks/device_message.rs"]
mod device_message;
#[path = "../fuzz/checks/frame.rs"]
mod frame;
#[path = "../fuzz/checks/http.rs"]
mod http;
#[path = "../fuzz/checks/segment.rs"]
mod segment;
#[path = "../fuzz/checks/session.rs"]
mod session;
#[path = "../fuzz/checks/text.rs"]
mod text;
#[path = "../fuzz/checks/topic.rs"]
mod topic;
#[path = "../fuzz/checks/upgrade.rs"]
mod upgrade;

/// Runs `check` on every file of a target's corpus.
fn replay(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("a corpus") {
        let path = entry.expect("a file").path();
        println!("{}", path.display()); // shown if it fails
        check(&std::fs::read(&path).expect("its content"));
        count += 1;
    }
    assert!(count > 0, "no corpus in {}", directory.display());
}

#[test]
fn the_frame_decoder_stands_its_corpus() {
    replay("frame", frame::check);
}

#[test]
fn messages_stand_their_corpus() {
    replay("device_message", device_message::check);
}

#[test]
fn sessions_stand_their_corpus() {
    replay("session", session::check);
}

#[test]
fn segments_stand_their_corpus() {
    replay("segment", segment::check);
}

#[test]
fn the_configuration_stands_its_corpus() {
    replay("config", config::check);
}

#[test]
fn deliveries_stand_their_corpus() {
    replay("delivery", delivery::check);
}

#[test]
fn the_http_server_stands_its_corpus() {
    replay("http", http::check);
}

#[test]
fn text_messages_stand_their_corpus() {
    replay("text", text::check);
}

#[test]
fn the_mqtt_client_stands_its_corpus() {
    replay("broker", broker::check);
}

#[test]
fn ways_to_a_broker_stand_their_corpus() {
    replay("upgrade", upgrade::check);
}

#[test]
fn topics_of_commands_stand_their_corpus() {
    replay("topic", topic::check);
}

#[test]
fn every_target_is_replayed() {
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let here = include_str!("corpus.rs");
    for entry in std::fs::read_dir(targets).expect("the targets") {
        let path = entry.expect("a file").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
        assert!(here.contains(&format!("replay(\"{name}\"")), "{name} is not replayed here");
    }
}

#[test]
fn certificates_stand_their_corpus() {
    replay("certificate", certificate::check);
}
