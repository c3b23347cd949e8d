//! Systemd, as a service sees it: the socket that it is told at.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

pub struct Systemd {
    directory: TempDir,
    socket: UnixDatagram,
    told: String,
}

impl Systemd {
    pub fn listen() -> Systemd {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        Systemd { directory, socket, told: String::new() }
    }

    /// What `NOTIFY_SOCKET` is to be.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    /// Waits until a service says this.
    pub fn hear(&mut self, wanted: &str) {
        while !self.told.contains(wanted) {
            let mut bytes = [0; 4096];
            let read = self.socket.recv(&mut bytes).expect("systemd is told in time");
            self.told += &String::from_utf8_lossy(&bytes[..read]);
            self.told.push('\n');
        }
    }

    /// All that it was told so far.
    pub fn told(&self) -> &str {
        &self.told
    }
}
