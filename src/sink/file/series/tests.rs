use super::torn::{last_line, last_row};
use super::*;
use crate::clock::SystemClock;

fn config(format: TextFormat, when_full: WhenFull) -> FileSink {
    let (rotate_size, max_total) = (bytesize::ByteSize(100_000), bytesize::ByteSize(700_000));
    FileSink { format, rotate_size, max_total, when_full, ..FileSink::default() }
}

fn open(directory: &Path, config: &FileSink) -> Series {
    let gateway = GatewayId::new("gw").expect("a valid name");
    Series::open(directory, config, &gateway, Arc::new(SystemClock::new())).expect("a directory")
}

/// A payload of one reading.
fn reading(seq: u64) -> Payload {
    let text = format!("{{\"epoch\":9,\"seq\":{seq},\"filler\":\"{}\"}}\n", "x".repeat(60_000)).into_bytes();
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

fn entries(directory: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(directory.join(MANIFEST)).expect("a manifest");
    text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

#[test]
fn complete_files_are_listed_with_what_is_in_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut series = open(directory.path(), &config(TextFormat::Jsonl, WhenFull::Hold));
    write(&mut series, 1..=5).expect("there is room");
    series.close().expect("it can be closed");
    let entries = entries(directory.path());
    let ranges: Vec<_> = entries.iter().map(|entry| (entry.first.0, entry.last.0, entry.crash)).collect();
    assert_eq!(ranges, [(1, 2, false), (3, 4, false), (5, 5, false)]);
    assert_eq!(entries[0].file, "readings-00000000000000000001-9.jsonl");
    for entry in entries {
        let text = fs::read(directory.path().join(&entry.file)).expect("it is there");
        let digest = ring::digest::digest(&SHA256, &text);
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((text.len() as u64, digest), (entry.bytes, entry.sha256));
    }
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(5))]));
}

#[test]
fn what_a_crash_left_is_completed_and_its_readings_are_not_relied_upon() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(TextFormat::Jsonl, WhenFull::Hold);
    let mut series = open(directory.path(), &config);
    write(&mut series, 1..=3).expect("there is room");
    // The process is killed amid a line of file, manifest and events.
    drop(series);
    let part = directory.path().join("readings-00000000000000000003-9.jsonl.part");
    for (path, rest) in [(&part, "{\"epoch\":9,\"seq\":4"), (&directory.path().join(MANIFEST), "{\"file\":\"r")] {
        File::options().append(true).open(path).and_then(|mut file| file.write_all(rest.as_bytes())).expect("it grows");
    }
    let mut series = open(directory.path(), &config);
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(2))]));
    let listed = entries(directory.path());
    assert_eq!((listed.len(), listed[1].last, listed[1].crash), (2, Seq(3), true));
    assert!(!part.exists() && fs::read_to_string(part.with_extension("")).expect("a file").ends_with("\"}\n"));
    // They come again, beside what is there.
    write(&mut series, 3..=4).expect("there is room");
    assert_eq!(entries(directory.path())[2].file, "readings-00000000000000000003-9-2.jsonl");
    drop(series);
    let series = open(directory.path(), &config);
    assert_eq!((series.written(), entries(directory.path()).len()), (&HashMap::from([(Epoch(9), Seq(4))]), 3));
}

#[test]
fn a_file_in_which_nothing_is_whole_is_removed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["readings-00000000000000000007-9.jsonl.part", "readings-00000000000000000007-9.csv.part"] {
        fs::write(directory.path().join(name), "epoch,seq").expect("it can be written");
    }
    open(directory.path(), &config(TextFormat::Jsonl, WhenFull::Hold));
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
}

#[test]
fn at_the_bound_readings_are_held_until_files_are_taken_away_or_the_oldest_is_removed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hold = config(TextFormat::Jsonl, WhenFull::Hold);
    let mut series = open(directory.path(), &hold);
    let why = write(&mut series, 1..=100).expect_err("it is bounded");
    assert!(why.contains("max_total = 683.6 KiB") && why.contains("take some away"), "{why}");
    let oldest = directory.path().join("readings-00000000000000000001-9.jsonl");
    let size: u64 = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
        .sum();
    assert!(oldest.exists() && size <= 700_000, "{size}");

    drop(series);
    fs::remove_file(&oldest).expect("it is there");
    fs::remove_file(directory.path().join(MANIFEST)).expect("it is there");
    let mut series = open(directory.path(), &hold);
    write(&mut series, [101]).expect("there is room again");
    drop(series);

    let mut series = open(directory.path(), &config(TextFormat::Jsonl, WhenFull::DropOldest));
    fs::remove_file(directory.path().join(MANIFEST)).expect("it is there");
    write(&mut series, 102..=110).expect("the oldest makes room");
    assert!(!directory.path().join("readings-00000000000000000101-9.jsonl").exists());
}

#[test]
fn rows_are_whole_whatever_stands_in_them() {
    let row = |seq: u64, text: &str| format!("9,{seq},d,,,2026-11-23T01:02:03Z,c,text,\"{text}\",good,,\n");
    let whole = [CSV_HEADER.join(","), "\n".into(), row(7, "a\n9,99,x"), row(8, "\"\"\n")].concat();
    assert_eq!(last_row(whole.as_bytes()), Some((Seq(8), whole.len())));
    let first = whole.len() - row(8, "\"\"\n").len();
    for cut in first..whole.len() {
        assert_eq!(last_row(&whole.as_bytes()[..cut]), Some((Seq(7), first)), "{cut}");
    }
    assert_eq!(last_line(b"{\"seq\":1}\nnonsense\n{\"seq\":2"), Some((Seq(1), 10)));
    assert_eq!(last_line(b"{\"seq\":1}"), None);
}

#[test]
fn two_do_not_write_to_one_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(TextFormat::Jsonl, WhenFull::Hold);
    let first = open(directory.path(), &config);
    let gateway = GatewayId::new("gw").expect("a valid name");
    let second = || Series::open(directory.path(), &config, &gateway, Arc::new(SystemClock::new())).err();
    assert!(second().is_some_and(|why| why.contains("is in use")));
    drop(first);
    assert_eq!(second(), None);
}

#[test]
fn a_manifest_keeps_what_is_there_and_the_latest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = config(TextFormat::Jsonl, WhenFull::Hold);
    let mut series = open(directory.path(), &config);
    write(&mut series, 1..=2).expect("there is room");
    drop(series);
    let entry = entries(directory.path()).remove(0);
    let gone = |seq: u64| Entry { file: format!("readings-{seq:020}-9.jsonl"), last: Seq(seq), ..entry.clone() };
    let lines: Vec<String> =
        (10..8000).map(|seq| serde_json::to_string(&gone(seq)).expect("an entry") + "\n").collect();
    let mut manifest = File::options().append(true).open(directory.path().join(MANIFEST)).expect("it is there");
    manifest.write_all(lines.concat().as_bytes()).expect("it grows");
    let series = open(directory.path(), &config);
    assert_eq!(series.written(), &HashMap::from([(Epoch(9), Seq(7999))]));
    let kept = entries(directory.path());
    assert_eq!((kept.len(), &kept[0], kept[1000].last), (RECENT + 1, &entry, Seq(7999)));
}
