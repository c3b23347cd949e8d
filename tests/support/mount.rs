//! A small filesystem of its own.

use super::{installed, is_bare, real_services_are_required};
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

    /// Lets it be read only, or written again.
    pub fn protect(&self, protected: bool) {
        let options = if protected { "remount,ro" } else { "remount,rw" };
        let output = Command::new("mount").args(["-o", options]).arg(self.path()).output().expect("mount runs");
        assert!(output.status.success(), "{output:?}");
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the file");
    }
}

/// A disk of 16 MiB with ext4 that can be made to fail, taken out and put in again.
pub struct Ext4Disk {
    directory: TempDir,
}

impl Ext4Disk {
    /// `None` where this user may not mount one.
    pub fn mount() -> Option<Ext4Disk> {
        let disk = Ext4Disk { directory: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(disk.path()).expect("a directory");
        File::create(disk.image()).and_then(|file| file.set_len(16 << 20)).expect("a file");
        let made =
            !is_bare() && installed("mkfs.ext4").is_some() && disk.run("mkfs.ext4", &["-q", "-F"], &disk.image());
        (made && disk.put_in()).then_some(disk)
    }

    fn run(&self, program: &str, arguments: &[&str], last: &Path) -> bool {
        Command::new(program).args(arguments).arg(last).output().is_ok_and(|output| output.status.success())
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Meets with an error in its structure: from now on it can only be read, until it was
    /// taken out and put in again.
    pub fn fail(&self) {
        let output = Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(self.image()).output();
        let name = String::from_utf8(output.expect("losetup").stdout).expect("UTF-8");
        let device = Path::new(name.trim()).file_name().expect("a loop device").to_owned();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(trigger, "1").expect("the kernel fails it");
    }

    /// False while somebody has a file open there.
    pub fn take_out(&self) -> bool {
        self.run("umount", &[], &self.path())
    }

    /// Mended, as far as need be.
    pub fn put_in(&self) -> bool {
        let _ = self.run("fsck.ext4", &["-y"], &self.image());
        let image = self.image().display().to_string();
        self.run("mount", &["-o", "loop,errors=remount-ro", &image], &self.path())
    }
}

impl Drop for Ext4Disk {
    fn drop(&mut self) {
        let _ = self.run("umount", &["-l"], &self.path());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a gateway may still have it open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
