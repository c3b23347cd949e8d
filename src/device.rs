//! Devices: what a session may say and is answered, how its readings become
//! batches, what is acknowledged when, and who is connected.
//!
//! [`Session`], [`Converter`] and [`Acks`] are pure; the links drive them.

mod acks;
pub mod auth;
mod convert;
mod duplicate_ids;
mod gaps;
mod presence;
pub mod presence_task;
mod rate;
mod refused_samples;
mod registry;
mod session;

pub use acks::Acks;
pub use convert::{ConvertError, Converted, Converter, Refused, TimeRules};
pub use presence::{PresenceUpdate, PresenceUpdates};
pub use rate::Bucket;
pub use refused_samples::{RefusedLog, RefusedSamples};
pub use registry::{Answer, Call, Connected, Introduction, NotAdmitted, Registry};
pub use session::{Refusal, Session, SessionParameters, Step, Tick};
