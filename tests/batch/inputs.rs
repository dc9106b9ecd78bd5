//! Where jobs come from: what is run for each line, row, number and word, and what is said of bad ones.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::Cli;

fn run(folder: &TempDir, args: &[&str]) -> Cli {
    Cli::new([&["run"], args].concat()).current_dir(folder)
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

/// The commands of a dry run.
fn commands(folder: &TempDir, args: &[&str]) -> Vec<Value> {
    let done = run(folder, &[&["--dry-run"], args].concat()).run().expect_code(0);
    assert_eq!(done.stderr, "");
    done.json_lines()
        .into_iter()
        .map(|mut job| job["command"].take())
        .collect()
}

#[test]
fn a_dry_run_prints_what_would_be_published() {
    let table: &[u8] = b"host,\"the path\"\nweb,/srv/a.tar.gz\n\"db \"\"1\"\"\",\"x\ny\"\n";
    let folder = folder(&[
        ("list", b"a b.txt\n$(x)'\""),
        ("hosts.csv", table),
        ("zero", b"a\nb\0c"),
    ]);
    assert_eq!(
        commands(&folder, &["--each", "list", "--", "cp", "{}", "d/{.}.bak", "{#}"]),
        [
            json!(["cp", "a b.txt", "d/a b.bak", "1"]),
            json!(["cp", "$(x)'\"", "d/$(x)'\".bak", "2"])
        ]
    );
    assert_eq!(
        commands(&folder, &["--each", "hosts.csv", "--", "ssh", "{host}", "{the path/.}"]),
        [json!(["ssh", "web", "a.tar"]), json!(["ssh", "db \"1\"", "x\ny"])]
    );
    assert_eq!(
        commands(&folder, &["-0", "--each", "zero", "--", "echo"]),
        [json!(["echo", "a\nb"]), json!(["echo", "c"])]
    );
    assert_eq!(
        commands(&folder, &["--range", "08-10:2", "--", "get", "page-{}.html"]),
        [json!(["get", "page-08.html"]), json!(["get", "page-10.html"])]
    );
    assert_eq!(
        commands(&folder, &["--", "x", "{2}{1}", ":::", "a", "b", ":::", "1", "2"]),
        [
            json!(["x", "1a"]),
            json!(["x", "2a"]),
            json!(["x", "1b"]),
            json!(["x", "2b"])
        ]
    );
}

#[test]
fn common_options_are_in_every_job_that_does_not_say_otherwise() {
    let folder = folder(&[(
        "jobs.jsonl",
        br#"{"script":"a","timeout":"1s"}
{"script":"b","env":{"A":"own"}}"#,
    )]);
    let done = run(
        &folder,
        &[
            "--dry-run",
            "--timeout",
            "9s",
            "--env",
            "A=x",
            "--retry",
            "3",
            "jobs.jsonl",
        ],
    )
    .run()
    .expect_code(0);
    let retry = json!({"max_attempts": 3});
    assert_eq!(
        done.json_lines(),
        [
            json!({"script": "a", "timeout": "1s", "env": {"A": "x"}, "retry": retry}),
            json!({"script": "b", "timeout": "9s", "env": {"A": "own"}, "retry": retry}),
        ]
    );
    // As it came where there is nothing to fill in.
    let as_it_is = run(&folder, &["--dry-run", "jobs.jsonl"]).run().expect_code(0);
    assert_eq!(
        as_it_is.stdout,
        fs::read_to_string(folder.path().join("jobs.jsonl")).unwrap() + "\n"
    );
}

#[test]
fn a_bad_line_is_named_with_its_number_and_field() {
    let jobs: &[u8] = b"{\"command\":[\"true\"]}\n\n{\"command\":[\"true\"],\"timeout\":5}\n\xff\n";
    let folder = folder(&[("jobs.jsonl", jobs), ("list", b"a\n\xff\n"), ("t.csv", b"a,b\n1\n")]);
    let dry = run(&folder, &["--dry-run", "jobs.jsonl"]).run().expect_code(3);
    assert_eq!(
        dry.stderr,
        "synthex: jobs.jsonl:3: not a job: timeout: expected a duration such as \"30s\", got 5\n\
         synthex: jobs.jsonl:4: not a job: body: expected UTF-8, got an invalid byte at offset 0\n"
    );
    let done = run(&folder, &["jobs.jsonl"]).run().expect_code(3);
    assert!(
        done.stderr
            .contains("(jobs.jsonl:3) rejected: timeout: expected a duration"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("3 jobs: 1 succeeded, 2 rejected"),
        "{}",
        done.stderr
    );
    let list = run(&folder, &["--each", "list", "--", "echo"]).run().expect_code(3);
    assert_eq!(list.stdout, "a\n");
    assert!(
        list.stderr.contains("(list:2) rejected: line: expected UTF-8"),
        "{}",
        list.stderr
    );
    let table = run(&folder, &["--each", "t.csv", "--", "echo"]).run().expect_code(3);
    assert!(
        table.stderr.contains("(t.csv:2) rejected: expected 2 columns"),
        "{}",
        table.stderr
    );
}

#[test]
fn what_does_not_fit_is_a_usage_error_before_anything_runs() {
    let folder = folder(&[("t.csv", b"host,user\nh,u\n"), ("list", b"a\n"), ("empty.csv", b"")]);
    for (args, said) in [
        (
            &["--each", "t.csv", "--", "touch", "{hots}"][..],
            "no column is called \"hots\"; did you mean {host}?",
        ),
        (
            &["--each", "list", "--", "touch", "{host}"],
            "unknown placeholder {host}",
        ),
        (
            &["--each", "list", "--", "touch", "{..}"],
            "unknown placeholder {..}; did you mean {.}?",
        ),
        (
            &["--each", "list", "--", "touch", "{2}"],
            "{2}: an item has one field here",
        ),
        (
            &["--each", "none", "--", "touch"],
            "failed to open none: No such file or directory (os error 2)\n",
        ),
        (
            &["list", "nope.jsonl"],
            "failed to open nope.jsonl: No such file or directory (os error 2); a command goes after --: synthex run -- CMD\n",
        ),
        (&["--each", "empty.csv", "--", "touch"], "empty.csv has no header"),
        (
            &["--each", "list", "--", "touch", ":::", "x"],
            "--each and ::: both give items",
        ),
        (&["--each", "list"], "required arguments were not provided"),
    ] {
        let done = run(&folder, args).run().expect_code(2);
        assert!(done.stderr.contains(said), "{args:?}: {}", done.stderr);
    }
    let slip = Cli::new(["batch", "stauts", "x"])
        .current_dir(&folder)
        .run()
        .expect_code(2);
    let meant = "; did you mean `synthex batch status`?\n";
    assert!(slip.stderr.ends_with(meant), "{}", slip.stderr);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "something was run");
}

#[test]
fn files_that_are_no_jobs_say_what_to_do() {
    let folder = folder(&[
        ("quote.csv", b"a,b\n1,\"x\n2,y\n3,z\n"),
        ("k.jsonl", b"{\"command\":[\"true\"]}"),
    ]);
    let quote = run(&folder, &["--each", "quote.csv", "--", "echo", "{a}", "{b}"]);
    let quote = quote.run().expect_code(3);
    let said = "(quote.csv:2) rejected: a quote that is opened here is never closed";
    assert!(quote.stderr.contains(said) && quote.stdout.is_empty(), "{quote:?}");

    let lines = run(&folder, &["-"]).stdin("7\n8\n").run().expect_code(3);
    let said = "body: expected a JSON object, got a number; for a command a line: --each FILE -- CMD {}";
    assert_eq!(lines.stderr.matches(said).count(), 1, "{}", lines.stderr);
    assert_eq!(lines.stderr.matches("got a number").count(), 2, "{}", lines.stderr);

    // The file of jobs is left as it is, and nothing is made beside it.
    let same = run(&folder, &["--results", "k.jsonl", "k.jsonl"]).run().expect_code(2);
    assert!(same.stderr.contains("k.jsonl:1: this is no line of"), "{}", same.stderr);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    assert_eq!(
        fs::read(folder.path().join("k.jsonl")).unwrap(),
        b"{\"command\":[\"true\"]}"
    );

    let literal = run(&folder, &["--", "echo", "{}"]).stdin("1\n").run().expect_code(0);
    assert_eq!(literal.stdout, "{}\n");
    assert!(literal.stderr.contains("{} has no items here"), "{}", literal.stderr);
}

#[test]
fn a_pipe_that_never_ends_is_run_as_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    make_pipe(&path);
    // Held for reading as well, so that nobody waits for the other to open it.
    let mut pipe = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let running = run(&folder, &["--each", "pipe", "--", "echo", "got"]).spawn();
    for line in ["one", "two words", "three"] {
        writeln!(pipe, "{line}").unwrap();
        running.wait_for_stdout_line(|printed| printed == format!("got {line}"));
    }
    drop(pipe);
    let done = running.wait().expect_code(0);
    let mut told: Vec<&str> = done.stderr.lines().collect();
    told.retain(|line| !line.contains(" done, ")); // progress, if it took long
    assert_eq!(told, ["synthex: 3 jobs: 3 succeeded"]);
}

pub fn make_pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
}

#[test]
fn items_come_from_stdin() {
    let folder = folder(&[]);
    let done = run(&folder, &["--keep-order", "--each", "-", "--", "echo", "<{}>"])
        .stdin("a\nb")
        .run()
        .expect_code(0);
    assert_eq!(done.stdout, "<a>\n<b>\n");
    let table = run(&folder, &["--tsv", "--each", "-", "--", "echo", "{n}"])
        .stdin("n\tm\n\"x\ty\n")
        .run()
        .expect_code(0);
    assert_eq!(table.stdout, "\"x\n");
}
