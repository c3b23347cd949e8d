//! Behaviour of the gateway through its public doors.

mod golden;
mod log;
mod wire;
