//! A deadline that does not count pauses of the gateway.

use crate::clock::{Clock, Excuses, LAST_LOOK};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Expires at a time that pauses of the gateway postpone, by `most` at most.
pub(super) struct Timer {
    most: Duration,
    clock: Arc<dyn Clock>,
    excuses: Excuses,
    until: Instant,
    sleep: Pin<Box<Sleep>>,
    last_look: bool,
}

impl Timer {
    pub fn new(clock: Arc<dyn Clock>, most: Duration) -> Timer {
        let (excuses, until) = (Excuses::from(clock.put_off()), Instant::now() + most);
        Timer { most, clock, excuses, until, sleep: Box::pin(sleep_until(until)), last_look: false }
    }

    pub fn poll(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.until != until {
            (self.until, self.last_look) = (until, false);
            self.sleep.as_mut().reset(until);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let put_off = self.excuses.look(self.clock.put_off(), Duration::ZERO).min(self.most);
            if put_off.is_zero() && self.last_look {
                return Poll::Ready(());
            }
            self.last_look = put_off.is_zero();
            self.sleep.as_mut().reset(Instant::now() + put_off.max(LAST_LOOK));
        }
    }
}
