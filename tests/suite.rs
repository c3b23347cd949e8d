//! Behaviour of the gateway through its public doors.

mod config;
mod golden;
mod log;
mod wire;
