//! The source of bytes: a serial port or a capture.

use crate::cli::say;
use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{ControlModes, LocalModes, OptionalActions};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use tokio::sync::mpsc;

/// Bytes read at a time.
const CHUNK: usize = 4096;
/// Chunks that may be queued.
const AHEAD: usize = 8;
const DEFAULT_BAUD: u32 = 115_200;

pub struct Source {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    is_port: bool,
}

impl Source {
    /// A port, which is set up for `baud` if that is given, a file, or - for standard
    /// input.
    pub fn open(from: &str, baud: Option<u32>) -> Result<Source> {
        if from == "-" {
            return Ok(Source { chunks: read_ahead(io::stdin()), is_port: false });
        }
        let path = Path::new(from);
        let metadata =
            std::fs::metadata(path).with_context(|| format!("cannot find {from}; see tidegate link list"))?;
        if !metadata.file_type().is_char_device() {
            let file = File::open(path).with_context(|| format!("cannot read {from}"))?;
            return Ok(Source { chunks: read_ahead(file), is_port: false });
        }
        // Does not wait for a modem's carrier.
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = rustix::fs::open(path, flags, Mode::empty()).map_err(|why| refused(from, why))?;
        set_up(&port, from, baud)?;
        rustix::fs::fcntl_setfl(&port, OFlags::empty()).with_context(|| format!("cannot read {from}"))?;
        say(&format!("tidegate: listening to {from}; other readers miss the bytes that are shown here"));
        Ok(Source { chunks: read_ahead(File::from(port)), is_port: true })
    }

    pub fn is_port(&self) -> bool {
        self.is_port
    }

    /// The next bytes; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let bytes = match self.chunks.recv().await {
            Some(bytes) => bytes.context("cannot read on")?,
            None => Vec::new(),
        };
        Ok((!bytes.is_empty()).then_some(bytes))
    }
}

/// Reads in a thread that is not awaited: a read may block for ever, and the thread ends
/// with the program.
fn read_ahead(mut input: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (chunks, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        loop {
            let mut bytes = vec![0; CHUNK];
            let read = match input.read(&mut bytes) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                read => read,
            };
            let end = !matches!(read, Ok(1..));
            let chunk = read.map(|read| {
                bytes.truncate(read);
                bytes
            });
            if chunks.blocking_send(chunk).is_err() || end {
                return;
            }
        }
    });
    receiver
}

/// A port that is in use keeps its settings: a change would affect its other users.
fn set_up(port: &OwnedFd, from: &str, baud: Option<u32>) -> Result<()> {
    let mut settings =
        rustix::termios::tcgetattr(port).with_context(|| format!("{from} is no serial port; name one, or a file"))?;
    let is_fresh = settings.local_modes.contains(LocalModes::ICANON);
    let baud = match baud {
        Some(baud) => baud,
        None if is_fresh => DEFAULT_BAUD,
        None => {
            say(&format!("tidegate: {from} stays as it is set up, at {} baud", settings.input_speed()));
            return Ok(());
        }
    };
    settings.make_raw();
    settings.control_modes |= ControlModes::CREAD | ControlModes::CLOCAL;
    settings.set_speed(baud).with_context(|| format!("{baud} baud"))?;
    rustix::termios::tcsetattr(port, OptionalActions::Now, &settings)
        .with_context(|| format!("cannot set {from} up for {baud} baud"))
}

fn refused(from: &str, why: Errno) -> anyhow::Error {
    let advice = match why {
        Errno::BUSY => "the gateway has locked it: stop the gateway, set exclusive = false, or listen as root",
        Errno::ACCESS => "tidegate link list says what is missing",
        _ => "see whether it is plugged in",
    };
    anyhow::Error::from(io::Error::from(why)).context(format!("cannot open {from}; {advice}"))
}
