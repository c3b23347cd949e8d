//! A device whose readings are known beforehand, and which sends again what was not
//! acknowledged.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate::device::auth::Secret;
use tidegate::model::Value;
use tidegate::wire::codec::{decode_gateway, encode_device, encode_gateway};
use tidegate::wire::frame::{BodyEncoding, Decoder, Event, Format, Limits, MAX_BODY, Recovery, Version};
use tidegate::wire::message::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub const POSTCARD: Format = Format { version: Version::V2, encoding: BodyEncoding::Postcard };
pub const JSON: Format = Format { version: Version::V2, encoding: BodyEncoding::Json };

/// 2026-01-01T00:00:00Z in microseconds.
pub const START: i64 = 1_767_225_600_000_000;

/// The reading that device `number` takes as its `seq`th.
pub fn sample(number: u64, seq: u64) -> Sample {
    let value = (number * 1_000_000 + seq) as i64;
    let values = vec![
        (ChannelRef::Name("count".into()), Value::Integer(value)),
        (ChannelRef::Index(0), Value::Float(value as f64 / 64.0)),
        (ChannelRef::Name("name".into()), Value::Text(format!("reading {seq}").into())),
    ];
    Sample { time: START + (seq * 1000 + number) as i64, values }
}

pub fn hello(device: &str, session: u64, first: u64) -> DeviceMessage {
    DeviceMessage::Hello(Hello {
        device: device.into(),
        session,
        clock: DeviceClock::Wall,
        time: START,
        firmware: None,
        channels: vec![ChannelDeclaration { index: 0, name: "level".into(), unit: None }],
        first,
        max_frame: 0,
    })
}

/// One side of a conversation with the gateway, message by message.
pub struct Talk<S> {
    stream: S,
    format: Format,
    decoder: Decoder,
    heard: Vec<GatewayMessage>,
    formats: Vec<Format>,
}

impl Talk<TcpStream> {
    pub async fn connect(address: &str, format: Format) -> Talk<TcpStream> {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a socket option");
        Talk::over(stream, format)
    }

    /// Connects and is welcomed; returns what is settled.
    pub async fn welcomed(address: &str, device: &str, session: u64) -> (Talk<TcpStream>, Welcome) {
        let mut talk = Talk::connect(address, POSTCARD).await;
        talk.say(&hello(device, session, 1)).await;
        let welcome = talk.welcome().await;
        (talk, welcome)
    }

    /// Connects until it is welcomed, as a device should: with a random pause that grows.
    /// Each failed attempt is counted.
    pub async fn persistent(address: &str, device: &str, first: u64, failed: &AtomicU64) -> Talk<TcpStream> {
        for attempt in 0u32.. {
            if let Ok(stream) = TcpStream::connect(address).await {
                let mut talk = Talk::over(stream, POSTCARD);
                talk.say(&hello(device, 1, first)).await;
                if let Some(GatewayMessage::Welcome(_)) = talk.hear().await {
                    return talk;
                }
            }
            failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50 << attempt.min(6)))).await;
        }
        unreachable!("it tries for ever")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    pub fn over(stream: S, format: Format) -> Talk<S> {
        let limits = Limits { max_body: MAX_BODY, require_checksum: false };
        Talk { stream, format, decoder: Decoder::new(limits, Recovery::Resync), heard: Vec::new(), formats: Vec::new() }
    }

    pub async fn say(&mut self, message: &DeviceMessage) {
        let mut bytes = Vec::new();
        encode_device(message, self.format, &mut bytes);
        self.write(&bytes).await;
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        // What the gateway closed shows when reading.
        let _ = self.stream.write_all(bytes).await;
    }

    /// Sends `count` readings of device `number` from `seq` on, in one message.
    pub async fn readings(&mut self, number: u64, seq: u64, count: u64) {
        let samples = (seq..seq + count).map(|seq| sample(number, seq)).collect();
        self.say(&DeviceMessage::Readings(Readings { seq, sub: None, samples })).await;
    }

    /// The next message; `None` at the end of the connection.
    pub async fn hear(&mut self) -> Option<GatewayMessage> {
        let until = Instant::now() + super::PATIENCE;
        while self.heard.is_empty() {
            let mut bytes = [0; 4096];
            let read = tokio::time::timeout_at(until.into(), self.stream.read(&mut bytes)).await;
            match read.expect("the gateway answers in time") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.take(&bytes[..read]),
            }
        }
        Some(self.heard.remove(0))
    }

    fn take(&mut self, bytes: &[u8]) {
        let (heard, formats) = (&mut self.heard, &mut self.formats);
        let taken = self.decoder.push(bytes, &mut |event| {
            if let Event::Frame(frame) = event {
                formats.push(frame.format);
                heard.push(decode_gateway(&frame).expect("the gateway speaks properly"));
            }
            ControlFlow::Continue(())
        });
        taken.expect("resynchronising does not fail");
    }

    /// The next message, which comes back to the gateway.
    pub async fn echoed(&mut self) -> GatewayMessage {
        let message = self.hear().await.expect("the line stays");
        let mut bytes = Vec::new();
        encode_gateway(&message, self.format, &mut bytes);
        self.write(&bytes).await;
        message
    }

    /// How each message that came was written.
    pub fn formats(&self) -> &[Format] {
        &self.formats
    }

    pub async fn welcome(&mut self) -> Welcome {
        loop {
            match self.hear().await {
                Some(GatewayMessage::Welcome(welcome)) => return welcome,
                Some(GatewayMessage::Goodbye(goodbye)) => panic!("no Welcome: {goodbye:?}"),
                Some(_) => {}
                None => panic!("no Welcome: the connection was closed"),
            }
        }
    }

    /// Waits for the Challenge and returns its nonce.
    pub async fn challenge(&mut self) -> Vec<u8> {
        match self.hear().await {
            Some(GatewayMessage::Challenge(challenge)) => challenge.nonce,
            other => panic!("no Challenge: {other:?}"),
        }
    }

    /// Says Hello and proves to have the key `name`, by an HMAC.
    pub async fn prove(&mut self, device: &str, session: u64, name: &str, secret: &Secret) {
        self.say(&hello(device, session, 1)).await;
        let nonce = self.challenge().await;
        self.answer(name, secret.hmac(&nonce, device, session)).await;
    }

    pub async fn answer(&mut self, key: &str, proof: Vec<u8>) {
        self.say(&DeviceMessage::Authenticate(Authenticate { key: key.into(), proof })).await;
    }

    /// Waits for an Ack that covers `seq`.
    pub async fn acked(&mut self, seq: u64) {
        loop {
            match self.hear().await {
                Some(GatewayMessage::Ack(ack)) if ack.seq >= seq => return,
                Some(GatewayMessage::Ack(_) | GatewayMessage::HeartbeatReply(_)) => {}
                other => panic!("no Ack for {seq}: {other:?}"),
            }
        }
    }

    /// Waits for the Goodbye.
    pub async fn goodbye(&mut self) -> Goodbye {
        loop {
            match self.hear().await {
                Some(GatewayMessage::Goodbye(goodbye)) => return goodbye,
                Some(_) => {}
                None => panic!("the connection was closed without a Goodbye"),
            }
        }
    }
}

/// A device with a number of readings to get rid of.
pub struct Device {
    pub id: String,
    pub number: u64,
    session: u64,
    total: u64,
    acked: AtomicU64,
}

/// Readings sent at a time, and how often.
const AT_ONCE: u64 = 4;
const EVERY: Duration = Duration::from_millis(20);

impl Device {
    pub fn new(number: u64, total: u64) -> Device {
        Device { id: format!("device-{number}"), number, session: fastrand::u64(..), total, acked: AtomicU64::new(0) }
    }

    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Sends until everything is acknowledged, connecting again and again.
    pub async fn run_tcp(&self, address: &str) {
        while self.acked() < self.total {
            if let Ok(stream) = TcpStream::connect(address).await {
                let _ = self.converse(stream).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same over a serial port, which may have to be opened again.
    pub async fn run_serial(&self, path: &std::path::Path) {
        use tokio_serial::SerialPortBuilderExt;
        while self.acked() < self.total {
            if let Ok(port) = tokio_serial::new(path.to_string_lossy(), 115_200).open_native_async() {
                let _ = self.converse(port).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One session; an error is why it ended early.
    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Result<(), String> {
        let mut talk = Talk::over(stream, POSTCARD);
        talk.say(&hello(&self.id, self.session, self.acked() + 1)).await;
        let (mut next, mut window) = (0, 0);
        let mut tick = tokio::time::interval(EVERY);
        let mut progress = Instant::now();
        while self.acked() < self.total {
            let mut bytes = [0; 4096];
            tokio::select! {
                read = talk.stream.read(&mut bytes) => match read {
                    Ok(0) => return Err("closed".into()),
                    Ok(read) => talk.take(&bytes[..read]),
                    Err(why) => return Err(why.to_string()),
                },
                _ = tick.tick(), if window > 0 => {
                    let upto = (next + AT_ONCE - 1).min(self.total).min(self.acked() + window);
                    if upto >= next {
                        talk.readings(self.number, next, upto - next + 1).await;
                        next = upto + 1;
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            for message in std::mem::take(&mut talk.heard) {
                match message {
                    GatewayMessage::Welcome(welcome) => {
                        progress = Instant::now();
                        window = u64::from(welcome.window);
                        self.acked.fetch_max(welcome.settled, Ordering::Relaxed);
                        next = self.acked() + 1;
                    }
                    GatewayMessage::Ack(ack) if window > 0 => {
                        progress = Instant::now();
                        self.acked.fetch_max(ack.seq, Ordering::Relaxed);
                    }
                    GatewayMessage::Goodbye(goodbye) => return Err(goodbye.text),
                    _ => {}
                }
            }
            // On a line that loses frames silence means that one was lost.
            if progress.elapsed() > Duration::from_secs(3) {
                return Err("silence".into());
            }
        }
        let goodbye = Goodbye { reason: Reason::Normal, text: String::new() };
        talk.say(&DeviceMessage::Goodbye(goodbye)).await;
        Ok(())
    }
}
