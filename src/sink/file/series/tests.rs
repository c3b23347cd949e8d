use super::manifest::{MANIFEST, RECENT};
use super::torn::{last_line, last_row};
use super::*;
use crate::clock::SystemClock;

const READING: usize = 60_000;

fn config(when_full: WhenFull) -> FileSink {
    let (rotate_size, max_total) = (bytesize::ByteSize(100_000), bytesize::ByteSize(700_000));
    FileSink { rotate_size, max_total, when_full, ..FileSink::default() }
}

fn try_open(directory: &Path, config: &FileSink) -> Result<Series, String> {
    let gateway = GatewayId::new("gw-1").expect("a valid name");
    Series::open(directory, config, &gateway, Arc::new(SystemClock::new()))
}

fn open(directory: &Path, config: &FileSink) -> Series {
    try_open(directory, config).expect("a directory")
}

/// A payload of one reading, of which two make a file.
fn reading(seq: u64) -> Payload {
    let text = format!("{{\"epoch\":9,\"seq\":{seq},\"filler\":\"{}\"}}\n", "x".repeat(READING)).into_bytes();
    Payload::Readings { epoch: Epoch(9), first: Seq(seq), last: Seq(seq), text }
}

/// Writes readings as the thread does.
fn write(series: &mut Series, seqs: impl IntoIterator<Item = u64>) -> Result<(), String> {
    for seq in seqs {
        series.write(&reading(seq))?;
        series.flush()?;
        if series.closes_in().is_zero() {
            series.close()?;
        }
    }
    Ok(())
}

fn name(seq: u64) -> String {
    format!("readings-gw-1-{seq:020}-9.jsonl")
}

fn entries(directory: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(directory.join(MANIFEST)).expect("a manifest");
    text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

fn append(path: &Path, text: &str) {
    File::options().append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("it grows");
}

fn size(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).expect("a directory");
    files.map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len()).sum()
}

#[test]
fn complete_files_are_listed_with_what_is_in_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut series = open(directory.path(), &config(WhenFull::Hold));
    write(&mut series, 1..=5).expect("there is room");
    series.close().expect("it can be closed");
    let entries = entries(directory.path());
    let ranges: Vec<_> = entries.iter().map(|entry| (entry.first.0, entry.last.0, entry.crash)).collect();
    assert_eq!(ranges, [(1, 2, false), (3, 4, false), (5, 5, false)]);
    assert_eq!(entries[0].file, name(1));
    for entry in entries {
        let text = fs::read(directory.path().join(&entry.file)).expect("it is there");
        let digest = ring::digest::digest(&ring::digest::SHA256, &text);
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((text.len() as u64, digest), (entry.bytes, entry.sha256));
    }
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(5))]));
}

#[test]
fn what_a_crash_left_is_completed_and_its_readings_are_not_relied_upon() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(WhenFull::Hold);
    let mut series = open(directory.path(), &config);
    write(&mut series, 1..=3).expect("there is room");
    series.write(&Payload::Event(b"{\"id\":1}\n".to_vec())).expect("there is room");
    // The process is killed amid a line of each file.
    drop(series);
    let part = directory.path().join(name(3) + PART);
    append(&part, "{\"epoch\":9,\"seq\":4");
    append(&directory.path().join(MANIFEST), "{\"file\":\"r");
    append(&directory.path().join(EVENTS), "{\"id\"");
    let mut series = open(directory.path(), &config);
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(2))]));
    let listed = entries(directory.path());
    assert_eq!((listed.len(), listed[1].last, listed[1].crash), (2, Seq(3), true));
    assert!(!part.exists() && fs::read_to_string(part.with_extension("")).expect("a file").ends_with("\"}\n"));
    // They come again, beside what is there.
    write(&mut series, 3..=4).expect("there is room");
    series.write(&Payload::Event(b"{\"id\":2}\n".to_vec())).expect("there is room");
    assert_eq!(entries(directory.path())[2].file, "readings-gw-1-00000000000000000003-9-2.jsonl");
    let events = fs::read_to_string(directory.path().join(EVENTS)).expect("a file");
    assert_eq!(events, "{\"id\":1}\n{\"id\":2}\n");
    drop(series);
    let series = open(directory.path(), &config);
    assert_eq!((series.written(), entries(directory.path()).len()), (&HashMap::from([(Epoch(9), Seq(4))]), 3));
}

/// A file system without a journal may have the one and not the other.
#[test]
fn a_file_that_is_listed_and_not_renamed_is_renamed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(WhenFull::Hold);
    let mut series = open(directory.path(), &config);
    write(&mut series, 1..=2).expect("there is room");
    drop(series);
    let whole = directory.path().join(name(1));
    fs::rename(&whole, directory.path().join(name(1) + PART)).expect("it is there");
    open(directory.path(), &config);
    assert!(whole.exists() && entries(directory.path()).len() == 1);
}

#[test]
fn what_is_not_of_this_gateway_or_holds_nothing_is_not_listed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let others = ["readings-2026-1.csv", "readings-gw-00000000000000000001-9.jsonl.part", "readings-gw-1-7-9.jsonl"];
    for other in others {
        fs::write(at(other), "{\"seq\":1}\n{\"se").expect("it can be written");
    }
    for torn in [name(7) + PART, name(8).replace("jsonl", "csv") + PART] {
        fs::write(at(&torn), "epoch,seq").expect("it can be written");
    }
    open(directory.path(), &config(WhenFull::Hold));
    let mut left: Vec<_> =
        fs::read_dir(directory.path()).expect("a directory").flatten().map(|f| f.file_name()).collect();
    left.sort();
    assert_eq!(left, others);
    assert_eq!(size(directory.path()), 3 * 14);
}

#[test]
fn a_file_that_is_taken_away_while_it_is_written_confirms_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut series = open(directory.path(), &config(WhenFull::Hold));
    write(&mut series, [1]).expect("there is room");
    fs::remove_file(directory.path().join(name(1) + PART)).expect("it is there");
    assert!(write(&mut series, [2]).is_err_and(|why| why.contains("was taken away")));
}

#[test]
fn links_that_somebody_prepared_are_not_followed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let victim = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(victim.path(), "precious\nwork").expect("it can be written");
    for name in [EVENTS, ".tidegate-probe"] {
        std::os::unix::fs::symlink(victim.path(), directory.path().join(name)).expect("a link");
    }
    let mut series = open(directory.path(), &config(WhenFull::Hold));
    assert!(series.write(&Payload::Event(b"{}\n".to_vec())).is_err());
    assert_eq!(fs::read_to_string(victim.path()).expect("it is there"), "precious\nwork");
}

#[test]
fn at_the_bound_readings_are_held_until_files_are_taken_away_or_the_oldest_is_removed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hold = config(WhenFull::Hold);
    let mut series = open(directory.path(), &hold);
    let why = write(&mut series, 1..=100).expect_err("it is bounded");
    assert!(why.contains("max_total = 683.6 KiB") && why.contains("take some away"), "{why}");
    drop(series);
    assert!(size(directory.path()) <= 700_000 && try_open(directory.path(), &hold).is_err());

    fs::remove_file(directory.path().join(name(1))).expect("it is there");
    let mut series = open(directory.path(), &hold);
    write(&mut series, [101]).expect("there is room again");
    drop(series);

    // A log that began anew has lower seqs: what was written first goes, not what sorts first.
    let mut series = open(directory.path(), &config(WhenFull::DropOldest));
    let anew = |seq| {
        let Payload::Readings { text, .. } = reading(seq) else { unreachable!("it is one") };
        Payload::Readings { epoch: Epoch(3), first: Seq(seq), last: Seq(seq), text }
    };
    for seq in 1..=8 {
        series.write(&anew(seq)).expect("the oldest makes room");
        series.flush().expect("it can be flushed");
        if series.closes_in().is_zero() {
            series.close().expect("it can be closed");
        }
    }
    assert!(!directory.path().join(name(3)).exists() && size(directory.path()) <= 700_000);
    assert!(directory.path().join("readings-gw-1-00000000000000000001-3.jsonl").exists());
}

#[test]
fn rows_are_whole_whatever_stands_in_them() {
    let row = |seq: u64, text: &str| format!("9,{seq},d,,,2026-11-23T01:02:03Z,c,text,\"{text}\",good,,\n");
    let whole = [CSV_HEADER.join(","), "\n".into(), row(7, "a\n9,99,x"), row(8, "\"\"\n")].concat();
    let found = |text: &str| last_row(text.as_bytes()).expect("no error");
    assert_eq!(found(&whole), (Some(Seq(8)), whole.len() as u64));
    let first = whole.len() - row(8, "\"\"\n").len();
    for cut in first..whole.len() {
        assert_eq!(found(&whole[..cut]), (Some(Seq(7)), first as u64), "{cut}");
    }
    assert_eq!(last_line(&b"{\"seq\":1}\n{\"seq\":2"[..]).expect("no error"), (Some(Seq(1)), 10));
    assert_eq!(last_line(&b"{\"seq\":1}"[..]).expect("no error"), (None, 0));
}

#[test]
fn two_do_not_write_to_one_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(WhenFull::Hold);
    let first = open(directory.path(), &config);
    let second = || try_open(directory.path(), &config).err();
    assert!(second().is_some_and(|why| why.contains("is in use")));
    drop(first);
    assert_eq!(second(), None);
}

#[test]
fn a_manifest_keeps_what_is_there_the_latest_and_what_others_wrote() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = FileSink { max_total: bytesize::ByteSize::mib(64), ..config(WhenFull::Hold) };
    let mut series = open(directory.path(), &config);
    write(&mut series, 1..=2).expect("there is room");
    drop(series);
    let entry = entries(directory.path()).remove(0);
    let line = |entry: &Entry| serde_json::to_string(entry).expect("an entry") + "\n";
    let gone = |seq: u64| line(&Entry { file: name(seq), first: Seq(seq), last: Seq(seq), ..entry.clone() });
    let lines: Vec<String> = (10..8000).map(gone).collect();
    let manifest = directory.path().join(MANIFEST);
    append(&manifest, &lines.concat());
    let other = Entry { gateway: GatewayId::new("gw").expect("a valid name"), ..entry.clone() };
    // Somebody thought that this gateway has all.
    let wrong = Entry { last: Seq(u64::MAX), first: Seq(3), ..entry.clone() };
    append(&manifest, &(line(&other) + &line(&wrong)));
    let series = open(directory.path(), &config);
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(7999))]));
    let kept = entries(directory.path());
    assert_eq!((kept.len(), &kept[0], &kept[1]), (RECENT + 2, &other, &entry));
}
