//! The pages of a database and its write-ahead log, read without SQLite and without
//! trusting anything in them. Nothing is ever written.

use crate::store::disk::wal::wal_path;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

const WAL_HEADER: usize = 32;
/// Its last bit says in which order of bytes checksums were computed.
const WAL_MAGIC: u32 = 0x377f_0682;
const FRAME_HEADER: usize = 24;
const DEFAULT_PAGE: usize = 1024;

/// Where a page's bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    /// In the database, by number from 1.
    Db(u32),
    /// In the write-ahead log, by frame from 0.
    Frame(u64),
}

/// How to choose between several images of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// As the last commit that SQLite would see left it.
    Committed,
    /// Nearest to this frame of the write-ahead log, else in the database.
    Near(u64),
    /// Second nearest, where there are two: a damaged frame may claim to be the page.
    NextNear(u64),
    /// In the database alone.
    Base,
}

/// What the write-ahead log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct WalState {
    /// Bytes of the file; 0 if it is not there.
    pub length: u64,
    /// Frames that the file has.
    pub frames: u64,
    /// Its own header is right.
    pub header_right: bool,
    /// Its own header is not right, though commits follow it that the database may lack.
    pub header_damaged: bool,
    /// Frames that SQLite would use.
    pub valid_frames: u64,
    /// Frames of the same generation where SQLite does not look, as they stand behind the
    /// last commit before a damaged one.
    pub orphaned_frames: u64,
    /// Commits of the same generation that stand behind a damaged frame, where SQLite
    /// does not look: as many as there are in a row. Each commit that was cut off can
    /// leave one that stands alone.
    pub orphaned_commits: u64,
    /// What stands there is in the database already, at least in part: SQLite would mix it
    /// with what was before.
    pub overtaken: bool,
    /// It began anew and has no commit yet: the last frame of the generation before that is
    /// a commit, if the database lacks something of it. Where a power cut left less than all
    /// of that generation, it may be that the database has more.
    pub lacking: Option<u64>,
}

/// A database and its write-ahead log.
pub(super) struct Pages {
    db: Option<File>,
    db_length: u64,
    wal: Option<File>,
    frames: u64,
    page_size: usize,
    /// The frame that holds a page's committed content.
    committed: HashMap<u32, u64>,
    /// All frames of a page, in their order.
    versions: HashMap<u32, Vec<u64>>,
    /// Frames of the last generation that SQLite would not look at.
    orphans: Vec<u64>,
    state: WalState,
}

impl Pages {
    /// Opens what can be read of the two files; what cannot counts as empty.
    pub fn open(db: &Path) -> Pages {
        let open = |path: &Path| {
            // Opening a FIFO would wait for its other end.
            std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
            File::open(path).ok()
        };
        let length = |file: &Option<File>| file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |meta| meta.len());
        let (db, wal) = (open(db), open(&wal_path(db)));
        let (db_length, wal_length) = (length(&db), length(&wal));
        let mut pages = Pages {
            db,
            db_length,
            wal,
            frames: 0,
            page_size: DEFAULT_PAGE,
            committed: HashMap::new(),
            versions: HashMap::new(),
            orphans: Vec::new(),
            state: WalState { length: wal_length, ..WalState::default() },
        };
        pages.page_size = pages.guess_page_size();
        pages.frames = wal_length.saturating_sub(WAL_HEADER as u64) / pages.frame_size();
        let wal = Wal::read(pages.wal.as_ref(), pages.frames, pages.page_size);
        pages.check_wal(&wal);
        pages
    }

    pub fn wal_state(&self) -> WalState {
        self.state
    }

    /// Bytes that both files have.
    pub fn length(&self) -> u64 {
        self.db_length + self.state.length
    }

    /// All images there are, the database's first.
    pub fn images(&self) -> impl Iterator<Item = Image> + use<> {
        (1..=self.pages()).map(Image::Db).chain((0..self.frames).map(Image::Frame))
    }

    /// The frames of the last generation that SQLite would not look at.
    pub fn orphaned(&self) -> impl Iterator<Item = Image> + '_ {
        let orphaned = self.orphans.iter().copied();
        orphaned.map(Image::Frame)
    }

    /// A page's bytes, zeros where they cannot be read; `None` if there is no such page.
    pub fn read(&self, image: Image) -> Option<Vec<u8>> {
        let (file, offset) = match image {
            Image::Db(number) => {
                let offset = u64::from(number.checked_sub(1)?) * self.page_size as u64;
                (self.db.as_ref().filter(|_| offset < self.db_length)?, offset)
            }
            Image::Frame(frame) => {
                let wal = self.wal.as_ref().filter(|_| frame < self.frames)?;
                (wal, WAL_HEADER as u64 + frame * self.frame_size() + FRAME_HEADER as u64)
            }
        };
        let mut page = vec![0; self.page_size];
        let mut filled = 0;
        while let Some(rest) = page.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Some(page)
    }

    /// Which image of a page to look at.
    pub fn image(&self, page: u32, view: View) -> Image {
        let frame = match view {
            View::Base => None,
            View::Committed => self.committed.get(&page).copied(),
            View::Near(frame) => {
                self.versions.get(&page).and_then(|all| all.iter().copied().min_by_key(|other| other.abs_diff(frame)))
            }
            View::NextNear(frame) => self.versions.get(&page).and_then(|all| {
                let mut all = all.clone();
                all.sort_by_key(|other| other.abs_diff(frame));
                all.get(1).or(all.first()).copied()
            }),
        };
        frame.map_or(Image::Db(page), Image::Frame)
    }

    fn frame_size(&self) -> u64 {
        (self.page_size + FRAME_HEADER) as u64
    }

    /// What the database's header says, else that of the write-ahead log. If neither can be
    /// believed, the size under which most pages look like pages: pages that blobs go on in
    /// look like anything.
    fn guess_page_size(&self) -> usize {
        let head = |file: &Option<File>| {
            let mut head = [0; WAL_HEADER];
            // What cannot be read is no header.
            let _ = file.as_ref().map(|file| file.read_at(&mut head, 0));
            head
        };
        let (db, wal) = (head(&self.db), head(&self.wal));
        let in_db = match word(&db, 16) >> 16 {
            1 => 65_536,
            size => size,
        };
        let plausible = |size: &u32| size.is_power_of_two() && (512..=65_536).contains(size);
        let in_db = Some(in_db).filter(|size| db.starts_with(b"SQLite format 3\0") && plausible(size));
        let in_wal = Some(word(&wal, 8)).filter(|size| word(&wal, 0) & !1 == WAL_MAGIC && plausible(size));
        let score = |size: &usize| {
            let looks_right = |page: u64| {
                let mut first = [0];
                let read = self.db.as_ref().map(|file| file.read_at(&mut first, page * *size as u64));
                matches!((read, first), (Some(Ok(1)), [0x02 | 0x05 | 0x0A | 0x0D]))
            };
            (1..64).filter(|page| looks_right(*page)).count()
        };
        match in_db.or(in_wal) {
            Some(size) => size as usize,
            // The last of equals wins.
            None => [4096, DEFAULT_PAGE].into_iter().max_by_key(score).unwrap_or(DEFAULT_PAGE),
        }
    }

    /// Says what of the write-ahead log SQLite would use, and what the rest is.
    fn check_wal(&mut self, wal: &Wal) {
        for (index, frame) in (0..).zip(&wal.frames) {
            self.versions.entry(frame.page).or_default().push(index);
        }
        self.state.frames = self.frames;
        self.state.header_right = wal.header_right;
        let frames = &wal.frames;
        // Of a generation whose header is lost, the first frame cannot be checked; those
        // behind it can.
        let checked = |(index, frame): &(usize, &Frame)| {
            frame.salts == wal.salts && (frame.linked || (*index == 0 && !wal.header_right))
        };
        let chain = frames.iter().enumerate().take_while(checked).count();
        let commits = frames.get(..chain).unwrap_or_default();
        let end = commits.iter().rposition(|frame| frame.commits).map_or(0, |last| last + 1);
        let (committed, rest) = frames.split_at(end); // a position in it
        let newest: HashMap<u32, u64> = (0..).zip(committed).map(|(index, frame)| (frame.page, index)).collect();
        let mut row = 0;
        for (index, frame) in (end as u64..).zip(rest) {
            if frame.salts != wal.salts {
                row = 0;
                continue;
            }
            self.orphans.push(index);
            row = if frame.linked { row } else { 0 } + u64::from(frame.commits);
            self.state.orphaned_commits = self.state.orphaned_commits.max(row);
        }
        if wal.header_right {
            self.state.valid_frames = end as u64;
            self.state.orphaned_frames = self.orphans.len() as u64;
            self.committed = newest;
            self.state.overtaken = self.state.orphaned_commits > 0 && self.is_overtaken(frames);
            let is_bare = end == 0 && self.orphans.is_empty();
            self.state.lacking = if is_bare { self.lacking_of_generation_before(wal) } else { None };
            return;
        }
        // SQLite begins a generation by writing its header over that of the one before, once
        // all of that is in the database. A power cut in the middle costs nothing.
        let holds = |(page, frame): (&u32, &u64)| self.read(Image::Db(*page)) == self.read(Image::Frame(*frame));
        let kept = end > 0 && self.state.orphaned_commits < 2 && newest.iter().all(holds);
        if kept {
            self.orphans.clear();
            self.state.orphaned_commits = 0;
        } else {
            // Whatever commits there are, SQLite sees none of them.
            self.state.orphaned_commits = frames.iter().filter(|f| f.commits && f.salts != (0, 0)).count() as u64;
            self.state.header_damaged = self.state.orphaned_commits > 0;
            self.orphans = (0..frames.len() as u64).collect();
        }
    }

    /// The end of the generation of frames before the one that the header begins, as far as
    /// it stands there, if the database lacks something of it.
    fn lacking_of_generation_before(&self, wal: &Wal) -> Option<u64> {
        let before = (wal.salts.0.wrapping_sub(1), wal.frames.first().map_or(0, |frame| frame.salts.1));
        let goes_on = |(index, frame): &(usize, &Frame)| frame.salts == before && (*index == 0 || frame.linked);
        let chain = wal.frames.iter().enumerate().take_while(goes_on).count();
        let chain = wal.frames.get(..chain).unwrap_or_default();
        let last = chain.iter().rposition(|frame| frame.commits)?;
        let newest: HashMap<u32, u64> = (0..).zip(&chain[..=last]).map(|(index, frame)| (frame.page, index)).collect(); // a position in it
        let lacks = |(page, frame): (&u32, &u64)| self.read(Image::Db(*page)) != self.read(Image::Frame(*frame));
        newest.iter().any(lacks).then_some(last as u64)
    }

    /// Whether a checkpoint took over a commit of orphaned frames: the database has each page
    /// as it stood at its end, and one of them otherwise than in the frames that SQLite sees.
    /// A single page proves nothing: it may be again as it was before. Nor does a frame whose
    /// checksum does not hold: of one that was cut off the page may be of an older generation,
    /// so that from there on nothing is known of its page.
    fn is_overtaken(&self, frames: &[Frame]) -> bool {
        let stands = |page: u32, frame: u64| self.read(Image::Db(page)) == self.read(Image::Frame(frame));
        let is_missing = |(page, frame): (&u32, &u64)| (!stands(*page, *frame)).then_some(*page);
        let mut missing: HashSet<u32> = self.committed.iter().filter_map(is_missing).collect();
        let mut newer = HashSet::new();
        self.orphans.iter().any(|orphan| {
            let Some(frame) = usize::try_from(*orphan).ok().and_then(|orphan| frames.get(orphan)) else { return false };
            let page = frame.page;
            missing.remove(&page);
            newer.remove(&page);
            if frame.linked && !stands(page, *orphan) {
                missing.insert(page);
            } else if frame.linked {
                let seen = self.committed.get(&page);
                let differs =
                    seen.is_some_and(|seen| self.read(Image::Frame(*orphan)) != self.read(Image::Frame(*seen)));
                newer.extend(differs.then_some(page));
            }
            frame.commits && !newer.is_empty() && missing.is_empty()
        })
    }

    /// Pages that the database's file has.
    fn pages(&self) -> u32 {
        u32::try_from(self.db_length.div_ceil(self.page_size as u64)).unwrap_or(u32::MAX)
    }
}

/// What the frames of a write-ahead log say about themselves.
#[derive(Default)]
struct Wal {
    header_right: bool,
    /// Of the generation that began last, as far as that can be told.
    salts: (u32, u32),
    frames: Vec<Frame>,
}

struct Frame {
    page: u32,
    /// The last of a commit.
    commits: bool,
    salts: (u32, u32),
    /// Its checksum goes on from that of the frame before it, or of the header.
    linked: bool,
}

impl Wal {
    /// Reads up to `count` frames; what stops being readable ends there.
    fn read(file: Option<&File>, count: u64, page_size: usize) -> Wal {
        let mut wal = Wal::default();
        if let Some(file) = file {
            // What was read until then counts.
            let _ = wal.read_from(file, count, page_size);
        }
        wal
    }

    fn read_from(&mut self, file: &File, count: u64, page_size: usize) -> io::Result<()> {
        let mut input = io::BufReader::with_capacity(1 << 16, file);
        input.seek(SeekFrom::Start(0))?;
        let mut header = [0; WAL_HEADER];
        input.read_exact(&mut header)?;
        let has_magic = word(&header, 0) & !1 == WAL_MAGIC;
        let big_endian = if has_magic { word(&header, 0) & 1 == 1 } else { cfg!(target_endian = "big") };
        let mut before = (word(&header, 24), word(&header, 28));
        self.header_right = has_magic
            && word(&header, 8) as usize == page_size
            && before == wal_checksum(big_endian, (0, 0), &header[..24]);
        self.salts = (word(&header, 16), word(&header, 20));
        let mut frame = vec![0; FRAME_HEADER + page_size];
        for index in 0..count {
            input.read_exact(&mut frame)?;
            let (head, page) = frame.split_at(FRAME_HEADER);
            let (number, salts) = (word(head, 0), (word(head, 8), word(head, 12)));
            if index == 0 && !self.header_right {
                self.salts = salts;
            }
            let sum = wal_checksum(big_endian, before, &head[..8]);
            let sum = wal_checksum(big_endian, sum, page);
            before = (word(head, 16), word(head, 20));
            let linked = number > 0 && sum == before;
            self.frames.push(Frame { page: number, commits: number > 0 && word(head, 4) > 0, salts, linked });
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn wal_checksum(big_endian: bool, sum: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let (mut first, mut second) = sum;
    for eight in bytes.chunks_exact(8) {
        let word = |at: usize| {
            let four = [eight[at], eight[at + 1], eight[at + 2], eight[at + 3]]; // of eight bytes
            if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
        };
        first = first.wrapping_add(word(0)).wrapping_add(second);
        second = second.wrapping_add(word(4)).wrapping_add(first);
    }
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_page_size_is_believed_whatever_the_pages_look_like() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log.db");
        // Pages in which a large blob goes on, and every fourth by chance like a tree's.
        let mut db: Vec<u8> = (0..256).flat_map(|page| [if page % 4 == 0 { 0x0D } else { 0 }; 1024]).collect();
        let size = |db: &[u8]| {
            std::fs::write(&path, db).expect("a file");
            Pages::open(&path).page_size
        };
        assert_eq!(size(&db), 4096, "nothing says otherwise");
        db[..18].copy_from_slice(b"SQLite format 3\0\x04\0");
        assert_eq!(size(&db), 1024);
    }
}
