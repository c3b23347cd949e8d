//! What stands where the configuration puts files and ports, for who asks about it.

use super::Section;
use crate::config::Config;
use crate::config::problem::Report;
use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Adds a problem for each place at which something else stands than what is to be there. What
/// is missing may come yet.
pub(in crate::config) fn check_places(config: &Config, report: &mut Report) {
    for (i, serial) in config.serial.iter().enumerate() {
        let path = serial.path.as_deref().filter(|path| !path.as_os_str().is_empty());
        let found = path.and_then(|path| Some((path, std::fs::metadata(path).ok()?.file_type())));
        if let Some((path, kind)) = found.filter(|(_, kind)| !kind.is_char_device()) {
            let what = format!("{} is no serial port, but {}", path.display(), name(kind));
            let fix = "give the port, best as /dev/serial/by-id/NAME; `tidegate link list` shows them";
            Section::new(report, format!("serial[{i}]")).reject(&["path"], what, fix);
        }
    }
    if let Some((what, fix)) = directory_fault(&config.store.directory) {
        Section::new(report, "store").reject(&["directory"], what, fix);
    }
}

/// Why no log can ever be kept in `directory`, whoever tries, and what to do.
fn directory_fault(directory: &Path) -> Option<(String, &'static str)> {
    let there = directory.ancestors().find(|path| path.exists())?;
    let shown = there.display();
    if !there.is_dir() {
        return Some((format!("{shown} is a file, not a directory"), "give a directory for the log's files"));
    }
    let is_read_only = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) == Err(rustix::io::Errno::ROFS);
    let fix = "mount it to be written to, or give a directory on another disk";
    is_read_only.then(|| (format!("the disk of {shown} can only be read"), fix))
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a file"
    } else {
        "something else than a device"
    }
}
