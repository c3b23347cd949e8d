//! The real binary, run with a configuration in a directory of its own.

use super::process::Process;
use super::{eventually, free_port};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Gateway {
    directory: TempDir,
    config: String,
    tcp: u16,
    http: u16,
    process: Option<Process>,
    /// Files that it may have open.
    open_files: Option<u32>,
}

impl Gateway {
    /// A gateway that is not running: named `gw`, with HTTP, a TCP link, and what
    /// `sections` adds. Keys of the `[[tcp]]` section may come first.
    pub fn new(sections: &str) -> Gateway {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().display().to_string();
        let (tcp, http) = (free_port(), free_port());
        let mut config = format!(
            "[gateway]\nid = \"gw\"\nclock = \"trusted\"\n[http]\nlisten = \"127.0.0.1:{http}\"\n[[tcp]]\nlisten = \"127.0.0.1:{tcp}\"\n"
        );
        config += sections;
        if !config.contains("[store]") {
            config += "\n[store]\n";
        }
        if sections.contains("[[file]]") || !config.contains("directory = ") {
            config = config.replace("[store]", &format!("[store]\ndirectory = \"{path}/log\""));
        }
        Gateway { directory, config, tcp, http, process: None, open_files: None }
    }

    /// One uplink to `url`, quick to come back, and what `sections` adds. Keys of
    /// the `[[mqtt]]` section may come first.
    pub fn with_broker(url: &str, sections: &str) -> Gateway {
        let mqtt = format!(
            "[[mqtt]]\nbrokers = [\"{url}\"]\nbackoff_min = \"20ms\"\nbackoff_max = \"300ms\"\nkeep_alive = \"5s\"\n"
        );
        Gateway::new(&(mqtt + sections))
    }

    /// Adds keys to the section that begins with the line `header`.
    pub fn keys(&mut self, header: &str, keys: &str) {
        assert!(self.config.contains(header), "{header} in {}", self.config);
        self.config = self.config.replacen(header, &format!("{header}\n{keys}"), 1);
    }

    /// Has `new` in the place of what stands in its configuration as `old`.
    #[allow(dead_code, reason = "not every test program changes it")]
    pub fn replace(&mut self, old: &str, new: &str) {
        assert!(self.config.contains(old), "{old} in {}", self.config);
        self.config = self.config.replacen(old, new, 1);
    }

    /// Replaces what makes it believe its clock, which is nothing but a plausible time.
    pub fn set_clock(&mut self, lines: &str) {
        self.config = self.config.replace("clock = \"trusted\"", lines);
    }

    /// Has its HTTP server listen on every address.
    pub fn listen_everywhere(&mut self) {
        self.config = self.config.replacen(&format!("127.0.0.1:{}", self.http), &format!("0.0.0.0:{}", self.http), 1);
    }

    /// Lets it have no more than so many files open.
    pub fn open_files(&mut self, most: u32) {
        self.open_files = Some(most);
    }

    /// From the next start on, its uplink goes to `url`.
    #[allow(dead_code, reason = "not every test program moves it")]
    pub fn use_broker(&mut self, url: &str) {
        let lines = self.config.lines().map(|line| match line.starts_with("brokers = ") {
            true => format!("brokers = [\"{url}\"]\n"),
            false => format!("{line}\n"),
        });
        self.config = lines.collect();
    }

    pub async fn started(mut self) -> Gateway {
        self.start().await;
        self
    }

    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub fn config_file(&self) -> PathBuf {
        let path = self.directory.path().join("tidegate.toml");
        std::fs::write(&path, &self.config).expect("a configuration file");
        path
    }

    /// Starts it and waits until it takes connections.
    pub async fn start(&mut self) {
        self.launch();
        let (tcp, http) = (self.tcp, self.http);
        let mut process = self.process.take().expect("it was launched");
        eventually("the gateway listens", async || {
            assert!(process.is_running(), "{}", self.log());
            TcpStream::connect(("127.0.0.1", http)).await.is_ok()
                && TcpStream::connect(("127.0.0.1", tcp)).await.is_ok()
        })
        .await;
        self.process = Some(process);
    }

    /// Starts it without waiting.
    pub fn launch(&mut self) {
        self.launch_with(&[]);
    }

    /// Starts it with these environment variables.
    pub fn launch_with(&mut self, environment: &[(&str, &str)]) {
        let limit = self.open_files.map(|most| {
            let script = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
            ["sh".to_owned(), "-c".to_owned(), script]
        });
        self.launch_under(limit.as_ref().map_or(&[], |limit| limit), environment);
    }

    /// Starts it by another program, which becomes it, with environment variables.
    pub fn launch_under(&mut self, wrapper: &[String], environment: &[(&str, &str)]) {
        let binary = env!("CARGO_BIN_EXE_tidegate");
        let mut command = match wrapper {
            [] => Command::new(binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
        };
        command.arg("run").arg("-c").arg(self.config_file()).env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command.envs(environment.iter().copied());
        self.process = Some(Process::start(command, &self.directory.path().join("gateway.log")));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// SIGTERM.
    pub async fn terminate(&mut self) -> ExitStatus {
        let status = self.process().terminate().await;
        self.process = None;
        status
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the gateway runs")
    }

    pub fn tcp_address(&self) -> String {
        format!("127.0.0.1:{}", self.tcp)
    }

    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("gateway.log")).unwrap_or_default()
    }

    /// Waits until its log says that, which happens soon after it happened.
    pub async fn says(&self, text: &str) {
        eventually(&format!("it says {text:?}\n{}", self.log()), async || self.log().contains(text)).await;
    }

    /// Status code and body of a path; `None` while nothing answers.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        get(&self.http_address(), path).await
    }

    /// The figure with this name and labels, as in `tidegate_sink_connected{sink="mqtt"}`;
    /// 0 if there is none.
    pub async fn figure(&self, name: &str) -> f64 {
        figure(&self.http_address(), name).await
    }

    /// Waits until a figure is as wanted.
    pub async fn figure_becomes(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        eventually(&format!("{name} becomes as wanted\n{}", self.log()), async || wanted(self.figure(name).await))
            .await;
    }

    /// Waits until the uplink stands.
    pub async fn connected(&self) {
        self.figure_becomes("tidegate_sink_connected{sink=\"mqtt\"}", |connected| connected == 1.0).await;
    }
}

/// Status code and body of a path of the gateway at `address`; `None` while nothing answers.
pub async fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A figure of the gateway whose metrics are at `address`; 0 if there is none.
pub async fn figure(address: &str, name: &str) -> f64 {
    let Some((_, text)) = get(address, "/metrics").await else { return 0.0 };
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}
