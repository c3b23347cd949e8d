//! Certificates and keys in PEM files, and their faults in plain words.

mod certificate;
mod validity;

pub use certificate::{Certificate, sha256};
pub use validity::{Lapse, SOON, Validity};

use crate::files;
use anyhow::{Context, Result, anyhow, bail};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys, RootCertStore};
use std::path::Path;

/// The certificates in a PEM file, at least one.
///
/// # Errors
/// If it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|why| broken(path, why))
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    if certificates.is_empty() {
        bail!("{} holds no certificate in PEM format", path.display());
    }
    Ok(certificates)
}

/// The authorities in a PEM file.
///
/// # Errors
/// If it cannot be read, or holds no authorities or anything else.
pub fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|why| anyhow!("{} holds no authority: {}", path.display(), plain(&why)))?;
    }
    Ok(roots)
}

/// The private key in a PEM file.
///
/// # Errors
/// If it cannot be read, holds none, or is encrypted.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let shown = path.display();
    PrivateKeyDer::from_pem_file(path).map_err(|why| match why {
        pem::Error::Io(why) => anyhow!("cannot read the private key from {shown}: {}", files::plain(&why)),
        _ if is_encrypted(path) => anyhow!(
            "the private key in {shown} is encrypted, and the gateway cannot ask for its passphrase; decrypt it by \
             `openssl pkey -in {shown} -out NEW` and let only the gateway's user read it"
        ),
        _ => anyhow!("{shown} holds no private key in PEM format"),
    })
}

/// Whether the file holds a private key with a passphrase, in either form.
fn is_encrypted(path: &Path) -> bool {
    let content = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&content)
        .lines()
        .any(|line| line.trim() == "-----BEGIN ENCRYPTED PRIVATE KEY-----" || line.trim() == "Proc-Type: 4,ENCRYPTED")
}

/// Why certificate and key cannot be used together.
pub fn unfit(cert: &Path, key: &Path, why: &Error) -> anyhow::Error {
    let (cert, key) = (cert.display(), key.display());
    match why {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => anyhow!(
            "{cert} and {key} do not go together: the key is not that of the first certificate in the file; give the \
             key that the certificate was requested with, or the server's own certificate before those of authorities"
        ),
        Error::General(_) => anyhow!("{key} cannot be used: {}", plain(why)),
        _ => anyhow!("{cert} cannot be used: {}", plain(why)),
    }
}

fn broken(path: &Path, why: pem::Error) -> anyhow::Error {
    let shown = path.display();
    match why {
        pem::Error::Io(why) => anyhow!("{}", files::plain(&why)),
        pem::Error::MissingSectionEnd { .. } => {
            anyhow!("{shown} ends in the midst of a section: copy it once more, whole")
        }
        _ => anyhow!("{shown} is damaged: its text between -----BEGIN and -----END is not base64; copy it once more"),
    }
}

/// The TLS library's error about certificates and keys in plain words.
pub fn plain(why: &Error) -> String {
    let said = match why {
        Error::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<webpki::Error>() {
            _ if other.0.is::<NotPinned>() => return format!("{}", other.0),
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "the certificate says that it is an authority's (CA:TRUE), which TLS accepts from no server: make one for \
                     the server, signed by this authority, or one with `-addext basicConstraints=critical,CA:FALSE`; or pin \
                     it, broker_pins"
            }
            Some(webpki::Error::UnsupportedCertVersion) => {
                "the certificate is of X.509 version 1, which TLS accepts only for authorities; make one of version 3, \
                     as `openssl req -x509` does, or `openssl x509 -req` with -extfile"
            }
            _ => "the certificate is of an unsupported form",
        },
        Error::InvalidCertificate(CertificateError::BadEncoding) => {
            "the certificate is damaged, or is not a certificate"
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the certificate has expired, or this machine's clock is wrong"
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the certificate is not valid yet, or this machine's clock is wrong"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no authority that is trusted here has signed the certificate; see ca_file"
        }
        // A recreated authority has the old name and another key.
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the trusted authority has the name of the one that signed the certificate, but another key; \
             see ca_file"
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => {
            return for_other_names(&expected.to_str(), presented);
        }
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            "the certificate is for another name than the one of this connection"
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => {
            "the certificate is for another purpose: a server's needs serverAuth in its extendedKeyUsage, or none; a \
             client's needs clientAuth"
        }
        Error::InvalidCertificate(_) => return said_by_library(why),
        Error::General(_) => {
            "the private key is of an unsupported kind; use RSA of 2048 to 4096 bits, ECDSA P-256, P-384 or Ed25519"
        }
        Error::AlertReceived(alert) => return format!("the other side ends the connection: {}", said_by_alert(*alert)),
        _ => return said_by_library(why),
    };
    said.to_owned()
}

/// Error for a certificate without the requested name.
fn for_other_names(wanted: &str, presented: &[String]) -> String {
    let kind = if wanted.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    if presented.is_empty() {
        return format!(
            "the certificate names no host in its subjectAltName, and a common name (CN) alone is ignored: have \
             one made with `-addext subjectAltName={kind}:{wanted}`"
        );
    }
    // Such as DnsName("broker") and IpAddress(10.0.0.7).
    let bare = |name: &str| name.split('(').next_back().unwrap_or_default().trim_matches(['"', ')']).to_owned();
    let names = presented.iter().map(|name| bare(name)).collect::<Vec<_>>();
    format!(
        "the certificate is for {}, and not for {wanted}, which is connected to; connect to a name that it has, or have \
         one made with `-addext subjectAltName={kind}:{wanted}`",
        names.join(", ")
    )
}

/// The other side's alert when it ends TLS (RFC 8446, 6.2), in plain words.
fn said_by_alert(alert: AlertDescription) -> String {
    let said = match alert {
        AlertDescription::CertificateRequired => "it wants a client's certificate; give cert_file and key_file",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it does not accept this side's certificate; see cert_file",
        AlertDescription::CertificateRevoked => "this side's certificate is revoked; see cert_file",
        AlertDescription::CertificateExpired => {
            "this side's certificate has expired, or its clock is wrong; see cert_file"
        }
        AlertDescription::UnknownCA => {
            "it does not know the authority that signed this side's certificate; see cert_file"
        }
        AlertDescription::AccessDenied => "it denies access with this side's certificate; see cert_file",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "it has no cipher in common with this program, or wants a client's certificate; see cert_file"
        }
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.2 nor 1.3",
        AlertDescription::UnrecognisedName => "it does not know the name of this connection",
        AlertDescription::NoApplicationProtocol => "it speaks another protocol than MQTT there (ALPN)",
        AlertDescription::DecryptError => {
            "it finds a signature wrong: the certificate's, whose authority it knows under that name with another key, or \
             that of key_file; see cert_file"
        }
        AlertDescription::InternalError => "it has an internal error",
        other => return format!("TLS alert {other:?}"),
    };
    said.to_owned()
}

/// Why a server is not the pinned one.
#[derive(Debug, thiserror::Error)]
pub enum NotPinned {
    /// It has this key.
    #[error(
        "what answers there shows another certificate and public key than broker_pins has: its public key is {0}. If that \
         is the broker's new key, set it there; else somebody is in between"
    )]
    Other(String),
    #[error(
        "what answers there shows the certificate that is pinned, and does not have its key: somebody is in between"
    )]
    Unproved,
}

fn said_by_library(why: &Error) -> String {
    format!("TLS says: {why}")
}
