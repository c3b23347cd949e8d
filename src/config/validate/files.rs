//! The files that the configuration names.

use super::Section;
use crate::config::problem::Report;
use crate::config::{Config, Terms, read_password, read_token};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Adds a problem for each file that `config` names and that cannot be used.
pub(in crate::config) fn check_files(config: &Config, report: &mut Report) {
    for (i, tcp) in config.tcp.iter().enumerate() {
        let mut section = Section::new(report, format!("tcp[{i}]"));
        check_server(&mut section, &tcp.terms());
    }
    for (i, mqtt) in config.mqtt.iter().enumerate() {
        let mut section = Section::new(report, format!("mqtt[{i}]"));
        check_pem(&mut section, "ca_file", mqtt.ca_file.as_ref(), CERTIFICATE);
        check_pem(&mut section, "cert_file", mqtt.cert_file.as_ref(), CERTIFICATE);
        check_pem(&mut section, "key_file", mqtt.key_file.as_ref(), PRIVATE_KEY);
        if let Some(Err(why)) = mqtt.password_file.as_deref().map(read_password) {
            section.reject(&["password_file"], why, "give a file that holds the password and that this user may read");
        }
    }
    if config.http.enabled {
        let mut section = Section::new(report, "http");
        check_server(&mut section, &config.http.terms());
        if let Some(Err(why)) = config.http.token_file.as_deref().map(read_token) {
            section.reject(&["token_file"], &why, why.fix());
        }
    }
}

/// What a listener speaks TLS with.
fn check_server(section: &mut Section, terms: &Terms) {
    check_pem(section, "cert_file", terms.cert_file.as_ref(), CERTIFICATE);
    check_pem(section, "key_file", terms.key_file.as_ref(), PRIVATE_KEY);
    check_pem(section, "client_ca_file", terms.client_ca_file.as_ref(), CERTIFICATE);
}

fn check_pem(section: &mut Section, key: &str, path: Option<&PathBuf>, label: &str) {
    if let Some(Err((what, fix))) = path.map(|path| holds(path, label)) {
        section.reject(&[key], what, fix);
    }
}

/// Whether there is something in the file that calls itself `label`.
fn holds(path: &Path, label: &str) -> Result<(), (String, String)> {
    const MOST: u64 = 4 << 20;
    let mut content = Vec::new();
    if let Err(why) = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut content)) {
        let what = format!("cannot read {}: {why}", path.display());
        return Err((what, "give a file that is there and that this user may read".into()));
    }
    let content = String::from_utf8_lossy(&content);
    let found = content
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{label}-----")));
    if found {
        return Ok(());
    }
    let what = format!("{} holds no {}", path.display(), label.to_lowercase());
    Err((what, "give a PEM file (text with -----BEGIN lines); `openssl x509` and `openssl pkey` convert".into()))
}
