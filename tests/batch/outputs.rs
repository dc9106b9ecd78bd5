//! Where results go: streams, order, tags, files, and progress that is no terminal's.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use crate::support::cli::Cli;
use crate::support::schema;

fn run(folder: &TempDir, args: &[&str]) -> Cli {
    Cli::new([&["run"], args].concat()).current_dir(folder)
}

/// The first item waits for a file.
const FIRST_LATER: &str = "[ $0 != 1 ] || while [ ! -e go ]; do sleep 0.01; done; echo job $0";

#[test]
fn results_are_shown_in_the_order_of_the_input_if_asked() {
    for (order, shown) in [(&[][..], "job 2\njob 1\n"), (&["--keep-order"], "job 1\njob 2\n")] {
        let folder = tempfile::tempdir().unwrap();
        let args = [
            "--progress",
            "json",
            "--slots",
            "2",
            "--range",
            "1-2",
            "--",
            "sh",
            "-c",
            FIRST_LATER,
        ];
        let running = run(&folder, &[order, &args].concat()).spawn();
        running.wait_for_line(|line| line.contains("\"done\":1"));
        fs::write(folder.path().join("go"), "").unwrap();
        assert_eq!(running.wait().expect_code(0).stdout, shown);
    }
}

#[test]
fn what_is_kept_for_the_order_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    // The first waits until the others have ended that may; of 50, the window lets 3 in all.
    let script = "if [ $0 = 1 ]; then while [ ! -e 3 ]; do sleep 0.01; done; ls; else touch $0; fi";
    let args = [
        "--keep-order",
        "--max-in-flight",
        "3",
        "--slots",
        "8",
        "--range",
        "1-50",
        "--",
        "sh",
        "-c",
        script,
    ];
    let done = run(&folder, &args).run().expect_code(0);
    assert_eq!(
        done.stdout
            .lines()
            .filter(|line| line.parse::<u32>().is_ok_and(|n| n > 3))
            .count(),
        0,
        "{}",
        done.stdout
    );
}

#[test]
fn what_was_kept_for_the_order_is_shown_at_an_early_end() {
    let folder = tempfile::tempdir().unwrap();
    let script = "case $0 in 1) while [ ! -e go ]; do sleep 0.01; done; sleep 60;; *) echo job $0;; esac";
    let args = [
        "--keep-order",
        "--slots",
        "3",
        "--range",
        "1-3",
        "--progress",
        "json",
        "--",
        "sh",
        "-c",
        script,
    ];
    let running = run(&folder, &args).spawn();
    running.wait_for_line(|line| line.contains("\"done\":2"));
    running.signal(crate::support::process::Signal::TERM);
    running.signal(crate::support::process::Signal::INT);
    let done = running.wait();
    assert_eq!(done.stdout, "job 2\njob 3\n", "{}", done.stderr);
}

#[test]
fn tagged_lines_say_which_job_they_are_of() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--tag", "--keep-order", "--", "printf", "a\\n%s", ":::", "x", "it's"];
    let done = run(&folder, &args).run().expect_code(0);
    assert_eq!(done.stdout, "x\ta\nx\tx\nit's\ta\nit's\tit's\n");
}

#[test]
fn files_keep_what_each_job_wrote_and_a_log_who_ran() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "--output-dir",
        "out",
        "--joblog",
        "log",
        "--each",
        "-",
        "--",
        "sh",
        "-c",
        "echo $0; echo err >&2; exit $0",
    ];
    run(&folder, &args).stdin("0\n3\n").run().expect_code(3);
    let mut names: Vec<String> = fs::read_dir(folder.path().join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(
        names[1].starts_with("000001-") && names[1].ends_with(".stdout"),
        "{names:?}"
    );
    let read = |name: &str| fs::read_to_string(folder.path().join("out").join(name)).unwrap();
    assert_eq!(
        (read(&names[1]), read(&names[2])),
        ("0\n".to_owned(), "err\n".to_owned())
    );
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    let mut lines: Vec<Vec<&str>> = log.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(
        lines.remove(0),
        [
            "Seq",
            "Host",
            "Starttime",
            "JobRuntime",
            "Send",
            "Receive",
            "Exitval",
            "Signal",
            "Command"
        ]
    );
    lines.sort();
    let told: Vec<_> = lines.iter().map(|line| (line[0], &line[5..8], line[8])).collect();
    let command = |item| format!("sh -c 'echo $0; echo err >&2; exit $0' {item}");
    assert_eq!(
        told,
        [
            ("1", &["2", "0", "0"][..], &*command(0)),
            ("2", &["2", "3", "0"], &*command(3))
        ]
    );
}

#[test]
fn progress_is_lines_of_json_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--json", "--progress", "json", "--each", "-", "--", "sh", "-c"];
    let done = run(&folder, &args).stdin("exit 0\n\u{0}\nexit 4").run().expect_code(3);
    assert_eq!(done.json_lines().len(), 3);
    let told: Vec<serde_json::Value> = done
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    told.iter()
        .for_each(|event| schema::assert_described(event, "progress", None));
    let events: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(
        events.contains(&"progress") && events.last() == Some(&"summary"),
        "{told:?}"
    );
    let bad = told.iter().find(|event| event["event"] == "bad_item").unwrap();
    assert_eq!(
        (&bad["origin"], &bad["field"]),
        (&json!("stdin:2"), &json!("command[2]"))
    );
    let summary = told.last().unwrap();
    assert_eq!(summary["statuses"], json!({"succeeded": 1, "failed": 1, "rejected": 1}));
    assert_eq!((&summary["jobs"], &summary["bad"]), (&json!(3), &json!(1)));
}

#[test]
fn nothing_is_drawn_on_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    for progress in ["auto", "bar", "lines", "json"] {
        let args = [
            "--progress",
            progress,
            "--range",
            "1-3",
            "--",
            "sh",
            "-c",
            "exit $(($0 - 1))",
        ];
        let done = run(&folder, &args).env("TERM", "xterm").run().expect_code(3);
        for text in [&done.stdout, &done.stderr] {
            assert!(!text.contains(['\x1b', '\r']), "{progress}: {text:?}");
        }
    }
}
