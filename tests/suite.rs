//! Behaviour of the gateway through its public doors.

mod config;
mod log;
