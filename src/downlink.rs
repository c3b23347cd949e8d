//! Commands to devices and to the gateway itself: taken over, kept, handed over in
//! order, and ended.
//!
//! [`queue`] decides, without clock, disk or device; [`Downlink`] is the task around it.
//! See `docs/commands.md`.

mod deadline;
mod driver;
mod order;
pub mod queue;
mod result;

pub use driver::{Downlink, Handle, Operate, Operated, Stopping};
pub use order::{Invalid, Limits, Order};
pub use queue::Refusal;
pub use result::{error, value};
