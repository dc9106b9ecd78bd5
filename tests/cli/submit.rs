//! `synthex submit` when there is no broker to take the job.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::cli::{Cli, Finished};

/// What a client may take beyond the time it was given, where it has a processor when it needs one.
const MARGIN: Duration = Duration::from_millis(1500);
/// How often it is tried on a machine that is too busy for that.
const TRIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(1);

/// Submits to a broker that does not answer as one, and sees it give up in time, with one of these words of the reason and
/// none of the password.
#[track_caller]
fn give_up(subcommand: &[&str], address: &str, told: &[&str]) -> Finished {
    let url = format!("amqp://user:hunter2@{address}/");
    let command: &[&str] = if subcommand[0] == "submit" {
        &["--", "true"]
    } else {
        &[]
    };
    let args = [subcommand, &["--amqp-url", &url, "--connect-timeout", "1s"], command].concat();
    let tries = (0..TRIES).map(|_| {
        let start = Instant::now();
        let finished = Cli::new(&args).run().expect_code(69);
        (finished, start.elapsed())
    });
    let says = |finished: &Finished| told.iter().any(|told| finished.stderr.contains(told));
    let in_time = |(finished, took): &(Finished, Duration)| *took < PATIENCE + MARGIN && says(finished);
    let mut late = Vec::new();
    let on_time = tries.inspect(|tried| late.push(format!("{tried:?}"))).find(in_time);
    let (finished, _) =
        on_time.unwrap_or_else(|| panic!("{subcommand:?} did not give up in time for {told:?}: {late:#?}"));
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    assert_eq!(finished.stdout, "", "nothing was published");
    assert!(!finished.stderr.contains("hunter2"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains(address),
        "the host is not named: {}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("--amqp-url"),
        "no way out is named: {}",
        finished.stderr
    );
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    finished
}

#[test]
fn a_broker_that_is_not_there_is_69() {
    for subcommand in [
        &["submit"][..],
        &["submit", "--wait"],
        &["submit", "--json"],
        &["config", "apply"],
    ] {
        give_up(subcommand, "127.0.0.1:1", &["refused"]);
    }
}

#[test]
fn a_broker_that_never_answers_is_69_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for subcommand in [&["submit"][..], &["submit", "--wait"], &["config", "apply"]] {
        // Its host's share of the time is over first, unless the machine is very busy.
        let finished = give_up(subcommand, &address, &["no answer within ", "did not answer within 1s"]);
        assert!(
            finished.stderr.contains("1s (--connect-timeout)"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn a_list_of_silent_brokers_costs_no_more_time_than_one() {
    let silent: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> = silent.iter().map(|one| one.local_addr().unwrap().to_string()).collect();
    give_up(&["submit"], &addresses.join(","), &[""]);
}

#[test]
fn a_silent_broker_leaves_time_for_the_next_of_the_list() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let list = format!("{},127.0.0.1:1", silent.local_addr().unwrap());
    give_up(&["submit"], &list, &["127.0.0.1:1: Connection refused"]);
}

#[test]
fn a_name_that_nobody_knows_is_69() {
    give_up(&["submit"], "no-such-host.invalid:5672", &[""]);
}

#[test]
fn the_address_of_the_environment_counts_and_the_flag_more() {
    let submit = |args: &[&str]| {
        let args = [&["submit", "--connect-timeout", "3s"], args, &["--", "true"]].concat();
        Cli::new(args)
            .env("SYNTHEX_AMQP_URL", "amqp://127.0.0.1:2/")
            .run()
            .expect_code(69)
            .stderr
    };
    assert!(submit(&[]).contains("127.0.0.1:2"));
    assert!(submit(&["--amqp-url", "amqp://127.0.0.1:3/"]).contains("127.0.0.1:3"));
}

#[test]
fn what_comes_on_stdin_instead_of_a_command_has_to_be_a_job() {
    let refused = |stdin: &str, args: &[&str], why: &str| {
        let args = [&["submit"], args].concat();
        let finished = Cli::new(args).stdin(stdin).run().expect_code(2);
        assert!(finished.stderr.contains(why), "{why:?} in {}", finished.stderr);
        assert_eq!(finished.stdout, "");
    };
    refused("", &[], "stdin is empty");
    refused(" \n", &[], "give a command after --");
    refused("true", &[], "stdin is not a job");
    refused(r#"{"comand": ["true"]}"#, &[], "comand");
    refused(
        r#"{"command": ["true"]}"#,
        &["--timeout", "1s"],
        "needs a command after --",
    );
    refused(&"x".repeat(17 << 20), &[], "at most");
}
