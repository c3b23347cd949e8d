//! Behaviour of the gateway through its public doors.

mod log;
