//! An authority, a server's certificate and a client's, made for one test.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The PEM files of an authority and of who it vouches for.
pub struct Certificates {
    directory: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Certificates {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
        let certificates = Certificates { directory, authority };
        certificates.write("ca.pem", certificates.authority.pem());
        certificates.issue("server", "localhost");
        certificates.issue("client", "gateway");
        certificates
    }

    /// Makes `NAME.pem` and `NAME.key`, for whom `host` names; or makes them anew.
    pub fn issue(&self, name: &str, host: &str) {
        self.issue_with(name, CertificateParams::new(vec![host.to_owned()]).expect("valid names"));
    }

    /// As [`Certificates::issue`], to expire at this time.
    #[allow(dead_code, reason = "not every test program has some expire")]
    pub fn issue_until(&self, name: &str, host: &str, until: std::time::SystemTime) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("valid names");
        params.not_after = until.into();
        self.issue_with(name, params);
    }

    fn issue_with(&self, name: &str, mut params: CertificateParams) {
        let key = key();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
        self.write(&format!("{name}.pem"), certificate.pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    fn write(&self, name: &str, text: String) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    /// The keys that make a listener speak TLS.
    pub fn listener(&self) -> String {
        format!("cert_file = {:?}\nkey_file = {:?}\n", self.path("server.pem"), self.path("server.key"))
    }

    /// A connection to `address` that trusts the authority, and shows the certificate
    /// that was issued as `client`.
    pub async fn connect(&self, address: &str, client: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.pem"))).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions that ring knows")
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).expect("a key");
                let chain = vec![certificate(&self.path(&format!("{name}.pem")))];
                builder.with_client_auth_cert(chain, key).expect("a certificate and its key")
            }
        };
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let host = "localhost".try_into().expect("a host's name");
        TlsConnector::from(Arc::new(config)).connect(host, stream).await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server that lets in only whom the authority vouches for.
    pub fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.pem"))).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions that ring knows")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(
                vec![certificate(&self.path("server.pem"))],
                PrivateKeyDer::from_pem_file(self.path("server.key")).expect("a key"),
            )
            .expect("a certificate and its key");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}
