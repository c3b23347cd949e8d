//! Files whose end a crash may have torn.

use super::directory::open;
use crate::model::Seq;
use crate::sink::encode::text::CSV_HEADER;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// How far back the end of the last line is looked for, in bytes.
const TAIL: u64 = 1 << 20;
const PIECE: usize = 64 << 10;

/// A file of lines to append to. A line that a crash cut off is removed.
pub fn whole_lines(path: &Path) -> io::Result<File> {
    let mut file = open(path, File::options().read(true).append(true).create(true))?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.by_ref().take(TAIL).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n').map_or(start, |end| start + end as u64 + 1);
    if end < length {
        file.set_len(end)?;
    }
    Ok(file)
}

/// What is whole in a file of readings.
pub struct Found {
    /// The last reading's seq, if it can be told.
    pub last: Option<Seq>,
    pub bytes: u64,
    pub sha256: Context,
}

/// Looks what is whole in a file of readings. What is cut off at its end is removed if `may_cut`. `None` if no
/// reading is whole.
pub fn examine(path: &Path, name: &str, may_cut: bool) -> io::Result<Option<Found>> {
    let read = || open(path, File::options().read(true));
    let (last, whole) = match name.ends_with(".csv") {
        true => last_row(read()?)?,
        false => last_line(read()?)?,
    };
    let is_header = name.ends_with(".csv") && last.is_none();
    if whole == 0 || is_header {
        return Ok(None);
    }
    if may_cut {
        open(path, File::options().write(true))?.set_len(whole)?;
    }
    let bytes = if may_cut { whole } else { read()?.metadata()?.len() };
    let (mut sha256, mut rest, mut piece) = (Context::new(&SHA256), read()?.take(bytes), vec![0; PIECE]);
    loop {
        match rest.read(&mut piece)? {
            0 => return Ok(Some(Found { last, bytes, sha256 })),
            read => sha256.update(&piece[..read]), // at most as long
        }
    }
}

/// The seq of the last whole line, and where the last whole line ends.
pub(super) fn last_line(file: impl Read) -> io::Result<(Option<Seq>, u64)> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: Seq,
    }
    let (mut reader, mut line, mut last, mut end) = (BufReader::new(file), Vec::new(), Vec::new(), 0);
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.ends_with(b"\n") {
            end += line.len() as u64;
            std::mem::swap(&mut line, &mut last);
        }
        line.clear();
    }
    Ok((serde_json::from_slice(&last).ok().map(|Numbered { seq }| seq), end))
}

/// The seq of the last whole row, and where it ends. Text in it may hold line feeds.
pub(super) fn last_row(file: impl Read) -> io::Result<(Option<Seq>, u64)> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(Ends::new(file));
    let (mut last, mut end, mut row) = (None, 0, csv::ByteRecord::new());
    while reader.read_byte_record(&mut row).is_ok_and(|read| read) {
        let here = reader.position().byte();
        if row.len() != CSV_HEADER.len() || !reader.get_ref().is_line_end(here) {
            break;
        }
        end = here;
        last = row.get(1).and_then(|seq| std::str::from_utf8(seq).ok()?.parse().ok()).map(Seq).or(last);
    }
    Ok((last, end))
}

/// Remembers whether what was read ends with a line feed.
struct Ends<R> {
    inner: R,
    read: u64,
    ends_line: bool,
}

impl<R> Ends<R> {
    fn new(inner: R) -> Ends<R> {
        Ends { inner, read: 0, ends_line: false }
    }

    /// Whether a row that ends at this byte ends with a line feed: all that are not the last do.
    fn is_line_end(&self, at: u64) -> bool {
        at < self.read || self.ends_line
    }
}

impl<R: Read> Read for Ends<R> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(piece)?;
        self.read += read as u64;
        if let Some(last) = piece[..read].last() {
            self.ends_line = *last == b'\n';
        }
        Ok(read)
    }
}
