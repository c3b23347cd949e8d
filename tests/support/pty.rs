//! Serial lines: pairs of pseudo-terminals joined by socat or, where that is not
//! installed, by a thread.

use super::process::Process;
use super::{eventually, installed, real_services_are_required};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// A serial line with an end for the gateway and one for the device. The ends keep
/// their paths when the line is unplugged and plugged in again.
pub struct Line {
    directory: TempDir,
    cable: Option<Cable>,
    noise: Option<Noise>,
}

/// What joins the ends; the line is cut when it is dropped.
enum Cable {
    Socat(#[expect(dead_code, reason = "held for its end")] Process),
    Thread(#[expect(dead_code, reason = "held for its end")] Relay),
}

/// What a line does to the bytes that it carries.
#[derive(Clone)]
pub struct Noise {
    random: fastrand::Rng,
    /// How many of a million are changed.
    per_million: u32,
}

impl Noise {
    fn damage(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.random.u32(..1_000_000) < self.per_million {
                *byte ^= self.random.u8(1..);
            }
        }
    }
}

impl Line {
    pub async fn new() -> Line {
        Line::with(None).await
    }

    /// A line that changes so many of a million bytes, both ways.
    pub async fn noisy(per_million: u32, seed: u64) -> Line {
        Line::with(Some(Noise { random: fastrand::Rng::with_seed(seed), per_million })).await
    }

    async fn with(noise: Option<Noise>) -> Line {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut line = Line { directory, cable: None, noise };
        line.plug().await;
        line
    }

    pub fn gateway_end(&self) -> PathBuf {
        self.directory.path().join("gateway")
    }

    pub fn device_end(&self) -> PathBuf {
        self.directory.path().join("device")
    }

    /// The port vanishes.
    pub fn unplug(&mut self) {
        self.cable = None;
        for end in [self.gateway_end(), self.device_end()] {
            // socat takes its links away unless it was killed.
            let _ = std::fs::remove_file(end);
        }
    }

    /// It comes back.
    pub async fn plug(&mut self) {
        let installed = installed("socat").is_some();
        assert!(installed || !real_services_are_required(), "socat is not installed; apt-get install socat");
        self.cable = Some(if installed && self.noise.is_none() {
            let end = |path: &Path| format!("pty,raw,echo=0,link={}", path.display());
            let mut command = Command::new("socat");
            command.arg(end(&self.gateway_end())).arg(end(&self.device_end()));
            Cable::Socat(Process::start(command, &self.directory.path().join("socat.log")))
        } else {
            Cable::Thread(Relay::start(&self.gateway_end(), &self.device_end(), self.noise.clone()))
        });
        eventually("the line is made", async || self.gateway_end().exists() && self.device_end().exists()).await;
    }
}

/// A thread that carries bytes between two pseudo-terminals.
struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(one: &Path, other: &Path, mut noise: Option<Noise>) -> Relay {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut ends = [terminal(one), terminal(other)];
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let [one, other] = &mut ends;
                let noise = &mut noise;
                if !carry(&mut one.0, &mut other.0, noise) & !carry(&mut other.0, &mut one.0, noise) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Relay { stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the relay does not panic");
        }
    }
}

/// A raw pseudo-terminal that can be opened at `link`: its near side, and its far side
/// held open so that nobody's closing it shows.
fn terminal(link: &Path) -> (File, File) {
    // Not for processes that are started meanwhile: they would keep the line plugged in.
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
    grantpt(&near).and_then(|()| unlockpt(&near)).expect("a pseudo-terminal of ours");
    let path = ptsname(&near, Vec::new()).expect("it has a path");
    let path = Path::new(path.to_str().expect("a path in ASCII"));
    let far = File::options().read(true).write(true).open(path).expect("its far side");
    let mut settings = rustix::termios::tcgetattr(&far).expect("a terminal");
    settings.make_raw();
    rustix::termios::tcsetattr(&far, rustix::termios::OptionalActions::Now, &settings).expect("a terminal");
    rustix::fs::fcntl_setfl(&near, OFlags::NONBLOCK).expect("an open file");
    std::os::unix::fs::symlink(path, link).expect("a link");
    (File::from(near), far)
}

/// Whether there was something to carry.
fn carry(from: &mut File, to: &mut File, noise: &mut Option<Noise>) -> bool {
    let mut bytes = [0; 4096];
    let Ok(read @ 1..) = from.read(&mut bytes) else { return false };
    if let Some(noise) = noise {
        noise.damage(&mut bytes[..read]);
    }
    let mut rest = &bytes[..read];
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    true
}
