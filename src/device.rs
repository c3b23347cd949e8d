//! Devices: what a session may say and is answered, how its readings become
//! batches, what is acknowledged when, and who is connected.
//!
//! [`Session`], [`Converter`] and [`Acks`] are pure; the links drive them.

mod acks;
pub mod auth;
mod convert;
mod registry;
mod session;

pub use acks::Acks;
pub use convert::{ConvertError, Converted, Converter, TimeRules};
pub use registry::{Connected, Registry};
pub use session::{Grants, Refusal, Session, Step};
