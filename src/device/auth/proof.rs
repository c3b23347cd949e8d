//! What a device says to prove who it is, and how that is judged. Pure.

use crate::config::Authentication;
use crate::model::{DeviceId, Timestamp, glob};
use ring::digest::SHA256_OUTPUT_LEN;
use ring::hmac::{self, HMAC_SHA256};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Drawn at random for each Hello.
pub type Nonce = [u8; 32];

/// What an HMAC is taken of begins with this, so that it is of no use anywhere else.
const HMAC_DOMAIN: &[u8] = b"tidegate-hmac-v1\0";
/// Tokens are hashed under this. It need not be slow: 256 random bits cannot be guessed.
const TOKEN_DOMAIN: &[u8] = b"tidegate-token-v1";

/// Bytes of every proof: of an HMAC, and of a token.
const PROOF: usize = 32;

/// 256 random bits that a device and the gateway share.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

/// Its content stays out of logs.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The proof that whoever has the secret gives to `nonce`, for one session of one
    /// device.
    pub fn hmac(&self, nonce: &[u8], device: &str, session: u64) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(HMAC_SHA256, &self.0));
        parts(nonce, device, &session.to_be_bytes()).iter().for_each(|part| context.update(part));
        context.sign().as_ref().to_vec()
    }

    /// What the gateway keeps of a token: it does not give the token away.
    pub fn token_hash(&self) -> TokenHash {
        let mut hash = [0; SHA256_OUTPUT_LEN];
        hash.copy_from_slice(hmac::sign(&hmac::Key::new(HMAC_SHA256, TOKEN_DOMAIN), &self.0).as_ref());
        TokenHash(hash)
    }
}

/// A token of which only this is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; SHA256_OUTPUT_LEN]);

/// The parts of what is signed, in order.
fn parts<'a>(nonce: &'a [u8], device: &'a str, session: &'a [u8; 8]) -> [&'a [u8]; 5] {
    [HMAC_DOMAIN, nonce, device.as_bytes(), b"\0", session]
}

/// What a key's holder is recognised by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Material {
    Token(TokenHash),
    Hmac(Secret),
}

impl Material {
    /// Its name in files and tables.
    pub fn kind(&self) -> &'static str {
        match self {
            Material::Token(_) => "token",
            Material::Hmac(_) => "hmac",
        }
    }
}

/// A key that devices hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    /// Patterns of which one must match the device's name.
    pub devices: Vec<String>,
    pub created: Timestamp,
    pub material: Material,
}

impl Key {
    /// Whether it speaks for `device`.
    pub fn is_for(&self, device: &DeviceId) -> bool {
        self.devices.iter().any(|pattern| glob(pattern, device.as_str()))
    }
}

/// A device's answer to a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub device: DeviceId,
    pub session: u64,
    pub nonce: Nonce,
    pub key: String,
    pub proof: Vec<u8>,
}

/// Why an attempt failed. The device is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthError {
    /// No key has this name.
    UnknownKey,
    /// The key is a token where an HMAC is demanded.
    WrongKind,
    WrongProof,
    /// A proof has `PROOF` bytes, this one so many.
    WrongLength(usize),
    /// The key does not speak for the device.
    WrongDevice,
    /// The file of keys cannot be used.
    NoKeys,
    /// A certificate that does not name the device.
    Certificate,
    /// The configuration does not let in a device of this name.
    NotAllowed,
    /// Too many attempts failed before.
    LockedOut,
}

impl AuthError {
    /// Its name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            AuthError::UnknownKey => "unknown_key",
            AuthError::WrongKind => "wrong_kind",
            AuthError::WrongProof => "wrong_proof",
            AuthError::WrongLength(_) => "wrong_length",
            AuthError::WrongDevice => "wrong_device",
            AuthError::NoKeys => "no_keys",
            AuthError::Certificate => "certificate",
            AuthError::NotAllowed => "not_allowed",
            AuthError::LockedOut => "locked_out",
        }
    }

    /// What an operator may look for, if that can be told.
    pub fn hint(self) -> Option<String> {
        let AuthError::WrongLength(length) = self else { return None };
        let likely = match length {
            64 => ": it looks like hexadecimal text",
            43 | 44 => ": it looks like base64 text",
            _ => "",
        };
        Some(format!("a proof is {PROOF} bytes, this one has {length}{likely}"))
    }

    /// Whether somebody tried what may be a guess. Other faults are the gateway's or the
    /// configuration's, or told already.
    pub fn is_a_guess(self) -> bool {
        !matches!(self, AuthError::NoKeys | AuthError::NotAllowed | AuthError::LockedOut)
    }
}

/// The keys that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(HashMap<String, Arc<Key>>);

impl Keys {
    /// Of several keys with one name the last counts.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Keys {
        Keys(keys.into_iter().map(|key| (key.name.clone(), Arc::new(key))).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is still there as it was, and still speaks for `device`.
    pub fn still_has(&self, key: &Key, device: &DeviceId) -> bool {
        self.0.get(&key.name).is_some_and(|now| now.material == key.material && now.is_for(device))
    }

    /// The key that `attempt` proved to have.
    ///
    /// # Errors
    /// If it proved none that lets the device in here.
    pub fn verify(&self, attempt: &Attempt, demanded: Authentication) -> Result<Arc<Key>, AuthError> {
        let known = self.0.get(&attempt.key);
        // As much work for a key that is not there: the time must not tell.
        let proven = match known.map(|key| &key.material) {
            Some(Material::Token(hash)) => is_token(&attempt.proof, hash),
            Some(Material::Hmac(secret)) => is_hmac(attempt, secret),
            None => is_hmac(attempt, &Secret([0; 32])),
        };
        let key = known.ok_or(AuthError::UnknownKey)?;
        if attempt.proof.len() != PROOF {
            return Err(AuthError::WrongLength(attempt.proof.len()));
        }
        if !proven {
            return Err(AuthError::WrongProof);
        }
        if demanded == Authentication::Hmac && matches!(key.material, Material::Token(_)) {
            return Err(AuthError::WrongKind);
        }
        if !key.is_for(&attempt.device) {
            return Err(AuthError::WrongDevice);
        }
        Ok(key.clone())
    }
}

fn is_token(proof: &[u8], TokenHash(hash): &TokenHash) -> bool {
    hmac::verify(&hmac::Key::new(HMAC_SHA256, TOKEN_DOMAIN), proof, hash).is_ok()
}

fn is_hmac(attempt: &Attempt, secret: &Secret) -> bool {
    let message = parts(&attempt.nonce, attempt.device.as_str(), &attempt.session.to_be_bytes()).concat();
    hmac::verify(&hmac::Key::new(HMAC_SHA256, &secret.0), &message, &attempt.proof).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret([7; 32]);
    const NONCE: Nonce = [9; 32];

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).expect("a valid name")
    }

    fn key(name: &str, material: Material) -> Key {
        Key { name: name.into(), devices: vec!["pump-*".into(), "hub".into()], created: Timestamp(0), material }
    }

    fn keys() -> Keys {
        Keys::new([key("h", Material::Hmac(SECRET)), key("t", Material::Token(SECRET.token_hash()))])
    }

    fn attempt(key: &str, name: &str, proof: &[u8]) -> Attempt {
        Attempt { device: device(name), session: 5, nonce: NONCE, key: key.into(), proof: proof.to_vec() }
    }

    #[test]
    fn only_the_right_proof_for_this_nonce_device_and_session_lets_in() {
        let verify = |attempt: Attempt| keys().verify(&attempt, Authentication::Hmac).map(|key| key.name.clone());
        let proof = |name| SECRET.hmac(&NONCE, name, 5);
        assert_eq!(verify(attempt("h", "pump-1", &proof("pump-1"))), Ok("h".to_owned()));
        assert_eq!(verify(attempt("h", "hub", &proof("hub"))), Ok("h".to_owned()));
        assert_eq!(verify(attempt("h", "valve", &proof("valve"))), Err(AuthError::WrongDevice));
        assert_eq!(verify(attempt("x", "pump-1", &proof("pump-1"))), Err(AuthError::UnknownKey));
        for wrong in [
            proof("pump-2"),
            SECRET.hmac(&NONCE, "pump-1", 6),
            SECRET.hmac(&[8; 32], "pump-1", 5),
            Secret([8; 32]).hmac(&NONCE, "pump-1", 5),
            SECRET.0.to_vec(),
        ] {
            assert_eq!(verify(attempt("h", "pump-1", &wrong)), Err(AuthError::WrongProof));
        }
        let hexadecimal: Vec<u8> = proof("pump-1").iter().flat_map(|b| format!("{b:02x}").into_bytes()).collect();
        for (length, wrong) in [(31, &proof("pump-1")[..31]), (0, &[]), (64, &hexadecimal)] {
            assert_eq!(verify(attempt("h", "pump-1", wrong)), Err(AuthError::WrongLength(length)));
            assert_eq!(verify(attempt("x", "pump-1", wrong)), Err(AuthError::UnknownKey));
        }
        let hint = AuthError::WrongLength(64).hint();
        assert_eq!(hint.as_deref(), Some("a proof is 32 bytes, this one has 64: it looks like hexadecimal text"));
        let zero = Secret([0; 32]).hmac(&NONCE, "pump-1", 5);
        assert_eq!(verify(attempt("x", "pump-1", &zero)), Err(AuthError::UnknownKey), "whatever is computed");
    }

    #[test]
    fn a_token_lets_in_where_tokens_do_and_an_hmac_does_everywhere() {
        let token = attempt("t", "pump-1", &SECRET.0);
        assert!(keys().verify(&token, Authentication::Token).is_ok());
        assert_eq!(keys().verify(&token, Authentication::Hmac), Err(AuthError::WrongKind));
        let hmac = attempt("h", "pump-1", &SECRET.hmac(&NONCE, "pump-1", 5));
        assert!(keys().verify(&hmac, Authentication::Token).is_ok());
        let hash = attempt("t", "pump-1", &SECRET.token_hash().0);
        assert_eq!(keys().verify(&hash, Authentication::Token), Err(AuthError::WrongProof), "what is kept is no token");
        assert_eq!(format!("{SECRET:?}"), "Secret(..)");
    }

    #[test]
    fn a_key_is_there_as_long_as_it_is_the_same() {
        let (key, hub) = (key("h", Material::Hmac(SECRET)), device("hub"));
        assert!(keys().still_has(&key, &hub));
        assert!(!Keys::default().still_has(&key, &hub));
        let other = Key { material: Material::Hmac(Secret([1; 32])), ..key.clone() };
        assert!(!Keys::new([other]).still_has(&key, &hub));
        let narrower = Key { devices: vec!["pump-*".into()], ..key.clone() };
        assert!(!Keys::new([narrower]).still_has(&key, &hub));
    }
}
