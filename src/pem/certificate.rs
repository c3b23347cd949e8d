//! What a certificate says of itself (RFC 5280, section 4.1), as far as a person has to know it
//! to see what is wrong. Pure; nothing here decides whom to trust.

use super::validity::{SEQUENCE, VERSION, Validity, element, inside};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use std::net::{Ipv4Addr, Ipv6Addr};

const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
/// `[3]`, in which a certificate of version 3 has its extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` and `[7]` of a subject's alternative names: a host's name, an address.
const DNS_NAME: u8 = 0x82;
const ADDRESS: u8 = 0x87;

/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANISATION: &[u8] = &[0x55, 4, 10];
/// 2.5.29.17 and 2.5.29.19.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Of X.509: 1 to 3.
    pub version: u8,
    /// Common names, or organisations; empty if there are none.
    pub subject: String,
    pub issuer: String,
    /// The hosts and addresses that it is for.
    pub names: Vec<String>,
    /// Whether it says that it is an authority's (CA:TRUE).
    pub is_authority: bool,
    pub validity: Validity,
    /// SubjectPublicKeyInfo, in DER.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Of one in DER; `None` if it is none.
    pub fn of(der: &[u8]) -> Option<Certificate> {
        let mut rest = inside(inside(der, SEQUENCE)?, SEQUENCE)?;
        let mut version = 1;
        if rest.first() == Some(&VERSION) {
            let (_, number, behind) = element(rest)?;
            version = element(number)?.1.last()?.checked_add(1)?;
            rest = behind;
        }
        // Serial number, algorithm.
        for _ in 0..2 {
            rest = element(rest)?.2;
        }
        let (_, issuer, rest) = element(rest)?;
        let (_, _, rest) = element(rest)?;
        let (_, subject, rest) = element(rest)?;
        let (_, _, behind) = element(rest)?;
        let public_key = rest.get(..rest.len() - behind.len())?.to_vec();
        let mut found = Certificate {
            version,
            subject: named(subject),
            issuer: named(issuer),
            names: Vec::new(),
            is_authority: false,
            validity: Validity::of(der)?,
            public_key,
        };
        for (tag, content) in elements(behind) {
            if tag == EXTENSIONS {
                elements(inside(content, SEQUENCE)?).for_each(|(_, extension)| found.extend(extension));
            }
        }
        Some(found)
    }

    fn extend(&mut self, extension: &[u8]) {
        let Some((OBJECT_ID, id, rest)) = element(extension) else { return };
        let Some(value) = elements(rest).find(|(tag, _)| *tag == OCTETS).and_then(|(_, value)| inside(value, SEQUENCE))
        else {
            return;
        };
        match id {
            BASIC_CONSTRAINTS => {
                self.is_authority = elements(value).next().is_some_and(|(tag, value)| tag == BOOLEAN && value != [0]);
            }
            ALTERNATIVE_NAMES => self.names.extend(elements(value).filter_map(|(tag, name)| match tag {
                DNS_NAME => Some(String::from_utf8_lossy(name).into_owned()),
                ADDRESS => address(name),
                _ => None,
            })),
            _ => {}
        }
    }

    /// Whether it vouches for itself, as far as names tell.
    pub fn is_self_signed(&self) -> bool {
        self.subject == self.issuer
    }

    /// `sha256/BASE64` of the public key (RFC 7469, 2.4), which stays the same in a
    /// certificate that is renewed with the same key.
    pub fn pin(&self) -> String {
        format!("sha256/{}", STANDARD.encode(sha256(&self.public_key)))
    }
}

/// The digest that certificates and public keys are pinned by.
pub fn sha256(der: &[u8]) -> [u8; 32] {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest(&SHA256, der).as_ref()); // SHA-256 has 32 bytes
    pin
}

/// The elements that stand one behind the other in `der`, until something is wrong.
fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, content, rest) = element(der)?;
        der = rest;
        Some((tag, content))
    })
}

/// What a distinguished name calls somebody.
fn named(name: &[u8]) -> String {
    let parts: Vec<_> = elements(name)
        .flat_map(|(_, set)| elements(set))
        .filter_map(|(_, part)| {
            let (_, id, rest) = element(part)?;
            Some((id, String::from_utf8_lossy(element(rest)?.1).into_owned()))
        })
        .collect();
    let of = |wanted| parts.iter().filter(|(id, _)| *id == wanted).map(|(_, text)| text.as_str()).collect::<Vec<_>>();
    let common = of(COMMON_NAME);
    if common.is_empty() { of(ORGANISATION) } else { common }.join(", ")
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| Ipv4Addr::from(bytes).to_string()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData};

    fn made(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, KeyPair) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "the broker");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let der = params.self_signed(&key).expect("a certificate").der().to_vec();
        (der, key)
    }

    #[test]
    fn what_a_certificate_says_is_read_from_it() {
        let (der, key) = made(&["broker.example", "10.0.0.7", "fd00::1"], |_| {});
        let found = Certificate::of(&der).expect("a certificate");
        assert_eq!((found.version, found.subject.as_str(), found.is_authority), (3, "the broker", false));
        assert_eq!(found.names, ["broker.example", "10.0.0.7", "fd00::1"]);
        assert!(found.is_self_signed());
        assert_eq!(found.public_key, key.subject_public_key_info());
        assert_eq!(found.pin(), found.pin().trim());
        assert_eq!(found.pin().len(), "sha256/".len() + 44);
        let (der, _) = made(&[], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let found = Certificate::of(&der).expect("a certificate");
        assert!(found.is_authority && found.names.is_empty());
    }

    #[test]
    fn no_cut_and_no_change_of_a_byte_makes_it_panic() {
        let (whole, _) = made(&["broker.example"], |_| {});
        for end in 0..whole.len() {
            let _ = Certificate::of(&whole[..end]);
            for byte in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[end] = byte;
                let _ = Certificate::of(&changed);
            }
        }
    }
}
