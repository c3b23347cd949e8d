//! TLS with the one gateway whose configuration is at hand: its certificate is known, so
//! nobody has to vouch for it, and no other will do.

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection with a server that has proved itself.
pub(super) type Secured = TlsStream<TcpStream>;

/// How a handshake went.
pub(super) enum Shaken {
    Secure(Box<Secured>),
    /// The server has another certificate.
    Another,
}

/// Shakes hands with the server that has `certificate`.
///
/// # Errors
/// If what answers does not speak TLS, or not in time.
pub(super) async fn connect(stream: TcpStream, certificate: CertificateDer<'static>, until: Instant) -> Result<Shaken> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned { certificate, algorithms: provider.signature_verification_algorithms };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    let host = ServerName::from(stream.peer_addr()?.ip());
    let connecting = timeout_at(until, TlsConnector::from(Arc::new(config)).connect(host, stream)).await;
    match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => Ok(Shaken::Secure(Box::new(stream))),
        Err(why) if is_another(&why) => Ok(Shaken::Another),
        Err(why) => Err(why).context("it does not shake hands as a gateway with TLS"),
    }
}

fn is_another(why: &io::Error) -> bool {
    let why = why.get_ref().and_then(|why| why.downcast_ref());
    let expected = rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
    why == Some(&expected)
}

/// Believes one certificate, whatever stands in it, of whoever has its key.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity == &self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::ServerConnection;
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ServerConfig, SupportedProtocolVersion};
    use std::net::TcpListener;
    use std::time::Duration;

    fn certificate() -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["somebody.example".to_owned()]).expect("a name");
        (params.self_signed(&key).expect("a certificate").der().clone(), key)
    }

    /// What comes of a handshake with a server that shows `shown` and signs with `key`.
    async fn shake(
        wanted: &CertificateDer<'static>,
        shown: &CertificateDer<'static>,
        key: &KeyPair,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Shaken> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let key = provider.key_provider.load_private_key(key).expect("a key that ring knows");
        // Whether they go together nobody asks here.
        let both = SingleCertAndKey::from(CertifiedKey::new(vec![shown.clone()], key));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version that ring knows")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(both));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut connection = ServerConnection::new(Arc::new(config)).expect("a connection");
            // What becomes of it the client tells.
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        });
        let stream = TcpStream::connect(address).await.expect("it listens");
        let shaken = connect(stream, wanted.clone(), Instant::now() + Duration::from_secs(10)).await;
        server.join().expect("it does not panic");
        shaken
    }

    #[tokio::test]
    async fn only_the_one_certificate_is_believed_and_only_with_its_key() {
        let ((wanted, key), (other, other_key)) = (certificate(), certificate());
        for version in [&TLS12, &TLS13] {
            assert!(matches!(shake(&wanted, &wanted, &key, version).await, Ok(Shaken::Secure(_))));
            assert!(matches!(shake(&wanted, &other, &other_key, version).await, Ok(Shaken::Another)));
            assert!(shake(&wanted, &wanted, &other_key, version).await.is_err(), "it has no key for that");
        }
    }
}
