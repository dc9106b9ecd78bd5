//! A batch seen from elsewhere: what its submitters have said of it, and what waits in its queue.
//!
//! Submitters say how far they are about once a second, so that somebody who asks hears of results that they took since only
//! then. What waits in the queue is counted while nobody takes it: one look at each message, which stays.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;

use super::{BatchId, Finished, Herald, Name, Sink, Submission, Table};
use crate::control::dead::{DeadError, Pass};
use crate::message::{BatchEvent, BatchRecord, JobResult, Status};
use crate::transport::topology::{Declare, Names};
use crate::transport::{Delivery, PublishError, StreamOffset, Subscribe, Subscription, Transport, TransportError};

/// Records on their way at a time.
const PREFETCH: u16 = 500;
/// Nothing comes for so long: there is no more.
const QUIET: Duration = Duration::from_millis(300);
/// How long the first of what is there may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most results that are looked at to count them.
const LOOKED_AT: u32 = 100_000;
/// Results that are written at a time.
const CHUNK: usize = 500;

/// What submitters have said of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The pool of its jobs.
    pub pool: String,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// Who began it.
    pub by: Option<String>,
    /// How many items it has, once that is known.
    pub total: Option<u64>,
    /// All of its jobs were submitted.
    pub is_submitted: bool,
    /// All of its results were taken.
    pub has_ended: bool,
    /// Final results that were taken from its queue.
    pub finished: BTreeMap<Status, u64>,
    /// When anything was said last.
    pub said_at: Timestamp,
}

impl Known {
    fn new(record: &BatchRecord) -> Self {
        Self {
            pool: record.pool.clone(),
            begun_at: record.at,
            by: record.by.clone(),
            total: None,
            is_submitted: false,
            has_ended: false,
            finished: BTreeMap::new(),
            said_at: record.at,
        }
    }

    /// The last word counts, but for the number of items, which may only grow.
    fn hear(&mut self, record: BatchRecord) {
        self.total = record.total.or(self.total);
        self.is_submitted = match record.event {
            BatchEvent::Submitted | BatchEvent::Ended => true,
            // Who goes on with it may have more, or submit again what has failed.
            BatchEvent::Begun => false,
            BatchEvent::Progress => self.is_submitted,
        };
        self.has_ended = record.event == BatchEvent::Ended;
        self.finished = record.finished;
        self.said_at = record.at;
    }

    /// Whether these are the ends of all items.
    fn is_all(&self, finished: &BTreeMap<Status, u64>) -> bool {
        self.is_submitted && self.total.is_some_and(|total| sum(finished) >= total)
    }

    /// Whether the batch can have such an item, as far as that is known.
    fn may_have(&self, seq: u64) -> bool {
        seq > 0 && self.total.is_none_or(|total| seq <= total)
    }
}

/// How a batch is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// What was said of it.
    pub known: Known,
    /// Somebody takes its results now.
    pub is_attended: bool,
    /// Its queue is gone before its end, and with it what waited there.
    pub is_lost: bool,
    /// Messages that wait in its queue; more than final results if there are retries.
    pub waiting: u32,
    /// The final results among them, by status; `None` if they are too many to count, or somebody takes them.
    pub counted: Option<BTreeMap<Status, u64>>,
}

impl Overview {
    /// How many items ended in which way, as far as that is known.
    #[must_use]
    pub fn finished(&self) -> BTreeMap<Status, u64> {
        together(&self.known.finished, self.counted.as_ref().unwrap_or(&BTreeMap::new()))
    }

    /// Whether every item has its final result.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.known.has_ended || self.known.is_all(&self.finished())
    }
}

/// How many that are. Anybody may have written the numbers.
pub fn sum(finished: &BTreeMap<Status, u64>) -> u64 {
    finished.values().fold(0, |sum, count| sum.saturating_add(*count))
}

fn together(one: &BTreeMap<Status, u64>, other: &BTreeMap<Status, u64>) -> BTreeMap<Status, u64> {
    let mut both = one.clone();
    for (status, count) in other {
        let of_status = both.entry(*status).or_default();
        *of_status = of_status.saturating_add(*count);
    }
    both
}

/// Why a batch cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The broker could not be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It took no record.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Its queue could not be gone through.
    #[error(transparent)]
    Look(#[from] DeadError),
    /// Results could not be written.
    #[error("{0}")]
    Write(#[from] io::Error),
    /// Somebody else has its results.
    #[error("get results from queue {0:?}: its submitter takes them now, or somebody else looks at them")]
    Attended(String),
}

/// What submitters have said of a batch in the last 14 days; `None` if nobody has said anything.
///
/// # Errors
/// When the broker cannot be used.
pub async fn known<T: Transport>(
    transport: &T,
    names: &Names,
    batch: &BatchId,
) -> Result<Option<Known>, TransportError> {
    let queue = names.batches();
    let Some(depth) = transport.queue_depth(&queue).await? else {
        return Ok(None);
    };
    let request = request(queue, PREFETCH, Some(StreamOffset::First));
    let mut log = transport.subscribe(&request).await?;
    let (mut known, mut seen): (Option<Known>, u32) = (None, 0);
    loop {
        // The broker may not have counted the last ones.
        let patience = if seen < depth.messages { PATIENCE } else { QUIET };
        let Ok(Some(delivery)) = timeout(patience, log.next()).await else {
            return Ok(known);
        };
        seen += 1;
        if let Ok(record) = BatchRecord::decode(&delivery.envelope.body)
            && record.batch == batch.as_str()
        {
            known.get_or_insert_with(|| Known::new(&record)).hear(record);
        }
        // An ack only asks for more.
        let _ = delivery.ack().await;
    }
}

/// How a batch is; `None` if it is not known.
///
/// # Errors
/// When the broker cannot be used.
pub async fn overview<T: Transport>(
    transport: &T,
    names: &Names,
    batch: &BatchId,
) -> Result<Option<Overview>, RegistryError> {
    let Some(mut known) = self::known(transport, names, batch).await? else {
        return Ok(None);
    };
    let queue = names.batch_results(batch.as_str());
    let depth = transport.queue_depth(&queue).await?;
    if depth.is_none()
        && let Some(last) = self::known(transport, names, batch).await?
    {
        known = last; // it may have ended since
    }
    let (waiting, is_attended) = depth.map_or((0, false), |depth| (depth.messages, depth.consumers > 0));
    let counted = if is_attended || waiting > LOOKED_AT {
        None
    } else if waiting == 0 {
        Some(BTreeMap::new())
    } else {
        Some(count(transport, queue, &known).await?)
    };
    Ok(Some(Overview {
        is_lost: depth.is_none() && !known.has_ended && !known.is_all(&known.finished),
        known,
        is_attended,
        waiting,
        counted,
    }))
}

/// What of a result is needed to count it.
#[derive(Deserialize)]
struct Counted {
    status: Status,
    #[serde(rename = "final")]
    is_final: bool,
}

/// How the items ended whose final results wait: the last submission of each.
async fn count<T: Transport>(transport: &T, queue: String, known: &Known) -> Result<BTreeMap<Status, u64>, DeadError> {
    let mut pass = Pass::begin(transport, queue).await?;
    let mut ends: BTreeMap<u64, (u8, Status)> = BTreeMap::new();
    let looked = async {
        while let Some(delivery) = pass.next().await? {
            if let Some(Submission { seq, number }) = submission(&delivery, known)
                && let Ok(result) = serde_json::from_slice::<Counted>(&delivery.envelope.body)
                && result.is_final
            {
                let end = ends.entry(seq).or_insert((number, result.status));
                *end = (*end).max((number, result.status));
            }
            pass.keep(delivery);
        }
        Ok::<(), DeadError>(())
    }
    .await;
    pass.end().await;
    looked?;
    let mut counts = BTreeMap::new();
    for (_, status) in ends.into_values() {
        *counts.entry(status).or_default() += 1;
    }
    Ok(counts)
}

/// What was fetched from a batch's queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Final results that were given to the sink.
    pub written: u64,
    /// How those ended that were taken before, unless the sink has them.
    pub before: BTreeMap<Status, u64>,
    /// Whether the batch has no more.
    pub is_complete: bool,
}

/// Gives the results that wait in a batch's queue to `sink`, and leaves them there.
///
/// # Errors
/// When the broker or the sink cannot be used; all results are still there.
pub async fn look<T: Transport>(
    transport: &T,
    queue: String,
    known: &Known,
    sink: &mut dyn Sink,
) -> Result<Fetched, RegistryError> {
    let mut table = Table::default();
    let mut fetched = Fetched {
        before: known.finished.clone(),
        ..Fetched::default()
    };
    if has_results(transport, &queue).await? > 0 {
        let mut pass = Pass::begin(transport, queue).await?;
        let shown = show(&mut pass, known, &mut table, sink).await;
        pass.end().await;
        fetched.written = shown?;
    }
    fetched.is_complete = known.is_all(&together(&table.counts(), &fetched.before));
    Ok(fetched)
}

/// Gives all results of a pass to the sink, and keeps their messages. Returns how many they are.
async fn show<T: Transport>(
    pass: &mut Pass<'_, T>,
    known: &Known,
    table: &mut Table,
    sink: &mut dyn Sink,
) -> Result<u64, RegistryError> {
    let (mut given, mut unflushed) = (0, 0);
    while let Some(delivery) = pass.next().await? {
        if let Some((submission, result)) = final_result(&delivery, known, table) {
            given += u64::from(give(&delivery, (submission, &result), table, sink)?);
        }
        pass.keep(delivery);
        unflushed += 1;
        if unflushed == CHUNK {
            sink.flush().await?;
            unflushed = 0;
        }
    }
    sink.flush().await?;
    Ok(given)
}

/// How many messages wait in a batch's queue that nobody has.
async fn has_results<T: Transport>(transport: &T, queue: &str) -> Result<u32, RegistryError> {
    match transport.queue_depth(queue).await? {
        Some(depth) if depth.consumers > 0 => Err(RegistryError::Attended(queue.to_owned())),
        depth => Ok(depth.map_or(0, |depth| depth.messages)),
    }
}

/// Gives the results that wait in a batch's queue to `sink`, and takes them from the queue once they are written. What `table`
/// knows already is not given again.
///
/// Whether that was all is known by what others have said and by what is taken now. What the table has of an item does not
/// tell: it may have been submitted again since.
///
/// # Errors
/// When the broker or the sink cannot be used. What was not taken from the queue comes again.
pub async fn fetch<T: Transport>(
    transport: &T,
    herald: &Herald,
    known: &Known,
    sink: &mut dyn Sink,
    mut table: Table,
) -> Result<Fetched, RegistryError> {
    let queue = herald.names.batch_results(herald.batch.as_str());
    let mut fetched = Fetched::default();
    if table.ended() == 0 {
        fetched.before.clone_from(&known.finished);
    }
    let mut taken_now = Table::default();
    let mut rest = has_results(transport, &queue).await?;
    if rest > 0 {
        let mut inbox = transport.subscribe(&request(queue.clone(), PREFETCH, None)).await?;
        while rest > 0 {
            let taken = take(&mut inbox, rest).await;
            rest = rest.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
            for delivery in &taken {
                if let Some((submission, result)) = final_result(delivery, known, &table) {
                    taken_now.finish(submission, result.status);
                    fetched.written += u64::from(give(delivery, (submission, &result), &mut table, sink)?);
                }
            }
            sink.flush().await?;
            if taken.is_empty() {
                break; // somebody else has the rest
            }
            for delivery in taken {
                // One whose session is gone comes again, and is written again unless the file is there to tell.
                let _ = delivery.ack().await;
            }
        }
    }
    let finished = together(&known.finished, &taken_now.counts());
    let has_all = !fetched.before.is_empty() || known.total.is_some_and(|total| table.ended() >= total);
    fetched.is_complete = known.is_all(&finished) && has_all;
    let event = match fetched.is_complete {
        true => BatchEvent::Ended,
        false => BatchEvent::Progress,
    };
    transport.publish(&herald.say(event, known.total, finished)).await?;
    if fetched.is_complete {
        transport.remove_queue(&queue).await?;
    }
    Ok(fetched)
}

/// Takes some results of a queue in which so many were ready.
async fn take(inbox: &mut impl Subscription, rest: u32) -> Vec<Delivery> {
    let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK);
    let mut taken = Vec::with_capacity(wanted);
    while taken.len() < wanted
        && let Ok(Some(delivery)) = timeout(PATIENCE, inbox.next()).await
    {
        taken.push(delivery);
    }
    taken
}

/// Which item a result is of; `None` for one of none of this batch.
fn submission(delivery: &Delivery, known: &Known) -> Option<Submission> {
    let id = delivery.envelope.properties.correlation_id.as_deref()?;
    let submission: Submission = id.parse().ok()?;
    known.may_have(submission.seq).then_some(submission)
}

/// A final result of an item for which the table has room.
fn final_result(delivery: &Delivery, known: &Known, table: &Table) -> Option<(Submission, Arc<JobResult>)> {
    let submission = submission(delivery, known).filter(|submission| table.may_have(submission.seq))?;
    let result = delivery.envelope.body.result().ok()?;
    result.is_final.then_some((submission, result))
}

/// Gives a final result to the sink, unless the table has it. Returns whether it was given.
fn give(
    delivery: &Delivery,
    (submission, result): (Submission, &JobResult),
    table: &mut Table,
    sink: &mut dyn Sink,
) -> io::Result<bool> {
    if !table.finish(submission, result.status) {
        return Ok(false);
    }
    sink.take(&Finished {
        seq: submission.seq,
        submission: submission.number,
        name: &Name::default(),
        result,
        json: &delivery.envelope.body,
    })?;
    Ok(true)
}

fn request(queue: String, prefetch: u16, from: Option<StreamOffset>) -> Subscribe {
    Subscribe {
        queue,
        prefetch,
        consumer_timeout: None,
        from,
        topology: Arc::default(),
        declare: Declare::Passive,
    }
}

#[cfg(test)]
mod tests;
