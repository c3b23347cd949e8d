//! A small filesystem of its own.

use super::{is_bare, real_services_are_required};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A filesystem in memory of a few MiB, unmounted with the test.
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// `None` where this user may not mount one; a failure if real services are required.
    pub fn mount(mib: u64) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(directory.path());
        let mounted = !is_bare() && command.output().is_ok_and(|output| output.status.success());
        assert!(mounted || !real_services_are_required(), "a tmpfs cannot be mounted; run as root");
        mounted.then_some(SmallDisk { directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).expect("a file");
        for size in [65536, 4096, 512] {
            while file.write(&vec![7; size]).is_ok_and(|written| written > 0) {}
        }
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the file");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a gateway may still have it open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
