//! Who a device is, and whether it may come in.
//!
//! A device proves a key ([`Keys::verify`]) or shows a certificate ([`certifies`]); the
//! [`Authenticator`] knows the keys of the moment. See `docs/protocol.md`, "Authentication".

mod authenticator;
mod certificate;
mod keyfile;
mod lockout;
mod proof;

pub use authenticator::{Authenticator, Credential};
pub use certificate::certifies;
pub use keyfile::{KeyFiles, Listed, from_hex, hex, random};
pub use lockout::{Lockouts, Origin};
pub use proof::{Attempt, AuthError, Key, Keys, Material, Nonce, Secret, TokenHash};
