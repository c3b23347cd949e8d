//! Files whose end a crash may have torn.

use crate::model::Seq;
use crate::sink::encode::text::CSV_HEADER;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// A file of lines to append to. A line that a crash cut off is removed.
pub fn whole_lines(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).append(true).create(true).open(path)?;
    let text = fs::read(path)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        file.set_len(whole as u64)?;
    }
    Ok(file)
}

/// Removes what was cut off at the end of a file. Returns its last seq, its size and its digest;
/// `None` if no reading is whole.
pub fn examine(path: &Path, name: &str) -> io::Result<Option<(Seq, u64, Context)>> {
    let text = fs::read(path)?;
    let found = if name.ends_with(".csv") { last_row(&text) } else { last_line(&text) };
    let Some((last, bytes)) = found else { return Ok(None) };
    let whole = text.get(..bytes).unwrap_or(&text);
    if whole.len() < text.len() {
        File::options().write(true).open(path)?.set_len(whole.len() as u64)?;
    }
    let mut sha256 = Context::new(&SHA256);
    sha256.update(whole);
    Ok(Some((last, whole.len() as u64, sha256)))
}

/// The seq of the last whole line, and where it ends.
pub(super) fn last_line(text: &[u8]) -> Option<(Seq, usize)> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: Seq,
    }
    let mut end = text.iter().rposition(|byte| *byte == b'\n')?;
    loop {
        let start = text[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
        if let Ok(Numbered { seq }) = serde_json::from_slice(&text[start..end]) {
            return Some((seq, end + 1));
        }
        end = start.checked_sub(1)?;
    }
}

/// The seq of the last whole row, and where it ends. Text in it may hold line feeds.
pub(super) fn last_row(text: &[u8]) -> Option<(Seq, usize)> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text);
    let (mut last, mut row) = (None, csv::ByteRecord::new());
    while reader.read_byte_record(&mut row).is_ok_and(|read| read) {
        let end = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
        let is_whole = row.len() == CSV_HEADER.len() && text.get(end.wrapping_sub(1)) == Some(&b'\n');
        let seq = row.get(1).and_then(|seq| std::str::from_utf8(seq).ok()?.parse().ok());
        if let Some(seq) = seq.filter(|_| is_whole) {
            last = Some((Seq(seq), end));
        }
    }
    last
}
