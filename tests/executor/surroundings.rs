//! What commands get: stdin, arguments, environment, rights, limits.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;

use super::{SOON, bash, outcome, run, stdout, timed_out, write_program};
use synthex::executor::{End, Rights, Run};
use synthex::message::{Limits, SignalName};

#[tokio::test]
async fn stdin_arrives_whole() {
    let stdin = Bytes::from((0..1 << 20).map(|at: u32| b'a' + (at % 23) as u8).collect::<Vec<_>>());
    let output = outcome(Run {
        stdin: stdin.clone(),
        max_output: 1 << 20,
        ..run(["cat"])
    })
    .await
    .stdout;
    assert_eq!((output.bytes, output.truncated_bytes), (1 << 20, 0));
    assert!(output.text.as_bytes() == stdin);
}

#[tokio::test]
async fn stdin_that_nobody_reads_harms_nobody() {
    let stdin = Bytes::from(vec![b'x'; 1 << 20]);
    for script in [":", "exec <&-; sleep 0.2; echo done", "head -c 1; exec <&-; sleep 0.2"] {
        let outcome = outcome(Run {
            stdin: stdin.clone(),
            ..bash(script)
        })
        .await;
        assert_eq!(outcome.end, End::Exited(0), "{script}");
        assert!(outcome.duration < SOON);
    }
    let slow = Run {
        stdin,
        timeout: Duration::from_millis(300),
        ..run(["sleep", "300"])
    };
    assert_eq!(outcome(slow).await.end, timed_out(None, Some(SignalName::TERM)));
}

#[tokio::test]
async fn no_stdin_is_an_empty_one() {
    assert_eq!(stdout(run(["readlink", "/proc/self/fd/0"])).await, "/dev/null\n");
    assert_eq!(stdout(run(["cat"])).await, "");
}

#[tokio::test]
async fn the_environment_is_what_was_given_and_nothing_else() {
    let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y z".to_owned())]);
    assert_eq!(
        stdout(Run {
            env: env.into(),
            ..run(["env"])
        })
        .await,
        "A=1\nB=x=y z\n"
    );
    assert_eq!(
        stdout(Run {
            env: BTreeMap::new().into(),
            ..run(["env"])
        })
        .await,
        ""
    );
}

#[tokio::test]
async fn arguments_and_the_name_are_passed_as_given() {
    assert_eq!(
        stdout(run(["printf", "[%s]", "a b", "", "$HOME", "é"])).await,
        "[a b][][$HOME][é]"
    );
    assert_eq!(stdout(bash("echo $0")).await, "bash\n");
}

#[tokio::test]
async fn the_directory_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    assert_eq!(
        stdout(Run {
            cwd: Some(folder.clone()),
            ..run(["pwd"])
        })
        .await,
        format!("{}\n", folder.display())
    );
    let own = std::env::current_dir().unwrap();
    assert_eq!(stdout(run(["pwd"])).await, format!("{}\n", own.display()));
}

#[tokio::test]
async fn a_relative_program_is_looked_up_in_the_command_s_directory() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bin")).unwrap();
    write_program(&folder.path().join("bin/tool"), "#!/bin/bash\necho found\n");
    let in_folder = |run: Run| Run {
        cwd: Some(folder.path().to_owned()),
        ..run
    };
    assert_eq!(stdout(in_folder(run(["bin/tool"]))).await, "found\n");
    assert_eq!(stdout(in_folder(run(["./bin/tool"]))).await, "found\n");
    for (path, cwd) in [("/nowhere:bin", ""), ("", "bin"), ("/nowhere:", "bin")] {
        let env = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        let cwd = Some(folder.path().join(cwd));
        assert_eq!(
            stdout(Run {
                env: env.into(),
                cwd,
                ..run(["tool"])
            })
            .await,
            "found\n",
            "PATH={path}"
        );
    }
}

#[tokio::test]
async fn the_command_has_three_descriptors() {
    // One that a process started from here would get.
    let own = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty()).unwrap();
    let listed = stdout(Run {
        stdin: "x".into(),
        ..run(["ls", "/proc/self/fd"])
    })
    .await;
    // `ls` itself holds the directory.
    assert_eq!(listed.lines().count(), 4, "{listed}");
    drop(own);
}

#[tokio::test]
async fn signals_are_as_a_program_expects_them() {
    // A program that ignored SIGPIPE, as Rust programs do, would see an error instead of ending.
    let status = "yes | true; echo ${PIPESTATUS[0]}";
    assert_eq!(stdout(bash(status)).await, "141\n");
    let signals = stdout(run(["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"])).await;
    assert_eq!(signals, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[tokio::test]
async fn a_command_has_a_session_of_its_own_and_gains_no_rights() {
    let fields = stdout(bash(
        "echo $$; cut -d' ' -f5,6 /proc/$$/stat; grep NoNewPrivs /proc/self/status; ulimit -c",
    ))
    .await;
    let pid = fields.lines().next().unwrap();
    assert_eq!(fields, format!("{pid}\n{pid} {pid}\nNoNewPrivs:\t1\n0\n"));

    let rights = Rights {
        may_gain: true,
        umask: Some(0o027),
        ..Rights::default()
    };
    let free = Run {
        rights,
        ..bash("umask; grep NoNewPrivs /proc/self/status")
    };
    assert_eq!(stdout(free).await, "0027\nNoNewPrivs:\t0\n");
}

#[tokio::test]
async fn usage_is_the_command_s_own_and_that_of_what_it_left() {
    let small = outcome(run(["true"])).await.usage.expect("it was started");
    assert!(small.max_rss_bytes > 0 && small.max_rss_bytes < 16 << 20, "{small:?}");
    // What is left has worked when the command ends, and has not ended.
    let script = r#"mkfifo done; (setsid bash -c 'for ((i = 0; i < 200000; i++)); do :; done; echo >done; exec sleep 300' &)
        read <done"#;
    let folder = tempfile::tempdir().unwrap();
    let busy = outcome(Run {
        cwd: Some(folder.path().to_owned()),
        ..bash(script)
    });
    let busy = busy.await.usage.expect("it was started");
    assert!(busy.user_ms + busy.system_ms >= 50, "{busy:?}");
}

#[tokio::test]
async fn limits_are_seen_by_the_command() {
    let limits = Limits {
        memory: Some("512MiB".parse().unwrap()),
        processes: None,
        open_files: std::num::NonZeroU64::new(77),
        file_size: Some("3MiB".parse().unwrap()),
        cpu_time: Some("5s".parse().unwrap()),
    };
    let script = "ulimit -v; ulimit -n; ulimit -f; ulimit -t; ulimit -Ht";
    let limited = Run { limits, ..bash(script) };
    assert_eq!(stdout(limited).await, "524288\n77\n3072\n5\n6\n");
}

#[tokio::test]
async fn a_limit_that_is_reached_ends_the_command() {
    let limits = Limits {
        file_size: Some("1MiB".parse().unwrap()),
        ..Limits::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let script = "exec head -c 2M /dev/zero >file";
    let cwd = Some(folder.path().to_owned());
    let outcome = outcome(Run {
        limits,
        cwd,
        ..bash(script)
    })
    .await;
    assert_eq!(
        outcome.end,
        End::Signaled(SignalName::from_number(Signal::XFSZ.as_raw()).expect("a signal"))
    );
    assert_eq!(fs::metadata(folder.path().join("file")).unwrap().len(), 1 << 20);
}

#[test]
fn a_run_shows_no_secrets() {
    let env = BTreeMap::from([("TOKEN".to_owned(), "hush".to_owned())]);
    let shown = format!(
        "{:?}",
        Run {
            env: env.into(),
            stdin: "hush".into(),
            ..run(["true", "hush"])
        }
    );
    assert_eq!(shown, r#"Run { program: "true", .. }"#);
}
