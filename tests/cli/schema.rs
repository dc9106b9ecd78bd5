//! The contracts that the binary prints are those in the repository.

use std::fs;

use serde_json::Value;

use crate::bench::repository;
use crate::support::cli::Cli;

#[test]
fn the_printed_schemas_are_the_files() {
    for what in [
        "job", "result", "control", "event", "batch", "pool", "fleet", "progress",
    ] {
        let printed = Cli::new(["schema", what]).run().expect_code(0);
        assert_eq!(printed.stderr, "");
        let file = repository().join(format!("schemas/{what}.v1.json"));
        let stored = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(
            printed.stdout == stored,
            "{} is not what `synthex schema {what}` prints: write it anew",
            file.display()
        );
        let schema: Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(schema["$id"], format!("urn:synthex:{what}:v1"));
    }
}

#[test]
fn a_schema_that_nobody_takes_is_an_error() {
    let finished = Cli::program(
        "sh",
        ["-c", r#""$0" schema job > /dev/full"#, env!("CARGO_BIN_EXE_synthex")],
    )
    .run()
    .expect_code(1);
    assert!(
        finished.stderr.contains("failed to write to stdout"),
        "{}",
        finished.stderr
    );
}
