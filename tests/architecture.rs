//! The shape of the code, held by tests: which module may know which, and where a package is at home. Which packages may
//! come in at all is `dependencies`; what operators are told of numbers is `operations`.
#![allow(
    clippy::unwrap_used,       // a file that cannot be read is a failed test
    clippy::disallowed_methods // CARGO, which cargo sets
)]

#[path = "architecture/dependencies.rs"]
mod dependencies;
#[path = "architecture/operations.rs"]
mod operations;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those it may use. What is not named here is a backward arrow.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("message", &[]),
    ("flow", &[]),
    ("supervise", &["flow"]),
    ("transport", &["message", "flow"]),
    ("executor", &["message", "flow"]),
    ("config", &["message", "flow", "transport", "executor"]),
    (
        "worker",
        &["message", "flow", "supervise", "transport", "executor", "config"],
    ),
    ("control", &["message", "flow", "supervise", "transport", "worker"]),
    (
        "events",
        &["message", "flow", "supervise", "transport", "worker", "control"],
    ),
    ("batch", &["message", "flow", "supervise", "transport", "control"]),
    (
        "metrics",
        &["message", "flow", "supervise", "transport", "executor", "worker"],
    ),
    ("traces", &["message", "flow", "supervise", "transport", "worker"]),
    (
        "app",
        &[
            "message",
            "flow",
            "supervise",
            "transport",
            "executor",
            "config",
            "worker",
            "control",
            "events",
            "batch",
            "metrics",
            "traces",
        ],
    ),
    (
        "cli",
        &[
            "message",
            "flow",
            "supervise",
            "transport",
            "config",
            "control",
            "events",
            "batch",
            "app",
        ],
    ),
];

/// Packages that have one home, and it.
const HOMES: [(&str, &str); 16] = [
    ("lapin", "src/transport/amqp"),
    ("deadpool", "src/transport/amqp"),
    ("async_rs", "src/transport/amqp/socket.rs"),
    ("tokio_rustls", "src/transport/amqp/tls"),
    ("backoff", "src/flow/retry.rs"),
    ("tokio_metrics", "src/supervise/accounts.rs"),
    ("governor", "src/flow/rate.rs"),
    ("prometheus", "src/metrics"),
    ("prost", "src/traces/otlp.rs"),
    ("http_body_util", "src/traces/endpoint.rs"),
    ("clap", "src/cli"),
    ("crossterm", "src/cli/top"),
    ("ratatui", "src/cli/top"),
    ("strsim", "src/message/nearest.rs"),
    ("indicatif", "src/cli/batch_view"),
    ("csv_core", "src/batch/input/columns.rs"),
];

/// No file of the models we learn from is longer; tests at its end not counted.
const LONGEST_FILE: usize = 600;

#[test]
fn no_module_imports_against_the_direction() {
    let mut arrows: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let Some((module, allowed)) = MAY_USE.iter().find(|(module, _)| is_in(&path, module)) else {
            continue;
        };
        for used in uses(&code, "crate::") {
            assert!(
                !used.is_empty(),
                "{}: write one `use crate::…` a module",
                path.display()
            );
            if used != *module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} must not know {used}", path.display()));
            }
            arrows.entry(module).or_default().insert(used);
        }
    }
    assert!(wrong.is_empty(), "backward arrows:\n{}", wrong.join("\n"));
    // A reader of `use` lines that finds none proves nothing.
    assert!(
        arrows["worker"].contains("executor"),
        "the arrows were not read: {arrows:?}"
    );
    assert!(
        arrows["app"].contains("metrics"),
        "the arrows were not read: {arrows:?}"
    );
}

#[test]
fn every_module_of_the_library_has_its_place() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let placed: Vec<&str> = MAY_USE.iter().map(|(module, _)| *module).collect();
    assert_eq!(
        declared, placed,
        "lib.rs lists the modules in the order of their dependencies"
    );
}

#[test]
fn every_package_stays_at_home() {
    for (package, home) in HOMES {
        let users: Vec<PathBuf> = sources()
            .into_iter()
            .filter(|(_, code)| names(code, package))
            .map(|(path, _)| path)
            .collect();
        assert!(!users.is_empty(), "{package} is not used at all");
        for path in users {
            assert!(
                path.to_str().unwrap().starts_with(home),
                "{package} is used in {}",
                path.display()
            );
        }
    }
}

#[test]
fn no_file_outgrows_a_reader() {
    for (path, code) in sources().into_iter().filter(|(path, _)| !path.ends_with("tests.rs")) {
        let lines = without_tests(&code).lines().count();
        assert!(
            lines <= LONGEST_FILE,
            "{} has {lines} lines without tests",
            path.display()
        );
    }
}

/// Cargo.toml has `doctest = false`, which saves a build; an example in a comment would go untested.
#[test]
fn no_comment_holds_code_that_nobody_runs() {
    for (path, code) in sources() {
        let fences = code.lines().map(str::trim_start).filter_map(|line| {
            let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
            comment.trim_start().strip_prefix("```")
        });
        let opening: Vec<&str> = fences.step_by(2).collect();
        assert!(
            opening.iter().all(|language| *language == "text"),
            "{}: {opening:?}: examples are those of README.md and docs/",
            path.display()
        );
    }
}

#[test]
fn the_checks_see_what_they_are_for() {
    let code = "use crate::worker::{event::Event};\n// use crate::cli;\nlet x = crate::app::serve();\n";
    assert_eq!(uses(code, "crate::"), ["worker", "app"]);
    assert!(names("use lapin::Channel;", "lapin"));
    assert!(names("fn f() -> lapin::Result<()> {}", "lapin"));
    assert!(!names("//! about lapin::Channel\nlet mylapin = 1;", "lapin"));
    assert!(is_in(Path::new("src/flow.rs"), "flow") && is_in(Path::new("src/flow/retry.rs"), "flow"));
    assert!(!is_in(Path::new("src/flower.rs"), "flow"));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files of the library with their text, by path from the root.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), code));
            }
        }
    }
    found.sort();
    found
}

fn is_in(path: &Path, module: &str) -> bool {
    path == Path::new(&format!("src/{module}.rs")) || path.starts_with(format!("src/{module}"))
}

fn without_tests(code: &str) -> &str {
    code.split_once("#[cfg(test)]\nmod tests {")
        .map_or(code, |(code, _)| code)
}

fn without_comments(code: &str) -> impl Iterator<Item = &str> {
    code.lines().map(|line| line.split("//").next().unwrap_or_default())
}

/// The first path segment after each `prefix`.
fn uses(code: &str, prefix: &str) -> Vec<String> {
    without_comments(without_tests(code))
        .flat_map(|line| line.split(prefix).skip(1))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

/// Whether code names a package as the start of a path or in a `use`.
fn names(code: &str, package: &str) -> bool {
    without_comments(code).any(|line| {
        line.match_indices(&format!("{package}::")).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        })
    })
}
