//! Devices: who they are, which are connected, and what is known of all others.

pub mod auth;
mod duplicate_ids;
mod presence;
pub mod presence_task;
mod registry;

pub use presence::{PresenceUpdate, PresenceUpdates};
pub use registry::{Answer, Call, Connected, Introduction, NotAdmitted, Registry};
