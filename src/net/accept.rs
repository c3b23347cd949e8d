//! Accepting connections as admission has room for them, and serving each in a task of its own.

use super::admission::Admission;
use super::bind::Listening;
use super::memory::Pool;
use crate::clock::Clock;
use crate::stop;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How long to wait when the system has no resources for another connection.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Where the connections of a link come from.
pub trait Source: Send {
    type Connection: Send;

    /// Waits until connections can come. Cancel-safe.
    fn up(&mut self) -> impl Future<Output = ()> + Send;

    /// Waits for the next connection; `None` if none will come. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Self::Connection>> + Send;
}

/// Spawns `serve` for each connection, for `max_open` at one time, until `stop` turns true or no
/// more connections come, and waits until the last one has ended. `up` shows whether connections
/// can come.
pub async fn serve<S: Source>(
    mut source: S,
    max_open: usize,
    up: impl Fn(bool),
    mut serve: impl FnMut(S::Connection, &mut JoinSet<()>),
    mut stop: watch::Receiver<bool>,
) {
    up(false);
    tokio::select! {
        biased;
        () = stop::requested(&mut stop) => return,
        () = source.up() => up(true),
    }
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop::requested(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            next = source.next(), if connections.len() < max_open => match next {
                Some(connection) => serve(connection, &mut connections),
                None => break,
            }
        }
    }
    drop(source);
    up(false);
    while connections.join_next().await.is_some() {}
}

/// Accepts the TCP connections of one listener.
pub struct Acceptor {
    /// Names the listener in logs.
    link: Arc<str>,
    listening: Listening,
    admission: Admission,
    /// What a connection is charged to, where it is.
    pool: Option<Pool>,
    clock: Arc<dyn Clock>,
    /// Whether it was logged that connections cannot be accepted.
    failing: bool,
    retry_at: Option<Instant>,
}

impl Acceptor {
    /// Accepts while `admission` has room, and `pool`, if given, memory for another connection.
    pub fn new(
        link: Arc<str>,
        listening: Listening,
        admission: Admission,
        pool: Option<Pool>,
        clock: Arc<dyn Clock>,
    ) -> Acceptor {
        Acceptor { link, listening, admission, pool, clock, failing: false, retry_at: None }
    }

    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Waits for the next connection. What fails is logged once and tried again. Cancel-safe.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Some(at) = self.retry_at {
                sleep_until(at).await;
                self.retry_at = None;
            }
            let short = || self.pool.as_ref().is_some_and(|pool| !pool.admits());
            self.admission.room(&*self.clock, short).await;
            match self.listening.accept().await {
                Ok(accepted) => {
                    self.failing = false;
                    return accepted;
                }
                Err(why) => {
                    self.listening.failed(&why);
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(link = %self.link, %why, "cannot accept connections; trying on");
                    }
                    // Most likely a file descriptor is missing.
                    self.admission.evict_oldest();
                    self.retry_at = Some(Instant::now() + RETRY_AFTER);
                }
            }
        }
    }
}

impl Source for Acceptor {
    type Connection = (TcpStream, SocketAddr);

    async fn up(&mut self) {
        self.listening.bound().await;
    }

    async fn next(&mut self) -> Option<(TcpStream, SocketAddr)> {
        Some(self.accept().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// Connections that are there, after which none come if `ends`.
    struct Given(VecDeque<u32>, bool);

    impl Source for Given {
        type Connection = u32;

        async fn up(&mut self) {}

        async fn next(&mut self) -> Option<u32> {
            if self.0.is_empty() && !self.1 {
                return std::future::pending().await;
            }
            self.0.pop_front()
        }
    }

    #[tokio::test]
    async fn so_many_are_served_at_a_time_and_the_last_is_waited_for_after_a_stop() {
        let (stop, stopped) = watch::channel(false);
        let (served, ended, up) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)), AtomicUsize::new(0));
        let work = |_, connections: &mut JoinSet<()>| {
            served.fetch_add(1, Ordering::Relaxed);
            let ended = ended.clone();
            connections.spawn(async move { ended.acquire().await.expect("it is open").forget() });
        };
        let show = |is_up| up.store(usize::from(is_up), Ordering::Relaxed);
        let mut serving = Box::pin(serve(Given((0..5).collect(), false), 2, show, work, stopped));
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, &mut serving).await.is_err());
        assert_eq!((served.load(Ordering::Relaxed), up.load(Ordering::Relaxed)), (2, 1));
        ended.add_permits(1);
        assert!(tokio::time::timeout(soon, &mut serving).await.is_err());
        assert_eq!(served.load(Ordering::Relaxed), 3, "one for the one that ended");
        stop.send_replace(true);
        assert!(tokio::time::timeout(soon, &mut serving).await.is_err(), "two are there");
        assert_eq!(up.load(Ordering::Relaxed), 0);
        ended.add_permits(2);
        serving.await;
        assert_eq!(served.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn it_ends_when_no_more_connections_can_come() {
        let (_stop, stopped) = watch::channel(false);
        let mut served = Vec::new();
        serve(Given((0..3).collect(), true), 2, |_| {}, |n, _| served.push(n), stopped).await;
        assert_eq!(served, [0, 1, 2]);
    }
}
