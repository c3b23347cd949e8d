//! Commands to devices and to the gateway itself: accepted, stored, handed over in order, and
//! ended.
//!
//! [`queue`] decides, without clock, disk or device; [`Downlink`] is the task around it.
//! See `docs/commands.md`.

mod deadline;
mod driver;
pub mod queue;
mod request;
mod result;

pub use driver::{Downlink, GatewayCommands, GatewayOutcome, Handle, Stopping};
pub use queue::Refusal;
pub use request::{CommandRequest, Invalid, Limits};
pub use result::{error, value};
