use std::num::NonZeroU32;

use super::*;
use crate::executor::NotStarted;
use crate::flow::retry::Schedule;
use crate::message::{Attempt, Enforcer, JobId, Usage};
use crate::worker::trail::Trace;

fn ticket(runs_ended: u32) -> Ticket {
    Ticket {
        job_id: JobId::random(),
        attempt: Attempt {
            runs_ended,
            ..Attempt::FIRST
        },
        queued_at: None,
        reply_to: None,
        correlation_id: None,
        labels: [("of".to_owned(), "test".to_owned())].into(),
        trace: Trace::default(),
    }
}

fn retry(max_attempts: u32) -> Retry {
    Retry {
        max_attempts: NonZeroU32::new(max_attempts).unwrap(),
        schedule: Schedule {
            initial: Duration::from_secs(8),
            max: Duration::from_secs(60),
            multiplier: 2.0,
        },
        statuses: None,
        exit_codes: None,
        dead_letter_exit_codes: vec![3],
    }
}

fn worker() -> WorkerInfo {
    WorkerInfo {
        id: "w".to_owned(),
        host: "h".to_owned(),
        pool: "p".to_owned(),
        version: "0".to_owned(),
    }
}

fn outcome(end: End) -> Outcome {
    Outcome {
        end,
        stdout: Output::from_kept(b"out", b"", 3),
        stderr: Output::empty(),
        started_at: Some(Timestamp::UNIX_EPOCH),
        finished_at: Timestamp::UNIX_EPOCH,
        duration: Duration::from_millis(1500),
        usage: None,
        spawn_time: Duration::ZERO,
        kill_time: None,
        run_time: Duration::ZERO,
        ended_by: None,
        limits_applied: LimitsApplied::default(),
    }
}

fn ended(retry: &Retry, runs_ended: u32, end: End) -> Conclusion {
    conclude(&ticket(runs_ended), retry, outcome(end), worker())
}

#[test]
fn every_end_has_its_one_status() {
    let missing = NotStarted::new(FailureKind::ProgramMissing, "none");
    let timed_out = End::TimedOut {
        exit_code: Some(0),
        signal: None,
    };
    for (end, status, exit_code, kind) in [
        (End::Exited(0), Status::Succeeded, Some(0), None),
        (End::Exited(4), Status::Failed, Some(4), None),
        (
            End::Signaled(SignalName::KILL),
            Status::Signaled,
            None,
            Some(FailureKind::Signaled),
        ),
        (timed_out, Status::TimedOut, Some(0), Some(FailureKind::TimedOut)),
        (
            End::OutOfMemory,
            Status::OutOfMemory,
            None,
            Some(FailureKind::OutOfMemory),
        ),
        (End::HelperDied, Status::Signaled, None, Some(FailureKind::Signaled)),
        (End::Cancelled, Status::Cancelled, None, Some(FailureKind::Cancelled)),
        (
            End::NotStarted(missing),
            Status::NotStarted,
            None,
            Some(FailureKind::ProgramMissing),
        ),
    ] {
        let result = ended(&retry(1), 0, end).result;
        assert_eq!((result.status, result.exit_code), (status, exit_code));
        assert_eq!(result.error.as_ref().map(|error| error.kind), kind, "{status}");
        assert!(result.is_final);
        assert_eq!(result.duration_ms, 1500);
        assert_eq!(result.stdout.text, "out");
        assert_eq!(result.labels["of"], "test");
    }
}

#[test]
fn a_result_tells_how_the_command_was_ended_how_long_it_took_and_what_it_used() {
    let ms = Duration::from_millis;
    let usage = Usage {
        user_ms: 1,
        system_ms: 2,
        max_rss_bytes: 3,
    };
    let limits_applied = LimitsApplied {
        memory: Some(Enforcer::Rlimit),
        ..LimitsApplied::default()
    };
    let outcome = Outcome {
        started_at: Timestamp::from_millisecond(2_500).ok(),
        spawn_time: ms(1),
        run_time: ms(20),
        kill_time: Some(ms(300)),
        ended_by: Some(EndedBy::Kill),
        usage: Some(usage),
        limits_applied,
        ..outcome(End::Exited(0))
    };
    let mut ticket = ticket(0);
    ticket.queued_at = Timestamp::from_second(2).ok();
    let result = conclude(&ticket, &retry(1), outcome.clone(), worker()).result;
    let phases = Phases {
        queued: Some(ms(500)),
        spawn: ms(1),
        run: ms(20),
        kill: Some(ms(300)),
    };
    assert_eq!(result.phases, Some(phases));
    assert_eq!((result.ended_by, result.usage), (Some(EndedBy::Kill), Some(usage)));
    assert_eq!(result.limits_applied, limits_applied);

    ticket.queued_at = Timestamp::from_second(3).ok();
    let ahead = conclude(&ticket, &retry(1), outcome, worker()).result;
    assert_eq!(ahead.phases.and_then(|phases| phases.queued), Some(Duration::ZERO));
}

#[test]
fn what_was_not_started_has_no_phases() {
    let outcome = Outcome {
        started_at: None,
        ..outcome(End::Cancelled)
    };
    let result = conclude(&ticket(0), &retry(1), outcome, worker()).result;
    assert_eq!((result.phases, result.ended_by, result.usage), (None, None, None));
    let text = String::from_utf8(result.encode().to_vec()).unwrap();
    assert!(!text.contains("phases") && !text.contains("limits_applied"), "{text}");
}

#[test]
fn an_end_that_nobody_can_tell_more_of_says_so() {
    let result = ended(&retry(1), 0, End::HelperDied).result;
    assert_eq!(result.signal, Some(SignalName::KILL));
    let message = &result.error.as_ref().unwrap().message;
    assert!(
        message.starts_with("the helper process that held the command was killed, by"),
        "{message}"
    );
    let result = ended(&retry(1), 0, End::OutOfMemory).result;
    assert_eq!(result.signal, Some(SignalName::KILL));
}

#[test]
fn a_command_that_its_warning_ended_is_told_what_helps() {
    let end = || End::TimedOut {
        exit_code: None,
        signal: SignalName::from_number(10),
    };
    let message = |ended_by| {
        let outcome = Outcome {
            ended_by: Some(ended_by),
            ..outcome(end())
        };
        let result = conclude(&ticket(0), &retry(1), outcome, worker()).result;
        assert_eq!(result.status, Status::TimedOut);
        result.error.clone().unwrap().message
    };
    assert_eq!(
        message(EndedBy::WarnSignal),
        "ended by SIGUSR1, which warned it of its timeout: catch it, or choose another warn_signal"
    );
    assert_eq!(
        message(EndedBy::TermSignal),
        "ran longer than its timeout and was ended"
    );
}

#[test]
fn a_failure_that_asked_for_no_retry_is_a_result_and_no_dead_letter() {
    assert_eq!(ended(&retry(1), 0, End::Exited(1)).next, Next::Done);
}

#[test]
fn a_code_that_says_it_is_hopeless_is_a_dead_letter_at_once() {
    let dead = Next::DeadLetter { field: None };
    for max_attempts in [1, 5] {
        let chosen = Retry {
            exit_codes: Some(vec![3, 4]),
            ..retry(max_attempts)
        };
        let Conclusion { result, next } = ended(&chosen, 0, End::Exited(3));
        assert_eq!(
            (result.status, result.is_final, next),
            (Status::Failed, true, dead.clone())
        );
    }
    assert!(matches!(ended(&retry(5), 0, End::Exited(4)).next, Next::Retry(_)));
    let timed_out = End::TimedOut {
        exit_code: Some(3),
        signal: None,
    };
    assert!(
        matches!(ended(&retry(5), 0, timed_out).next, Next::Retry(_)),
        "its timeout says why"
    );
}

#[test]
fn a_failure_is_retried_until_its_runs_are_used_up_and_then_dead_lettered() {
    for (runs_ended, is_final) in [(0, false), (1, false), (2, true)] {
        let Conclusion { result, next } = ended(&retry(3), runs_ended, End::Exited(1));
        assert_eq!(result.is_final, is_final, "after {runs_ended} runs");
        match next {
            Next::Retry(wait) => {
                let middle = Duration::from_secs(8 << runs_ended);
                assert!(
                    (middle / 2..=middle * 3 / 2).contains(&wait),
                    "{wait:?} after {runs_ended} runs"
                );
                assert!(!is_final);
            }
            next => assert_eq!((next, is_final), (Next::DeadLetter { field: None }, true)),
        }
    }
}

#[test]
fn redeliveries_use_up_no_attempts() {
    let mut ticket = ticket(0);
    ticket.attempt = Attempt::FIRST.after_redelivery().after_redelivery();
    let Conclusion { result, next } = conclude(&ticket, &retry(2), outcome(End::Exited(1)), worker());
    assert_eq!(result.attempt, 3);
    assert!(matches!(next, Next::Retry(_)), "{next:?}");
}

#[test]
fn what_is_retried_is_what_was_chosen() {
    let chosen = |statuses: Option<&[Status]>, exit_codes: Option<&[i32]>| Retry {
        statuses: statuses.map(<[_]>::to_vec),
        exit_codes: exit_codes.map(<[_]>::to_vec),
        ..retry(5)
    };
    let missing = || End::NotStarted(NotStarted::new(FailureKind::ProgramMissing, ""));
    let is_retried = |retry: &Retry, end| matches!(ended(retry, 0, end).next, Next::Retry(_));

    let usual = chosen(None, None);
    assert!(is_retried(&usual, End::Exited(1)));
    assert!(is_retried(&usual, End::Signaled(SignalName::TERM)));
    assert!(!is_retried(&usual, End::Exited(0)));
    assert!(!is_retried(&usual, missing()));

    let by_status = chosen(Some(&[Status::NotStarted]), None);
    assert!(is_retried(&by_status, missing()));
    assert!(!is_retried(&by_status, End::Exited(1)));

    let by_code = chosen(None, Some(&[75]));
    assert!(is_retried(&by_code, End::Exited(75)));
    assert!(!is_retried(&by_code, End::Exited(1)));
    assert!(!is_retried(&by_code, End::Signaled(SignalName::TERM)));

    let success = chosen(Some(&[Status::Succeeded]), Some(&[0]));
    assert!(
        !is_retried(&success, End::Exited(0)),
        "a success is the end, whatever was chosen"
    );
}

#[test]
fn a_cancelled_run_keeps_its_output_says_who_cancelled_it_and_is_the_end() {
    let chosen = Retry {
        statuses: Some(vec![Status::Cancelled, Status::Failed]),
        ..retry(5)
    };
    let by = Cancellation::new("2030-01-31T12:00:00Z".parse().unwrap(), Some("me".to_owned()));
    let Conclusion { result, next } = ended(&chosen, 0, End::Cancelled).told(Some(&by));
    assert_eq!(
        (result.status, result.is_final, next),
        (Status::Cancelled, true, Next::Done)
    );
    assert_eq!(result.stdout.text, "out");
    let message = result.error.as_ref().map(|error| error.message.clone());
    assert_eq!(message.as_deref(), Some("cancelled by me at 2030-01-31T12:00:00Z"));

    let other = ended(&chosen, 0, End::Exited(1)).told(Some(&by)).result;
    assert_eq!(
        (other.status, other.error.clone()),
        (Status::Failed, None),
        "it ended by itself"
    );
}

#[test]
fn only_what_will_never_run_is_a_dead_letter() {
    let refusal = || Refusal {
        kind: FailureKind::InvalidJob,
        field: Some("timeout".to_owned()),
        message: "timeout: …".to_owned(),
    };
    for status in [Status::Rejected, Status::Lost, Status::Expired, Status::Cancelled] {
        let Conclusion { result, next } = refuse(&ticket(0), status, refusal(), Timestamp::UNIX_EPOCH, worker());
        let dead = matches!(status, Status::Rejected | Status::Lost);
        assert_eq!(matches!(next, Next::DeadLetter { field: Some(_) }), dead, "{status}");
        assert_eq!(
            (result.status, result.is_final, result.started_at),
            (status, true, None)
        );
    }
}
