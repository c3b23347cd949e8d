//! Behaviour of the gateway through its public doors.

mod architecture;
mod log;
