//! A device over WebSocket, by a client that is not ours.

use super::PATIENCE;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// 2026-01-01T00:00:00Z.
pub const START: &str = "2026-01-01T00:00:00Z";

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub struct Web(pub WebSocketStream<Box<dyn Stream>>);

impl Web {
    /// Connects as soon as the gateway's log is open.
    pub async fn connect(address: &str) -> Web {
        loop {
            match Web::try_connect(address, &[]).await {
                Ok(web) => return web,
                Err((503, why)) if why.contains("is not open yet") => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                Err((status, why)) => panic!("{status} {why}"),
            }
        }
    }

    /// Asks with more headers; the status and what is said if there is no WebSocket.
    pub async fn try_connect(address: &str, headers: &[(&'static str, &str)]) -> Result<Web, (u16, String)> {
        let mut request = format!("ws://{address}/ws/device").into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).expect("a header's value"));
        }
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        Web::over(Box::new(stream), request).await
    }

    /// Asks over a connection that is there.
    pub async fn over(stream: Box<dyn Stream>, request: Request) -> Result<Web, (u16, String)> {
        match client_async(request, stream).await {
            Ok((stream, _)) => Ok(Web(stream)),
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
            }
            Err(why) => panic!("{why}"),
        }
    }

    /// Connects and says hello as text; what is settled.
    pub async fn welcomed(address: &str, device: &str, session: u64) -> (Web, u64) {
        let mut web = Web::connect(address).await;
        web.say(hello(device, session)).await;
        let welcome = web.hear("welcome").await;
        (web, welcome["payload"]["settled"].as_u64().expect("a number"))
    }

    pub async fn say(&mut self, message: Json) {
        self.send(Message::text(message.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        // What the gateway closed shows when reading.
        let _ = self.0.send(message).await;
    }

    /// Sends one reading as text.
    pub async fn reading(&mut self, seq: u64) {
        let samples = json!([{"time": START, "values": {"level": {"float": seq}}}]);
        self.say(json!({"command": "readings", "payload": {"seq": seq, "samples": samples}})).await;
    }

    /// The next message of any kind; none at the end of the connection.
    pub async fn next(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.0.next()).await.expect("the gateway answers in time")?.ok()
    }

    /// The next text message, which is this command's.
    pub async fn hear(&mut self, command: &str) -> Json {
        loop {
            match self.next().await {
                Some(Message::Text(text)) => {
                    let message: Json = serde_json::from_str(&text).expect("JSON");
                    if message["command"] == command {
                        return message;
                    }
                    assert_eq!(message["command"], "ack", "instead of {command}: {message}");
                }
                Some(Message::Pong(_)) => {}
                other => panic!("no {command}: {other:?}"),
            }
        }
    }

    /// Waits for an ack that covers `seq`.
    pub async fn acked(&mut self, seq: u64) {
        while self.hear("ack").await["payload"]["seq"].as_u64().expect("a number") < seq {}
    }

    /// Waits for the goodbye and the close frame: reason, text and code.
    pub async fn goodbye(&mut self) -> (String, String, u16) {
        let message = self.hear("goodbye").await;
        let field = |name: &str| message["payload"][name].as_str().expect("text").to_owned();
        (field("reason"), field("text"), self.closed().await)
    }

    /// Waits for the close frame; its code.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some(Message::Close(Some(close))) => {
                    // And then for the end.
                    let _ = timeout(Duration::from_secs(5), self.0.next()).await.expect("the connection is closed");
                    return close.code.into();
                }
                Some(_) => {}
                None => panic!("closed without a word"),
            }
        }
    }
}

pub fn hello(device: &str, session: u64) -> Json {
    json!({
        "deviceId": device,
        "command": "hello",
        "payload": {"session": session.to_string(), "first": 1},
        "timestamp": START,
    })
}
