//! What cannot be started, and what starts nevertheless.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::{TRIES, fixture, outcome, refusal, run, write_program};
use synthex::executor::{End, Outcome, Run};
use synthex::message::FailureKind;

/// How long a program that is open for writing is waited for.
const BUSY_WAIT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_missing_program_is_told_with_where_it_was_looked_for() {
    let (kind, message) = refusal(run(["ffmpeg-of-nobody", "-i"])).await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "ffmpeg-of-nobody" not found in PATH (/usr/bin:/bin): install"#),
        "{message}"
    );

    let (kind, message) = refusal(Run {
        env: BTreeMap::new().into(),
        ..run(["ffmpeg-of-nobody"])
    })
    .await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.contains("(/bin:/usr/bin, the default as env has none)"),
        "{message}"
    );

    let (kind, message) = refusal(run(["/no/such/program"])).await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "/no/such/program" does not exist: "#),
        "{message}"
    );

    let (kind, message) = refusal(Run {
        cwd: Some("/tmp".into()),
        ..run(["./no-such-program"])
    })
    .await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "./no-such-program" does not exist in cwd "/tmp": "#),
        "{message}"
    );

    let (kind, message) = refusal(run([""])).await;
    assert_eq!(kind, FailureKind::ProgramMissing, "{message}");

    let (_, message) = refusal(run([&"x".repeat(100_000)])).await;
    assert!(message.len() < 1000);
}

#[tokio::test]
async fn what_is_no_program_is_told_with_what_it_is() {
    for (run, expected) in [
        (
            fixture("not-executable"),
            "/not-executable\" may not be executed by the command's user (uid ",
        ),
        (
            fixture("no-first-line"),
            "/no-first-line\" is neither a program for this machine nor a script",
        ),
        (
            fixture("missing-interpreter"),
            "as its interpreter \"/no/such/interpreter\" does not exist: install it",
        ),
        (
            fixture("windows-line-ends"),
            "as its interpreter \"/bin/bash\\r\" does not exist: the file has Windows line",
        ),
        (run(["/tmp"]), "program \"/tmp\" is a directory"),
        (run(["/dev/null"]), "program \"/dev/null\" is not a regular file"),
    ] {
        let (kind, message) = refusal(run).await;
        assert_eq!(kind, FailureKind::NotExecutable, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_program_that_may_not_be_executed_does_not_hide_one_that_may() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("true"), "").unwrap();
    let path = |rest: &str| BTreeMap::from([("PATH".to_owned(), format!("{}{rest}", folder.path().display()))]);
    assert_eq!(
        outcome(Run {
            env: path(":/usr/bin").into(),
            ..run(["true"])
        })
        .await
        .end,
        End::Exited(0)
    );
    let (kind, message) = refusal(Run {
        env: path(":/nowhere").into(),
        ..run(["true"])
    })
    .await;
    assert_eq!(kind, FailureKind::NotExecutable, "{message}");
    assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
}

#[tokio::test]
async fn a_bad_directory_is_told_apart_from_a_bad_program() {
    for (cwd, expected) in [
        ("/no/such/folder", r#"cwd "/no/such/folder" does not exist: create it"#),
        ("/etc/passwd", r#"cwd "/etc/passwd" is not a directory"#),
        ("/etc/passwd/below", r#"cwd "/etc/passwd/below" does not exist"#),
    ] {
        let (kind, message) = refusal(Run {
            cwd: Some(cwd.into()),
            ..run(["true"])
        })
        .await;
        assert_eq!(kind, FailureKind::CwdMissing, "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
}

#[tokio::test]
async fn arguments_past_the_kernel_s_limit_are_told_with_their_size() {
    let (kind, message) = refusal(run(["true", &"x".repeat(200_000)])).await;
    assert_eq!(kind, FailureKind::SpawnFailed);
    assert!(
        message.contains("arguments (200000 bytes)") && message.contains("through stdin"),
        "{message}"
    );
}

#[tokio::test]
async fn a_program_that_stays_open_for_writing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy");
    fs::copy("/bin/true", &path).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let (kind, message) = refusal(run([path.to_str().unwrap()])).await;
    assert_eq!(kind, FailureKind::SpawnFailed);
    assert!(message.contains("is still open for writing"), "{message}");
    drop(writer);
    assert_eq!(outcome(run([path.to_str().unwrap()])).await.end, End::Exited(0));
}

/// The forks of other threads hold a file open that this one has just written and closed, for a
/// moment.
#[test]
fn a_script_just_written_runs_while_many_others_start() {
    let folder = tempfile::tempdir().unwrap();
    let write_and_run = |thread: u32| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for number in 0..100 {
            let path = folder.path().join(format!("script-{thread}-{number}"));
            write_program(&path, "#!/bin/sh\n");
            let ended = || runtime.block_on(outcome(run([path.to_str().unwrap()])));
            // A fork that comes to its exec later than anybody waits for it can be told only by how long that was.
            let is_late = |outcome: &Outcome| {
                let is_busy = format!("{:?}", outcome.end).contains("still open for writing");
                is_busy && outcome.spawn_time >= BUSY_WAIT
            };
            let outcome = (0..TRIES).map(|_| ended()).find(|outcome| !is_late(outcome));
            let end = outcome.map(|outcome| outcome.end);
            assert_eq!(end, Some(End::Exited(0)), "{thread}-{number}");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || write_and_run(thread));
        }
    });
}
