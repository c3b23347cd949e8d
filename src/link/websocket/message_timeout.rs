//! The timeout of a message that arrives in pieces.

use crate::clock::LAST_LOOK;
use crate::net::{ALLOWANCE, Lease};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Expires when nothing arrives for a while; while others wait for memory, also when something
/// does.
pub struct MessageTimeout {
    limit: Duration,
    heard: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// It expired, and is looked at once more.
    last_look: bool,
    /// Since when others wait for the memory that the message takes.
    wanted: Option<Instant>,
}

impl MessageTimeout {
    pub fn new(limit: Duration) -> MessageTimeout {
        MessageTimeout { limit, heard: Instant::now(), timer: None, last_look: false, wanted: None }
    }

    /// A piece of the message arrived.
    pub fn renew(&mut self) {
        (self.heard, self.last_look) = (Instant::now(), false);
    }

    /// No message is incomplete.
    pub fn rest(&mut self) {
        (self.timer, self.last_look, self.wanted) = (None, false, None);
    }

    /// Ready when nothing arrived in time, nor by another look.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.heard + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !self.last_look {
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            ready!(timer.as_mut().poll(cx));
            self.last_look = true;
            timer.as_mut().reset(Instant::now() + LAST_LOOK);
        }
        timer.as_mut().poll(cx)
    }

    /// Whether others have waited too long for the memory that a message of `held` bytes takes.
    pub fn is_abused(&mut self, held: usize, lease: &Lease) -> bool {
        if held <= ALLOWANCE || !lease.pool().is_wanted() {
            self.wanted = None;
            return false;
        }
        self.wanted.get_or_insert_with(Instant::now).elapsed() >= self.limit
    }
}
