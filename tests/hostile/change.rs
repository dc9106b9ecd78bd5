//! Damage to something good: bytes lost, added, exchanged or said twice, and values of another kind.

use proptest::collection::vec;
use proptest::prelude::{Just, any};
use proptest::sample::{Index, select};
use proptest::strategy::{BoxedStrategy, Strategy};
use proptest::{prop_oneof, strategy::Union};
use serde_json::Value;

/// Changes to one input at most.
const CHANGES: usize = 6;

/// One change to bytes.
#[derive(Clone, Debug)]
enum Change {
    Put(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// All from there on is lost.
    Cut(Index),
    /// Some bytes are said again, so many times.
    Repeat(Index, usize, usize),
    /// Some bytes take the place of others.
    Copy(Index, Index, usize),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<Index>;
        prop_oneof![
            4 => (at(), any::<u8>()).prop_map(|(at, byte)| Self::Put(at, byte)),
            4 => (at(), piece()).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            3 => (at(), 1..40_usize).prop_map(|(at, count)| Self::Remove(at, count)),
            1 => at().prop_map(Self::Cut),
            2 => (at(), 1..40_usize, 1..200_usize).prop_map(|(at, count, times)| Self::Repeat(at, count, times)),
            3 => (at(), at(), 1..40_usize).prop_map(|(from, to, count)| Self::Copy(from, to, count)),
        ]
    }

    fn make(self, bytes: &mut Vec<u8>) {
        let end = bytes.len();
        let range = |at: &Index, count: usize| {
            let start = at.index(end + 1);
            start..end.min(start + count)
        };
        match self {
            Self::Put(at, byte) => bytes[range(&at, 1)].fill(byte),
            Self::Insert(at, more) => drop(bytes.splice(range(&at, 0), more)),
            Self::Remove(at, count) => drop(bytes.drain(range(&at, count))),
            Self::Cut(at) => bytes.truncate(at.index(end + 1)),
            Self::Repeat(at, count, times) => {
                let range = range(&at, count);
                let more = bytes[range.clone()].repeat(times);
                drop(bytes.splice(range, more));
            }
            Self::Copy(from, to, count) => {
                let copied = bytes[range(&from, count)].to_vec();
                drop(bytes.splice(range(&to, count), copied));
            }
        }
    }
}

/// Bytes that mean something to one parser or another.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&'static str> = vec![
        "\"",
        "'",
        "\"\"\"",
        "[",
        "]",
        "[[",
        "{",
        "}",
        ",",
        ":",
        "=",
        ".",
        "#",
        "\n",
        "\r",
        "\\",
        "\\u0000",
        "\\ud800",
        "\0",
        "\u{feff}",
        "null",
        "true",
        "nan",
        "-inf",
        "1e999",
        "-0",
        "0x",
        "18446744073709551616",
        "1979-05-27",
    ];
    let odd = vec(any::<u8>(), 1..8);
    prop_oneof![3 => select(words).prop_map(|word| word.as_bytes().to_vec()), 1 => odd]
}

/// One of these, with some changes.
pub fn changed(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(good), vec(Change::any(), 1..CHANGES)).prop_map(|(mut bytes, changes)| {
        for change in changes {
            change.make(&mut bytes);
        }
        bytes
    })
}

/// Any JSON, some levels deep; names are often among those given.
pub fn json(names: &'static [&'static str]) -> BoxedStrategy<Value> {
    let numbers = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2..400_i64).prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers,
        text().prop_map(Value::from),
    ];
    let name = prop_oneof![4 => select(names).prop_map(str::to_owned), 1 => text()];
    let nested = leaf.prop_recursive(5, 64, 8, move |inner| {
        let list = vec(inner.clone(), 0..8).prop_map(Value::from);
        let object = vec((name.clone(), inner), 0..8).prop_map(|pairs| Value::Object(pairs.into_iter().collect()));
        Union::new([list.boxed(), object.boxed()])
    });
    nested.boxed()
}

/// Text that some field takes, or almost takes.
pub fn text() -> impl Strategy<Value = String> {
    let number = prop_oneof![0..100_u64, any::<u64>()];
    let unit = select(vec!["ms", "s", "m", "h", "d", "B", "KiB", "MiB", "TiB", "KB", ""]);
    let known: Vec<&'static str> = vec![
        "TERM",
        "SIGKILL",
        "SIGRTMIN+3",
        "failed",
        "timed_out",
        "/tmp",
        "tmp",
        "aGk=",
        "",
        "\0",
        "2030-01-31T12:00:00Z",
        "2030-01-31T12:00:00.123456789+02:00",
        "-009999-01-02T01:59:59Z",
        "9999-12-30T22:00:00Z",
    ];
    prop_oneof![
        3 => (number, unit).prop_map(|(number, unit)| format!("{number}{unit}")),
        3 => select(known).prop_map(str::to_owned),
        2 => "\\PC{0,80}",
        1 => vec(any::<char>(), 0..80).prop_map(|chars| chars.into_iter().collect()),
    ]
}
