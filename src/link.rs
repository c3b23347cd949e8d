//! Transports over which devices connect. Each drives device sessions over
//! something that reads and writes; see `docs/links.md`.

mod context;
mod reception;
mod remote;
pub mod serial;
mod session;
pub mod tcp;
pub mod websocket;

pub use context::Shared;
