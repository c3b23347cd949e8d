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
    let problems = match config::inspect(path) {
        Err(problems) => problems.to_string(),
        Ok(config) => match tls_problem(&config) {
            Some((key, problem)) => {
                let line = config::line_of(path, &key).map(|line| format!("{line}:")).unwrap_or_default();
                format!("{}:{line} {key}: {problem}", path.display())
            }
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
    let open = tcp.chain(http.into_iter().flat_map(|http| note("http".into(), http.terms())));
    open.chain(unwritable(&config.store.directory)).collect()
}

/// What is said of a directory that this user may not write to; the service's user may.
fn unwritable(directory: &Path) -> Option<String> {
    let there = directory.ancestors().find(|path| path.exists())?;
    let allowed = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    let denied = rustix::fs::access(there, allowed) == Err(rustix::io::Errno::ACCESS);
    let shown = there.display();
    denied.then(|| {
        format!(
            "store.directory: this user may not write to {shown}, so only as another user does the gateway start here; \
             `sudo -u tidegate tidegate check` tells what the service's user may"
        )
    })
}

/// What is wrong with the certificates that are to be used, beyond their files, and the key that
/// it is about.
fn tls_problem(config: &Config) -> Option<(String, String)> {
    let listener = config.tcp.iter().enumerate().find_map(|(i, tcp)| {
        let why = tls::server_config(&tcp.terms().tls()?).err()?;
        Some((format!("tcp[{i}].cert_file"), format!("{why:#}")))
    });
    let http = || {
        let why = tls::server_config(&config.http.terms().tls().filter(|_| config.http.enabled)?).err()?;
        Some(("http.cert_file".to_owned(), format!("{why:#}")))
    };
    listener.or_else(http).or_else(|| uplink_problem(config))
}

fn uplink_problem(config: &Config) -> Option<(String, String)> {
    config.mqtt.iter().enumerate().find_map(|(i, mqtt)| {
        let uses_tls = |broker: &String| broker.parse().is_ok_and(|broker: Broker| broker.tls);
        if !mqtt.brokers.iter().any(uses_tls) {
            return None;
        }
        let why = mqtt::client_config(&TlsFiles::of(mqtt)).err()?;
        let key = if mqtt.cert_file.is_some() { "cert_file" } else { "ca_file" };
        Some((format!("mqtt[{i}].{key}"), format!("{why:#}")))
    })
}
