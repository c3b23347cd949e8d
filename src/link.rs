//! Transports over which devices connect. Each drives device sessions over
//! something that reads and writes; see `docs/links.md`.

mod addresses;
mod caller;
mod connection;
mod line;
mod listen;
mod pool;
mod porch;
mod reception;
pub mod serial;
pub mod tcp;
pub mod tls;
pub mod websocket;

pub use line::Shared;
pub use listen::Listening;
pub use pool::Pool;
pub use porch::{LEAVING, Place, Porch, beyond};
