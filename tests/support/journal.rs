//! What a gateway logs to: a pipe that nobody reads, and a socket such as journald's.

use super::{is_bare, real_services_are_required};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A pipe for standard error, full of what nobody read.
pub struct FullPipe {
    path: PathBuf,
    end: File,
    /// What it was filled with.
    filling: usize,
}

impl FullPipe {
    pub fn new(directory: &Path) -> FullPipe {
        let path = directory.join("stderr");
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo can be started").success(), "mkfifo");
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let mut end = File::from(rustix::fs::open(&path, flags, Mode::empty()).expect("a pipe"));
        let mut filling = 0;
        for size in [4096, 1] {
            while let Ok(written) = end.write(&vec![b'.'; size]) {
                filling += written;
            }
        }
        FullPipe { path, end, filling }
    }

    /// What a gateway is to be started by for its standard error to be this pipe.
    pub fn wrapper(&self) -> [String; 3] {
        let script = format!("exec \"$0\" \"$@\" 2>{}", self.path.display());
        ["sh".to_owned(), "-c".to_owned(), script]
    }

    /// What is in it, without what it was filled with.
    pub fn read(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.end.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::WouldBlock => {}
            Err(why) => panic!("the pipe cannot be read: {why}"),
        }
        let filling = self.filling.min(bytes.len());
        self.filling -= filling;
        String::from_utf8(bytes.split_off(filling)).expect("lines of text")
    }
}

/// A socket at journald's place.
pub struct Journal {
    directory: TempDir,
    socket: UnixDatagram,
}

/// What the journal was told at one time.
pub type Entry = BTreeMap<String, String>;

impl Journal {
    /// `None` where this user may not mount one for the gateway; a failure if real services
    /// are required.
    pub fn new() -> Option<Journal> {
        let can =
            !is_bare() && Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|o| o.status.success());
        assert!(can || !real_services_are_required(), "a socket cannot be put in journald's place; run as root");
        if !can {
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(directory.path().join("socket")).expect("a socket");
        socket.set_nonblocking(true).expect("a socket option");
        Some(Journal { directory, socket })
    }

    /// What a gateway is to be started by for its standard error to be the journal's.
    pub fn wrapper(&self) -> Vec<String> {
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal && \
             JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"",
            self.directory.path().display()
        );
        ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).to_vec()
    }

    /// The next entry, if there is one.
    pub fn next(&self) -> Option<Entry> {
        let mut bytes = vec![0; 1 << 20];
        loop {
            let length = self.socket.recv(&mut bytes).ok()?;
            if length > 0 {
                return Some(entry(&bytes[..length]));
            }
        }
    }
}

/// Reads a datagram of the journal's native protocol.
fn entry(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let (name, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => {
                bytes = rest;
                (&line[..equals], &line[equals + 1..])
            }
            None => {
                let (length, rest) = rest.split_first_chunk::<8>().expect("a length");
                let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"));
                bytes = rest.strip_prefix(b"\n").expect("the end of a field");
                (line, value)
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        entry.insert(text(name), text(value));
    }
    assert!(bytes.is_empty(), "what is left is no field: {bytes:?}");
    entry
}
