//! Commands to devices and to the gateway itself: taken over, kept, handed over in
//! order, and ended.

pub mod deadline;
mod order;
mod queue;
pub mod result;

pub use order::{Invalid, Limits, Order};
pub use queue::{Action, Dispatch, Queue, Reach, Receipt, Refusal, Rules};
