//! `tidegate check`: all that is wrong with a configuration.

use super::{USAGE, say};
use crate::config::{self, Broker, Config, Tcp};
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
                let notes: String = notes(&config).map(|note| format!("\n{}: note: {note}", path.display())).collect();
                let _ = writeln!(std::io::stdout(), "{} is fine{notes}", path.display());
                return ExitCode::SUCCESS;
            }
        },
    };
    say(&problems);
    USAGE.into()
}

/// What is allowed, and had better be meant.
fn notes(config: &Config) -> impl Iterator<Item = String> {
    let open = |tcp: &Tcp| {
        let what = format!("whoever reaches {} is let in: authentication = \"none\"", tcp.listen);
        tcp.is_open().then_some(what)
    };
    let tapped = |tcp: &Tcp| {
        let what = "tokens are sent in the clear: give cert_file and key_file, or authentication = \"hmac\"";
        tcp.is_tapped().then(|| what.to_owned())
    };
    let of =
        move |(i, tcp)| [open(tcp), tapped(tcp)].into_iter().flatten().map(move |note| format!("tcp[{i}]: {note}"));
    config.tcp.iter().enumerate().flat_map(of)
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
