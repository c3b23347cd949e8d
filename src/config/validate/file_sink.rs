//! `[[file]]`.

use super::{DAY, MINUTE, SECOND, Section};
use crate::config::FileSink;
use crate::config::problem::Report;
use crate::files::plain;
use bytesize::ByteSize;
use std::time::Duration;

pub(super) fn check(sinks: &[FileSink], report: &mut Report) {
    for (i, file) in sinks.iter().enumerate() {
        let mut section = Section::new(report, format!("file[{i}]"));
        match &file.directory {
            None => section.reject(
                &["directory"],
                "is not given: nobody would know where the files are",
                "give directory = \"/media/usb/tidegate\", or another that is there",
            ),
            Some(directory) if !directory.is_absolute() => {
                section.reject(&["directory"], format!("{directory:?} is not absolute"), "begin it with /");
            }
            Some(directory) if sinks.iter().take(i).any(|other| other.directory.as_ref() == Some(directory)) => {
                let fix = "give each [[file]] a directory of its own";
                section.reject(&["directory"], format!("{directory:?} is another sink's already"), fix);
            }
            Some(_) => {}
        }
        section.size("rotate_size", file.rotate_size, ByteSize::kib(64), ByteSize::gib(4));
        section.duration("rotate_after", file.rotate_after, MINUTE, 365 * DAY);
        section.size("max_total", file.max_total, ByteSize::mib(4), ByteSize::tib(64));
        section.duration("flush_within", file.flush_within, Duration::ZERO, 60 * SECOND);
        // Two files of events, one of readings that is written, one that is complete, and the manifest.
        if (file.max_total.as_u64() - file.max_total.as_u64() / 4) / 4 < file.rotate_size.as_u64() {
            let what = "max_total leaves no room for files of rotate_size";
            section.reject(&["rotate_size", "max_total"], what, "give max_total at least six times rotate_size");
        }
    }
}

/// Adds a problem if the directory is not there now.
pub(super) fn check_files(file: &FileSink, section: &mut Section) {
    let Some(directory) = &file.directory else { return };
    let shown = directory.display();
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => section.reject(&["directory"], format!("{shown} is no directory"), "give one"),
        Err(why) => {
            let fix = "create it, or plug in what it is on; a gateway that runs waits for it";
            section.reject(&["directory"], format!("cannot open {shown}: {}", plain(&why)), fix);
        }
    }
}
