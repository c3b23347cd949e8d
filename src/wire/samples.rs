//! Parses each sample of a message by itself, valid or not.

use super::message::Sample;

/// Characters kept of an invalid sample.
pub const KEPT: usize = 512;

/// The readable parts of Readings.
#[derive(Debug, Clone, PartialEq)]
pub struct Sifted {
    pub seq: u64,
    pub sub: Option<String>,
    pub samples: Vec<Result<Sample, Unreadable>>,
    /// Samples after these whose beginnings cannot be found.
    pub hidden: u64,
    /// The body ends within the last sample, which may be valid in a message of its own.
    pub cut: bool,
}

/// A sample that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its time as the device wrote it, if that can be decoded.
    pub time: Option<i64>,
    pub why: String,
    /// The beginning of its bytes, as text or in hexadecimal.
    pub sent: String,
}

/// Parses each sample of a JSON list by itself.
pub(super) fn sifted(
    seq: u64,
    sub: Option<String>,
    list: &[u8],
    read: &dyn Fn(&[u8]) -> Result<Sample, String>,
    time: &dyn Fn(&[u8]) -> Option<i64>,
) -> Option<Sifted> {
    let one_of = |sent: &[u8]| {
        read(sent).map_err(|why| {
            let time = members(sent).and_then(|fields| time(one(&fields, "time")?));
            let text = String::from_utf8_lossy(sent);
            Unreadable { time, why, sent: text.chars().take(KEPT).collect() }
        })
    };
    let samples = elements(list)?.into_iter().map(one_of).collect();
    Some(Sifted { seq, sub, samples, hidden: 0, cut: false })
}

/// The beginning of `bytes`.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for byte in bytes.iter().take(KEPT / 2) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The value of the only member with this name.
pub(super) fn one<'a>(members: &[(String, &'a [u8])], name: &str) -> Option<&'a [u8]> {
    let mut found = members.iter().filter(|(key, _)| key == name);
    found.next().map(|(_, value)| *value).filter(|_| found.next().is_none())
}

/// The members of an object, valid or not.
pub(super) fn members(text: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let parts = parts(text, b'{', b'}')?;
    parts
        .into_iter()
        .map(|part| {
            let end = item_end(part, b':')?;
            let (key, value) = part.split_at_checked(end)?;
            Some((serde_json::from_slice(key.trim_ascii()).ok()?, value.get(1..)?.trim_ascii()))
        })
        .collect()
}

/// The elements of a list, valid or not.
fn elements(text: &[u8]) -> Option<Vec<&[u8]>> {
    parts(text, b'[', b']')
}

/// The parts between commas within a pair of brackets.
fn parts(text: &[u8], open: u8, close: u8) -> Option<Vec<&[u8]>> {
    let text = text.trim_ascii();
    let mut rest = text.strip_prefix(&[open])?.strip_suffix(&[close])?;
    let mut parts = Vec::new();
    if rest.trim_ascii().is_empty() {
        return Some(parts);
    }
    loop {
        let end = item_end(rest, b',')?;
        let (part, behind) = rest.split_at_checked(end)?;
        parts.push(part.trim_ascii());
        match behind.split_first() {
            Some((_, behind)) => rest = behind,
            None => return Some(parts),
        }
    }
}

/// Position of the first `until` outside strings and brackets, or the end; `None` if brackets
/// or a string do not close.
fn item_end(text: &[u8], until: u8) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            byte if *byte == until && depth == 0 => return Some(at),
            _ => {}
        }
    }
    (depth == 0 && !quoted).then_some(text.len())
}
