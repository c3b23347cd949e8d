//! `[[route]]`.

use super::Section;
use super::links::Names;
use crate::config::Route;
use crate::config::problem::Report;

/// Enough for any name, and for what stands around it.
const LONGEST: usize = 256;

pub(super) fn check(routes: &[Route], report: &mut Report) {
    let mut names = Names::default();
    for (i, route) in routes.iter().enumerate() {
        let mut section = Section::new(report, format!("route[{i}]"));
        names.check(&route.name, &mut section);
        patterns("devices", &route.devices, &mut section);
        patterns("channels", &route.channels, &mut section);
    }
}

/// Adds a problem for a pattern that matches nothing.
pub(super) fn patterns(key: &str, patterns: &[String], section: &mut Section) {
    if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_empty() || pattern.len() > LONGEST) {
        let what = format!("{pattern:?} matches no name");
        section.reject(&[key], what, "give 1 to 256 bytes, in which * stands for any characters");
    }
}
