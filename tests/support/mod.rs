//! What the tests are arranged with: real brokers, real pseudo-terminals, the real
//! binary, and devices whose readings are known beforehand.

pub mod broker;
pub mod client;
pub mod cloud;
pub mod crowd;
pub mod device;
pub mod gateway;
pub mod journal;
pub mod listener;
pub mod mount;
pub mod process;
pub mod pty;
pub mod script;
pub mod store;
pub mod subscriber;
pub mod sysfs;
pub mod systemd;
pub mod tls;
pub mod watch;
pub mod web;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP port on loopback that nobody uses, below those that the system gives out.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(7)) % COUNT;
        let port = FIRST + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until `done` holds, looking often; panics with `what` if it takes too long.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Goes on dripping a byte into the stream until the far end closes it, which it must
/// `within` that time `since` then: what came by then.
pub async fn drip(stream: &mut TcpStream, byte: u8, since: Instant, within: Duration) -> Vec<u8> {
    let mut answer = Vec::new();
    loop {
        let _ = stream.write_all(&[byte]).await;
        let read = tokio::time::timeout(Duration::from_millis(100), stream.read_buf(&mut answer)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return answer;
        }
        assert!(since.elapsed() < within, "still there");
    }
}

/// Whether a missing real service is a failure instead of being replaced.
pub fn real_services_are_required() -> bool {
    std::env::var_os("TIDEGATE_TEST_REAL").is_some()
}

/// Whether to do as if the machine had nothing but what building tidegate needs, and Python.
pub fn is_bare() -> bool {
    std::env::var_os("TIDEGATE_TEST_BARE").is_some()
}

/// Where a program of this name is: on the path, or where Debian keeps services.
pub fn installed(program: &str) -> Option<PathBuf> {
    if is_bare() {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    places.map(|directory| directory.join(program)).find(|file| file.is_file())
}
