//! How many requests to the API may take long at one time.
//!
//! A request keeps its connection's place until it is answered. Those that wait for a
//! command's end, or for a log that does not answer, must leave some: for health, figures and
//! devices.

use super::problem::Refused;
use super::{Shared, Visitor};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Uri;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// Requests that may wait for a command's end: half of the places there are.
const WAITING: usize = 16;
/// Others that may take longer than [`QUICK`].
const SLOW: usize = 4;
const QUICK: Duration = Duration::from_secs(1);

/// Whose turn it is to take long.
struct Turns {
    waiting: Semaphore,
    slow: Semaphore,
}

/// Bounds how many of these routes' requests take long.
pub(super) fn bounded(routes: Router<Shared>) -> Router<Shared> {
    let turns = Arc::new(Turns { waiting: Semaphore::new(WAITING), slow: Semaphore::new(SLOW) });
    routes.route_layer(middleware::from_fn_with_state(turns, take_turns))
}

async fn take_turns(
    State(turns): State<Arc<Turns>>,
    ConnectInfo(visitor): ConnectInfo<Visitor>,
    request: Request,
    next: Next,
) -> Response {
    if waits(request.uri()) {
        let Ok(_turn) = turns.waiting.try_acquire() else {
            let why = format!("{WAITING} requests wait already, which is as many as may; try again, or without `wait`");
            return Refused::unavailable(why).into_response();
        };
        return next.run(request).await;
    }
    let mut answer = pin!(next.run(request));
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = sleep(QUICK) => {}
        }
        // One that is still coming keeps nobody from anything: it can be cut.
        if visitor.is_waiting() {
            break;
        }
    }
    let Ok(_turn) = turns.slow.try_acquire() else {
        let why = "the log does not answer, and as many requests wait for it as may; try again. A command may have been \
                   taken all the same: give it again with the same id";
        return Refused::unavailable(why.to_owned()).into_response();
    };
    answer.await
}

/// Whether a request says that it may take long.
fn waits(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("wait")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_waits_says_so_in_its_query() {
        for (uri, expected) in [
            ("/api/v1/commands/c-1?wait=10s", true),
            ("/api/v1/commands/c-1?limit=1&wait=10s", true),
            ("/api/v1/commands/wait", false),
            ("/api/v1/commands?limit=10&awaits=1", false),
        ] {
            assert_eq!(waits(&uri.parse().expect("a path")), expected, "{uri}");
        }
    }
}
