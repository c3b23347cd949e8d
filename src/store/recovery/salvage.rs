//! Reads what is right in a database that SQLite may refuse.
//!
//! Works on the bytes of the database and its write-ahead log, trusts no structure and
//! writes nothing. Segments are proven by their checksums, all other rows by their
//! guards; what is not proven does not exist. The segments that the b-tree still leads
//! to come first, in the order of their seqs. Then every byte of every page, and of
//! every frame of the write-ahead log, is tried as the beginning of a segment's row:
//! so are found those that a damaged page, pointer or count hides.

mod facts;
mod pages;
mod record;
mod torn;

pub(in crate::store) use facts::Facts;
pub(in crate::store) use pages::WalState;

use super::seq_ranges::SeqRanges;
use crate::model::{Batch, Seq, SequencedBatch};
use crate::store::disk::checkpoint;
use crate::store::disk::rows;
use crate::store::segment::{self, Encoded, Encoder, Header};
use pages::{Image, Pages, View};
use record::{Cell, Field};
use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Where tables begin whose names cannot be read: the order of their creation decides.
const KNOWN_ROOTS: [(&str, u32); 5] = [("meta", 2), ("segment", 3), ("sink", 4), ("mark", 5), ("event", 6)];
/// No b-tree that fits into a file is deeper.
const MAX_DEPTH: usize = 20;
/// No segment's row is longer.
const MAX_ROW: u64 = 256 << 20;
/// A segment's row has these columns: its key, six numbers and the block; behind them,
/// if the block is empty, the last seq, numbers, and the block itself.
const BLOCK_COLUMN: usize = 7;
const LAST_SEQ_COLUMN: usize = 8;
const DATA_COLUMN: usize = 14;

/// A database that is read without SQLite.
pub(in crate::store) struct Salvage {
    pages: Pages,
    roots: BTreeMap<String, u32>,
    /// See [`checkpoint::noted`].
    noted: Option<u64>,
}

/// Whether to look also for segments to which the tree does not lead. Among them may
/// be some that were deleted long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Scan {
    Always,
    IfDamaged,
}

/// What was found where a segment should be.
pub(in crate::store) enum Found {
    /// It is sound. Readings that were given before are not among the batches.
    Sound { header: Header, block: Vec<u8>, batches: Vec<SequencedBatch> },
    /// A row to which the tree leads, whose checksum does not hold.
    Damaged { header: Option<Header> },
}

/// A segment whose checksum holds, and its readings if they are few.
struct Sound {
    header: Header,
    block: Vec<u8>,
    batches: Option<Vec<SequencedBatch>>,
}

/// A sound segment that SQLite does not see. Of readings that stand in several of them,
/// one has each.
#[derive(Debug)]
pub(in crate::store) struct Orphan {
    pub header: Header,
    pub block: Vec<u8>,
    pub batches: Vec<SequencedBatch>,
}

/// What a walk came to.
#[derive(Debug, Clone, Default)]
pub(in crate::store) struct Walk {
    /// Every seq that was given.
    pub given: SeqRanges,
    /// Every seq between the first and the last of a sound segment: what such a one does
    /// not have was taken out of it on purpose.
    pub known: SeqRanges,
    /// What damaged rows say that they held; not proven.
    pub damaged: Vec<(u64, u64)>,
    pub damaged_segments: u64,
    /// Pages of the tree that could not be read as such.
    pub broken_pages: u64,
}

impl Salvage {
    /// Opens what can be read of the database and its write-ahead log.
    pub fn open(db: &Path) -> Salvage {
        let mut salvage = Salvage { pages: Pages::open(db), roots: BTreeMap::new(), noted: checkpoint::noted(db) };
        let mut roots: BTreeMap<String, u32> =
            KNOWN_ROOTS.iter().map(|(name, root)| ((*name).to_owned(), *root)).collect();
        let mut tables = Vec::new();
        salvage.rows(1, &mut |_, fields| {
            if let [Field::Text(b"table"), name, _, Field::Integer(root), ..] = fields {
                tables.extend(name.text().map(str::to_owned).zip(u32::try_from(*root).ok()));
            }
        });
        roots.extend(tables);
        salvage.roots = roots;
        salvage
    }

    pub fn wal_state(&self) -> WalState {
        self.pages.wal_state()
    }

    /// Bytes that the files have.
    pub fn length(&self) -> u64 {
        self.pages.length()
    }

    /// What the small tables prove. A row of which an older image is proven and the
    /// newest is not counts as the older one says: a sink is then given some readings
    /// again, and none is left out.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for table in ["meta", "sink", "mark", "event", "gap", "boot"] {
            let Some(root) = self.roots.get(table) else { continue };
            self.rows(*root, &mut |rowid, fields| {
                facts.unproven += u64::from(!facts.take(table, rowid, fields));
            });
        }
        for image in self.pages.images().filter(|image| matches!(image, Image::Frame(_) | Image::Db(2..=16))) {
            let Some(page) = self.pages.read(image) else { continue };
            for cell in record::cells(&page, 0) {
                let Some(fields) = (cell.overflow == 0).then(|| record::fields(cell.local)).flatten() else { continue };
                for table in ["meta", "sink", "mark", "boot"] {
                    // Rows of other tables are among them.
                    let _ = facts.take(table, cell.rowid, &fields);
                }
            }
        }
        facts
    }

    /// Gives every segment that the tree leads to, and those that `scan` asks for,
    /// each reading once.
    pub fn segments(&self, scan: Scan, give: &mut dyn FnMut(Found) -> ControlFlow<()>) -> ControlFlow<Walk, Walk> {
        let mut walk = Walk::default();
        let mut flow = ControlFlow::Continue(());
        let root = self.roots.get("segment").copied().unwrap_or(3);
        let broken = self.cells(root, &mut |image, cell| {
            match self.segment(cell, image) {
                Some(sound) => flow = walk.give(sound, give),
                None => {
                    let known = self.record(cell, View::Committed);
                    let header = known.as_deref().and_then(record::fields).and_then(|fields| header(cell, &fields));
                    walk.damaged_segments += 1;
                    walk.damaged.extend(header.map(|header| (header.first.0, header.last().0)));
                    flow = give(Found::Damaged { header });
                }
            }
            flow
        });
        walk.broken_pages = broken;
        let wal = self.wal_state();
        let damaged = broken + walk.damaged_segments + wal.orphaned_commits > 0 || wal.header_damaged;
        let damaged = damaged || self.torn().is_some() || !self.unexplained(&walk).is_empty();
        if flow.is_continue() && (scan == Scan::Always || damaged) {
            flow = self.scan(self.pages.images(), &mut walk, give);
        }
        match flow {
            ControlFlow::Continue(()) => ControlFlow::Continue(walk),
            ControlFlow::Break(()) => ControlFlow::Break(walk),
        }
    }

    /// What is not as it was written, beside segments.
    pub fn problems(&self) -> Vec<String> {
        let wal = self.wal_state();
        let mut problems = Vec::new();
        for (table, root) in &self.roots {
            let broken = self.cells(*root, &mut |_, _| ControlFlow::Continue(()));
            if broken > 0 {
                problems.push(format!("table {table}: {broken} pages are none of its tree"));
            }
        }
        let unproven = self.facts().unproven;
        if unproven > 0 {
            problems.push(format!("{unproven} rows of small tables are not what was written"));
        }
        if wal.header_damaged {
            problems.push("the header of the write-ahead log is not what was written".to_owned());
        } else if wal.orphaned_commits > 0 {
            let orphans = wal.orphaned_commits;
            problems.push(format!("{orphans} commits stand behind a damaged one in the write-ahead log"));
        }
        problems.extend(self.torn().map(|found| format!("the database: {found}")));
        problems
    }

    /// The sound segments in those frames of the write-ahead log that SQLite would not
    /// look at, in the order of their seqs.
    pub fn orphaned(&self) -> Vec<Orphan> {
        let mut found = Vec::new();
        let _ = self.scan(self.pages.orphaned(), &mut Walk::default(), &mut |segment| {
            if let Found::Sound { header, block, batches } = segment {
                found.push(Orphan { header, block, batches });
            }
            ControlFlow::Continue(())
        });
        found.sort_by_key(|orphan| orphan.header.first);
        found
    }

    fn scan(
        &self,
        images: impl Iterator<Item = Image>,
        walk: &mut Walk,
        give: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for image in images {
            let Some(page) = self.pages.read(image) else { continue };
            for at in 0..page.len() {
                if let Some(cell) = record::table_cell(&page, at).filter(is_segment)
                    && !walk.given.contains(cell.rowid.unsigned_abs())
                    && let Some(sound) = self.segment(&cell, image)
                {
                    walk.give(sound, give)?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The segment of which `cell` is the row, if its checksum holds under any view of
    /// the pages on which it goes on.
    fn segment(&self, cell: &Cell<'_>, image: Image) -> Option<Sound> {
        if !is_segment(cell) {
            return None;
        }
        let views: &[View] = match image {
            _ if cell.overflow == 0 => &[View::Committed],
            Image::Frame(frame) => &[View::Near(frame), View::NextNear(frame), View::Committed, View::Base],
            Image::Db(_) => &[View::Committed, View::Base],
        };
        views.iter().find_map(|view| {
            let record = self.record(cell, *view)?;
            let fields = record::fields(&record)?;
            let header = header(cell, &fields)?;
            let block = match (fields.get(BLOCK_COLUMN), fields.get(DATA_COLUMN)) {
                (_, Some(Field::Blob(block))) | (Some(Field::Blob(block)), None) => block,
                _ => return None,
            };
            let batches = match segment::is_whole(&header) {
                true => Some(segment::decode(&header, block).ok()?),
                false => None,
            };
            let proven = batches.is_some() || segment::is_sound(&header, block);
            proven.then(|| Sound { header, block: block.to_vec(), batches })
        })
    }

    /// The whole record of a cell.
    fn record(&self, cell: &Cell<'_>, view: View) -> Option<Vec<u8>> {
        if cell.length > MAX_ROW.min(self.pages.length()) {
            return None;
        }
        let wanted = usize::try_from(cell.length).ok()?;
        let mut record = cell.local.to_vec();
        let mut next = cell.overflow;
        while record.len() < wanted && next != 0 {
            let page = self.pages.read(self.pages.image(next, view))?;
            let (pointer, content) = page.split_first_chunk()?;
            next = u32::from_be_bytes(*pointer);
            let rest = wanted - record.len();
            record.extend_from_slice(content.get(..rest).unwrap_or(content));
        }
        (record.len() == wanted).then_some(record)
    }

    /// Every record of the table, or index, that begins at `root`.
    fn rows(&self, root: u32, take: &mut dyn FnMut(i64, &[Field<'_>])) {
        self.cells(root, &mut |_, cell| {
            let record = self.record(cell, View::Committed);
            if let Some(fields) = record.as_deref().and_then(record::fields) {
                take(cell.rowid, &fields);
            }
            ControlFlow::Continue(())
        });
    }

    /// Every cell of the tree that begins at `root`, in the order of their keys in a
    /// table. Returns how many of its pages are none.
    fn cells(&self, root: u32, take: &mut dyn FnMut(Image, &Cell<'_>) -> ControlFlow<()>) -> u64 {
        self.cells_of(root, View::Committed, take)
    }

    fn cells_of(&self, root: u32, view: View, take: &mut dyn FnMut(Image, &Cell<'_>) -> ControlFlow<()>) -> u64 {
        let mut broken = 0;
        let mut visited = HashSet::new();
        let mut left = vec![(root, 0)];
        while let Some((number, depth)) = left.pop() {
            if depth > MAX_DEPTH || !visited.insert(number) {
                broken += 1;
                continue;
            }
            let image = self.pages.image(number, view);
            let Some(page) = self.pages.read(image).filter(|page| record::kind(page, number).is_some()) else {
                broken += 1;
                continue;
            };
            for cell in record::cells(&page, number) {
                if take(image, &cell).is_break() {
                    return broken;
                }
            }
            left.extend(record::children(&page, number).into_iter().rev().map(|child| (child, depth + 1)));
        }
        broken
    }
}

/// Whether a cell's record has the columns of a segment, as far as its head tells.
fn is_segment(cell: &Cell<'_>) -> bool {
    if cell.rowid <= 0 || cell.length < 20 || cell.length > MAX_ROW || cell.local.get(1) != Some(&0) {
        return false;
    }
    let Some((serials, _)) = record::shape(cell.local, cell.length) else { return false };
    match serials.split_at_checked(BLOCK_COLUMN) {
        Some(([0, numbers @ ..], [block, ..])) => {
            numbers.iter().all(|serial| matches!(serial, 1..=6 | 8 | 9)) && *block >= 12 && block % 2 == 0
        }
        _ => false,
    }
}

/// What the row of a segment says of it, in the order of [`rows::HEADER_COLUMNS`].
fn header(cell: &Cell<'_>, fields: &[Field<'_>]) -> Option<Header> {
    rows::header(|column| match column {
        0 => Some(cell.rowid),
        1 => fields.get(LAST_SEQ_COLUMN)?.integer(),
        column => fields.get(column - 1)?.integer(),
    })
}

impl Walk {
    fn give(&mut self, sound: Sound, give: &mut dyn FnMut(Found) -> ControlFlow<()>) -> ControlFlow<()> {
        let Sound { header, block, batches } = sound;
        self.known.insert(header.first.0, header.last().0);
        if let Some(batches) = batches {
            return self.give_fresh(Encoded { header, block, batches }, give);
        }
        // One that is too large to be decoded at once is given as several.
        let mut flow = ControlFlow::Continue(());
        let decoded = segment::decode_pieces(&header, &block, Seq::ZERO, &mut |piece| {
            let segments = Encoder::new().and_then(|mut encoder| encoder.encode(&piece)).unwrap_or_default();
            flow = segments.into_iter().try_for_each(|segment| self.give_fresh(segment, give));
            flow
        });
        match decoded {
            Ok(()) => flow,
            Err(_) => give(Found::Damaged { header: Some(header) }),
        }
    }

    fn give_fresh(&mut self, segment: Encoded, give: &mut dyn FnMut(Found) -> ControlFlow<()>) -> ControlFlow<()> {
        let Encoded { header, block, batches } = segment;
        let batches = fresh(&mut self.given, batches);
        if batches.is_empty() {
            return ControlFlow::Continue(());
        }
        give(Found::Sound { header, block, batches })
    }

    /// What between `first` and `last` nothing sound tells of.
    pub fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        self.known.missing(first, last)
    }
}

/// The readings that were not `given` before; from now on they were.
pub(in crate::store) fn fresh(given: &mut SeqRanges, batches: Vec<SequencedBatch>) -> Vec<SequencedBatch> {
    let mut fresh = Vec::with_capacity(batches.len());
    for batch in batches.into_iter().filter(|batch| !batch.batch.readings.is_empty()) {
        let (first, last) = (batch.first.0, batch.last().0);
        match given.missing(first, last).as_slice() {
            [whole] if *whole == (first, last) => fresh.push(batch),
            parts => fresh.extend(parts.iter().map(|(first, last)| cut(&batch, Seq(*first), Seq(*last)))),
        }
        given.insert(first, last);
    }
    fresh
}

/// The readings of `batch` from `first` to `last`.
pub(in crate::store) fn cut(batch: &SequencedBatch, first: Seq, last: Seq) -> SequencedBatch {
    let first = first.max(batch.first);
    let readings = batch.after(first.prev()).take_while(|(seq, ..)| *seq <= last).map(|(_, _, r)| r.clone()).collect();
    let Batch { device, session, basis, .. } = &*batch.batch;
    SequencedBatch {
        first,
        batch: Arc::new(Batch { device: device.clone(), session: *session, basis: *basis, readings }),
    }
}
