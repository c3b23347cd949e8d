//! When to send and when to let a batch grow.
//!
//! With nothing in flight a reading goes at once: a quiet gateway adds no delay.
//! The more is in flight, the larger a batch has to be before it joins, up to a full
//! one, so that a busy gateway sends few large batches instead of many small ones.
//! No reading waits longer than [`LINGER`] for each batch in flight.
//!
//! The size asked for grows with the square of what is in flight. A broker that leaves
//! Nagle's algorithm on (Mosquitto's default) holds a PUBACK back while the one before
//! it is not acknowledged by TCP, which our next publish does: with two small batches
//! in flight, making the third wait for more makes the second's PUBACK wait too.

use std::time::Duration;

/// How long a reading waits for more to join it, for each batch in flight.
const LINGER: Duration = Duration::from_millis(2);

/// How much longer to wait for `waiting` bytes that have waited for `waited`, while
/// `inflight` of `window` batches are outstanding and a full batch has `full` bytes;
/// `None` if they are to be sent now.
pub fn linger(inflight: usize, window: usize, waiting: usize, full: usize, waited: Duration) -> Option<Duration> {
    let window = window.max(1);
    let enough = full.saturating_mul(inflight) / window * inflight / window;
    if waiting >= enough {
        return None;
    }
    let linger = LINGER * u32::try_from(inflight).unwrap_or(u32::MAX);
    linger.checked_sub(waited).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_quiet_gateway_sends_at_once() {
        assert_eq!(linger(0, 32, 1, 16_384, Duration::ZERO), None);
    }

    #[test]
    fn the_more_is_in_flight_the_larger_a_batch_must_be() {
        assert_eq!(linger(1, 32, 15, 16_384, Duration::ZERO), Some(2 * MS));
        assert_eq!(linger(1, 32, 16, 16_384, Duration::ZERO), None);
        assert_eq!(linger(16, 32, 4095, 16_384, Duration::ZERO), Some(32 * MS));
        assert_eq!(linger(16, 32, 4096, 16_384, Duration::ZERO), None);
        assert_eq!(linger(31, 32, 16_384, 16_384, Duration::ZERO), None, "a full batch always goes");
    }

    #[test]
    fn patience_ends() {
        assert_eq!(linger(4, 32, 1, 16_384, 3 * MS), Some(5 * MS));
        assert_eq!(linger(4, 32, 1, 16_384, 8 * MS), None);
        assert_eq!(linger(4, 32, 1, 16_384, Duration::MAX), None);
    }
}
