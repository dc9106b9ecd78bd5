//! What a newcomer reads: help, version, and errors of usage.

use crate::support::cli::{Cli, Finished};

const SUBCOMMANDS: [&str; 18] = [
    "run",
    "worker",
    "submit",
    "cancel",
    "pause",
    "resume",
    "drain",
    "top",
    "workers",
    "pools",
    "jobs",
    "explain",
    "doctor",
    "dead",
    "schema",
    "config",
    "completions",
    "man",
];

fn help(args: &[&str]) -> String {
    let finished = Cli::new(args).run().expect_code(0);
    assert_eq!(finished.stderr, "", "help that was asked for is data");
    finished.stdout
}

/// A use that must be refused: nothing on stdout, the reason and the way to help on stderr.
#[track_caller]
fn refused(args: &[&str]) -> Finished {
    let finished = Cli::new(args).run().expect_code(2);
    assert_eq!(finished.stdout, "");
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    finished
}

#[test]
fn help_names_every_subcommand_and_what_to_try_first() {
    let text = help(&["--help"]);
    for name in SUBCOMMANDS {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no line for {name} in {text}"));
        assert!(line.trim().len() > name.len() + 10, "{name} is not explained: {line}");
    }
    assert!(text.contains("synthex run -- echo hello"), "{text}");
}

#[test]
fn help_names_every_exit_code_on_a_line_of_its_own() {
    for text in [help(&["--help"]), help(&["-h"])] {
        let (_, codes) = text.split_once("Exit codes:").expect("a paragraph on exit codes");
        for code in ["0", "1", "2", "3", "69", "75", "78", "141"] {
            let explained = |line: &str| {
                line.trim()
                    .strip_prefix(code)
                    .is_some_and(|rest| rest.starts_with("  "))
            };
            assert!(codes.lines().any(explained), "no line for exit code {code}: {codes}");
        }
    }
}

/// What nobody can guess from the names of the flags, by command.
const TELLS: [(&[&str], &[&str]); 21] = [
    (
        &["run"],
        &["one job a line", "synthex schema job", "your environment", "-- <CMD>"],
    ),
    (
        &["worker"],
        &["SIGTERM", "second", "stop_grace", "SYNTHEX_AMQP_URL", "127.0.0.1:9464"],
    ),
    (
        &["submit"],
        &[
            "exits as the command did",
            "124",
            "125",
            "126",
            "127",
            "137",
            "128+n",
            "[default: 10s]",
        ],
    ),
    (
        &["cancel"],
        &["--label", "--pool", "7 days", "submitted again", "\"cancelled\""],
    ),
    (
        &["logs"],
        &[
            "Exit code 0 once the job has ended, however it ended",
            "75",
            "its result",
        ],
    ),
    (&["pause"], &["goes on", "7 days", "start later"]),
    (&["resume"], &["paused pool"]),
    (&["drain"], &["--pool", "--wait-timeout", "75", "stop_grace"]),
    (&["workers"], &["--wait", "--json", "slots are full"]),
    (
        &["dead"],
        &["list", "show", "retry", "drop", "unroutable", "another client holds"],
    ),
    (
        &["dead", "list"],
        &["--pool", "--reason", "--limit", "--json", "--amqp-url"],
    ),
    (&["dead", "show"], &["<ID>", "--json", "Exit code 1"]),
    (
        &["dead", "retry"],
        &[
            "new submission",
            "attempt 1",
            "--all",
            "--dry-run",
            "--connect-timeout",
            "exit code 78",
        ],
    ),
    (&["dead", "drop"], &["for good", "--all", "--dry-run", "Exit code 1"]),
    (&["schema"], &["job", "result", "control", "pool"]),
    (&["config"], &["check", "show", "apply"]),
    (&["config", "check"], &["POOL.toml"]),
    (&["config", "show"], &["--json", "--slots", "--prefetch"]),
    (&["config", "apply"], &["--amqp-url", "--namespace"]),
    (&["completions"], &["bash", "zsh", "fish", "bash-completion"]),
    (&["man"], &["[DIR]", "man -l -"]),
];

#[test]
fn each_subcommand_has_help_that_tells_what_it_does() {
    for (command, wanted) in TELLS {
        let text = help(&[command, &["--help"]].concat());
        // Where lines are broken is no matter.
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in wanted {
            assert!(
                flat.contains(words),
                "{command:?} --help does not say {words:?}:\n{text}"
            );
        }
        assert!(help(&[command, &["-h"]].concat()).lines().count() <= text.lines().count());
    }
}

#[test]
fn help_groups_the_flags_of_job_and_broker() {
    let text = help(&["submit", "--help"]);
    let broker = text.find("\nBroker:").expect("a heading for the broker's flags");
    let job = text.find("\nJob").expect("a heading for the job's flags");
    let at = |flag: &str| {
        text.find(&format!("      {flag} "))
            .unwrap_or_else(|| panic!("no {flag}: {text}"))
    };
    assert!(at("--env") > job && (at("--env") < broker || job > broker), "{text}");
    for flag in ["--amqp-url", "--namespace", "--connect-timeout"] {
        assert!(
            at(flag) > broker && (at(flag) < job || broker > job),
            "{flag} is no job's: {text}"
        );
    }
}

#[test]
fn help_never_shows_the_password_of_the_environment() {
    for command in ["worker", "submit", "cancel", "workers"] {
        for flag in ["-h", "--help"] {
            let finished = Cli::new([command, flag])
                .env("SYNTHEX_AMQP_URL", "amqp://user:hunter2@broker/")
                .run()
                .expect_code(0);
            assert!(finished.stdout.contains("SYNTHEX_AMQP_URL"));
            assert!(!finished.stdout.contains("hunter2"), "{}", finished.stdout);
        }
    }
}

#[test]
fn version_is_one_line_on_stdout() {
    for flag in ["--version", "-V"] {
        let finished = Cli::new([flag]).run().expect_code(0);
        assert_eq!(finished.stdout, concat!("synthex ", env!("CARGO_PKG_VERSION"), "\n"));
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn without_a_subcommand_the_subcommands_are_shown() {
    let finished = refused(&[]);
    for name in SUBCOMMANDS {
        assert!(finished.stderr.contains(&format!("  {name} ")), "{}", finished.stderr);
    }
}

#[test]
fn wrong_usage_is_refused_and_named() {
    let cases: [(&[&str], &str); 20] = [
        (&["frobnicate"], "'frobnicate'"),
        (&["run", "--frobnicate"], "'--frobnicate'"),
        (&["schema", "letter"], "job, result, control, event, batch, pool"),
        (&["submit"], "a command after --"),
        (&["submit", "--wait-timeout", "1s", "--", "true"], "--wait"),
        (&["submit", "--priority", "10", "--", "true"], "0..=9"),
        (&["cancel"], "<ID>"),
        (&["cancel", "a", "--label", "b=c"], "--label"),
        (&["cancel", "--label", "b"], "expected KEY=VALUE"),
        (&["cancel", "a b"], "expected 1 to 128 letters"),
        (&["drain"], "WORKER_ID"),
        (&["drain", "w", "--pool", "p"], "--pool"),
        (&["worker", "--namespace", "a b"], "expected 1 to 64 of"),
        (&["config", "show", "--slots", "many"], "--slots"),
        (&["-q", "-v", "run", "--", "true"], "--verbose"),
        (&["dead", "show"], "<ID>"),
        (&["dead", "list", "--limit", "few"], "--limit"),
        (&["dead", "retry"], "<ID|--pool <POOL>|--reason <REASON>|--all>"),
        (
            &["dead", "drop", "--dry-run"],
            "<ID|--pool <POOL>|--reason <REASON>|--all>",
        ),
        (&["dead", "drop", "--all", "--pool", "p"], "--all"),
    ];
    for (args, named) in cases {
        let finished = refused(args);
        assert!(finished.stderr.contains(named), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("--help"), "{args:?}: {}", finished.stderr);
    }
}

#[test]
fn run_without_jobs_shows_both_ways_to_give_them() {
    for args in [&["run"][..], &["run", "--"], &["run", "jobs.jsonl", "--", "true"]] {
        let finished = refused(args);
        assert!(finished.stderr.contains("FILE"), "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("-- <CMD>"), "{args:?}: {}", finished.stderr);
        let both = "<FILE>... [-- <CMD>";
        assert!(
            !finished.stderr.contains(both),
            "they exclude each other: {}",
            finished.stderr
        );
    }
}

#[test]
fn a_flag_s_value_is_refused_with_what_is_expected() {
    let cases: [(&[&str], &str); 12] = [
        (&["--timeout", "0"], r#"expected a duration such as "30s", got "0""#),
        (&["--timeout", "30"], r#"expected a duration such as "30s", got "30""#),
        (
            &["--kill-grace", "soon"],
            r#"expected a duration such as "30s", got "soon""#,
        ),
        (
            &["--term-signal", "FOO"],
            r#"expected a signal such as "TERM", got "FOO""#,
        ),
        (
            &["--max-output", "lots"],
            r#"expected a size such as "512MiB", got "lots""#,
        ),
        (
            &["--id", "a b"],
            r#"expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII, got "a b""#,
        ),
        (&["--env", "NAME"], "expected NAME=VALUE"),
        (&["--env", "=value"], "env: expected names that aren't empty"),
        (
            &["--cwd", "relative"],
            r#"cwd: expected an absolute path, got "relative""#,
        ),
        (
            &["--stdin", "/missing/file"],
            "--stdin: failed to read /missing/file: No such file",
        ),
        (
            &["--not-before", "tomorrow"],
            r#"expected a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z""#,
        ),
        (
            &["--expires-at", "2030-01-31"],
            r#"expected a time in RFC 3339 with an offset"#,
        ),
    ];
    for (flags, message) in cases {
        for subcommand in ["run", "submit"] {
            let finished = refused(&[&[subcommand], flags, &["--", "true"]].concat());
            assert!(finished.stderr.contains(message), "{flags:?}: {}", finished.stderr);
            assert!(
                finished.stderr.contains(&flags[0][2..]),
                "{flags:?}: {}",
                finished.stderr
            );
        }
    }
}

#[test]
fn a_usage_line_does_not_depend_on_the_environment() {
    for (args, usage) in [
        (&["pause"][..], "Usage: synthex pause [OPTIONS] <POOL>"),
        (&["explain"], "Usage: synthex explain [OPTIONS] <ID>"),
        (&["dead", "retry"], "Usage: synthex dead retry [OPTIONS] "),
        (&["submit", "--foo"], "Usage: synthex submit [OPTIONS] -- <CMD>..."),
    ] {
        for set in [&[][..], &[("SYNTHEX_AMQP_URL", "amqp://h"), ("SYNTHEX_NAMESPACE", "n")]] {
            let cli = set
                .iter()
                .fold(Cli::new(args), |cli, (name, value)| cli.env(name, value));
            let refused = cli.run().expect_code(2);
            assert!(refused.stderr.contains(usage), "{args:?} {set:?}: {}", refused.stderr);
        }
    }
}
