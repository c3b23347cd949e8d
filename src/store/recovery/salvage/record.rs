//! SQLite's pages and records, as its file format describes them, read from bytes
//! that may be anything.

/// One field of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Field<'a> {
    Null,
    Integer(i64),
    Real,
    Text(&'a [u8]),
    Blob(&'a [u8]),
}

impl<'a> Field<'a> {
    pub fn integer(self) -> Option<i64> {
        match self {
            Field::Integer(value) => Some(value),
            _ => None,
        }
    }

    pub fn blob(self) -> Option<&'a [u8]> {
        match self {
            Field::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn text(self) -> Option<&'a str> {
        match self {
            Field::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// A cell of a b-tree's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell<'a> {
    /// Of a table's leaf.
    pub rowid: i64,
    /// Bytes of the whole record.
    pub length: u64,
    /// As much of it as stands in the page.
    pub local: &'a [u8],
    /// The page on which it goes on; 0 if it does not.
    pub overflow: u32,
}

/// The kinds of b-tree pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    IndexInterior,
    TableInterior,
    IndexLeaf,
    TableLeaf,
}

/// A varint and its length.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(9) {
        if at == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// Where the b-tree's header begins: the first page has the file's before it.
fn header_at(number: u32) -> usize {
    if number == 1 { 100 } else { 0 }
}

pub(super) fn kind(page: &[u8], number: u32) -> Option<Kind> {
    match page.get(header_at(number))? {
        0x02 => Some(Kind::IndexInterior),
        0x05 => Some(Kind::TableInterior),
        0x0A => Some(Kind::IndexLeaf),
        0x0D => Some(Kind::TableLeaf),
        _ => None,
    }
}

/// Where the page's cells begin.
fn pointers(page: &[u8], number: u32, kind: Kind) -> Vec<usize> {
    let at = header_at(number);
    let start = at + if matches!(kind, Kind::IndexInterior | Kind::TableInterior) { 12 } else { 8 };
    let count = two(page, at + 3).unwrap_or(0);
    let all = (0..count).map_while(|i| two(page, start + 2 * i));
    all.filter(|pointer| *pointer >= start && *pointer < page.len()).collect()
}

fn two(page: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(page.get(at..at + 2)?.try_into().ok()?)))
}

fn four(page: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(page.get(at..at + 4)?.try_into().ok()?))
}

/// The pages below an interior page, in the order of their keys, with the cells that
/// stand between them where the tree is an index.
pub(super) fn children(page: &[u8], number: u32) -> Vec<u32> {
    let Some(kind @ (Kind::IndexInterior | Kind::TableInterior)) = kind(page, number) else { return Vec::new() };
    let below = pointers(page, number, kind).into_iter().filter_map(|at| four(page, at));
    below.chain(four(page, header_at(number) + 8)).collect()
}

/// The cells that hold records.
pub(super) fn cells(page: &[u8], number: u32) -> Vec<Cell<'_>> {
    let Some(kind) = kind(page, number) else { return Vec::new() };
    let read = |at: usize| match kind {
        Kind::TableInterior => None,
        Kind::TableLeaf => table_cell(page, at),
        Kind::IndexLeaf => index_cell(page, at),
        Kind::IndexInterior => index_cell(page, at + 4),
    };
    pointers(page, number, kind).into_iter().filter_map(read).collect()
}

/// The cell of a table's leaf that begins at `at`, if one can.
pub(super) fn table_cell(page: &[u8], at: usize) -> Option<Cell<'_>> {
    let (length, used) = varint(page.get(at..)?)?;
    let (rowid, more) = varint(page.get(at + used..)?)?;
    payload(page, at + used + more, length, page.len().checked_sub(35)?, rowid as i64) // the same 64 bits
}

fn index_cell(page: &[u8], at: usize) -> Option<Cell<'_>> {
    let (length, used) = varint(page.get(at..)?)?;
    payload(page, at + used, length, (page.len().checked_sub(12)? * 64 / 255).checked_sub(23)?, 0)
}

fn payload(page: &[u8], at: usize, length: u64, max_local: usize, rowid: i64) -> Option<Cell<'_>> {
    let whole = usize::try_from(length).ok()?;
    if whole <= max_local {
        return Some(Cell { rowid, length, local: page.get(at..at + whole)?, overflow: 0 });
    }
    let min_local = (page.len().checked_sub(12)? * 32 / 255).checked_sub(23)?;
    let wanted = min_local + whole.checked_sub(min_local)? % (page.len() - 4);
    let local = if wanted <= max_local { wanted } else { min_local };
    Some(Cell { rowid, length, local: page.get(at..at + local)?, overflow: four(page, at + local)? })
}

/// Bytes of a value of this serial type.
fn size(serial: u64) -> u64 {
    match serial {
        0 | 8 | 9 => 0,
        1..=4 => serial,
        5 => 6,
        6 | 7 => 8,
        _ => serial.saturating_sub(12) / 2,
    }
}

/// The serial types of the record that begins with `local`, and where its first value
/// stands; `None` unless they make up its `length`.
pub(super) fn shape(local: &[u8], length: u64) -> Option<(Vec<u64>, usize)> {
    let (header, mut at) = varint(local)?;
    let header = usize::try_from(header).ok()?;
    let mut serials = Vec::new();
    let mut total = header as u64;
    while at < header {
        let (serial, used) = varint(local.get(at..)?)?;
        serials.push(serial);
        total = total.checked_add(size(serial))?;
        at += used;
    }
    (at == header && total == length).then_some((serials, header))
}

/// The fields of a whole record.
pub(super) fn fields(record: &[u8]) -> Option<Vec<Field<'_>>> {
    let (serials, mut at) = shape(record, record.len() as u64)?;
    let mut fields = Vec::with_capacity(serials.len());
    for serial in serials {
        let bytes = record.get(at..at + usize::try_from(size(serial)).ok()?)?;
        at += bytes.len();
        fields.push(match serial {
            0 => Field::Null,
            1..=6 => Field::Integer(signed(bytes)),
            7 => Field::Real,
            8 => Field::Integer(0),
            9 => Field::Integer(1),
            10 | 11 => return None,
            even if even % 2 == 0 => Field::Blob(bytes),
            _ => Field::Text(bytes),
        });
    }
    Some(fields)
}

/// A big-endian number of up to eight bytes in two's complement.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let start = if negative { -1 } else { 0 };
    bytes.iter().fold(start, |value: i64, byte| value << 8 | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_and_numbers_are_read_as_sqlite_writes_them() {
        assert_eq!(varint(&[0x7f]), Some((127, 1)));
        assert_eq!(varint(&[0x81, 0x00]), Some((128, 2)));
        assert_eq!(varint(&[0xff; 9]), Some((u64::MAX, 9)));
        assert_eq!(varint(&[0x80; 8]), None);
        assert_eq!(signed(&[0xff, 0xfe]), -2);
        assert_eq!(signed(&[0x01, 0x00]), 256);
        assert_eq!(signed(&[0x80, 0, 0, 0, 0, 0, 0, 0]), i64::MIN);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_page_is_read_without_a_panic(mut page in proptest::collection::vec(any::<u8>(), 0..1024), kind in 0..4usize, number in 1u32..3, at in 0..1100usize) {
            if let Some(byte) = page.get_mut(header_at(number)) {
                *byte = [0x02, 0x05, 0x0A, 0x0D][kind];
            }
            children(&page, number);
            for cell in cells(&page, number) {
                fields(cell.local);
                shape(cell.local, cell.length);
            }
            if let Some(cell) = table_cell(&page, at) {
                fields(cell.local);
            }
        }
    }
}
