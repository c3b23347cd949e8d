//! Binds and listens on an address, and tries again while the machine does not have the address, or
//! another program listens there.

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::notes::Note;
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Bounds of the backlog, the connections that the system holds before they are accepted: as many
/// as may come at once, but no more than can be served in a few seconds if all are silent.
const BACKLOG: RangeInclusive<usize> = 128..=4096;
/// Delay before another attempt to bind.
const RETRY: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);

/// A listener, or the attempts to bind one.
pub struct Listening {
    /// The section of the configuration that it belongs to.
    section: String,
    address: SocketAddr,
    connections: usize,
    listener: Option<TcpListener>,
    retry_at: Instant,
    backoff: Backoff,
    /// Why it cannot listen, as it was logged last.
    told: Option<String>,
    note: Note,
    clock: Arc<dyn Clock>,
    up: watch::Sender<bool>,
}

impl Listening {
    /// Tries at once to listen for `connections` at a time; `note` shows if that fails.
    pub fn new(
        section: String,
        address: SocketAddr,
        connections: usize,
        note: Note,
        clock: Arc<dyn Clock>,
    ) -> Listening {
        let backoff = Backoff::new(*RETRY.start(), *RETRY.end(), Duration::ZERO, fastrand::u64(..));
        let (listener, told, up) = (None, None, watch::Sender::new(false));
        let retry_at = Instant::now();
        let mut listening =
            Listening { section, address, connections, listener, retry_at, backoff, told, note, clock, up };
        listening.attempt();
        listening
    }

    /// The address on which it listens, or will.
    pub fn address(&self) -> SocketAddr {
        self.listener.as_ref().and_then(|listener| listener.local_addr().ok()).unwrap_or(self.address)
    }

    /// Turns true when it listens.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// Whether it listens.
    pub fn is_up(&self) -> bool {
        self.listener.is_some()
    }

    /// Waits until it listens. Cancel-safe.
    pub async fn bound(&mut self) {
        while self.listener.is_none() {
            sleep_until(self.retry_at).await;
            self.attempt();
        }
    }

    /// Takes the next connection. Cancel-safe.
    ///
    /// # Errors
    /// As the operating system gives them; [`Listening::failed`] wants to know.
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match &self.listener {
                Some(listener) => return listener.accept().await,
                None => self.bound().await,
            }
        }
    }

    /// Notes that a connection could not be accepted.
    pub fn failed(&self, why: &io::Error) {
        let reason = format!("{} cannot accept connections: {}", self.section, explain(why, self.address));
        self.note.failed(reason, self.clock.now().monotonic);
    }

    fn attempt(&mut self) {
        match bind(self.address, self.connections) {
            Ok(listener) => {
                self.listener = Some(listener);
                self.note.works();
                self.up.send_replace(true);
                if self.told.take().is_some() {
                    tracing::info!(address = %self.address, "{} listens now", self.section);
                }
            }
            Err(why) => {
                self.retry_at = Instant::now() + self.backoff.delay();
                let why = format!("cannot listen on {}: {}", self.address, explain(&why, self.address));
                if self.told.as_ref() != Some(&why) {
                    tracing::warn!(address = %self.address, "{} {why}; it is tried again", self.section);
                    self.note.is_down(format!("{} {why}", self.section), self.clock.now().monotonic);
                    self.told = Some(why);
                }
            }
        }
    }
}

fn bind(listen: SocketAddr, connections: usize) -> io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    let backlog = connections.clamp(*BACKLOG.start(), *BACKLOG.end());
    socket.listen(u32::try_from(backlog).unwrap_or(u32::MAX))
}

/// What is wrong, and what to do about it.
fn explain(why: &io::Error, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    match Errno::from_io_error(why) {
        Some(Errno::ADDRNOTAVAIL) => format!(
            "this machine does not have the address {ip} now; see `ip address`, and bring the network up or change \
             `listen`"
        ),
        Some(Errno::ADDRINUSE) => format!(
            "another program listens there; see which with `ss -ltnp 'sport = :{port}'`, and end it or change `listen`"
        ),
        Some(Errno::ACCESS | Errno::PERM) if port < 1024 => {
            "ports below 1024 need a privilege; take one from 1024 on in \
             `listen`, or give the service CAP_NET_BIND_SERVICE by AmbientCapabilities= and CapabilityBoundingSet="
                .to_owned()
        }
        Some(Errno::ACCESS | Errno::PERM) => "the system forbids it; see what confines the service, such as \
             SocketBindDeny= or SELinux"
            .to_owned(),
        Some(Errno::AFNOSUPPORT) => {
            format!("the system has no IPv{}; change `listen`", if address.is_ipv4() { 4 } else { 6 })
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            "as many files and connections are open as may be; raise LimitNOFILE= of the service".to_owned()
        }
        Some(Errno::NOBUFS | Errno::NOMEM) => "the system has no memory for it; see what takes it".to_owned(),
        _ => format!("the system says {why}; see whether `listen` is an address of this machine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_comes_with_what_to_do_about_it() {
        let address: SocketAddr = "192.0.2.7:502".parse().expect("an address");
        for (errno, words) in [
            (Errno::ADDRNOTAVAIL, "does not have the address 192.0.2.7 now; see `ip address`"),
            (Errno::ADDRINUSE, "another program listens there; see which with `ss -ltnp 'sport = :502'`"),
            (Errno::ACCESS, "ports below 1024 need a privilege"),
            (Errno::AFNOSUPPORT, "no IPv4"),
            (Errno::MFILE, "LimitNOFILE="),
            (Errno::NOBUFS, "no memory"),
            (Errno::INVAL, "see whether `listen` is an address of this machine"),
        ] {
            let said = explain(&errno.into(), address);
            assert!(said.contains(words), "{errno}: {said}");
        }
        let high = SocketAddr::new(address.ip(), 7411);
        assert!(explain(&Errno::ACCESS.into(), high).contains("the system forbids it"));
    }
}
