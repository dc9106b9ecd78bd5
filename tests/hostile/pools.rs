//! Pool files, through the same door as those of operators.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::sample::{Index, select};
use proptest::strategy::Strategy;
use synthex::config::{self, DEFAULT_POOL, Loaded, Origin, Overrides};

use crate::change::{changed, text};
use crate::memory::most_held;
use crate::{fixtures, for_all, for_some};

/// Bytes that may be held for each byte of a file, and for any file: the defaults are laid beneath it.
const PER_BYTE: usize = 400;
const ANYWAY: usize = 1024 * 1024;

/// A folder for the file that is loaded again and again.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Loads a file, which has to become a pool or to be refused in words that name file and key.
    fn check(&self, file: &[u8]) -> Option<Loaded> {
        let path = self.0.path().join("pool.toml");
        std::fs::write(&path, file).unwrap();
        let overrides = Overrides {
            slots: Some(4),
            prefetch: None,
        };
        let (loaded, held) = most_held(|| config::load(&path, &overrides));
        assert!(
            held <= PER_BYTE * file.len() + ANYWAY,
            "{held} bytes held for {}",
            file.len()
        );
        let errors = match loaded {
            Ok(loaded) => return Some(loaded),
            Err(errors) => errors.0,
        };
        assert!(!errors.is_empty());
        for error in errors {
            let text = error.to_string();
            assert!(!text.contains(char::is_control), "{text:?}");
            if error.origin == Origin::Flag("--slots") {
                continue; // more than the file's prefetch
            }
            assert_eq!(error.origin, Origin::File(path.clone()), "{text}");
            assert!(text.starts_with(&format!("{}: ", path.display())), "{text}");
            let has_place = error.message.starts_with("line ") && error.message.contains(", column ");
            assert!(!error.key.is_empty() || has_place, "{text}");
        }
        None
    }
}

/// The fixtures, the reference, and last the reference with its examples, but for the names of users it has.
fn files() -> Vec<Vec<u8>> {
    let is_key = |c: char| c.is_ascii_alphabetic() || c == '_';
    let example = |line: &'static str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| name.chars().all(is_key)) => rest,
        _ => line,
    };
    let is_account = |line: &str| line.starts_with("user = ") || line.starts_with("group = ");
    let settings = DEFAULT_POOL
        .lines()
        .map(example)
        .filter(|line| !line.starts_with('#') && !line.is_empty() && !is_account(line));
    let all = settings.collect::<Vec<_>>().join("\n");
    [fixtures("pools"), vec![DEFAULT_POOL.into(), all.into_bytes()]].concat()
}

/// Settings of the reference, each with a value of its own or of another, or with an odd one.
fn settings() -> impl Strategy<Value = Vec<u8>> {
    let all = String::from_utf8(files().pop().unwrap()).unwrap();
    let lines: Vec<String> = all.lines().map(str::to_owned).collect();
    let odd = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}").to_lowercase()),
        text().prop_map(|text| format!("{text:?}")),
        text().prop_map(|text| format!("[{text:?}, 1]")),
        text().prop_map(|text| format!("{{ {text:?} = {text:?} }}")),
        select(vec![
            "1979-05-27",
            "[[]]",
            "{}",
            "''",
            "0x10",
            "1_0",
            "+1",
            "inf",
            "true"
        ])
        .prop_map(str::to_owned),
    ];
    let line = (any::<Index>(), any::<Index>(), 0..3_u8, odd);
    vec(line, 1..30).prop_map(move |picked| {
        let words = |(key, value, which, odd): (Index, Index, u8, String)| {
            let (line, other) = (key.get(&lines), value.get(&lines));
            let parts = (line.split_once(" = "), other.split_once(" = "));
            match (which, parts) {
                (1, (Some((key, _)), Some((_, value)))) => format!("{key} = {value}"),
                (2, (Some((key, _)), _)) => format!("{key} = {odd}"),
                _ => line.clone(),
            }
        };
        picked
            .into_iter()
            .map(words)
            .collect::<Vec<_>>()
            .join("\n")
            .into_bytes()
    })
}

#[test]
fn any_bytes() {
    let folder = Folder::new();
    for_all(&vec(any::<u8>(), 0..2000), |file| drop(folder.check(&file)));
}

#[test]
fn files_with_bytes_changed() {
    let folder = Folder::new();
    assert!(folder.check(&files().pop().unwrap()).is_some(), "they are good before");
    for_all(&changed(files()), |file| drop(folder.check(&file)));
}

#[test]
fn settings_with_the_values_of_others() {
    let folder = Folder::new();
    for_all(&settings(), |file| drop(folder.check(&file)));
}

/// What a parser that calls itself for each level does not survive.
#[test]
fn files_that_are_nested_for_ever() {
    let folder = Folder::new();
    let opening = select(vec![
        "a.",
        "\"\".",
        "a = [",
        "a = {b=",
        "[",
        "[a.",
        "retry = {max = ",
        "env.a = [",
    ]);
    let nested = (opening, 1..60_000_usize, any::<bool>()).prop_map(|(opening, levels, whole)| {
        let (first, again) = opening
            .split_once("= ")
            .map_or(("", opening), |(_, value)| (opening, value));
        let end = if whole { "a = 1" } else { "" };
        format!("{first}{}{end}", again.repeat(levels))
    });
    for_some(32, &nested, |file| drop(folder.check(file.as_bytes())));
}
