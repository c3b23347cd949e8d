//! Certificates and keys in PEM files.

use anyhow::{Context, Result, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;

/// The certificates in a PEM file, of which there must be one.
///
/// # Errors
/// If it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate in PEM format", path.display());
    }
    Ok(certificates)
}

/// The authorities in a PEM file.
///
/// # Errors
/// If it cannot be read, or holds none or something else.
pub fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).with_context(|| format!("{} holds no authority", path.display()))?;
    }
    Ok(roots)
}

/// The private key in a PEM file.
///
/// # Errors
/// If it cannot be read or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("{} holds no private key in PEM format", path.display()))
}
