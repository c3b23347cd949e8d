//! A virtual machine that runs the gateway, and can be switched off.

use crate::console;
use crate::disk::{Disk, Fate};
use crate::support::process::Process;
use crate::support::{PATIENCE, eventually};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    directory: PathBuf,
    /// Of the gateway's listener, on the host.
    tcp: u16,
    pub disk: Disk,
    qemu: Option<Process>,
    /// Where on its console the present start begins.
    begins: usize,
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
        Guest { kernel, initramfs, directory: directory.to_owned(), tcp, disk, qemu: None, begins: 0 }
    }

    /// Starts its kernel once, up to where the disk is not yet mounted, and freezes it
    /// there: an emulated processor takes long to get so far.
    pub async fn freeze(&mut self) {
        self.configure("");
        let monitor = self.directory.join("monitor.sock");
        let arguments = ["-monitor".to_owned(), format!("unix:{},server,nowait", monitor.display())];
        self.launch(&arguments);
        eventually("the machine is up", async || {
            assert!(self.is_on(), "{}", self.last_words());
            self.last_words().contains("waiting")
        })
        .await;
        let mut monitor = UnixStream::connect(&monitor).await.expect("a monitor");
        prompt(&mut monitor).await;
        monitor
            .write_all(format!("migrate \"exec:cat > {}\"\n", self.frozen().display()).as_bytes())
            .await
            .expect("it listens");
        prompt(&mut monitor).await;
        monitor.write_all(b"info migrate\n").await.expect("it listens");
        let state = prompt(&mut monitor).await;
        assert!(state.contains("completed"), "the machine cannot be frozen: {state}");
        self.qemu.take().expect("it runs").kill();
        self.disk.is_left().await;
    }

    /// Switches it on: its kernel is up, and its disk is mounted next.
    pub fn start(&mut self, config: &str) {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        self.configure(&format!("#time {}\n{config}", time.as_secs()));
        self.launch(&["-incoming".to_owned(), format!("exec:cat {}", self.frozen().display())]);
    }

    fn frozen(&self) -> PathBuf {
        self.directory.join("frozen")
    }

    fn config(&self) -> PathBuf {
        self.directory.join("config.img")
    }

    fn configure(&self, config: &str) {
        let mut padded = config.as_bytes().to_vec();
        assert!(padded.len() <= CONFIG_BYTES, "a configuration that fits");
        padded.resize(CONFIG_BYTES, b'\n');
        std::fs::write(self.config(), padded).expect("a configuration file");
    }

    fn launch(&mut self, arguments: &[String]) {
        let mut command = Command::new("qemu-system-x86_64");
        // The medium's cache is the disk's; QEMU keeps nothing and hands on every flush.
        let drives = [
            format!(
                "if=none,id=data,format=raw,cache=none,file=nbd:unix:{}",
                self.directory.join("disk.sock").display()
            ),
            format!("if=none,id=config,format=raw,readonly=on,file={}", self.config().display()),
        ];
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-machine", "pc"]);
        command.args(["-cpu", "max", "-accel", "tcg", "-smp", "1", "-m", "192"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
        for (drive, id) in drives.iter().zip(["data", "config"]) {
            command.args(["-drive", drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        let net = format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-{LISTENS}", self.tcp);
        command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net,romfile="]).args(arguments);
        self.begins = self.console().len();
        self.qemu = Some(Process::start(command, &self.directory.join("console.log")));
    }

    pub fn is_on(&mut self) -> bool {
        self.qemu.as_mut().is_some_and(Process::is_running)
    }

    /// Takes its power away. Returns how many written sectors had not been flushed.
    pub async fn cut(&mut self, fate: Fate, random: &mut fastrand::Rng) -> usize {
        self.disk.switch_off();
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill();
        }
        self.disk.is_left().await;
        self.disk.cut(fate, random)
    }

    /// Why its disk could not be mounted, if that is why it went off.
    pub fn refused_disk(&mut self) -> Option<String> {
        if self.is_on() {
            return None;
        }
        let console = self.console();
        console::refused_disk(&String::from_utf8_lossy(console.get(self.begins..)?))
    }

    /// It gets an empty disk.
    pub async fn renew_disk(&mut self) {
        self.disk.switch_off();
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill();
        }
        self.disk.is_left().await;
        self.disk.renew();
    }

    fn console(&self) -> Vec<u8> {
        std::fs::read(self.directory.join("console.log")).unwrap_or_default()
    }

    /// The last of what it said.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.console()).into_owned();
        let lines: Vec<_> = text.lines().rev().take(15).collect();
        lines.into_iter().rev().map(|line| format!("  {line}\n")).collect()
    }
}

/// What the monitor says up to its prompt.
async fn prompt(monitor: &mut UnixStream) -> String {
    let mut said = Vec::new();
    while !said.ends_with(b"(qemu) ") {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, monitor.read(&mut bytes)).await.expect("the monitor answers");
        let read = read.expect("a monitor that is there");
        assert!(read > 0, "the monitor is gone: {}", String::from_utf8_lossy(&said));
        said.extend(&bytes[..read]);
    }
    String::from_utf8_lossy(&said).into_owned()
}
