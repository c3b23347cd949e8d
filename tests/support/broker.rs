//! An MQTT broker: Mosquitto, or the embedded one where that is not installed.

use super::process::Process;
use super::{eventually, free_port, installed, real_services_are_required};
use std::process::Command;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Whether tests run against Mosquitto.
pub fn is_real() -> bool {
    if std::env::var("TIDEGATE_TEST_BROKER").is_ok_and(|broker| broker == "embedded") {
        return false;
    }
    let installed = installed("mosquitto").is_some();
    assert!(installed || !real_services_are_required(), "mosquitto is not installed; apt-get install mosquitto");
    installed
}

pub struct Broker {
    directory: TempDir,
    port: u16,
    process: Option<Process>,
    /// Between the gateway and an embedded broker, which keeps nothing over a restart.
    proxy: Option<Proxy>,
}

impl Broker {
    /// Mosquitto if there, with sessions that survive a restart.
    pub async fn start() -> Broker {
        if is_real() {
            return Broker::mosquitto("allow_anonymous true").await;
        }
        let mut broker = Broker { directory: directory(), port: free_port(), process: None, proxy: None };
        broker.spawn().await;
        broker.behind_a_proxy().await
    }

    /// Its outages are cuts of the gateway's connection; consumers stay connected.
    pub async fn behind_a_proxy(mut self) -> Broker {
        self.proxy = Some(Proxy::start(self.port).await);
        self
    }

    /// Mosquitto with these lines in its configuration, the last of which belong to
    /// the listener on [`Broker::url`].
    pub async fn mosquitto(lines: &str) -> Broker {
        let directory = directory();
        let port = free_port();
        let path = directory.path().display();
        let config = format!(
            "persistence true\npersistence_location {path}/\nmax_queued_messages 0\nmax_inflight_messages 100\n\
             user root\nlistener {port} 127.0.0.1\n{lines}\n"
        );
        std::fs::write(directory.path().join("mosquitto.conf"), config).expect("a configuration file");
        let mut broker = Broker { directory, port, process: None, proxy: None };
        broker.spawn().await;
        broker
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where a consumer connects.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Where the gateway connects.
    pub fn gateway_url(&self) -> String {
        let port = self.proxy.as_ref().map_or(self.port, |proxy| proxy.port);
        format!("mqtt://127.0.0.1:{port}")
    }

    /// Takes the broker away from the gateway.
    pub async fn stop(&mut self) {
        match &self.proxy {
            Some(proxy) => proxy.open.send_replace(false),
            None => {
                if let Some(mut process) = self.process.take() {
                    process.terminate().await;
                }
                true
            }
        };
    }

    /// SIGKILL to Mosquitto; what it had in memory is gone.
    #[allow(dead_code, reason = "the torture alone kills brokers")]
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Brings it back.
    pub async fn resume(&mut self) {
        match &self.proxy {
            Some(proxy) => drop(proxy.open.send_replace(true)),
            None => self.spawn().await,
        }
    }

    async fn spawn(&mut self) {
        let directory = self.directory.path();
        let config = directory.join("mosquitto.conf");
        let command = if config.exists() {
            let mut command = Command::new(installed("mosquitto").expect("mosquitto is installed"));
            command.arg("-c").arg(config);
            command
        } else {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
            command.args(["demo", "--broker-only", "--mqtt-port", &self.port.to_string()]);
            command
        };
        let log = directory.join("broker.log");
        let mut process = Process::start(command, &log);
        let port = self.port;
        eventually("the broker listens", async || {
            assert!(process.is_running(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        self.process = Some(process);
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A TCP connection to the broker that can be cut.
pub struct Proxy {
    pub port: u16,
    pub open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Proxy {
    pub async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let open = watch::Sender::new(true);
        let mut task = JoinSet::new();
        task.spawn(run(listener, to, open.subscribe()));
        Proxy { port, open, _task: task }
    }
}

async fn run(listener: TcpListener, to: u16, open: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((mut inside, _)) = listener.accept().await {
        let mut open = open.clone();
        connections.spawn(async move {
            if !*open.borrow() {
                return;
            }
            if let Ok(mut outside) = TcpStream::connect(("127.0.0.1", to)).await {
                tokio::select! {
                    _ = open.wait_for(|open| !open) => {}
                    _ = copy_bidirectional(&mut inside, &mut outside) => {}
                }
            }
        });
    }
}
