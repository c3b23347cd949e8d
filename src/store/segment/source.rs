//! Where a block's content is read from: from memory, or as it is decompressed.

use super::Corrupt;
use std::io::Read;
use zstd::stream::read::Decoder;

/// Bytes one behind the other; every read is checked against the end.
pub(super) trait Source {
    /// How many bytes there are from here on.
    fn remaining(&self) -> usize;

    fn byte(&mut self) -> Result<u8, Corrupt>;

    fn take(&mut self, n: usize) -> Result<&[u8], Corrupt>;

    fn skip(&mut self, mut n: usize) -> Result<(), Corrupt> {
        while n > 0 {
            let some = n.min(AHEAD);
            self.take(some)?;
            n -= some;
        }
        Ok(())
    }

    /// An unsigned LEB128 number.
    fn varint(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Corrupt("number out of range"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Corrupt("number out of range"))
    }

    /// A count of things that take at least `bytes_each` bytes from here on, so
    /// that a damaged count cannot make the reader allocate.
    fn count(&mut self, bytes_each: usize) -> Result<usize, Corrupt> {
        let count = usize::try_from(self.varint()?).map_err(|_| Corrupt("count out of range"))?;
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.remaining() => Ok(count),
            _ => Err(Corrupt("count out of range")),
        }
    }

    fn blob(&mut self) -> Result<&[u8], Corrupt> {
        let length = self.count(1)?;
        self.take(length)
    }

    fn text(&mut self) -> Result<&str, Corrupt> {
        std::str::from_utf8(self.blob()?).map_err(|_| Corrupt("text is not UTF-8"))
    }
}

/// What lies in memory.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { bytes }
    }
}

impl Source for Input<'_> {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn byte(&mut self) -> Result<u8, Corrupt> {
        let (first, rest) = self.bytes.split_first().ok_or(Corrupt("ends early"))?;
        self.bytes = rest;
        Ok(*first)
    }

    fn take(&mut self, n: usize) -> Result<&[u8], Corrupt> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or(Corrupt("ends early"))?;
        self.bytes = tail;
        Ok(head)
    }
}

/// Bytes that are decompressed ahead of what is asked for.
const AHEAD: usize = 64 << 10;

/// What is decompressed piece by piece, and never in memory as a whole.
pub(super) struct Compressed<'a> {
    decoder: Decoder<'static, &'a [u8]>,
    ahead: Vec<u8>,
    at: usize,
    /// Bytes that are still to come out of the decoder.
    left: usize,
}

impl<'a> Compressed<'a> {
    /// A block that has `length` bytes once it is decompressed.
    pub fn new(block: &'a [u8], length: usize) -> Result<Compressed<'a>, Corrupt> {
        let decoder = Decoder::with_buffer(block).map_err(|_| UNREADABLE)?;
        Ok(Compressed { decoder, ahead: Vec::new(), at: 0, left: length })
    }

    fn fill(&mut self, n: usize) -> Result<(), Corrupt> {
        if n > self.remaining() {
            return Err(Corrupt("ends early"));
        }
        self.ahead.drain(..self.at);
        self.at = 0;
        let more = (n - self.ahead.len()).max(AHEAD).min(self.left);
        let start = self.ahead.len();
        self.ahead.resize(start + more, 0);
        self.left -= more;
        self.decoder.read_exact(&mut self.ahead[start..]).map_err(|_| UNREADABLE) // it was made longer
    }
}

const UNREADABLE: Corrupt = Corrupt("it does not decompress");

impl Source for Compressed<'_> {
    fn remaining(&self) -> usize {
        self.ahead.len() - self.at + self.left
    }

    fn byte(&mut self) -> Result<u8, Corrupt> {
        if self.at == self.ahead.len() {
            self.fill(1)?;
        }
        let byte = self.ahead[self.at]; // there is one at least
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, n: usize) -> Result<&[u8], Corrupt> {
        if self.ahead.len() - self.at < n {
            self.fill(n)?;
        }
        let start = self.at;
        self.at += n;
        Ok(&self.ahead[start..self.at]) // so many were filled in
    }
}
