//! `[[route]]`.

use super::Section;
use super::links::Names;
use crate::config::Route;
use crate::config::problem::Report;
use crate::model::stray_in_devices;

/// Enough for any name, and for what stands around it.
const LONGEST: usize = 256;

pub(super) fn check(routes: &[Route], report: &mut Report) {
    let mut names = Names::default();
    for (i, route) in routes.iter().enumerate() {
        let mut section = Section::new(report, format!("route[{i}]"));
        names.check(&route.name, &mut section);
        device_patterns("devices", &route.devices, &mut section);
        patterns("channels", &route.channels, &mut section);
    }
}

/// Adds a problem for a pattern that matches nothing.
fn patterns(key: &str, patterns: &[String], section: &mut Section) {
    if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_empty() || pattern.len() > LONGEST) {
        let what = format!("{pattern:?} matches no name");
        section.reject(&[key], what, "give 1 to 256 bytes, in which * stands for any characters");
    }
}

/// Adds a problem for a pattern that matches no device's name.
pub(super) fn device_patterns(key: &str, all: &[String], section: &mut Section) {
    match all.iter().find_map(|pattern| Some((pattern, stray_in_devices(pattern)?))) {
        Some((pattern, stray)) => section.reject(
            &[key],
            format!("{pattern:?} matches no device: no name contains {stray:?}"),
            "give letters, digits, '.', '_', '-', '/', and * for any characters or ? for one",
        ),
        None => patterns(key, all, section),
    }
}
