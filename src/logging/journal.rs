//! The journal's socket.

use super::form::Form;
use super::lines::Write;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;

/// systemd-journald.service(8).
const SOCKET: &str = "/run/systemd/journal/socket";

/// Form and writer for the journal, if standard error is connected to it.
pub fn connect() -> Option<(Form, Write)> {
    let socket = UnixDatagram::unbound().ok().filter(|_| is_stderr() && is_there())?;
    let program = std::env::current_exe().ok();
    let identifier = program.as_deref().and_then(|path| path.file_name()).unwrap_or_default();
    let form = Form::Journal { identifier: identifier.to_string_lossy().into_owned() };
    // By path each time: the journal may be restarted.
    Some((form, Box::new(move |entry| socket.send_to(entry, SOCKET).map(drop))))
}

/// Whether the journal's socket has a listener, even a slow one.
fn is_there() -> bool {
    let Ok(socket) = UnixDatagram::unbound() else { return false };
    // The journal ignores empty datagrams.
    let asked = socket.set_nonblocking(true).and_then(|()| socket.send_to(&[], SOCKET));
    asked.map_or_else(|why| why.kind() == ErrorKind::WouldBlock, |_| true)
}

/// Whether systemd connected standard error to the journal: it says so in
/// `JOURNAL_STREAM`, as the device and inode of the stream (systemd.exec(5)).
fn is_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
