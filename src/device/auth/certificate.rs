//! Certificates that speak for devices.

use crate::model::DeviceId;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// Before a device's name in a certificate's URI, for names that are none of a host.
const SCHEME: &str = "tidegate:";

/// Whether a certificate that was verified is that of `device`: one of its alternative
/// names is the device's, letter for letter, as a DNS name or as a URI `tidegate:NAME`.
/// Wildcards stand for nothing but themselves.
pub fn certifies(certificate: &CertificateDer<'_>, device: &DeviceId) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    let device = device.as_str();
    certificate.valid_dns_names().any(|name| name == device)
        || certificate.valid_uri_names().any(|name| name.strip_prefix(SCHEME) == Some(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        for name in names {
            let text = (*name).try_into().expect("ASCII");
            params.subject_alt_names.push(match name.contains(':') {
                true => SanType::URI(text),
                false => SanType::DnsName(text),
            });
        }
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn a_certificate_speaks_for_the_devices_it_names_and_no_other() {
        let is_for = |names: &[&str], device: &str| {
            certifies(&certificate(names), &DeviceId::new(device).expect("a valid name"))
        };
        assert!(is_for(&["pump-7"], "pump-7"));
        assert!(is_for(&["valve", "pump_7.plant"], "pump_7.plant"));
        assert!(is_for(&["tidegate:7"], "7"), "a name that no host can have");
        for (names, device) in [
            (&["pump-7"][..], "pump-70"),
            (&["pump-7"], "pump"),
            (&["pump-7"], "PUMP-7"),
            (&["*.plant"], "pump.plant"),
            (&["tidegate:7"], "tidegate"),
            (&["other:7"], "7"),
            (&[], "pump-7"),
        ] {
            assert!(!is_for(names, device), "{names:?} {device}");
        }
        let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert!(!certifies(&garbage, &DeviceId::new("pump").expect("a valid name")));
    }
}
