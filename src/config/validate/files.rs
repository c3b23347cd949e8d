//! The files that the configuration names.

use super::Section;
use crate::config::problem::Report;
use crate::config::{Config, ListenerConfig, TokenError, read_token};
use crate::files::{CREDENTIALS, plain};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Those of `[[tcp]]` and `[http]`.
pub(super) fn of_listeners(config: &Config, report: &mut Report) {
    for (i, tcp) in config.tcp.iter().enumerate() {
        let mut section = Section::new(report, format!("tcp[{i}]"));
        check_server(&mut section, &tcp.listener());
    }
    if config.http.enabled {
        let mut section = Section::new(report, "http");
        check_server(&mut section, &config.http.listener());
        if let Some((path, Err(why))) = config.http.token_file.as_deref().map(|path| (path, read_token(path))) {
            match &why {
                TokenError::Unreadable { why, .. } => unreadable(&mut section, "token_file", path, why),
                _ => section.reject(&["token_file"], &why, why.fix()),
            }
        }
    }
}

/// What a listener speaks TLS with.
fn check_server(section: &mut Section, listener: &ListenerConfig) {
    check_pem(section, "cert_file", listener.cert_file.as_ref(), CERTIFICATE);
    check_pem(section, "key_file", listener.key_file.as_ref(), PRIVATE_KEY);
    check_pem(section, "client_ca_file", listener.client_ca_file.as_ref(), CERTIFICATE);
}

pub(super) fn check_pem(section: &mut Section, key: &str, path: Option<&PathBuf>, label: &str) {
    let Some(path) = path else { return };
    match holds(path, label) {
        Ok(true) => {}
        Ok(false) => {
            let what = format!("{} holds no {}", path.display(), label.to_lowercase());
            let fix = "give a PEM file (text with -----BEGIN lines); `openssl x509` and `openssl pkey` convert";
            section.reject(&[key], what, fix);
        }
        Err(why) => unreadable(section, key, path, &why),
    }
}

/// What cannot be read is a problem only if nobody could read it.
pub(super) fn unreadable(section: &mut Section, key: &str, path: &Path, why: &io::Error) {
    let shown = path.display();
    match why.kind() {
        ErrorKind::PermissionDenied => {
            let fix = "run this as root, or as the user that runs the gateway (sudo -u tidegate)";
            section.unseen(key, format!("not checked: this user may not read {shown}"), fix);
        }
        ErrorKind::NotFound if path.starts_with(CREDENTIALS) => {
            let fix = "run this as root while the service runs";
            section.unseen(key, format!("not checked: systemd puts {shown} there when it starts the service"), fix);
        }
        _ => {
            let fix = "give a file that is there; a gateway that runs waits for it";
            section.reject(&[key], format!("cannot read {shown}: {}", plain(why)), fix);
        }
    }
}

/// Whether there is something in the file that calls itself `label`.
fn holds(path: &Path, label: &str) -> io::Result<bool> {
    const MOST: u64 = 4 << 20;
    let mut content = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut content)?;
    let content = String::from_utf8_lossy(&content);
    Ok(content
        .lines()
        .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{label}-----"))))
}
