//! Bounds how many requests to the API may take long at a time.
//!
//! A request occupies its connection's slot until it is answered. Requests that wait for the end
//! of a command, or for a log that does not answer, must leave slots for health, metrics and devices.

use super::Client;
use super::problem::Refused;
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

/// Requests that may wait for the end of a command: half of the slots.
const WAITING: usize = 16;
/// Other requests that may take longer than [`QUICK`].
const SLOW: usize = 4;
const QUICK: Duration = Duration::from_secs(1);

/// The limits of long requests.
struct LongRequests {
    waiting: Semaphore,
    slow: Semaphore,
}

/// Bounds how many requests to these routes take long.
pub(super) fn bounded<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    let turns = Arc::new(LongRequests { waiting: Semaphore::new(WAITING), slow: Semaphore::new(SLOW) });
    routes.route_layer(middleware::from_fn_with_state(turns, limit_long_requests))
}

async fn limit_long_requests(
    State(turns): State<Arc<LongRequests>>,
    ConnectInfo(client): ConnectInfo<Client>,
    request: Request,
    next: Next,
) -> Response {
    if waits(request.uri()) {
        let Ok(_turn) = turns.waiting.try_acquire() else {
            let why = format!("{WAITING} requests wait already, which is the limit; try again, or without `wait`");
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
        // One that is still incomplete occupies nothing: its connection can be cut.
        if client.is_waiting() {
            break;
        }
    }
    let Ok(_turn) = turns.slow.try_acquire() else {
        let why = "the log does not answer, and the limit of requests that wait for it is reached; try again. A command may have been \
                   accepted nevertheless: send it again with the same id";
        return Refused::unavailable(why.to_owned()).into_response();
    };
    answer.await
}

/// Whether a request asks to wait.
fn waits(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("wait")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::connect_info::MockConnectInfo;
    use axum::routing::get;
    use std::future::pending;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn while_the_log_does_not_answer_a_few_requests_wait_for_it_and_others_are_turned_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = bounded(Router::new().route("/", get(pending::<()>)));
        let server = axum::serve(listener, routes.layer(MockConnectInfo(Client::from(address))));
        let server = tokio::spawn(server.into_future());
        let mut requests = JoinSet::new();
        for _ in 0..SLOW + 3 {
            requests.spawn(async move {
                let mut stream = TcpStream::connect(address).await.expect("it listens");
                let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                stream.write_all(request).await.expect("it is taken");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("it answers");
                answer
            });
        }
        while requests.len() > SLOW {
            let answer = requests.join_next().await.expect("one more").expect("it does not panic");
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the log does not answer"), "{answer}");
        }
        assert!(requests.try_join_next().is_none(), "the others wait on");
        server.abort();
    }

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
