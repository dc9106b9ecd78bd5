//! Results in the order of the input.
//!
//! A result that is ahead of an unfinished item is kept until that one has ended. What is kept is bounded: the source
//! gives no item that is more than a window ahead of the first one without an end, so at most the results of a window of
//! items wait. The price is that a slow job holds back those a window after it.
//!
//! Invariant: every item that the source gave is passed on or [skipped](Sink::skip) sooner or later, each once, in order.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::batch::{Finished, Item, Name, Sink, Source};
use crate::message::JobResult;
use crate::transport::BoxFuture;

/// Joins a source and a sink: the sink gets the results in the order of the source, which is held back once it is
/// `window` items ahead.
pub fn in_order<Src, Snk>(source: Src, sink: Snk, window: NonZeroU32) -> (HeldBack<Src>, InOrder<Snk>) {
    let ahead = Arc::new(Semaphore::new(window.get() as usize));
    let held_back = HeldBack {
        source,
        ahead: Arc::clone(&ahead),
    };
    let in_order = InOrder {
        sink,
        ahead,
        next: 1,
        waiting: BTreeMap::new(),
    };
    (held_back, in_order)
}

/// A source that waits for the sink.
pub struct HeldBack<Src> {
    source: Src,
    ahead: Arc<Semaphore>,
}

impl<Src: Source> Source for HeldBack<Src> {
    async fn next(&mut self) -> io::Result<Option<Item>> {
        let place = self.ahead.acquire().await.map_err(io::Error::other)?;
        let item = self.source.next().await?;
        if item.is_some() {
            place.forget(); // until the item has left the sink
        }
        Ok(item)
    }
}

/// A sink that gives results on in the order of the input.
pub struct InOrder<Snk> {
    sink: Snk,
    ahead: Arc<Semaphore>,
    /// The first item without an end.
    next: u64,
    /// What came of it and of those after it.
    waiting: BTreeMap<u64, Waiting>,
}

/// What has come of an item.
#[derive(Default)]
struct Waiting {
    results: Vec<Kept>,
    has_ended: bool,
}

struct Kept {
    submission: u8,
    name: Name,
    result: JobResult,
    json: Vec<u8>,
}

impl<Snk: Sink> InOrder<Snk> {
    /// The sink itself.
    pub fn get_mut(&mut self) -> &mut Snk {
        &mut self.sink
    }

    /// Ends an item; gives on what it held back.
    fn end(&mut self, seq: u64) -> io::Result<()> {
        if seq < self.next {
            return Ok(()); // its result came before it was read, and it has left
        }
        self.waiting.entry(seq).or_default().has_ended = true;
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() != self.next || !first.get().has_ended {
                break;
            }
            let (seq, waiting) = first.remove_entry();
            self.next += 1;
            self.ahead.add_permits(1);
            give(&mut self.sink, seq, &waiting.results)?;
        }
        Ok(())
    }
}

fn give(sink: &mut impl Sink, seq: u64, results: &[Kept]) -> io::Result<()> {
    if results.is_empty() {
        sink.skip(seq);
    }
    for Kept {
        submission,
        name,
        result,
        json,
    } in results
    {
        sink.take(&Finished {
            seq,
            submission: *submission,
            name,
            result,
            json,
        })?;
    }
    Ok(())
}

impl<Snk: Sink> Sink for InOrder<Snk> {
    fn skip(&mut self, seq: u64) {
        // What an earlier run submitted may have had its result before it was read; then it has left.
        if seq >= self.next {
            // The sink's error comes again with the next result.
            let _ = self.end(seq);
        }
    }

    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        let seq = finished.seq;
        if seq < self.next {
            return self.sink.take(finished); // a second end of an item that has left: nothing to wait for
        }
        self.waiting.entry(seq).or_default().results.push(Kept {
            submission: finished.submission,
            name: finished.name.clone(),
            result: finished.result.clone(),
            json: finished.json.to_owned(),
        });
        match finished.result.is_final {
            true => self.end(seq),
            false => Ok(()),
        }
    }

    /// Gives on what still waits, at the end of a batch that was stopped: items in front of it have no end.
    fn conclude(&mut self) -> io::Result<()> {
        for (seq, waiting) in std::mem::take(&mut self.waiting) {
            give(&mut self.sink, seq, &waiting.results)?;
        }
        self.sink.conclude()
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests;
