//! Why a TLS handshake failed, in words that an operator can act on.

use rustls::{AlertDescription, CertificateError, Error};
use std::io::{self, ErrorKind};

/// Why a handshake failed. `None` if the client closed the connection without sending anything, as
/// a port scan does, or sent nothing in time.
pub fn explain(why: &io::Error) -> Option<String> {
    let reason = match why.get_ref().and_then(|why| why.downcast_ref::<Error>()) {
        Some(why) => explain_tls(why),
        None => match why.kind() {
            ErrorKind::NotConnected => return None,
            ErrorKind::TimedOut => return None,
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "the client hung up in the middle of the handshake: it may not trust the certificate".to_owned()
            }
            _ => why.to_string(),
        },
    };
    Some(reason)
}

fn explain_tls(why: &Error) -> String {
    let words = match why {
        Error::InvalidMessage(_) => "what came is no TLS: the client has to be told to speak TLS",
        Error::NoCertificatesPresented => "the client showed no certificate, and client_certificates demands one",
        Error::PeerIncompatible(_) => NOTHING_IN_COMMON,
        Error::InvalidCertificate(why) => return explain_certificate(why),
        Error::AlertReceived(alert) => return explain_alert(*alert),
        Error::DecryptError => "what came cannot be decrypted: it was changed on its way, or the client is faulty",
        _ => "the client broke the rules of TLS",
    };
    words.to_owned()
}

const NOTHING_IN_COMMON: &str = "the client and the gateway have no version of TLS (1.2, 1.3) or no cipher in common";

fn explain_certificate(why: &CertificateError) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let words = match why {
        UnknownIssuer => "is of no authority in client_ca_file",
        Expired | ExpiredContext { .. } => "has expired; renew it",
        NotValidYet | NotValidYetContext { .. } => "is not valid yet, by the gateway's clock",
        InvalidPurpose | InvalidPurposeContext { .. } => "is not made for clients (its extended key usage says so)",
        BadSignature => "is of no authority in client_ca_file, only of one of the same name",
        _ => "cannot be accepted: it is damaged, or of a kind that is not supported",
    };
    format!("the client's certificate {words}")
}

fn explain_alert(alert: AlertDescription) -> String {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateUnknown, DecryptError, HandshakeFailure, InsufficientSecurity,
        ProtocolVersion, UnknownCA, UnsupportedCertificate,
    };
    let words = match alert {
        DecryptError => "the client does not trust the certificate: it knows another authority of the same name",
        UnknownCA => "the client does not trust the certificate: give the client the authority that signed it",
        CertificateExpired => "for the client the certificate has expired: renew it, or set the client's clock",
        BadCertificate | CertificateUnknown | UnsupportedCertificate => {
            "the client refuses the certificate: it may know no authority of it, or expect another host's name in it"
        }
        HandshakeFailure | InsufficientSecurity | ProtocolVersion => NOTHING_IN_COMMON,
        other => return format!("the client gave up (TLS alert {})", u8::from(other)),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::InvalidMessage;

    #[test]
    fn each_failure_has_its_own_words_and_a_silent_client_has_none() {
        let told = |why: Error| explain(&io::Error::new(ErrorKind::InvalidData, why)).expect("a reason");
        for (why, words) in [
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "no TLS"),
            (Error::NoCertificatesPresented, "no certificate"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "client_ca_file"),
            (Error::InvalidCertificate(CertificateError::Expired), "has expired"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "does not trust"),
            (Error::AlertReceived(AlertDescription::InternalError), "alert 80"),
            (Error::DecryptError, "decrypted"),
        ] {
            assert!(told(why.clone()).contains(words), "{why:?}: {}", told(why.clone()));
        }
        assert!(explain(&ErrorKind::UnexpectedEof.into()).is_some_and(|why| why.contains("hung up")));
        assert_eq!(explain(&ErrorKind::NotConnected.into()), None);
    }
}
