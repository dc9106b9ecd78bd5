use futures_util::FutureExt;
use serde_json::json;

use super::*;

/// So many items.
struct Numbers(u64);

impl Source for Numbers {
    async fn next(&mut self) -> io::Result<Option<Item>> {
        self.0 += 1;
        Ok(Some(Item {
            seq: self.0,
            name: Name::default(),
            job: Ok(bytes::Bytes::new()),
        }))
    }
}

/// What it was given, by place and attempt; skipped ones with attempt 0.
#[derive(Default)]
struct Kept(Vec<(u64, u32)>);

impl Sink for Kept {
    fn skip(&mut self, seq: u64) {
        self.0.push((seq, 0));
    }

    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        assert_eq!((finished.name.tag(), finished.json), ("f", &b"{}"[..]));
        self.0.push((finished.seq, finished.result.attempt));
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn end(sink: &mut impl Sink, seq: u64, attempt: u32, is_final: bool) {
    let empty = json!({"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0});
    let result = json!({
        "job_id": "j", "attempt": attempt, "status": "failed", "final": is_final, "stdout": empty, "stderr": empty,
        "finished_at": "2030-01-01T00:00:00Z", "duration_ms": 0,
        "worker": {"id": "w", "host": "h", "pool": "p", "version": "v"},
    });
    let result = serde_json::from_value(result).unwrap();
    let finished = Finished {
        submission: 1,
        seq,
        name: &Name {
            fields: Some("f".to_owned()),
            ..Name::default()
        },
        result: &result,
        json: b"{}",
    };
    sink.take(&finished).unwrap();
}

fn window(items: u32) -> (HeldBack<Numbers>, InOrder<Kept>) {
    in_order(Numbers(0), Kept::default(), NonZeroU32::new(items).unwrap())
}

#[tokio::test]
async fn results_come_in_the_order_of_the_input() {
    let (mut source, mut sink) = window(5);
    for _ in 0..5 {
        source.next().await.unwrap();
    }
    end(&mut sink, 3, 1, true);
    end(&mut sink, 2, 1, false);
    sink.skip(4);
    end(&mut sink, 2, 2, true);
    assert_eq!(sink.get_mut().0, []);
    end(&mut sink, 1, 1, false);
    assert_eq!(sink.get_mut().0, []);
    end(&mut sink, 1, 2, true);
    assert_eq!(sink.get_mut().0, [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 0)]);
    // A second end of what has left is passed on, and changes nothing.
    end(&mut sink, 2, 2, true);
    end(&mut sink, 5, 1, true);
    assert_eq!(sink.get_mut().0[6..], [(2, 2), (5, 1)]);
}

#[tokio::test]
async fn the_source_is_never_more_than_a_window_ahead() {
    let (mut source, mut sink) = window(2);
    for seq in 1..=2 {
        assert_eq!(source.next().await.unwrap().unwrap().seq, seq);
    }
    // The second has ended, but the first still holds it back.
    assert!(source.next().now_or_never().is_none());
    end(&mut sink, 2, 1, true);
    assert!(source.next().now_or_never().is_none());
    end(&mut sink, 1, 1, true);
    for seq in 3..=4 {
        assert_eq!(source.next().await.unwrap().unwrap().seq, seq);
    }
    assert!(source.next().now_or_never().is_none());
    sink.skip(3);
    assert_eq!(source.next().await.unwrap().unwrap().seq, 5);
}

#[tokio::test]
async fn what_waits_at_a_stop_is_given_on() {
    let (mut source, mut sink) = window(5);
    for _ in 0..5 {
        source.next().await.unwrap();
    }
    end(&mut sink, 5, 1, true);
    end(&mut sink, 3, 1, true);
    sink.conclude().unwrap();
    assert_eq!(sink.get_mut().0, [(3, 1), (5, 1)]);
}

#[tokio::test]
async fn results_that_come_before_their_items_hold_nothing_up() {
    let (mut source, mut sink) = window(2);
    // Of a batch that is gone on with: the engine reads them later, and has nothing to do for them.
    end(&mut sink, 2, 1, true);
    end(&mut sink, 1, 1, true);
    for seq in 1..=6 {
        assert_eq!(source.next().await.unwrap().unwrap().seq, seq);
        match seq {
            1 | 2 => sink.skip(seq),
            _ => end(&mut sink, seq, 1, true),
        }
    }
    assert_eq!(sink.get_mut().0, [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]);
    assert_eq!(sink.ahead.available_permits(), 2);
}
