//! `tidegate check`: all that is wrong with a configuration.

use super::{USAGE, say};
use crate::config::{self, Broker, Config, Terms};
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
                let notes: String =
                    notes(&config).iter().map(|note| format!("\n{}: note: {note}", path.display())).collect();
                let _ = writeln!(std::io::stdout(), "{} is fine{notes}", path.display());
                return ExitCode::SUCCESS;
            }
        },
    };
    say(&problems);
    USAGE.into()
}

/// What is allowed, and had better be meant.
fn notes(config: &Config) -> Vec<String> {
    let note = |section: String, terms: Terms| {
        let listen = terms.listen;
        let open = format!("{section}: whoever reaches {listen} is let in: authentication = \"none\"");
        let what = "tokens are sent in the clear: give cert_file and key_file, or authentication = \"hmac\"";
        let tapped = format!("{section}: {what}");
        [terms.is_open().then_some(open), terms.is_tapped().then_some(tapped)].into_iter().flatten()
    };
    let tcp = config.tcp.iter().enumerate();
    let tcp = tcp.flat_map(|(i, tcp)| note(format!("tcp[{i}]"), tcp.terms()));
    let http = Some(&config.http).filter(|http| http.serves_devices());
    tcp.chain(http.into_iter().flat_map(|http| note("http".into(), http.terms()))).collect()
}

/// What is wrong with the certificates that are to be used, beyond their files.
fn tls_problem(config: &Config) -> Option<String> {
    let listener = config.tcp.iter().enumerate().find_map(|(i, tcp)| {
        let why = tls::server_config(&tcp.terms().tls()?).err()?;
        Some(format!("tcp[{i}]: {why:#}"))
    });
    let http = || {
        let why = tls::server_config(&config.http.terms().tls().filter(|_| config.http.enabled)?).err()?;
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
