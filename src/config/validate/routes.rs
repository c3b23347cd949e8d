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
        for (key, patterns) in [("devices", &route.devices), ("channels", &route.channels)] {
            if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_empty() || pattern.len() > LONGEST) {
                let what = format!("{pattern:?} matches no name");
                section.reject(&[key], what, "give 1 to 256 bytes, in which * stands for any characters");
            }
        }
    }
}
