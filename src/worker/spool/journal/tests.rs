use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::worker::parcel::sample;

const PLENTY: u64 = 1 << 20;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn create(path: &Path) -> Journal {
    Journal::create(path).unwrap().expect("nobody else is here")
}

fn take_over(path: &Path) -> Journal {
    Journal::take_over(path).unwrap().expect("its owner is gone")
}

fn append(journal: &mut Journal, id: &str) -> u64 {
    let mut written = journal.append(&[sample(id, 50)], PLENTY);
    assert_eq!(written.len(), 1);
    written.remove(0).unwrap()
}

/// The ids of the live parcels, each read from disk.
fn ids(journal: &Journal) -> Vec<String> {
    let read = |(number, key)| {
        let parcel = journal.read(number).unwrap().expect("it is live");
        assert_eq!(parcel.key, key);
        parcel.job_id.to_string()
    };
    journal.live().map(read).collect()
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn what_was_written_is_there_after_the_owner_is_gone() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    let confirmed = append(&mut journal, "confirmed");
    append(&mut journal, "first");
    append(&mut journal, "second");
    journal.confirm(confirmed).unwrap();
    assert_eq!(ids(&journal), ["first", "second"]);
    assert_eq!((journal.records(), journal.bytes()), (2, length(&path)));
    drop(journal);

    let mut journal = take_over(&path);
    assert_eq!(ids(&journal), ["first", "second"]);
    // It goes on where the other one was cut off.
    append(&mut journal, "third");
    drop(journal);
    assert_eq!(ids(&take_over(&path)), ["first", "second", "third"]);
}

#[test]
fn a_file_in_which_nothing_is_live_is_empty() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    assert_eq!(length(&path), 0, "a header alone is of no use");
    for round in 0..3 {
        let numbers = [append(&mut journal, "a"), append(&mut journal, "b")];
        assert_eq!(numbers, [2 * round, 2 * round + 1], "no number is given twice");
        journal.confirm(numbers[1]).unwrap();
        assert!(length(&path) > 0);
        journal.confirm(numbers[0]).unwrap();
        assert_eq!((length(&path), journal.bytes()), (0, 0));
        assert!(journal.read(numbers[0]).unwrap().is_none());
        journal.confirm(numbers[0]).unwrap();
    }
    drop(journal);
    assert_eq!(take_over(&path).records(), 0);
}

#[test]
fn a_file_never_grows_beyond_its_bound() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    let record = format::parcel_record(0, &sample("job", 50)).unwrap().len() as u64;
    // Room for two with their confirmations, and for no byte more.
    let max_bytes = HEADER.len() as u64 + 2 * (record + CONFIRMED_BYTES);
    let parcels = [sample("job", 50), sample("job", 50), sample("job", 50)];
    let written = journal.append(&parcels, max_bytes);
    let numbers: Vec<_> = written
        .iter()
        .filter_map(|written| written.as_ref().ok().copied())
        .collect();
    assert_eq!(numbers, [0, 1]);
    assert!(matches!(written[2], Err(SpoolError::Full { .. })), "{written:?}");
    assert!(matches!(
        journal.append(&parcels[..1], max_bytes)[0],
        Err(SpoolError::Full { .. })
    ));

    journal.confirm(0).unwrap();
    assert!(length(&path) <= max_bytes);
    assert!(
        journal.append(&parcels[..1], max_bytes)[0].is_err(),
        "room that is not free yet"
    );
    journal.confirm(1).unwrap();
    assert!(journal.append(&parcels[..1], max_bytes)[0].is_ok());
    assert!(matches!(
        create(&folder.path().join("b")).append(&parcels, 0)[0],
        Err(SpoolError::Full { .. })
    ));
}

#[test]
fn a_write_that_fails_is_told_and_leaves_what_was_there() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    append(&mut journal, "first");
    let writable = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
    for written in journal.append(&[sample("a", 1), sample("b", 1)], PLENTY) {
        let error = written.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
    journal.file = writable;
    assert_eq!(ids(&journal), ["first"]);
    assert!(
        append(&mut journal, "second") > 1,
        "a number that was given may be on disk"
    );
    drop(journal);
    assert_eq!(ids(&take_over(&path)), ["first", "second"]);
}

#[test]
fn a_damaged_tail_is_cut_off_wherever_it_begins() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    append(&mut journal, "first");
    let first = journal.bytes();
    append(&mut journal, "second");
    drop(journal);
    let whole = fs::read(&path).unwrap();
    for cut in HEADER.len()..whole.len() {
        for tail in [&b""[..], &[0xee; 4], &[0xff; 64]] {
            fs::write(&path, [&whole[..cut], tail].concat()).unwrap();
            let mut journal = take_over(&path);
            let expected: &[&str] = if (cut as u64) < first { &[] } else { &["first"] };
            assert_eq!(ids(&journal), expected, "cut at {cut}");
            assert_eq!(length(&path), journal.bytes(), "the tail is still there");
            append(&mut journal, "third");
            drop(journal);
            assert_eq!(ids(&take_over(&path)), [expected, &["third"]].concat(), "cut at {cut}");
        }
    }
}

#[test]
fn a_file_has_one_owner() {
    let folder = folder();
    let path = folder.path().join("a");
    let mut journal = create(&path);
    append(&mut journal, "job");
    assert!(Journal::take_over(&path).unwrap().is_none(), "its owner lives");
    assert!(Journal::create(&path).is_err(), "it is there");
    drop(journal);
    let taken = take_over(&path);
    assert!(Journal::take_over(&path).unwrap().is_none(), "it has a new owner");
    taken.remove().unwrap();
    assert!(Journal::take_over(&path).unwrap().is_none(), "it is gone");
}

#[test]
fn what_is_removed_while_another_opens_it_is_not_taken_over() {
    let folder = folder();
    let path = folder.path().join("a");
    let first = create(&path);
    let late = options().open(&path).unwrap();
    first.remove().unwrap();
    assert!(!lock(&late).unwrap());
}

#[test]
fn results_are_for_their_user_alone() {
    let folder = folder();
    let path = folder.path().join("a");
    let _journal = create(&path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
