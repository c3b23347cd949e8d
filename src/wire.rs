//! The device protocol: framing, messages and their encodings, without any I/O.
//! `docs/protocol.md` is the normative text.

pub mod codec;
pub mod frame;
pub mod message;
mod samples;
pub mod sift;
pub mod text;
mod values;
pub mod websocket;
