//! What a serial line does to what a device says and hears: bytes are damaged, what the
//! gateway says comes back to it, and a device whose supply broke down has left the heads of
//! what it was about to say.

use fastrand::Rng;

pub struct SerialLine {
    random: Rng,
    /// How many of 100,000 bytes are damaged, either way.
    damaged: u32,
    pub echoes: bool,
}

impl SerialLine {
    pub fn draw(mut random: Rng) -> SerialLine {
        let (damaged, echoes) = ([0, 10, 100][random.usize(..3)], random.bool());
        SerialLine { random, damaged, echoes }
    }

    pub fn is_noisy(&self) -> bool {
        self.damaged > 0
    }

    pub fn damage(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.random.u32(..100_000) < self.damaged {
                *byte ^= self.random.u8(1..);
            }
        }
    }

    /// What stands on the line before a Hello.
    pub fn heads(&mut self, hello: &[u8]) -> Vec<u8> {
        let heads = if self.random.u8(..4) == 0 { self.random.usize(1..40) } else { 0 };
        let mut left = Vec::new();
        for _ in 0..heads {
            let most = self.random.usize(..hello.len());
            left.extend(hello.iter().take(most));
        }
        left
    }
}
