//! TLS by rustls with ring. Of the system it uses only the trusted roots, if configured.

use super::verifier;
use crate::config::{self, Pin};
use crate::credentials::Kept;
use crate::pem::{self, Validity};
use anyhow::{Result, bail};
use rustls::{ClientConfig, RootCertStore};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The PEM files of a TLS connection.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Trusted authorities; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain.
    pub cert: Option<PathBuf>,
    /// The client certificate's private key.
    pub key: Option<PathBuf>,
    /// Pins of the server's certificate or public key, in place of authorities.
    pub pins: Vec<Pin>,
}

impl TlsFiles {
    /// The files in a sink's configuration.
    pub fn of(sink: &config::Mqtt) -> TlsFiles {
        // A validated configuration has valid pins only.
        let pins = sink.broker_pins.iter().filter_map(|pin| pin.parse().ok()).collect();
        TlsFiles { ca: sink.ca_file.clone(), cert: sink.cert_file.clone(), key: sink.key_file.clone(), pins }
    }
}

/// A client's TLS configuration for a sink.
pub type ClientTls = Kept<ClientConfig>;

/// The sink's TLS, if one of its brokers uses it.
pub fn of_sink(sink: &config::Mqtt, now: Duration) -> Option<Arc<ClientTls>> {
    const WITHOUT: &str = "the gateway connects to no broker over TLS until it is valid";
    if !sink.uses_tls() {
        return None;
    }
    let files = TlsFiles::of(sink);
    // The certificate first: it is the one that expires.
    let paths = [&files.cert, &files.key, &files.ca].into_iter().flatten().cloned().collect();
    let make = move || {
        let validity = files.cert.as_deref().map(pem::certificates).transpose()?;
        Ok((client_config(&files)?, validity.as_deref().and_then(Validity::of_chain)))
    };
    Some(Arc::new(Kept::new(sink.name.as_str(), paths, WITHOUT, now, make)))
}

/// Loads the files into a client's TLS configuration.
///
/// # Errors
/// If a file cannot be read or holds nothing usable, or if only one of certificate and key
/// is given.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = if files.pins.is_empty() {
        builder.with_root_certificates(match &files.ca {
            Some(path) => pem::authorities(path)?,
            None => system_authorities()?,
        })
    } else {
        let verifier = verifier::Pinned { pins: files.pins.clone(), algorithms };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let config = match (&files.cert, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(pem::certificates(cert)?, pem::private_key(key)?)
            .map_err(|why| pem::unfit(cert, key, &why))?,
        _ => bail!("a client certificate needs both cert_file and key_file"),
    };
    Ok(config)
}

/// Accepts every server, to show its certificate; nothing may be sent over it.
pub(super) fn looking() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(verifier::Anyone(provider.signature_verification_algorithms));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

fn system_authorities() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        bail!("the system has no certificate authorities: install ca-certificates, or set ca_file");
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_hold_nothing_useful_are_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "nothing").expect("a file that can be written");
        let files = TlsFiles { ca: Some(empty.clone()), ..TlsFiles::default() };
        let why = client_config(&files).expect_err("no certificate").to_string();
        assert!(why.contains("empty.pem holds no certificate"), "{why}");
        let files = TlsFiles { ca: Some(directory.path().join("none.pem")), ..TlsFiles::default() };
        let why = client_config(&files).expect_err("no file").to_string();
        assert!(why.contains("none.pem"), "{why}");
    }
}
