use std::collections::BTreeMap;
use std::io::{self, Read};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::message::{Envelope, HeaderValue, Properties};
use crate::transport::{Publication, Routing};
use crate::worker::parcel::{Mail, Purpose, sample};

/// A file as version 1 of the format wrote it, with everything that a parcel can hold.
const OF_VERSION_1: &[u8] = include_bytes!("v1.outbox");

/// A file, and where each of its records begins; the last offset is its length.
fn file(records: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut offsets) = (HEADER.to_vec(), Vec::new());
    for record in records {
        offsets.push(bytes.len());
        bytes.extend(record);
    }
    offsets.push(bytes.len());
    (bytes, offsets)
}

/// Parcels of growing size, numbered from 0.
fn parcels(count: u64) -> (Vec<u8>, Vec<usize>) {
    let record = |number| {
        let bytes = usize::try_from(7 * number).unwrap();
        parcel_record(number, &sample(&format!("job-{number}"), bytes)).unwrap()
    };
    file(&(0..count).map(record).collect::<Vec<_>>())
}

fn scanned(bytes: &[u8]) -> Contents {
    scan(&mut &*bytes, bytes.len() as u64).unwrap()
}

fn live(contents: &Contents) -> Vec<u64> {
    contents.live.keys().copied().collect()
}

/// Reads what is live, as a worker does that publishes it.
fn read(bytes: &[u8], contents: &Contents) -> Vec<Result<Parcel, FormatError>> {
    let of_place = |place: &Place| {
        let range = usize::try_from(place.offset).unwrap()..usize::try_from(place.offset + place.bytes).unwrap();
        parcel(place, &bytes[range])
    };
    contents.live.values().map(of_place).collect()
}

/// Everything that a parcel can hold.
fn full() -> Parcel {
    let text = |text: &str| Some(text.to_owned());
    let headers = [
        ("text", HeaderValue::Text("ä".to_owned())),
        ("int", HeaderValue::Int(-1)),
        ("bool", HeaderValue::Bool(true)),
        ("float", HeaderValue::Float(0.5)),
        ("list", HeaderValue::List(vec![HeaderValue::Other])),
        (
            "table",
            HeaderValue::Table([("k".to_owned(), HeaderValue::Int(1 << 40))].into()),
        ),
    ];
    let publication = |routing| Publication {
        exchange: "synthex.results".to_owned(),
        routing_key: "p.succeeded".to_owned(),
        routing,
        envelope: Envelope {
            body: vec![0, 255, 10].into(),
            properties: Properties {
                content_type: text("application/json"),
                content_encoding: text("gzip"),
                app_id: text("app"),
                message_id: text("job/1"),
                correlation_id: text("c"),
                reply_to: text("replies"),
                kind: text("succeeded"),
                user_id: text("user"),
                priority: Some(9),
                timestamp: Some(1 << 33),
                headers: headers.clone().map(|(name, value)| (name.to_owned(), value)).into(),
            },
        }
        .into(),
    };
    let delay = Duration::from_millis(1500);
    let reason = "lost".to_owned();
    let purposes = [
        Purpose::Result,
        Purpose::Reply,
        Purpose::Retry { delay },
        Purpose::DeadLetter { reason },
    ];
    let routings = [Routing::Optional, Routing::Mandatory].into_iter().cycle();
    let mail = purposes.into_iter().zip(routings).map(|(purpose, routing)| Mail {
        purpose,
        publication: publication(routing),
    });
    Parcel {
        key: 0x0123_4567_89ab_cdef << 64,
        pool: "p".to_owned(),
        job_id: "job".parse().unwrap(),
        mail: mail.collect(),
    }
}

#[test]
fn a_file_of_version_1_loads_for_ever() {
    let contents = scanned(OF_VERSION_1);
    assert_eq!(
        (live(&contents), contents.next, &contents.damage),
        (vec![1], 3, &vec![])
    );
    assert_eq!(read(OF_VERSION_1, &contents)[0].as_ref().unwrap(), &full());
    // And this is how it is written.
    let records = [
        parcel_record(0, &sample("job", 1)).unwrap(),
        parcel_record(1, &full()).unwrap(),
        parcel_record(2, &sample("job", 1)).unwrap(),
        confirmed_record(2).unwrap(),
        confirmed_record(0).unwrap(),
    ];
    assert_eq!(file(&records).0, OF_VERSION_1);
}

#[test]
fn another_version_is_told_from_damage() {
    let mut bytes = parcels(1).0;
    bytes[HEADER.len() - 2] = b'2';
    assert!(matches!(
        scan(&mut &*bytes, bytes.len() as u64),
        Err(FormatError::Version)
    ));
    bytes[0] = b'S';
    let contents = scanned(&bytes);
    assert_eq!((live(&contents), contents.end), (vec![], 0));
    assert_eq!(contents.damage, Vec::from_iter(Some(0..bytes.len() as u64)));
}

#[test]
fn a_file_cut_off_anywhere_keeps_the_records_before_the_cut() {
    let (bytes, offsets) = parcels(4);
    for cut in 0..bytes.len() {
        let contents = scanned(&bytes[..cut]);
        let whole = offsets.iter().skip(1).filter(|end| **end <= cut).count();
        assert_eq!(live(&contents), (0..whole as u64).collect::<Vec<_>>(), "cut at {cut}");
        let end = if cut < HEADER.len() { 0 } else { offsets[whole] };
        assert_eq!(contents.end, end as u64, "cut at {cut}");
        let damage = (end < cut).then_some(end as u64..cut as u64);
        assert_eq!(contents.damage, Vec::from_iter(damage), "cut at {cut}");
    }
}

#[test]
fn a_byte_that_changed_anywhere_costs_its_record_alone_unless_it_is_a_length() {
    let (bytes, offsets) = parcels(3);
    for at in HEADER.len()..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let contents = scanned(&changed);
        let hit = offsets.iter().rposition(|offset| *offset <= at).unwrap() as u64;
        let in_length = at - offsets[usize::try_from(hit).unwrap()] < 4;
        let kept = |number: &u64| *number < hit || (*number > hit && !in_length);
        assert_eq!(live(&contents), (0..3).filter(kept).collect::<Vec<_>>(), "byte {at}");
        assert!(!contents.damage.is_empty(), "byte {at}");
        assert!(read(&changed, &contents).iter().all(Result::is_ok));
    }
}

#[test]
fn a_record_that_changes_after_the_scan_is_not_read() {
    let (mut bytes, offsets) = parcels(1);
    let contents = scanned(&bytes);
    for at in offsets[0]..offsets[1] {
        bytes[at] ^= 1;
        assert!(read(&bytes, &contents)[0].is_err(), "byte {at}");
        bytes[at] ^= 1;
    }
    assert!(parcel(&contents.live[&0], &[]).is_err());
}

/// Counts what is read of it.
struct Counting<'a> {
    bytes: &'a [u8],
    read: usize,
}

impl Read for Counting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.read += read;
        Ok(read)
    }
}

/// What holds of every file.
fn check(bytes: &[u8]) -> Contents {
    let (length, mut file) = (bytes.len() as u64, Counting { bytes, read: 0 });
    let Ok(contents) = scan(&mut file, length) else {
        return Contents::default(); // of another version
    };
    assert!(file.read <= bytes.len(), "read twice");
    assert!(contents.end <= length);
    assert!(
        contents.live.len() as u64 * CONFIRMED_BYTES <= length,
        "more records than bytes"
    );
    let inside = |place: &Place| place.offset >= HEADER.len() as u64 && place.offset + place.bytes <= contents.end;
    assert!(contents.live.values().all(inside));
    let mut at = 0;
    for range in &contents.damage {
        assert!(
            at <= range.start && range.start < range.end && range.end <= length,
            "{contents:?}"
        );
        at = range.end;
    }
    let _ = read(bytes, &contents);
    contents
}

/// A file of parcels and confirmations in any order, and what each record is: a number, and whether it is a parcel's.
fn any_file() -> impl Strategy<Value = (Vec<u8>, Vec<usize>, Vec<(u64, bool)>)> {
    let record = (0..6_u64, any::<bool>(), 0..200_usize);
    proptest::collection::vec(record, 0..12).prop_map(|records| {
        let record = |(number, is_parcel, bytes): &(u64, bool, usize)| match is_parcel {
            true => parcel_record(*number, &sample("job", *bytes)).unwrap(),
            false => confirmed_record(*number).unwrap(),
        };
        let (bytes, offsets) = file(&records.iter().map(record).collect::<Vec<_>>());
        (
            bytes,
            offsets,
            records
                .iter()
                .map(|(number, is_parcel, _)| (*number, *is_parcel))
                .collect(),
        )
    })
}

/// What is live after these records.
fn model(records: &[(u64, bool)]) -> Vec<u64> {
    let mut live = BTreeMap::new();
    for (number, is_parcel) in records {
        match is_parcel {
            true => live.insert(*number, ()),
            false => live.remove(number),
        };
    }
    live.into_keys().collect()
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        check(&bytes);
    }

    #[test]
    fn any_bytes_after_a_header_are_read_to_their_end(tail in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let bytes = [&HEADER[..], &tail].concat();
        check(&bytes);
    }

    /// Lengths and checksums that are right, around parcels that are none.
    #[test]
    fn any_bytes_in_a_sealed_record_are_no_more_than_an_error(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
        kind in 0..3_u8,
    ) {
        let record = |(number, payload): (usize, &Vec<u8>)| {
            let mut record = begin(kind, number as u64, 7);
            record.extend(payload);
            seal(record).unwrap()
        };
        let (bytes, _) = file(&payloads.iter().enumerate().map(record).collect::<Vec<_>>());
        check(&bytes);
    }

    #[test]
    fn what_is_whole_is_read_as_it_was_written((bytes, _, records) in any_file()) {
        let contents = check(&bytes);
        prop_assert_eq!(live(&contents), model(&records));
        prop_assert_eq!(contents.damage, vec![]);
        prop_assert_eq!(contents.end, bytes.len() as u64);
    }

    #[test]
    fn what_is_before_any_damage_survives_it(
        (mut bytes, offsets, records) in any_file(),
        at in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(1..=255_u8, 1..40),
        cut in any::<bool>(),
    ) {
        // The header is not part of what is damaged.
        let at = HEADER.len() + at.index(bytes.len() - HEADER.len() + 1);
        if cut {
            bytes.truncate(at);
        }
        for (offset, noise) in noise.iter().enumerate() {
            match bytes.get_mut(at + offset) {
                Some(byte) => *byte ^= noise,
                None => bytes.push(*noise),
            }
        }
        let contents = check(&bytes);
        let before = offsets.iter().skip(1).filter(|end| **end <= at).count();
        prop_assert!(contents.end >= offsets[before] as u64);
        // A confirmation after the damage may be read, and end a parcel that was before it.
        let confirmed: Vec<u64> = records[before..].iter().filter(|(_, is_parcel)| !is_parcel).map(|(number, _)| *number).collect();
        for number in model(&records[..before]) {
            prop_assert!(contents.live.contains_key(&number) || confirmed.contains(&number), "{} is gone", number);
        }
    }
}
