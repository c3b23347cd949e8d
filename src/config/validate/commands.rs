//! `[commands]`.

use super::{DAY, HOUR, SECOND, Section, routes, time};
use crate::config::Commands;
use crate::config::problem::Report;
use bytesize::ByteSize;
use std::time::Duration;

pub(super) fn check(commands: &Commands, report: &mut Report) {
    let mut section = Section::new(report, "commands");
    routes::device_patterns("devices", &commands.devices, &mut section);
    section.duration("default_expiry", commands.default_expiry, SECOND, 365 * DAY);
    section.duration("max_expiry", commands.max_expiry, SECOND, 365 * DAY);
    if commands.default_expiry > commands.max_expiry {
        let what = format!("{} is more than max_expiry", time(commands.default_expiry));
        let fix = format!("give {} or less", time(commands.max_expiry));
        section.reject(&["default_expiry", "max_expiry"], what, fix);
    }
    section.size("max_payload", commands.max_payload, ByteSize(0), ByteSize::kib(64));
    section.size("max_result", commands.max_result, ByteSize::b(256), ByteSize::kib(256));
    section.number("max_queued", commands.max_queued, 1, 1000);
    section.number("max_live", commands.max_live, 1, 10_000);
    section.duration("retry_after", commands.retry_after, Duration::from_millis(100), HOUR);
    section.duration("answer_within", commands.answer_within, Duration::ZERO, DAY);
    section.number("remember", commands.remember, 0, 100_000);
    section.duration("remember_for", commands.remember_for, Duration::ZERO, 365 * DAY);
}
