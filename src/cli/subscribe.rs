//! (under construction)

pub mod consumer;
pub mod gaps;
pub mod ranges;
pub mod seen;
