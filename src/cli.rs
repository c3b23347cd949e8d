//! (under construction)

pub mod simulate;
