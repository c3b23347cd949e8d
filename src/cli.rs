//! (under construction)

pub mod simulate;
pub mod subscribe;
