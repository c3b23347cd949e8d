//! Certificates of brokers that are not as they should be: what is said of each, and pins.

use crate::connect::{check, says};
use crate::support::script::{Manners, Script};
use crate::support::subscriber::options;
use crate::support::tls::Certificates;
use crate::support::{installed, real_services_are_required};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, SupportedProtocolVersion};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use tidegate::mqtt::{self, Connection, Options, TlsFiles};
use tidegate::pem::{Certificate, sha256};
use tokio_rustls::TlsAcceptor;

/// What openssl makes of these arguments, one call a line; `None` where it is not installed.
fn made(calls: &str) -> Option<TempDir> {
    if installed("openssl").is_none() {
        assert!(!real_services_are_required(), "openssl is not installed");
        return None;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("none"), "").expect("a file");
    for call in calls.lines() {
        let output = Command::new("openssl").args(call.split_whitespace()).current_dir(&directory).output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "{call}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Some(directory)
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

/// A server that shows this certificate, whatever is wrong with it, and signs with that key.
async fn server(certificate: &Path, key: &Path, versions: &[&'static SupportedProtocolVersion]) -> Script {
    let provider = rustls::crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::from_pem_file(key).expect("a key"));
    let certified = CertifiedKey::new(vec![self::certificate(certificate)], key.expect("a key that can sign"));
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("versions that ring knows")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Script::start(Manners { tls: Some(TlsAcceptor::from(Arc::new(config))), ..Manners::default() }).await
}

async fn connected(port: u16, files: &TlsFiles) -> Result<(), String> {
    let tls = Some(Arc::new(mqtt::client_config(files).map_err(|why| format!("{why:#}"))?));
    let options = Options { host: "localhost".into(), tls, ..options(port) };
    Connection::open(&options).await.map(drop).map_err(|why| why.what)
}

const ALL: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// A common name alone, an authority's own, version 1.
const MADE: &str = "\
req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 300
req -new -newkey rsa:2048 -nodes -keyout name.key -out name.csr -subj /CN=localhost
x509 -req -in name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out v1.pem -days 300
req -x509 -key name.key -out own.pem -subj /CN=localhost -days 300 -addext subjectAltName=DNS:localhost
req -x509 -key name.key -out name.pem -subj /CN=localhost -days 300 -addext basicConstraints=critical,CA:FALSE
req -x509 -key name.key -out elsewhere.pem -subj /CN=a -days 300 -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:broker,IP:10.0.0.1
genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out other.key";

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_how_to_make_a_right_one() {
    let Some(directory) = made(MADE) else { return };
    let path = |name: &str| directory.path().join(name);
    for (shown, trusted, expected) in [
        ("own.pem", "own.pem", "it is an authority's (CA:TRUE), which TLS accepts from no server"),
        ("v1.pem", "ca.pem", "X.509 version 1"),
        (
            "name.pem",
            "name.pem",
            "a common name (CN) alone is ignored: have one made with `-addext subjectAltName=DNS:localhost`",
        ),
        ("elsewhere.pem", "elsewhere.pem", "the certificate is for broker, 10.0.0.1, and not for localhost"),
    ] {
        let script = server(&path(shown), &path("name.key"), ALL).await;
        let files = TlsFiles { ca: Some(path(trusted)), ..TlsFiles::default() };
        let said = connected(script.port, &files).await.expect_err(shown);
        assert!(said.contains(expected), "{shown}: {said}");
    }
}

#[tokio::test]
async fn a_pinned_certificate_or_key_is_enough_and_another_one_is_not() {
    let Some(directory) = made(MADE) else { return };
    let path = |name: &str| directory.path().join(name);
    for versions in [&ALL[..1], &ALL[1..]] {
        for shown in ["own.pem", "v1.pem", "name.pem", "elsewhere.pem"] {
            let script = server(&path(shown), &path("name.key"), versions).await;
            let der = certificate(&path(shown));
            let of_key = Certificate::of(&der).expect("a certificate").pin();
            let hex: String = sha256(&der).iter().map(|byte| format!("{byte:02X}:")).collect();
            for pin in [of_key.as_str(), hex.trim_end_matches(':')] {
                let pins =
                    vec![[0; 32].map(|_: u8| "00").concat().parse().expect("a pin"), pin.parse().expect("a pin")];
                let files = TlsFiles { pins, ..TlsFiles::default() };
                assert_eq!(connected(script.port, &files).await, Ok(()), "{shown} {pin}");
            }
            let pins = vec!["00".repeat(32).parse().expect("a pin")];
            let said = connected(script.port, &TlsFiles { pins, ..TlsFiles::default() }).await.expect_err(shown);
            assert!(said.contains("another certificate and public key") && said.contains(&of_key), "{said}");
        }
        // Who copied the certificate does not have its key.
        let thief = server(&path("own.pem"), &path("other.key"), versions).await;
        let der = certificate(&path("own.pem"));
        let pins = vec![Certificate::of(&der).expect("a certificate").pin().parse().expect("a pin")];
        let said = connected(thief.port, &TlsFiles { pins, ..TlsFiles::default() }).await.expect_err("no key");
        assert!(said.contains("does not have its key") || said.contains("TLS"), "{said}");
    }
    let script = server(&path("own.pem"), &path("name.key"), ALL).await;
    let pin = Certificate::of(&certificate(&path("own.pem"))).expect("a certificate").pin();
    let (_, said) = check(&format!(
        "brokers = [\"mqtts://127.0.0.1:{}\"]\nbroker_pins = [{pin:?}]\nconnect_timeout = \"1s\"",
        script.port
    ))
    .await;
    assert!(says(&said, "ok", "tls", "the certificate is accepted") && said.contains(&pin), "{said}");
    assert!(says(&said, "ok", "connect", ""), "{said}");
}

#[tokio::test]
async fn an_authority_that_expires_soon_is_noted() {
    let directory = "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 20";
    let Some(directory) = made(directory) else { return };
    let ca = directory.path().join("ca.pem");
    let (_, said) = check(&format!("brokers = [\"mqtts://no-such-host.invalid\"]\nca_file = {ca:?}")).await;
    assert!(said.contains(&format!("note: mqtt[0]: an authority in {} expires in 19 days", ca.display())), "{said}");
}

#[tokio::test]
async fn an_alert_of_tls_is_said_in_plain_words() {
    let (theirs, others) = (Certificates::new(), Certificates::new());
    let script = Script::start(Manners { tls: Some(theirs.acceptor()), ..Manners::default() }).await;
    let ca = Some(theirs.path("ca.pem"));
    let without = TlsFiles { ca: ca.clone(), ..TlsFiles::default() };
    let said = connected(script.port, &without).await.expect_err("it wants a certificate");
    assert!(said.contains("it wants a client's certificate; give cert_file and key_file"), "{said}");
    let (cert, key) = (Some(others.path("client.pem")), Some(others.path("client.key")));
    let files = TlsFiles { ca, cert, key, ..TlsFiles::default() };
    let said = connected(script.port, &files).await.expect_err("it is another authority's");
    assert!(said.contains("the other side ends the connection: it ") && said.contains("see cert_file"), "{said}");
}
