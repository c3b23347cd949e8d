//! The HTTP server, fed raw bytes on a connection: it answers or closes, and answers
//! the next one.
//!
//! Input: what the client sends.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidegate::http::{self, Access, Client, Condition, Health, Site};
use tidegate::metrics::Metrics;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};

struct Fine;

impl Health for Fine {
    fn live(&self) -> Condition {
        Condition::default()
    }

    fn ready(&self) -> Condition {
        Condition::default()
    }
}

/// Connections that never were on a network.
struct InMemory(mpsc::Receiver<DuplexStream>);

impl Listener for InMemory {
    type Io = DuplexStream;
    type Addr = Client;

    async fn accept(&mut self) -> (DuplexStream, Client) {
        match self.0.recv().await {
            Some(stream) => (stream, client()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Client> {
        Ok(client())
    }
}

fn client() -> Client {
    Client::from(SocketAddr::from(([127, 0, 0, 1], 1)))
}

/// Sends `request`, and the end of the stream if it is the `end`; what is answered.
async fn ask(connections: &mpsc::Sender<DuplexStream>, request: &[u8], end: bool) -> Vec<u8> {
    let (mut here, there) = duplex(1 << 20);
    connections.send(there).await.expect("the server accepts");
    // The server may close before it has read everything.
    let _ = here.write_all(request).await;
    if end {
        let _ = here.shutdown().await;
    }
    let mut answer = Vec::new();
    let _ = here.read_to_end(&mut answer).await;
    answer
}

pub fn check(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connections, accepted) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        // Devices would be taken in, were there a log.
        let site = Site {
            metrics: Metrics::new(),
            health: Arc::new(Fine),
            access: Access::default(),
            devices: true,
            parts: http::Later::default(),
        };
        let server = tokio::spawn(http::serve(InMemory(accepted), site, stopped));
        let exchange = async {
            let answer = ask(&connections, input, true).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
            let request = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let answer = ask(&connections, request, false).await;
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
        };
        tokio::time::timeout(Duration::from_secs(5), exchange).await.expect("it does not hang");
        stop.send_replace(true);
        server.await.expect("it does not panic");
    });
}
