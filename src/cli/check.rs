//! `tidegate check`: all that is wrong with a configuration.

use super::{USAGE, say};
use crate::config::{self, Broker, Config};
use crate::link::tls;
use crate::mqtt::{self, TlsFiles};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Reports every problem of the file, and exits with 2 if there is one.
pub fn check(path: &Path) -> ExitCode {
    let problems = match config::load(path) {
        Err(problems) => problems.to_string(),
        Ok(config) => match tls_problem(&config) {
            Some(problem) => format!("{}: {problem}", path.display()),
            None => {
                let _ = writeln!(std::io::stdout(), "{} is fine", path.display());
                return ExitCode::SUCCESS;
            }
        },
    };
    say(&problems);
    USAGE.into()
}

/// What is wrong with the certificates that are to be used, beyond their files.
fn tls_problem(config: &Config) -> Option<String> {
    let listener = config.tcp.iter().enumerate().find_map(|(i, tcp)| {
        let why = tls::server_config(&tcp.tls()?).err()?;
        Some(format!("tcp[{i}]: {why:#}"))
    });
    let http = || {
        let why = tls::server_config(&config.http.tls().filter(|_| config.http.enabled)?).err()?;
        Some(format!("http: {why:#}"))
    };
    listener.or_else(http).or_else(|| uplink_problem(config))
}

fn uplink_problem(config: &Config) -> Option<String> {
    config.mqtt.iter().enumerate().find_map(|(i, mqtt)| {
        let uses_tls = |broker: &String| broker.parse().is_ok_and(|broker: Broker| broker.tls);
        if !mqtt.brokers.iter().any(uses_tls) {
            return None;
        }
        mqtt::client_config(&TlsFiles::of(mqtt)).err().map(|why| format!("mqtt[{i}]: {why:#}"))
    })
}
