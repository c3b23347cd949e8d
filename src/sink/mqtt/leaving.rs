//! When a connection that works is left all the same: because a broker or a way out that stands
//! before this one can be used again, or because what the gateway proves itself with runs out.

use super::options::Ways;
use crate::backoff::Failure;
use crate::config::Way;
use crate::mqtt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// A way to a broker that stands before the one that is connected.
pub(super) struct Preferred {
    pub way: Way,
    /// Its address that worked last.
    pub worked: Option<SocketAddr>,
    /// It is not tried before.
    pub rests_for: Duration,
}

/// Why a connection is left.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The named broker can be reached, by the way out that is named with it.
    Return(String),
    /// The credentials run out.
    Renew,
    /// It took leave, and the broker did not close the connection.
    Overdue,
}

impl Why {
    pub fn failure(&self) -> Failure {
        let what = match self {
            Why::Return(way) => format!("returning to {way}, which comes first in the configuration"),
            Why::Renew => "connecting anew with a new token, before the old one expires".to_owned(),
            Why::Overdue => "the broker did not close the connection that was left".to_owned(),
        };
        Failure::transient(what)
    }
}

/// How long a broker may take to close a connection that was left.
const PATIENCE: Duration = Duration::from_secs(5);

type Search = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// Tells when one connection is to be left.
pub(super) struct Leaving {
    began: Instant,
    ways: Ways,
    preferred: Vec<Preferred>,
    every: Duration,
    look: Option<Pin<Box<Sleep>>>,
    search: Option<Search>,
    renew: Option<Pin<Box<Sleep>>>,
    overdue: Option<Pin<Box<Sleep>>>,
}

impl Leaving {
    /// For a connection that begins now. Every so often those that are `preferred` are looked
    /// at; and after `renew` what it was opened with is renewed.
    pub fn new(ways: Ways, preferred: Vec<Preferred>, every: Duration, renew: Option<Duration>) -> Leaving {
        let began = Instant::now();
        let timer = |after: Duration| Box::pin(sleep_until(began + after));
        Leaving {
            look: (!preferred.is_empty()).then(|| timer(every)),
            renew: renew.map(timer),
            began,
            ways,
            preferred,
            every,
            search: None,
            overdue: None,
        }
    }

    /// The connection is being left: it is over in a while, whatever the broker does.
    pub fn begun(&mut self) {
        (self.look, self.search, self.renew) = (None, None, None);
        self.overdue = Some(Box::pin(sleep_until(Instant::now() + PATIENCE)));
    }

    /// Waits until the connection is to be left. Cancel-safe: it goes on where it was.
    pub async fn due(&mut self) -> Why {
        loop {
            let Leaving { look, search, renew, overdue, .. } = self;
            tokio::select! {
                found = when(search) => {
                    self.search = None;
                    if let Some(way) = found {
                        return Why::Return(way);
                    }
                    self.look = Some(Box::pin(sleep_until(Instant::now() + self.every)));
                }
                () = when(look) => {
                    self.look = None;
                    self.search = Some(self.reachable());
                }
                () = when(renew) => return Why::Renew,
                () = when(overdue) => return Why::Overdue,
            }
        }
    }

    /// Looks for the first that can be reached of those that do not rest. Of none other the files
    /// are read.
    fn reachable(&self) -> Search {
        let up = self.began.elapsed();
        let awake = self.preferred.iter().filter(|preferred| preferred.rests_for <= up);
        let tried: Vec<_> = awake.map(|one| (one.way.clone(), one.worked)).collect();
        let ways = self.ways.clone();
        Box::pin(async move {
            for (way, worked) in tried {
                if let Ok(options) = ways.to(&way)
                    && mqtt::is_reachable(&options, worked).await
                {
                    return Some(way.to_string());
                }
            }
            None
        })
    }
}

/// Waits for what is there; for ever if nothing is.
async fn when<F: Future + ?Sized>(awaited: &mut Option<Pin<Box<F>>>) -> F::Output {
    match awaited {
        Some(awaited) => awaited.as_mut().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::sink::mqtt::options;
    use crate::sink::mqtt::secrets::Secrets;
    use std::sync::Arc;

    fn ways() -> Ways {
        let sink = config::Mqtt::default();
        let secrets = Secrets::of(&sink, "gw".to_owned(), Duration::ZERO);
        Ways { common: options::common(&sink, "gw"), secrets: Arc::new(secrets) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_out_is_renewed_and_what_is_left_is_over_in_a_while() {
        let mut leaving = Leaving::new(ways(), Vec::new(), Duration::from_secs(1), Some(Duration::from_secs(100)));
        let began = Instant::now();
        assert_eq!(leaving.due().await, Why::Renew);
        assert_eq!(began.elapsed().as_secs(), 100);
        leaving.begun();
        assert_eq!(leaving.due().await, Why::Overdue);
        assert_eq!(began.elapsed().as_secs(), 105);
        let mut never = Leaving::new(ways(), Vec::new(), Duration::from_secs(1), None);
        let waited = tokio::time::timeout(Duration::from_secs(1 << 20), never.due()).await;
        assert!(waited.is_err(), "nothing is preferred, and nothing runs out");
    }
}
