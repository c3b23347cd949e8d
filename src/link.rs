//! Transports over which devices connect. Each drives the sessions of `session` over a stream; see
//! `docs/links.md`.

mod context;
mod remote;
pub mod serial;
mod session;
pub mod tcp;
pub mod websocket;

pub use context::Shared;
