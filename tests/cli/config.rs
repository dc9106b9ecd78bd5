//! `synthex config`: what is wrong with pool files, and what is in them.

use serde_json::Value;

use crate::bench::Bench;
use crate::support::cli::{Cli, Finished};

const FIVE_MISTAKES: &str = "tests/fixtures/pools/five_mistakes.toml";
const RENDER: &str = "tests/fixtures/pools/render.toml";

/// Fails unless stderr has one line for each of these, in this order, each naming its file.
#[track_caller]
fn assert_lines(finished: &Finished, expected: &[&str]) {
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let expected: Vec<String> = expected.iter().map(|line| format!("synthex: {line}")).collect();
    assert_eq!(lines, expected);
}

#[test]
fn five_mistakes_are_told_at_once() {
    let finished = Cli::new(["config", "check", FIVE_MISTAKES]).run().expect_code(78);
    assert_eq!(finished.stdout, "");
    assert_lines(
        &finished,
        &[
            r#"tests/fixtures/pools/five_mistakes.toml: pool: expected 1 to 64 letters, digits, "_" and "-" of ASCII, got "image.resize""#,
            "tests/fixtures/pools/five_mistakes.toml: slots: expected a whole number from 1 to 10000, got 0",
            "tests/fixtures/pools/five_mistakes.toml: time_out: unknown key; did you mean timeout?",
            r#"tests/fixtures/pools/five_mistakes.toml: kill_grace: expected a duration such as "30s", got "soon""#,
            r#"tests/fixtures/pools/five_mistakes.toml: limits.memory: expected a size such as "512MiB", got 512"#,
        ],
    );
}

#[test]
fn every_subcommand_that_reads_pools_tells_the_same() {
    let told = Cli::new(["config", "check", FIVE_MISTAKES])
        .run()
        .expect_code(78)
        .stderr;
    let others: [&[&str]; 4] = [
        &["config", "show", FIVE_MISTAKES],
        &["config", "apply", FIVE_MISTAKES],
        &["worker", FIVE_MISTAKES],
        &["run", "--pool", FIVE_MISTAKES, "--", "true"],
    ];
    for args in others {
        let finished = Cli::new(args).run().expect_code(78);
        assert_eq!(finished.stderr, told, "{args:?}");
        assert_eq!(finished.stdout, "", "{args:?}");
    }
}

#[test]
fn mistakes_in_several_files_are_told_together() {
    let bench = Bench::new();
    let (a, b) = (
        bench.file("a.toml", "slots = 0\n"),
        bench.file("b.toml", "pool = 'b'\nslots = 'two'\n"),
    );
    let missing = bench.arg("missing.toml");
    let finished = Cli::new(["config", "check", &a, &missing, &b]).run().expect_code(78);
    assert_lines(
        &finished,
        &[
            &format!("{a}: slots: expected a whole number from 1 to 10000, got 0"),
            &format!("{missing}: cannot be read: No such file or directory (os error 2)"),
            &format!(r#"{b}: slots: expected a whole number from 1 to 10000, got "two""#),
        ],
    );
}

#[test]
fn a_secret_in_a_bad_file_is_never_repeated() {
    let finished = Cli::new(["config", "check", "tests/fixtures/pools/env_secret.toml"])
        .run()
        .expect_code(78);
    assert!(finished.stderr.contains("env.NUMBER"), "{}", finished.stderr);
    for secret in ["hunter2", "5318008"] {
        assert!(!finished.stderr.contains(secret), "{}", finished.stderr);
    }
}

#[test]
fn good_files_are_told_a_line_each() {
    let unnamed = "tests/fixtures/pools/unnamed.toml";
    let finished = Cli::new(["config", "check", RENDER, unnamed]).run().expect_code(0);
    assert_eq!(
        finished.stdout,
        "pool render: ok (4 slots, prefetch 9)\npool default: ok (2 slots, prefetch 2)\n"
    );
    assert_eq!(finished.stderr, "");
}

#[test]
fn without_files_it_is_the_default_pool() {
    let bench = Bench::new();
    let checked = Cli::new(["config", "check"])
        .current_dir(bench.path(""))
        .run()
        .expect_code(0);
    assert!(checked.stdout.starts_with("pool default: ok ("), "{}", checked.stdout);
    let shown = Cli::new(["config", "show"])
        .current_dir(bench.path(""))
        .run()
        .expect_code(0);
    assert!(shown.stdout.contains(r#"= "24h"  # default"#), "{}", shown.stdout);
    // In the folder of a deployment it is the file there.
    std::fs::create_dir(bench.path("workers")).unwrap();
    bench.file("workers/default.toml", "pool = 'here'\n");
    let here = Cli::new(["config", "check"])
        .current_dir(bench.path(""))
        .run()
        .expect_code(0);
    assert!(here.stdout.starts_with("pool here: ok ("), "{}", here.stdout);
}

/// The row of a key, as value and origin.
#[track_caller]
fn row<'a>(table: &'a str, key: &str) -> (&'a str, &'a str) {
    let rest = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix("= ");
    let row = table
        .lines()
        .find_map(rest)
        .unwrap_or_else(|| panic!("no {key} in {table}"));
    row.rsplit_once("  # ").expect("an origin")
}

#[test]
fn every_value_is_shown_with_where_it_comes_from() {
    let shown = Cli::new(["config", "show", RENDER, "--slots", "5"])
        .run()
        .expect_code(0);
    assert_eq!(shown.stderr, "");
    let table = &shown.stdout;
    assert_eq!(row(table, "slots"), ("5", "--slots"));
    assert_eq!(row(table, "prefetch"), ("9", RENDER));
    assert_eq!(row(table, "timeout"), (r#""5m""#, RENDER));
    assert_eq!(row(table, "env.TOKEN"), ("(hidden)", RENDER));
    assert_eq!(row(table, "env.PATH").1, "default");
    assert!(!table.contains("not-to-be-shown"), "{table}");
    let flag = Cli::new(["config", "show", "tests/fixtures/pools/unnamed.toml", "--prefetch", "7"]).run();
    assert_eq!(row(&flag.stdout, "prefetch"), ("7", "--prefetch"));
    assert_eq!(row(&flag.stdout, "stop_grace"), (r#""60s""#, "default"));
}

#[test]
fn pools_are_shown_with_a_line_between_them() {
    let shown = Cli::new(["config", "show", RENDER, "tests/fixtures/pools/unnamed.toml"])
        .run()
        .expect_code(0);
    let pools: Vec<&str> = shown.stdout.split("\n\n").collect();
    assert_eq!(pools.len(), 2, "{}", shown.stdout);
    assert_eq!(row(pools[0], "pool").0, r#""render""#);
    assert_eq!(row(pools[1], "pool").0, r#""default""#);
}

#[test]
fn json_is_one_object_a_pool() {
    let args = [
        "config",
        "show",
        "--json",
        "--slots",
        "3",
        RENDER,
        "tests/fixtures/pools/unnamed.toml",
    ];
    let shown = Cli::new(args).run().expect_code(0);
    let pools = shown.json_lines();
    let names: Vec<&Value> = pools.iter().map(|pool| &pool["pool"]).collect();
    assert_eq!(names, ["render", "default"]);
    let origin = |pool: usize, key: &str| pools[pool]["values"][key]["origin"].clone();
    assert_eq!(origin(0, "timeout"), RENDER);
    assert_eq!(origin(1, "timeout"), "default");
    assert_eq!(origin(0, "slots"), "--slots");
    assert!(!shown.stdout.contains("not-to-be-shown"), "{}", shown.stdout);
}

#[test]
fn a_flag_that_contradicts_the_file_is_blamed() {
    let finished = Cli::new(["config", "show", RENDER, "--slots", "10"])
        .run()
        .expect_code(78);
    assert_lines(
        &finished,
        &[&format!(
            "--slots: expected at most prefetch (9, from {RENDER}), got 10"
        )],
    );
}
