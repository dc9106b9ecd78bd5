//! What is known of a batch, on the in-process broker.

use serde_json::json;

use super::*;
use crate::message::{Envelope, Properties};
use crate::transport::memory::Memory;
use crate::transport::topology::Topology;
use crate::transport::{Publication, Routing};

struct Bench {
    broker: Memory,
    herald: Herald,
}

/// Keeps what it is given, by item and submission.
#[derive(Default)]
struct Given(Vec<(u64, u8)>);

/// A reader that has gone away.
struct Closed;

impl Sink for Closed {
    fn take(&mut self, _: &Finished<'_>) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> crate::transport::BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::BrokenPipe.into())))
    }
}

impl Sink for Given {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        self.0.push((finished.seq, finished.submission));
        Ok(())
    }

    fn flush(&mut self) -> crate::transport::BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Bench {
    async fn new() -> Self {
        let herald = Herald {
            names: Names::new("n"),
            batch: "b".parse().unwrap(),
            pool: "p".to_owned(),
            by: "me@here".to_owned(),
        };
        let broker = Memory::new();
        let topology = Topology::batch(&herald.names, "b");
        broker.declare(&topology, Declare::Active).await.unwrap();
        Self { broker, herald }
    }

    async fn say(&self, event: BatchEvent, total: Option<u64>, finished: &[(Status, u64)]) {
        let finished = finished.iter().copied().collect();
        let record = self.herald.say(event, total, finished);
        self.broker.publish(&record).await.unwrap();
    }

    async fn result(&self, id: &str, status: Status, is_final: bool) {
        let nothing = json!({"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0});
        let body = json!({
            "job_id": "j", "attempt": 1, "status": status, "final": is_final, "duration_ms": 0, "stdout": nothing,
            "stderr": nothing, "finished_at": "2030-01-01T00:00:00Z",
            "worker": {"id": "w", "host": "h", "pool": "p", "version": "0"}, "labels": {},
        });
        let result = Publication {
            exchange: String::new(),
            routing_key: "n.batch.b".to_owned(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: body.to_string().into(),
                properties: Properties {
                    correlation_id: Some(id.to_owned()),
                    ..Properties::default()
                },
            }
            .into(),
        };
        self.broker.publish(&result).await.unwrap();
    }

    async fn overview(&self) -> Option<Overview> {
        let Herald { names, batch, .. } = &self.herald;
        overview(&self.broker, names, batch).await.unwrap()
    }

    async fn look(&self, sink: &mut dyn Sink) -> Result<Fetched, RegistryError> {
        let known = self.overview().await.unwrap().known;
        look(&self.broker, "n.batch.b".to_owned(), &known, sink).await
    }

    async fn fetch(&self, table: Table) -> (Fetched, Vec<(u64, u8)>) {
        let known = self.overview().await.unwrap().known;
        let mut given = Given::default();
        let fetched = fetch(&self.broker, &self.herald, &known, &mut given, table).await;
        (fetched.unwrap(), given.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_known_by_what_was_said_of_it() {
    let bench = Bench::new().await;
    assert_eq!(bench.overview().await, None);
    bench.say(BatchEvent::Begun, None, &[]).await;
    bench
        .say(BatchEvent::Submitted, Some(3), &[(Status::Rejected, 1)])
        .await;
    let other = Herald {
        batch: "other".parse().unwrap(),
        ..bench.herald.clone()
    };
    let of_another = other.say(BatchEvent::Ended, Some(9), [].into());
    bench.broker.publish(&of_another).await.unwrap();
    let known = bench.overview().await.unwrap().known;
    assert_eq!(
        (known.total, known.is_submitted, known.has_ended),
        (Some(3), true, false)
    );
    bench.say(BatchEvent::Ended, None, &[]).await;
    let known = bench.overview().await.unwrap().known;
    assert_eq!((known.total, known.has_ended), (Some(3), true));
    bench.say(BatchEvent::Begun, None, &[]).await; // its failures are submitted again
    assert!(!bench.overview().await.unwrap().known.has_ended);
}

#[tokio::test(start_paused = true)]
async fn final_results_that_wait_are_counted_once_each() {
    let bench = Bench::new().await;
    bench
        .say(BatchEvent::Submitted, Some(4), &[(Status::Rejected, 1)])
        .await;
    bench.result("1", Status::Failed, false).await;
    bench.result("1", Status::Succeeded, true).await;
    bench.result("1", Status::Succeeded, true).await; // of a job that ran twice
    bench.result("2", Status::Failed, true).await;
    for _ in 0..2 {
        let overview = bench.overview().await.unwrap();
        let ends = [(Status::Succeeded, 1), (Status::Failed, 1), (Status::Rejected, 1)];
        assert_eq!((overview.waiting, overview.finished()), (4, ends.into()));
        assert!(!overview.is_complete());
    }
    bench.result("3", Status::Succeeded, true).await;
    assert!(bench.overview().await.unwrap().is_complete());
}

#[tokio::test(start_paused = true)]
async fn results_are_fetched_once_and_counted_over_all_fetches() {
    let bench = Bench::new().await;
    bench.say(BatchEvent::Submitted, Some(3), &[]).await;
    bench.result("1", Status::Succeeded, true).await;
    bench.result("1", Status::Succeeded, true).await;
    let (fetched, given) = bench.fetch(Table::default()).await;
    assert_eq!((given, fetched.is_complete), (vec![(1, 1)], false));
    let overview = bench.overview().await.unwrap();
    assert_eq!(
        (overview.waiting, overview.finished()),
        (0, [(Status::Succeeded, 1)].into())
    );

    bench.result("2", Status::Failed, true).await;
    bench.result("3.2", Status::Failed, true).await;
    let (fetched, given) = bench.fetch(Table::default()).await;
    assert_eq!((given, fetched.is_complete), (vec![(2, 1), (3, 2)], true));
    let overview = bench.overview().await.unwrap();
    assert!(overview.is_complete());
    assert_eq!(
        overview.finished(),
        [(Status::Succeeded, 1), (Status::Failed, 2)].into()
    );
    assert_eq!(bench.broker.queue_depth("n.batch.b").await.unwrap(), None, "it is gone");
}

#[tokio::test(start_paused = true)]
async fn to_look_at_results_leaves_them_whoever_reads() {
    let bench = Bench::new().await;
    bench
        .say(BatchEvent::Submitted, Some(4), &[(Status::Rejected, 1)])
        .await;
    bench.result("1", Status::Failed, false).await;
    bench.result("1", Status::Succeeded, true).await;
    bench.result("1", Status::Succeeded, true).await;
    for ended in 2..=3 {
        bench.result(&ended.to_string(), Status::Succeeded, true).await;
        let error = bench.look(&mut Closed).await.unwrap_err();
        assert!(matches!(error, RegistryError::Write(_)), "{error}");
        let mut given = Given::default();
        let seen = bench.look(&mut given).await.unwrap();
        given.0.sort_unstable();
        assert_eq!(given.0, Vec::from_iter((1..=ended).map(|seq| (seq, 1))));
        assert_eq!(
            (seen.written, seen.before, seen.is_complete),
            (ended, [(Status::Rejected, 1)].into(), ended == 3)
        );
    }
    let (_, given) = bench.fetch(Table::default()).await;
    assert_eq!(given.len(), 3, "they were there to be fetched");
    let nothing = bench.look(&mut Closed).await;
    assert_eq!(nothing.unwrap().before.values().sum::<u64>(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_file_tells_what_was_fetched_before() {
    let bench = Bench::new().await;
    bench.say(BatchEvent::Submitted, Some(2), &[]).await;
    bench.result("1", Status::Succeeded, true).await;
    bench.result("2", Status::Succeeded, true).await;
    let mut file = Table::default();
    file.finish(Submission { seq: 1, number: 1 }, Status::Succeeded); // written, and not acked
    let (fetched, given) = bench.fetch(file).await;
    assert_eq!((given, fetched.is_complete), (vec![(2, 1)], true));
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_failures_are_submitted_again_has_not_ended() {
    let bench = Bench::new().await;
    let ends = [(Status::Succeeded, 2), (Status::Failed, 1)];
    bench.say(BatchEvent::Ended, Some(3), &ends).await;
    bench.say(BatchEvent::Begun, None, &ends).await;
    assert!(!bench.overview().await.unwrap().is_complete(), "it may submit again");
    bench.say(BatchEvent::Submitted, Some(3), &ends[..1]).await;
    let mut file = Table::default(); // of the first run
    for (seq, status) in [(1, Status::Failed), (2, Status::Succeeded), (3, Status::Succeeded)] {
        file.finish(Submission { seq, number: 1 }, status);
    }
    let (fetched, _) = bench.fetch(file).await;
    assert!(!fetched.is_complete);
    bench.result("1.2", Status::Succeeded, true).await;
    let overview = bench.overview().await.unwrap();
    assert!(overview.is_complete());
    assert_eq!(overview.finished(), [(Status::Succeeded, 3)].into());
}

#[tokio::test(start_paused = true)]
async fn messages_that_are_no_results_of_the_batch_count_for_nothing() {
    let bench = Bench::new().await;
    bench.say(BatchEvent::Submitted, Some(3), &[]).await;
    for id in ["x", "0", "4", &u64::MAX.to_string(), "1", "1.2"] {
        bench.result(id, Status::Succeeded, true).await;
    }
    let overview = bench.overview().await.unwrap();
    assert_eq!(overview.finished(), [(Status::Succeeded, 1)].into());
    let (_, mut given) = bench.fetch(Table::default()).await;
    given.sort_unstable();
    assert_eq!(given, [(1, 1), (1, 2)]);

    let many = [(Status::Succeeded, u64::MAX), (Status::Failed, 2)];
    bench.say(BatchEvent::Progress, Some(u64::MAX), &many).await;
    assert_eq!(sum(&bench.overview().await.unwrap().finished()), u64::MAX);
}

#[tokio::test(start_paused = true)]
async fn a_place_far_beyond_costs_nothing() {
    let bench = Bench::new().await;
    bench.say(BatchEvent::Begun, None, &[]).await; // nobody knows how many there are
    bench.result(&u64::MAX.to_string(), Status::Succeeded, true).await;
    bench.result("1", Status::Succeeded, true).await;
    let (fetched, given) = bench.fetch(Table::default()).await;
    assert_eq!((given, fetched.written), (vec![(1, 1)], 1));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_gone_is_told_until_the_end() {
    let bench = Bench::new().await;
    bench
        .say(BatchEvent::Submitted, Some(2), &[(Status::Succeeded, 1)])
        .await;
    assert!(!bench.overview().await.unwrap().is_lost);
    bench.broker.remove_queue("n.batch.b").await.unwrap();
    assert!(bench.overview().await.unwrap().is_lost);
    bench.say(BatchEvent::Ended, Some(2), &[(Status::Succeeded, 2)]).await;
    assert!(!bench.overview().await.unwrap().is_lost);
}

#[tokio::test(start_paused = true)]
async fn nobody_fetches_beside_a_submitter() {
    let bench = Bench::new().await;
    bench.say(BatchEvent::Submitted, Some(2), &[]).await;
    bench.result("1", Status::Succeeded, true).await;
    let _submitter = bench
        .broker
        .subscribe(&request("n.batch.b".to_owned(), 10, None))
        .await
        .unwrap();
    let overview = bench.overview().await.unwrap();
    assert_eq!((overview.is_attended, overview.counted.is_none()), (true, true));
    let fetched = fetch(
        &bench.broker,
        &bench.herald,
        &overview.known,
        &mut Given::default(),
        Table::default(),
    )
    .await;
    assert!(matches!(fetched, Err(RegistryError::Attended(_))));
}
