//! A virtual machine that runs the gateway, and can be switched off.

use crate::disk::{Disk, Fate};
use crate::support::process::Process;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    directory: PathBuf,
    /// Of the gateway's listener, on the host.
    tcp: u16,
    pub disk: Disk,
    qemu: Option<Process>,
}

/// Where the gateway listens in the guest, and where it finds the host's loopback.
pub const LISTENS: &str = "10.0.2.15:7411";
pub const HOST: &str = "10.0.2.2";
const DISK_BYTES: u64 = 64 << 20;
/// A block device is a whole number of these.
const CONFIG_BYTES: usize = 8192;

impl Guest {
    /// A machine that is off, with an empty file system on its disk.
    pub fn new(kernel: &Path, initramfs: &Path, directory: &Path, tcp: u16, lies: bool) -> Guest {
        let image = directory.join("empty.img");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(DISK_BYTES).expect("a size");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&image);
        assert!(mkfs.status().expect("mkfs.ext4 is installed").success(), "{mkfs:?}");
        let disk = Disk::start(&image, &directory.join("disk.sock"), lies);
        std::fs::remove_file(&image).expect("the image of just now");
        let (kernel, initramfs) = (kernel.to_owned(), initramfs.to_owned());
        Guest { kernel, initramfs, directory: directory.to_owned(), tcp, disk, qemu: None }
    }

    /// Switches it on.
    pub fn start(&mut self, config: &str) {
        let path = self.directory.join("tidegate.toml");
        let mut padded = config.as_bytes().to_vec();
        assert!(padded.len() <= CONFIG_BYTES, "a configuration that fits");
        padded.resize(CONFIG_BYTES, b'\n');
        std::fs::write(&path, padded).expect("a configuration file");
        let mut command = Command::new("qemu-system-x86_64");
        // The medium's cache is the disk's; QEMU keeps nothing and hands on every flush.
        let drives = [
            format!("if=none,id=data,format=raw,cache=none,file=nbd:unix:{}", self.directory.join("disk.sock").display()),
            format!("if=none,id=config,format=raw,readonly=on,file={}", path.display()),
        ];
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-machine", "pc"]);
        command.args(["-cpu", "max", "-accel", "tcg", "-smp", "1", "-m", "256"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        for (drive, id) in drives.iter().zip(["data", "config"]) {
            command.args(["-drive", drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-{LISTENS}", self.tcp);
        command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net,romfile="]);
        self.qemu = Some(Process::start(command, &self.directory.join("console.log")));
    }

    pub fn is_on(&mut self) -> bool {
        self.qemu.as_mut().is_some_and(Process::is_running)
    }

    /// Takes its power away. Returns how many written sectors had not been flushed.
    pub async fn cut(&mut self, fate: Fate, random: &mut fastrand::Rng) -> usize {
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill();
        }
        self.disk.is_left().await;
        self.disk.cut(fate, random)
    }

    /// The last of what it said.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(self.directory.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().map(|line| format!("  {line}\n")).collect()
    }
}
