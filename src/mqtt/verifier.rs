//! Verifiers of a broker's certificate, beside rustls's own, which uses authorities.

use crate::config::Pin;
use crate::pem::{self, Certificate, NotPinned};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use std::sync::Arc;

/// Accepts the key of a pinned certificate, or a pinned key. Authorities, names and dates are not
/// checked: the pin identifies the server.
#[derive(Debug)]
pub(super) struct Pinned {
    pub pins: Vec<Pin>,
    pub algorithms: WebPkiSupportedAlgorithms,
}

/// The error for an unreadable certificate.
fn none() -> Error {
    CertificateError::BadEncoding.into()
}

fn refused(why: NotPinned) -> Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

/// The key that verifies the handshake's signature; certificates of X.509 version 1 have one
/// as well.
fn public_key(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    Ok(Certificate::of(certificate).ok_or_else(none)?.public_key.into())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = Certificate::of(end_entity).ok_or_else(none)?;
        let shown = [pem::sha256(&found.public_key), pem::sha256(end_entity)];
        if self.pins.iter().any(|pin| shown.contains(&pin.0)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refused(NotPinned::Other(found.pin())))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(certificate)?;
        let key = webpki::RawPublicKeyEntity::try_from(&key).map_err(|_| none())?;
        let mapping = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let algorithms = mapping.map(|(_, algorithms)| *algorithms).unwrap_or_default();
        match algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(refused(NotPinned::Unproved)),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(certificate)?, signed, &self.algorithms)
            .map_err(|_| refused(NotPinned::Unproved))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Accepts every server, to show its certificate; nothing may be sent over the connection.
#[derive(Debug)]
pub(super) struct Anyone(pub WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
