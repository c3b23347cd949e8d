//! The one list of sinks, of every kind.
//!
//! A new kind is a field of [`Config`], a variant of [`SinkKind`], its section's name below, a line in
//! [`Config::sinks`], and its checks in `validate/sinks.rs`.

use super::{Config, FileSink, Mqtt, Start};

/// The sections of which each is a sink, by their names in the file.
pub(super) const SECTIONS: [&str; 2] = ["mqtt", "file"];

/// A section that describes a sink.
#[derive(Debug, Clone)]
pub struct Sink<'a> {
    /// Its place in the file, such as `mqtt[0]`.
    pub path: String,
    /// Names it in the log, in metrics and in messages.
    pub name: &'a str,
    /// Where it begins if the log does not know its name.
    pub start: Start,
    /// Memory for what is encoded and in flight, in bytes.
    pub memory: u64,
    pub kind: SinkKind<'a>,
}

/// What is said of it that only its own kind understands.
#[derive(Debug, Clone, Copy)]
pub enum SinkKind<'a> {
    Mqtt(&'a Mqtt),
    File(&'a FileSink),
}

impl Config {
    /// All sinks, those of one kind together and in the order of the file.
    pub fn sinks(&self) -> Vec<Sink<'_>> {
        let mqtt = self.mqtt.iter().enumerate().map(|(i, mqtt)| Sink {
            path: format!("mqtt[{i}]"),
            name: &mqtt.name,
            start: mqtt.start,
            memory: mqtt.memory(),
            kind: SinkKind::Mqtt(mqtt),
        });
        let files = self.file.iter().enumerate().map(|(i, file)| Sink {
            path: format!("file[{i}]"),
            name: &file.name,
            start: file.start,
            memory: file.memory(),
            kind: SinkKind::File(file),
        });
        mqtt.chain(files).collect()
    }
}

/// The sections as they are written in the file.
pub fn headers() -> String {
    SECTIONS.map(|section| format!("[[{section}]]")).join(" or ")
}
