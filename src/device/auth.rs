//! Who a device is, and whether it may come in.
//!
//! A device proves a key ([`Keys::judge`]) or shows a certificate ([`certifies`]); the
//! [`Doorman`] knows the keys of the moment. See `docs/protocol.md`, "Authentication".

mod certificate;
mod doorman;
mod keyfile;
mod lockout;
mod proof;

pub use certificate::certifies;
pub use doorman::{Credential, Doorman};
pub use keyfile::{KeyFiles, Listed, from_hex, hex, random};
pub use lockout::{Lockouts, Origin};
pub use proof::{Attempt, Fault, Key, Keys, Material, Nonce, Secret, TokenHash};
