//! The client for microcontrollers, `examples/client/`, built with all warnings and run
//! under the address and undefined behaviour sanitizers.

use super::process::Process;
use super::{eventually, is_bare, real_services_are_required};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// The client, running.
pub struct Client {
    directory: TempDir,
    pub process: Process,
}

impl Client {
    pub fn start(arguments: &[&str]) -> Client {
        Client::with_secret("", arguments)
    }

    pub fn over_tcp(address: &str, arguments: &[&str]) -> Client {
        Client::start(&[&tcp(address), arguments].concat())
    }

    /// With the secret of its key, as `tidegate key new` prints it.
    pub fn with_secret(secret: &str, arguments: &[&str]) -> Client {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(compiled(&directory));
        command.args(arguments).env("TIDEGATE_SECRET", secret);
        let process = Process::start(command, &directory.path().join("client.log"));
        Client { directory, process }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("client.log")).unwrap_or_default()
    }

    /// How many times it said this.
    pub fn said(&self, line: &str) -> usize {
        self.log().lines().filter(|said| said.strip_prefix("client: ") == Some(line)).count()
    }

    /// What it said behind `what: `, if it did.
    pub fn told(&self, what: &str) -> Option<String> {
        let start = format!("client: {what}: ");
        self.log().lines().find_map(|line| line.strip_prefix(&start).map(str::to_owned))
    }

    pub async fn says(&self, line: &str) {
        eventually(&format!("the client says {line:?}"), async || self.said(line) > 0).await;
    }

    pub async fn succeeds(&mut self) {
        let status = self.process.ended().await;
        assert!(status.success(), "{}", self.log());
    }
}

/// Its arguments for a gateway over TCP.
pub fn tcp(address: &str) -> [&str; 3] {
    let (host, port) = address.split_once(':').expect("HOST:PORT");
    ["--tcp", host, port]
}

fn compiled(directory: &TempDir) -> PathBuf {
    let sources = ["posix.c", "tidegate_client.c", "sha256.c"];
    let binary = directory.path().join("client");
    let build = |sanitizers: &[&str]| {
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O1"]).args(sanitizers);
        cc.args(sources.map(|name| format!("{}/examples/client/{name}", env!("CARGO_MANIFEST_DIR"))));
        let output = cc.arg("-o").arg(&binary).output();
        output.expect("a C compiler, which building tidegate needs too")
    };
    let sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let mut output = build(if is_bare() { &[] } else { &sanitizers });
    if !output.status.success() && !real_services_are_required() {
        output = build(&[]); // a compiler without sanitizers
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    binary
}
