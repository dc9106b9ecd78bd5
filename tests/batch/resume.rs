//! A batch goes on where it was, whatever happened to its submitter.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::fleet::{Fleet, PATIENCE, results};
use crate::support::process::{Signal, resident, wait_until};
use crate::support::random::Random;

/// Writes its item's number.
const COUNTS: &str = "echo {} >> runs";

/// `batch` of numbers, each of which writes that it runs.
fn counting(fleet: &Fleet, range: &str, command: &str) -> Vec<String> {
    let folder = fleet.folder.path().to_str().unwrap().to_owned();
    [
        "--results",
        "r.jsonl",
        "--cwd",
        &folder,
        "--range",
        range,
        "--",
        "sh",
        "-c",
        command,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Items whose publishing the journal has as confirmed.
fn confirmed(journal: &str) -> BTreeSet<u64> {
    let whole = &journal[..journal.rfind('\n').map_or(0, |end| end + 1)];
    let records = whole.lines().skip(1).map(|line| line.split(' ').next().unwrap());
    let runs = records.flat_map(|record| record.split(','));
    runs.flat_map(|run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        first.parse().unwrap()..=last.parse().unwrap()
    })
    .collect()
}

/// What may run twice is what nobody knows of at a kill: not confirmed, and near enough to have been sent.
#[test]
fn a_submitter_that_is_killed_anywhere_goes_on_without_a_loss_or_a_second_run() {
    const JOBS: u64 = 600;
    const IN_FLIGHT: u64 = 10;
    let fleet = Fleet::new();
    let worker = fleet.worker(4);
    let mut random = Random::new();
    let (range, in_flight) = (format!("1-{JOBS}"), IN_FLIGHT.to_string());
    // However late a kill comes, there is work left: up to the third one, items wait for their turn.
    let command = format!("until [ {{}} -le $(cat limit) ]; do sleep 0.05; done; {COUNTS}");
    let args = counting(&fleet, &range, &command);
    let args = [&["--max-in-flight", &in_flight], &words(&args)[..]].concat();
    let (mut kills, mut unknown) = (0, BTreeSet::new());
    loop {
        let written = || fleet.read("r.jsonl").lines().count();
        // One in three is killed as it begins.
        let more = if kills % 3 == 2 { 0 } else { random.between(20, 100) };
        let at = written() + more;
        let limit = if kills < 3 { at as u64 + 2 * IN_FLIGHT } else { JOBS };
        fs::write(fleet.path("limit"), limit.to_string()).unwrap();
        let submitter = fleet.batch(&args).spawn();
        let pause = random.millis(0, 100);
        wait_until(Duration::from_secs(120), "it has written so far, or ended", || {
            written() >= at || !submitter.is_running()
        });
        std::thread::sleep(pause); // any moment is a good one
        if !submitter.is_running() {
            submitter.wait().expect_code(0);
            break;
        }
        submitter.signal(Signal::KILL);
        submitter.wait();
        kills += 1;
        let text = fleet.read("r.jsonl");
        results(&text[..text.rfind('\n').map_or(0, |end| end + 1)]);
        let known = confirmed(&fleet.read("r.jsonl.batch"));
        let reach = fleet.runs().len() as u64 + 2 * IN_FLIGHT;
        unknown.extend((1..=reach.min(JOBS)).filter(|seq| !known.contains(seq)));
        assert!(kills < 100, "it does not get on");
    }
    worker.signal(Signal::TERM);
    worker.wait().expect_code(0); // of an item that runs twice, the other run may outlive the batch
    assert!(
        kills >= 3 && unknown.len() < 400,
        "{kills} kills, {} that may run twice",
        unknown.len()
    );
    let (ended, runs) = (results(&fleet.read("r.jsonl")), fleet.runs());
    assert_eq!(
        (ended.len() as u64, runs.len() as u64),
        (JOBS, JOBS),
        "every job has run and has its result, once"
    );
    for (seq, count) in &runs {
        assert!(*count == 1 || unknown.contains(seq), "item {seq} ran {count} times");
    }
    let batch = fleet.id("r.jsonl");
    assert_eq!(
        fleet.queue(&format!("batch.{batch}")),
        None,
        "it needs no queue any more"
    );

    fleet.batch(&args).run().expect_code(0);
    assert_eq!(fleet.runs(), runs, "there is nothing left to do");
}

#[test]
fn what_was_submitted_is_awaited_and_not_submitted_again() {
    let fleet = Fleet::new();
    fleet.declare();
    let args = counting(&fleet, "1-50", COUNTS);
    let submitter = fleet.batch(&words(&args)).spawn();
    fleet.waits_for("jobs.default", 50);
    wait_until(PATIENCE, "the journal has them", || {
        confirmed(&fleet.read("r.jsonl.batch")).len() == 50
    });
    let second = fleet.batch(&words(&args)).run().expect_code(2);
    assert!(second.stderr.contains("another submitter"), "{}", second.stderr);
    submitter.signal(Signal::KILL);
    drop(submitter);

    let again = fleet.batch(&words(&args)).spawn();
    let _worker = fleet.worker(4);
    again.wait().expect_code(0);
    assert_eq!(results(&fleet.read("r.jsonl")).len(), 50);
    assert!(fleet.runs().values().all(|count| *count == 1), "{:?}", fleet.runs());
    assert_eq!(fleet.queue("jobs.default").unwrap().messages, 0);
}

#[test]
fn what_failed_is_submitted_again_if_asked_and_the_last_line_counts() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(4);
    let args = counting(&fleet, "1-6", "echo {} >> runs; test -e ok || test $(({} % 2)) = 0");
    let failed = fleet.batch(&words(&args)).run().expect_code(3);
    assert_eq!(
        failed.stderr.matches(" failed with exit code 1 (attempt 1)\n").count(),
        3,
        "{failed:?}"
    );
    fs::write(fleet.path("ok"), "").unwrap();
    let again = fleet.batch(&words(&args)).run().expect_code(3);
    let why = "ended before: 6 (3 succeeded, 3 failed; --retry-failed submits the others again)\n";
    assert!(again.stderr.contains(why), "{}", again.stderr);
    assert_eq!(fleet.runs().values().sum::<u32>(), 6, "all have their results");
    let retry = [&["--retry-failed".to_owned()], &args[..]].concat();
    let retried = fleet.batch(&words(&retry)).run().expect_code(0);
    assert!(retried.stderr.contains("ended before: 3\n"), "{}", retried.stderr);
    let runs: Vec<u32> = fleet.runs().into_values().collect();
    assert_eq!(runs, [2, 1, 2, 1, 2, 1]);
    let ended = results(&fleet.read("r.jsonl"));
    assert_eq!(ended[&(1, 1)]["status"], "failed");
    assert_eq!((&ended[&(1, 2)]["status"], ended.len()), (&json!("succeeded"), 9));
    fleet.batch(&words(&retry)).run().expect_code(0);
    assert_eq!(results(&fleet.read("r.jsonl")).len(), 9);
}

#[test]
fn changed_input_is_an_error_that_says_so_and_added_lines_are_run() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(4);
    let job = |name: &str| format!("{}\n", json!({"command": ["echo", name]}));
    let batch = |jobs: &[&str]| {
        let text: String = jobs.iter().map(|name| job(name)).collect();
        fs::write(fleet.path("jobs.jsonl"), text).unwrap();
        fleet.batch(&["--results", "r.jsonl", "jobs.jsonl"]).run()
    };
    batch(&["a", "b"]).expect_code(0);
    let changed = batch(&["a", "c"]).expect_code(2);
    assert!(
        changed.stderr.starts_with("synthex: items, command or job options (")
            && changed.stderr.contains("r.jsonl.batch: the jobs up to item 2"),
        "{}",
        changed.stderr
    );
    assert_eq!(changed.stderr.lines().count(), 1, "{}", changed.stderr);
    let shorter = batch(&["a"]).expect_code(2);
    assert!(shorter.stderr.contains("it has 1 items"), "{}", shorter.stderr);
    batch(&["a", "b", "c"]).expect_code(0);
    let ended = results(&fleet.read("r.jsonl"));
    assert_eq!(ended.len(), 3);
    assert_eq!(ended[&(3, 1)]["item"]["origin"], "jobs.jsonl:3");
    let other = fleet
        .batch(&["--results", "jobs.jsonl", "jobs.jsonl"])
        .run()
        .expect_code(2);
    assert!(
        other.stderr.contains("jobs.jsonl:1: this is no line"),
        "{}",
        other.stderr
    );
    assert!(!fleet.path("jobs.jsonl.batch").exists());
}

#[test]
fn a_results_file_without_its_journal_and_the_reverse_are_refused() {
    let fleet = Fleet::at("amqp://nobody.invalid".to_owned());
    let jobs = ["--results", "r.jsonl", "--range", "1-3", "--", "true"];
    let run = || fleet.synthex(&[&["run"], &jobs[..]].concat()).run();
    run().expect_code(0);
    let other = fleet.batch(&jobs).run().expect_code(2);
    let told = format!(
        "begun by `synthex run`, and this is `synthex batch` in namespace {:?}",
        fleet.namespace
    );
    assert!(other.stderr.contains(&told), "{}", other.stderr);

    fs::rename(fleet.path("r.jsonl.batch"), fleet.path("away")).unwrap();
    for refused in [run(), fleet.batch(&jobs).run(), run()] {
        let told = refused.expect_code(2).stderr;
        assert!(
            told.contains("r.jsonl has results of a batch, but r.jsonl.batch is not there"),
            "{told}"
        );
    }
    let header = json!({"batch": "b", "namespace": fleet.namespace, "pool": "default", "version": "0"});
    for (journal, go_on) in [
        (fleet.read("away"), false),
        (format!("{header}\n1-3 3:00000000\n"), true),
    ] {
        let _ = fs::remove_file(fleet.path("r.jsonl"));
        fs::write(fleet.path("r.jsonl.batch"), journal).unwrap();
        for _ in 0..2 {
            let refused = if go_on { fleet.batch(&jobs).run() } else { run() };
            let told = refused.expect_code(2).stderr;
            assert!(
                told.contains("r.jsonl is missing, but r.jsonl.batch says that 3 jobs were submitted"),
                "{told}"
            );
        }
    }
    fs::remove_file(fleet.path("r.jsonl.batch")).unwrap();
    run().expect_code(0);
}

#[test]
fn a_local_run_goes_on_too() {
    let fleet = Fleet::at(String::new());
    let run = |range: &str, code| {
        let args = [
            "run",
            "--results",
            "r.jsonl",
            "--range",
            range,
            "--",
            "sh",
            "-c",
            COUNTS,
        ];
        fleet.synthex(&args).run().expect_code(code)
    };
    run("1-20", 0);
    let text = fleet.read("r.jsonl");
    // As a kill leaves it: some results are missing, one is torn.
    let keep: String = text.split_inclusive('\n').take(7).collect();
    fs::write(fleet.path("r.jsonl"), format!("{keep}{{\"torn")).unwrap();
    let kept = results(&keep);
    run("1-20", 0);
    assert_eq!(results(&fleet.read("r.jsonl")).len(), 20);
    for (seq, count) in fleet.runs() {
        assert_eq!(count, if kept.contains_key(&(seq, 1)) { 1 } else { 2 }, "item {seq}");
    }
}

/// Jobs that nobody runs: what is resident does not depend on how many were submitted.
#[test]
fn memory_does_not_grow_with_the_batch() {
    const FEW_LOOKS: u32 = 5; // in so few the peak may be missed: again
    let fleet = Fleet::new();
    fleet.declare();
    let measured = |range: &str| {
        let submitter = fleet
            .batch(&["--detach", "--range", range, "--", "true"])
            .limit(Duration::from_secs(120))
            .spawn();
        let (mut most, mut looks) = (0, 0);
        wait_until(Duration::from_secs(120), "it has submitted all", || {
            most = most.max(resident(submitter.pid()));
            looks += 1;
            !submitter.is_running()
        });
        submitter.wait().expect_code(0);
        (looks > FEW_LOOKS).then_some(most)
    };
    let peak = |range: &str| {
        (0..5)
            .find_map(|_| measured(range))
            .expect("it is looked at often enough")
    };
    let few = peak("1-500");
    let many = peak("1-10000");
    assert!(many < 64 * 1024 * 1024, "{many} bytes");
    assert!(many < few + 8 * 1024 * 1024, "{few} bytes for 500, {many} for 10,000");
}
