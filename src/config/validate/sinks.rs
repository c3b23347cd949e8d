//! The sections of sinks, whatever their kind.

use super::links::Names;
use super::{Section, file_sink, mqtt};
use crate::config::problem::Report;
use crate::config::sinks::{SECTIONS, headers};
use crate::config::{Config, SinkKind};

pub(super) fn check(config: &Config, report: &mut Report) {
    let sinks = config.sinks();
    if sinks.is_empty() && !SECTIONS.iter().any(|section| report.is_refused(section)) {
        let fix = "add [[mqtt]] with brokers = [\"mqtt://HOST\"]";
        report.add("mqtt", format!("there is no {} section: readings would never leave", headers()), fix);
    }
    let mut names = Names::default();
    for sink in &sinks {
        names.check(sink.name, &mut Section::new(report, sink.path.as_str()));
    }
    mqtt::check(&config.mqtt, report);
    file_sink::check(&config.file, report);
}

/// Adds a problem for each file that they name and that cannot be used.
pub(super) fn check_files(config: &Config, report: &mut Report) {
    for sink in config.sinks() {
        let mut section = Section::new(report, sink.path);
        match sink.kind {
            SinkKind::Mqtt(mqtt) => mqtt::check_files(mqtt, &mut section),
            SinkKind::File(file) => file_sink::check_files(file, &mut section),
        }
    }
}
