//! The pages of a database and its write-ahead log, read without SQLite and without
//! trusting anything in them. Nothing is ever written.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const WAL_HEADER: usize = 32;
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
    /// In the database alone.
    Base,
}

/// What the write-ahead log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct WalState {
    /// Bytes of the file; 0 if it is not there.
    pub length: u64,
    /// Its own header cannot be right, though frames follow it.
    pub header_damaged: bool,
    /// Frames that SQLite would use.
    pub valid_frames: u64,
    /// Commits of the same generation that stand behind the first damaged frame, where
    /// SQLite does not look.
    pub orphaned_commits: u64,
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
    state: WalState,
}

/// The name of a database's write-ahead log.
pub(in crate::store) fn wal_path(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-wal");
    name.into()
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
            state: WalState { length: wal_length, ..WalState::default() },
        };
        pages.page_size = pages.guess_page_size();
        pages.frames = wal_length.saturating_sub(WAL_HEADER as u64) / pages.frame_size();
        // A log that stops being readable ends there.
        let _ = pages.read_wal();
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
        let count = u32::try_from(self.db_length.div_ceil(self.page_size as u64)).unwrap_or(u32::MAX);
        (1..=count).map(Image::Db).chain((0..self.frames).map(Image::Frame))
    }

    /// The frames that SQLite would not look at.
    pub fn orphaned(&self) -> impl Iterator<Item = Image> + use<> {
        (self.state.valid_frames..self.frames).map(Image::Frame)
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
        };
        frame.map_or(Image::Db(page), Image::Frame)
    }

    fn frame_size(&self) -> u64 {
        (self.page_size + FRAME_HEADER) as u64
    }

    /// What the headers say, if it can be; of several that can be, the one under which
    /// most pages look like pages.
    fn guess_page_size(&self) -> usize {
        let mut head = [0; 100];
        let size_at = |file: &Option<File>, at: usize, head: &mut [u8; 100]| {
            head.fill(0);
            // What cannot be read is no page size.
            let _ = file.as_ref().map(|file| file.read_at(head, 0));
            u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) // at is 8 or 16
        };
        let in_db = match size_at(&self.db, 16, &mut head) >> 16 {
            1 => 65_536,
            size => size,
        };
        let in_wal = size_at(&self.wal, 8, &mut head);
        let plausible = |size: &u32| size.is_power_of_two() && (512..=65_536).contains(size);
        let candidates = [in_db, in_wal, DEFAULT_PAGE as u32, 4096].into_iter().filter(plausible);
        let candidates: Vec<usize> = candidates.map(|size| size as usize).collect();
        let score = |size: &usize| {
            let looks_right = |page: u64| {
                let mut first = [0];
                let read = self.db.as_ref().map(|file| file.read_at(&mut first, page * *size as u64));
                matches!((read, first), (Some(Ok(1)), [0x02 | 0x05 | 0x0A | 0x0D]))
            };
            (1..64).filter(|page| looks_right(*page)).count()
        };
        // The last of equals wins, and the header comes first.
        candidates.into_iter().rev().max_by_key(score).unwrap_or(DEFAULT_PAGE)
    }

    fn read_wal(&mut self) -> io::Result<()> {
        let Some(wal) = &self.wal else { return Ok(()) };
        let mut input = io::BufReader::with_capacity(1 << 16, wal);
        input.seek(SeekFrom::Start(0))?;
        let mut header = [0; WAL_HEADER];
        if self.state.length < WAL_HEADER as u64 {
            return Ok(());
        }
        input.read_exact(&mut header)?;
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
        };
        let big_endian = word(&header, 0) & 1 == 1;
        let mut sum = wal_checksum(big_endian, (0, 0), &header[..24]);
        let header_right = word(&header, 0) & !1 == 0x377f_0682
            && word(&header, 8) as usize == self.page_size
            && sum == (word(&header, 24), word(&header, 28));
        let salts = (word(&header, 16), word(&header, 20));
        let mut valid = header_right;
        let mut uncommitted = Vec::new();
        let (mut committed_frames, mut orphans, mut commits) = (0, 0, 0);
        let mut frame = vec![0; FRAME_HEADER + self.page_size];
        for index in 0..self.frames {
            input.read_exact(&mut frame)?;
            let (head, page) = frame.split_at(FRAME_HEADER);
            let (number, commit) = (word(head, 0), word(head, 4) > 0);
            let same_salts = (word(head, 8), word(head, 12)) == salts;
            self.versions.entry(number).or_default().push(index);
            commits += u64::from(commit && number > 0 && word(head, 8) != 0);
            let before = sum;
            sum = wal_checksum(big_endian, sum, &head[..8]);
            sum = wal_checksum(big_endian, sum, page);
            valid &= same_salts && number > 0 && sum == (word(head, 16), word(head, 20));
            if valid {
                uncommitted.push((number, index));
                if commit {
                    self.committed.extend(uncommitted.drain(..));
                    committed_frames = index + 1;
                }
            } else {
                sum = before;
                orphans += u64::from(commit && same_salts);
            }
        }
        self.state.header_damaged = !header_right && commits > 0;
        self.state.valid_frames = committed_frames;
        self.state.orphaned_commits = if header_right { orphans } else { commits };
        Ok(())
    }
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
