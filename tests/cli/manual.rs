//! Completions and manual pages: taken by the programs that read them, and complete.

use std::collections::BTreeSet;
use std::fs;

use crate::bench::Bench;
use crate::support::cli::Cli;

/// What bash offers for the last word of a command line, with the completions of this build.
fn completed_by_bash(words: &[&str]) -> Vec<String> {
    let script = r#"
        source <("$0" completions bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        spec=$(complete -p synthex) && [[ $spec =~ -F\ ([^ ]+) ]]
        "${BASH_REMATCH[1]}" synthex "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let args = [&["--norc", "-c", script, env!("CARGO_BIN_EXE_synthex")], words].concat();
    let finished = Cli::program("bash", args).run().expect_code(0);
    // Outside of an interactive shell, bash says that it has no `compopt`s to set.
    assert!(!finished.stderr.contains("syntax error"), "{}", finished.stderr);
    finished.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    assert_eq!(completed_by_bash(&["synthex", "wo"]), ["worker", "workers"]);
    assert_eq!(completed_by_bash(&["synthex", "dead", "re"]), ["retry"]);
    assert_eq!(
        completed_by_bash(&["synthex", "worker", "--amqp-u"]),
        ["--amqp-url", "--amqp-url-file"]
    );
    assert_eq!(completed_by_bash(&["synthex", "worker", "--log-format", "j"]), ["json"]);
}

#[test]
fn each_shell_has_completions_that_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let finished = Cli::new(["completions", shell]).run().expect_code(0);
        assert_eq!(finished.stderr, "");
        for command in ["worker", "submit", "dead", "completions"] {
            assert!(finished.stdout.contains(command), "{shell} does not know {command}");
        }
    }
}

/// The commands that help lists, with their own.
fn commands(of: &[&str]) -> Vec<Vec<String>> {
    let text = Cli::new([of, &["--help"]].concat()).run().expect_code(0).stdout;
    let Some((_, listed)) = text.split_once("Commands:\n") else {
        return Vec::new();
    };
    let names = listed.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| {
        line.strip_prefix("  ")?
            .split(' ')
            .next()
            .filter(|name| !name.is_empty())
    });
    let mut found = Vec::new();
    for name in names.filter(|name| *name != "help") {
        let path = [of, &[name]].concat();
        found.push(path.iter().map(|word| (*word).to_owned()).collect());
        found.extend(commands(&path));
    }
    found
}

#[test]
fn each_command_has_a_page_without_a_warning() {
    let bench = Bench::new();
    let dir = bench.arg("man/man1");
    let finished = Cli::new(["man", &dir])
        .env("SYNTHEX_AMQP_URL", "amqp://user:hunter2@broker/")
        .run()
        .expect_code(0);
    let printed: BTreeSet<&str> = finished.stdout.lines().collect();
    let wanted: BTreeSet<String> = std::iter::once(Vec::new())
        .chain(commands(&[]))
        .map(|path| format!("{dir}/{}.1", [vec!["synthex".to_owned()], path].concat().join("-")))
        .collect();
    assert!(wanted.len() > 15, "{wanted:?}");
    assert_eq!(printed, wanted.iter().map(String::as_str).collect());

    let pages = [
        &["-man", "-ww", "-z", "-Tascii"],
        printed.iter().copied().collect::<Vec<_>>().as_slice(),
    ]
    .concat();
    let checked = Cli::program("groff", pages).run().expect_code(0);
    assert_eq!(checked.stderr, "", "warnings of groff");
    for page in &wanted {
        assert!(!fs::read_to_string(page).unwrap().contains("hunter2"), "{page}");
    }
}

#[test]
fn a_page_says_what_help_says() {
    let page = Cli::new(["man"]).run().expect_code(0).stdout;
    let shown = Cli::program("groff", ["-man", "-Tascii", "-P-c", "-P-b", "-P-u"])
        .stdin(page)
        .run()
        .expect_code(0);
    let lines: Vec<&str> = shown.stdout.lines().map(str::trim).collect();
    for line in [
        "SUBCOMMANDS",
        "synthex-worker(1)",
        "69   broker not reachable",
        "78   bad configuration",
    ] {
        assert!(lines.contains(&line), "no {line:?} in\n{}", shown.stdout);
    }
}

#[test]
fn a_page_names_the_variables_that_stand_for_flags() {
    let bench = Bench::new();
    let dir = bench.arg("man1");
    Cli::new(["man", &dir]).run().expect_code(0);
    for (page, variable) in [
        ("synthex-pause.1", "SYNTHEX_AMQP_URL"),
        ("synthex-worker.1", "SYNTHEX_METRICS_ADDR"),
        ("synthex-doctor.1", "SYNTHEX_CGROUP"),
    ] {
        let text = fs::read_to_string(format!("{dir}/{page}")).unwrap();
        assert!(text.contains(variable), "{page} does not name {variable}");
    }
}

#[test]
fn a_manual_that_cannot_be_written_names_the_directory() {
    let finished = Cli::new(["man", "/dev/null/man"]).run().expect_code(1);
    assert!(finished.stderr.contains("/dev/null/man"), "{}", finished.stderr);
}
