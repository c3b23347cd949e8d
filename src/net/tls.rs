//! TLS on listeners, by rustls with ring.
//!
//! Certificates are read at the start and again when their files change, so a renewal needs no
//! restart. The memory that a client can make the gateway hold, before and after its handshake, is
//! bounded and charged to the pool: rustls itself accepts handshake messages of 64 KiB.
//!
//! Sessions are not resumed: each connection authenticates anew.

mod failure;
mod flush_on_write;

pub use failure::explain;
pub use flush_on_write::FlushOnWrite;

use super::close::hung_up;
use super::memory::{Lease, Pool};
use crate::config::{ClientCertificates, ListenerConfig, ServerTls};
use crate::credentials::Kept;
use crate::pem::{self, Validity};
use anyhow::{Context as _, Result};
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ServerConfig};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Memory of an idle connection's TLS state, beside what every connection is charged, in bytes.
const IDLE: usize = 8 * 1024;
/// Bytes that may arrive without application data among them: before the connection is charged for
/// them, and at most. A record has up to 16 KiB; a handshake with a chain of certificates less.
const UNCHARGED: usize = 4 * 1024;
const MOST: usize = 24 * 1024;

/// The certificates of one listener.
pub type Tls = Kept<ServerConfig>;

/// The TLS configuration of the listener called `part`, if it speaks TLS.
pub fn of_listener(part: &str, config: &ListenerConfig, now: Duration) -> Option<Arc<Tls>> {
    const WITHOUT: &str = "nobody is let in over TLS until it is right";
    let files = config.tls()?;
    let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten().cloned();
    let paths: Vec<_> = paths.collect();
    Some(Arc::new(Kept::new(part, paths, WITHOUT, now, move || server_config(&files))))
}

/// Loads the files into a listener's TLS configuration, with the validity of its certificates.
///
/// # Errors If one cannot be read or holds nothing useful, or if certificate and key do not go
/// together.
pub fn server_config(files: &ServerTls) -> Result<(ServerConfig, Option<Validity>)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(pem::authorities(path)?.into(), provider);
            let verifier = match files.client_certificates {
                ClientCertificates::Required => verifier,
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(verifier.build().context("client_ca_file cannot be used")?)
        }
    };
    let chain = pem::certificates(&files.cert)?;
    let validity = Validity::of_chain(&chain);
    let mut config = builder
        .with_single_cert(chain, pem::private_key(&files.key)?)
        .map_err(|why| pem::unfit(&files.cert, &files.key, &why))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, validity))
}

/// Performs the TLS handshake on `stream`. A client that sends nothing costs no memory; `turn` is
/// awaited between its first bytes and the work that they cause.
///
/// # Errors If the client does not speak TLS, fails to prove who it is, or goes.
pub async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    pool: &Pool,
    turn: impl Future<Output = ()>,
) -> io::Result<Secure> {
    // A connection that is closed at once, such as a port scan, is no TLS failure.
    if !matches!(stream.peek(&mut [0]).await, Ok(1..)) {
        return Err(io::ErrorKind::NotConnected.into());
    }
    turn.await;
    let mut lease = pool.lease();
    lease.hold(IDLE);
    let metered = Metered { stream, lease, unread: 0, delivered: false };
    let stream = TlsAcceptor::from(config).accept(metered).await?;
    Ok(Secure(FlushOnWrite::new(stream)))
}

/// Whether a handshake failed because of the client's certificate, or because it has none. An
/// expired certificate is no fault of the client's: the gateway's clock may not be set yet.
pub fn is_for_certificate(why: &io::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match why.get_ref().and_then(|why| why.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(why)) => {
            !matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
        }
        Some(rustls::Error::NoCertificatesPresented) => true,
        _ => false,
    }
}

/// A connection under TLS that needs no flush.
pub struct Secure(FlushOnWrite<TlsStream<Metered>>);

impl Secure {
    /// The certificate that the client showed and that was verified.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        let (_, session) = self.0.get_ref().get_ref();
        Some(session.peer_certificates()?.first()?.clone().into_owned())
    }

    /// Whether the far end sends no more, even while something that it sent is not read yet.
    pub fn hung_up(&self) -> bool {
        let (below, _) = self.0.get_ref().get_ref();
        hung_up(&below.stream)
    }
}

impl AsyncRead for Secure {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.0.get_mut();
        // In chunks: `poll_read` would read on below while there is room in the buffer.
        let plain = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))?;
        let length = plain.len().min(buffer.remaining());
        buffer.put_slice(&plain[..length]);
        Pin::new(&mut *stream).consume(length);
        stream.get_mut().0.delivered = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Secure {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The connection below TLS, which is charged for what rustls buffers of it.
struct Metered {
    stream: TcpStream,
    lease: Lease,
    /// Bytes read since rustls last delivered application data.
    unread: usize,
    /// Whether it delivered any since the last read.
    delivered: bool,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        // rustls reads on only when everything that it delivered was taken.
        if std::mem::take(&mut this.delivered) {
            this.unread = 0;
            this.lease.hold(IDLE);
        }
        this.unread += buffer.filled().len() - before;
        // Once as received, once decrypted.
        if this.unread > UNCHARGED && !this.lease.reserve(IDLE + 2 * this.unread) {
            this.lease.pool().refused("tls");
            return Poll::Ready(Err(io::Error::other("there is no memory for so large a TLS record")));
        }
        if this.unread > MOST {
            return Poll::Ready(Err(io::Error::other("too much came without a word of the device in it")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_not_locked_out_for_a_clock_that_is_not_set() {
        let failed = |why| is_for_certificate(&io::Error::new(io::ErrorKind::InvalidData, why));
        let invalid = rustls::Error::InvalidCertificate;
        assert!(failed(invalid(CertificateError::UnknownIssuer)) && failed(rustls::Error::NoCertificatesPresented));
        assert!(!failed(invalid(CertificateError::NotValidYet)) && !failed(invalid(CertificateError::Expired)));
        assert!(!failed(rustls::Error::DecryptError) && !is_for_certificate(&io::ErrorKind::TimedOut.into()));
    }
}
