//! What the database holds for each sink: the position of its cursor, the events that wait
//! for it, and what it was not given.

pub(super) mod events;
pub(super) mod positions;
pub(super) mod rejected;
pub(super) mod unreported_gaps;
