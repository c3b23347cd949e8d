//! Devices: what a session may say and is answered, how its readings become
//! batches, what is acknowledged when, and who is connected.
//!
//! [`Session`], [`Converter`] and [`Acks`] are pure; the links drive them.

mod acks;
pub mod attendance;
pub mod auth;
mod convert;
mod gaps;
mod rate;
mod refused_samples;
mod registry;
mod rivals;
mod roll;
mod session;

pub use acks::Acks;
pub use convert::{ConvertError, Converted, Converter, Refused, TimeRules};
pub use rate::Bucket;
pub use refused_samples::{RefusedLog, RefusedSamples};
pub use registry::{Answer, Call, Connected, Introduction, NotAdmitted, Registry};
pub use roll::{Tellings, Told};
pub use session::{Refusal, Session, SessionParameters, Step, Tick};
