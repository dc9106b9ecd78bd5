//! Reads the Prometheus text format back, for tests.

use std::collections::BTreeMap;

/// The value of each series, by its name with its labels as they are written.
pub(super) type Series = BTreeMap<String, f64>;

/// Reads all series, but not the buckets of histograms.
pub(super) fn scrape(text: &str) -> Series {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.filter(|line| !line.contains("_bucket{"));
    samples.map(sample).collect()
}

fn sample(line: &str) -> (String, f64) {
    let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
    (name.to_owned(), value.parse().expect("a value is a number"))
}

/// Says which of our own series moved, without their prefix, and by how much.
pub(super) fn moves(before: &Series, after: &Series) -> Vec<(String, f64)> {
    let ours = |(name, value): (&String, &f64)| {
        let by = value - before.get(name).copied().unwrap_or_default();
        let name = name.strip_prefix("synthex_")?;
        (by != 0.0).then(|| (name.to_owned(), by))
    };
    after.iter().filter_map(ours).collect()
}

/// Asserts what `promtool check metrics` would: each family has a help and a type, and a name that fits the type.
pub(super) fn check(text: &str) {
    let mut families = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        families += 1;
        let (name, help) = comment(line, "# HELP ");
        assert!(help.len() > 3, "{name} has no help");
        let (typed, kind) = comment(lines.next().expect("a type"), "# TYPE ");
        assert_eq!(typed, name, "help and type of one family");
        check_name(name, kind);

        let mut samples = 0;
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            assert!(line.starts_with(name), "{line} below {name}");
            sample(line);
            samples += 1;
        }
        assert!(samples > 0, "{name} has no series");
    }
    assert!(families > 30, "only {families} families");
}

fn comment<'a>(line: &'a str, intro: &str) -> (&'a str, &'a str) {
    let rest = line.strip_prefix(intro);
    let rest = rest.unwrap_or_else(|| panic!("{intro:?} expected, got {line:?}"));
    rest.split_once(' ').expect("a name, then its text")
}

fn check_name(name: &str, kind: &str) {
    let owners = ["synthex_", "tokio_", "process_"];
    assert!(owners.iter().any(|owner| name.starts_with(owner)), "{name}");
    match kind {
        "counter" => assert!(name.ends_with("_total"), "counter {name}"),
        "histogram" => assert!(name.ends_with("_seconds"), "histogram {name}"),
        "gauge" => {
            for ending in ["_total", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(ending), "gauge {name}");
            }
        }
        other => panic!("{name} is a {other}"),
    }
}
