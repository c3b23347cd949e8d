//! Certificates and keys in PEM files.

mod validity;

pub use validity::{Lapse, SOON, Validity};

use crate::files::plain;
use anyhow::{Context, Result, anyhow, bail};
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;

/// The certificates in a PEM file, of which there must be one.
///
/// # Errors
/// If it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|why| anyhow!("cannot read certificates from {}: {}", path.display(), fault(&why)))?;
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
    PrivateKeyDer::from_pem_file(path)
        .map_err(|why| anyhow!("cannot read a private key from {}: {}", path.display(), fault(&why)))
}

/// What is wrong with a file.
fn fault(why: &pem::Error) -> String {
    match why {
        pem::Error::Io(why) => plain(why),
        pem::Error::NoItemsFound => "there is none in PEM format".to_owned(),
        _ => "it is damaged, or cut off".to_owned(),
    }
}
