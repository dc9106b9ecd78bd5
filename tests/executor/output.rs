//! What is kept of output, and who may hold it up.

use std::time::Duration;

use super::{MAX_OUTPUT, SOON, TRIES, bash, fixture, once_up, outcome, run, timed_out};
use synthex::executor::{End, Outcome, Run};
use synthex::message::{Encoding, SignalName};

#[tokio::test]
async fn output_is_kept_whole_up_to_the_limit_and_counted_beyond_it() {
    for (count, dropped) in [
        (0, 0),
        (1, 0),
        (MAX_OUTPUT, 0),
        (MAX_OUTPUT + 1, 1),
        (64 << 20, (64 << 20) - MAX_OUTPUT),
    ] {
        let outcome = outcome(bash(&format!(
            "head -c {count} /dev/zero; head -c {count} /dev/zero >&2"
        )))
        .await;
        assert_eq!(outcome.end, End::Exited(0));
        for stream in [outcome.stdout, outcome.stderr] {
            assert_eq!((stream.bytes, stream.truncated_bytes), (count, dropped));
            assert_eq!(stream.decode().unwrap().len() as u64, count - dropped);
        }
    }
}

#[tokio::test]
async fn head_and_tail_of_a_long_output_are_kept() {
    let output = outcome(Run {
        max_output: 20,
        ..run(["seq", "1000000"])
    })
    .await
    .stdout;
    assert_eq!(output.text, "1\n2\n3\n4\n5\n\n1000000\n".replacen("\n\n", "\n9\n", 1));
    assert_eq!((output.bytes, output.truncated_bytes), (6_888_896, 6_888_876));
}

#[tokio::test]
async fn output_that_is_not_utf_8_is_base64() {
    let output = outcome(run(["printf", r"\377\000x"])).await.stdout;
    assert_eq!((output.encoding, output.text.as_str()), (Encoding::Base64, "/wB4"));
    assert_eq!(output.decode().unwrap()[..], b"\xff\0x"[..]);
    assert_eq!(outcome(run(["printf", "é"])).await.stdout.encoding, Encoding::Utf8);
}

#[tokio::test]
async fn a_flood_starves_no_timer() {
    let is_flooded = |outcome: &Outcome| outcome.stdout.bytes > MAX_OUTPUT;
    let (timeout, outcome) = once_up(is_flooded, Duration::from_millis(500), |timeout| Run {
        timeout,
        ..run(["yes"])
    })
    .await;
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
    assert!(outcome.duration < timeout + SOON);
    assert_eq!(outcome.stdout.bytes - outcome.stdout.truncated_bytes, MAX_OUTPUT);
}

#[tokio::test]
async fn output_of_a_process_that_ends_after_its_shell_is_not_lost() {
    // A process that is late for more than the grace of what is left is rightly ended.
    for _ in 0..TRIES {
        let outcome = outcome(fixture("tail-by-substitution")).await;
        assert_eq!(outcome.end, End::Exited(0), "{outcome:?}");
        if outcome.kill_time.is_none() {
            return assert_eq!(outcome.stdout.text, "first\nlast\n");
        }
    }
    panic!("it was ended each time");
}

#[tokio::test]
async fn streams_that_are_closed_early_do_not_end_the_run() {
    assert_eq!(
        outcome(bash("exec >&- 2>&-; sleep 0.2; exit 4")).await.end,
        End::Exited(4)
    );
}
