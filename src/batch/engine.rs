//! The loop that submits items and takes results.
//!
//! One task, so nothing is shared. What takes time (windows of jobs on their way to the broker, what is said to others) are
//! futures that the loop polls; what it does itself is short, but for writing results, which holds all else up on purpose.
//!
//! Invariants:
//! - a result is acked after every sink has written it, and is told to sinks once;
//! - a job is taken to be on the broker once that has confirmed it, and the journal says so before anything else is sent;
//! - at most [`Plan::max_in_flight`] items are read and not finished, so memory does not grow with the input;
//! - what the broker has not taken is sent again, with growing waits, until it takes it or nobody wants it any more.

mod end;
pub(super) mod plan;
mod pulse;
mod windows;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::halt::{Haste, Policy};
use super::inbox::{Inbound, Inbox};
use super::journal::{Checkpoint, Journal};
use super::{BadItem, Finished, Item, Name, Progress, Sink, Source, Submission, Table, Watcher};
use crate::message::{JobResult, Status};
use crate::supervise::Shutdown;
use crate::transport::topology::Declare;
use crate::transport::{BoxFuture, Delivery, PublishError, Transport};
pub use end::{BatchError, End};
pub use plan::{OnAbort, OnBad, Plan, Results, attach};
use pulse::Errand;
use windows::{Sent, Windows};

/// Results that are written at once, if they come faster than that.
const FLUSH_COUNT: usize = 500;
/// The same in bytes: sinks keep what they are given until they write it.
const FLUSH_BYTES: usize = 1024 * 1024;
/// How far beyond the last item that is known one can be that an earlier run submitted: more than are on their way at once.
const AHEAD: u64 = 64 * 1024;
/// How often the broker is looked at, and others are told how far we are.
const PULSE: Duration = Duration::from_secs(1);
/// Results that were there before this submitter come within this time, each; else somebody else took them.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(10);

/// A batch that is being carried out.
pub struct Engine<'a, T: Transport, S> {
    plan: Plan<T>,
    source: S,
    sinks: Vec<Box<dyn Sink + 'a>>,
    watcher: &'a mut (dyn Watcher + 'a),
    table: Table,
    journal: Option<Journal>,
    policy: Policy,
    inbox: Option<Inbox<T>>,
    /// Results that were in the queue before us, and come first.
    backlog: u64,
    backlog_until: Instant,
    windows: Windows<T>,
    /// Items that were read and have no final result.
    open: BTreeMap<u64, Name>,
    /// Submissions of earlier runs that are awaited, of items that were not read yet.
    unread: u64,
    read: u64,
    input: crc32fast::Hasher,
    reading: Reading,
    /// Deliveries whose results were given to the sinks, and their bytes.
    unacked: Vec<Delivery>,
    unflushed: usize,
    flushed: Instant,
    errand: Option<BoxFuture<'static, Errand>>,
    pulse: tokio::time::Interval,
    told: Option<(BTreeMap<Status, u64>, Option<u64>)>,
    cancelling: Option<BoxFuture<'static, ()>>,
    end_by: Option<Instant>,
    /// Why nothing goes on now, as it was told.
    stalled: Option<String>,
    pool_is_gone: bool,
    end: End,
}

/// How far the source was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// There may be more.
    Open,
    /// It has ended, or counts as if it had: what was read is still submitted.
    Ended,
    /// No more is wanted, whatever there is.
    Stopped,
}

impl<'a, T: Transport, S: Source> Engine<'a, T, S> {
    /// A batch that is to be carried out as `plan` says, with what `table` and `journal` know of earlier runs of it.
    /// Without `results` nothing is awaited: the jobs are submitted, and that is all.
    #[must_use]
    pub fn new(
        plan: Plan<T>,
        source: S,
        sinks: Vec<Box<dyn Sink + 'a>>,
        watcher: &'a mut (dyn Watcher + 'a),
        (table, journal): (Table, Option<Journal>),
        results: Option<Results<T>>,
    ) -> Self {
        let (inbox, backlog) = match results {
            Some(results) => {
                let transport = plan.transport.clone();
                let inbox = Inbox::new(transport, results.request, results.subscription);
                (Some(inbox), results.backlog)
            }
            None => (None, 0),
        };
        let now = Instant::now();
        let mut pulse = tokio::time::interval_at(now + PULSE, PULSE);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            policy: Policy::new(plan.halts.clone()),
            windows: Windows::new(plan.transport.clone()),
            source,
            sinks,
            watcher,
            unread: table.awaiting(),
            table,
            journal,
            inbox,
            backlog,
            backlog_until: now + BACKLOG_PATIENCE,
            open: BTreeMap::new(),
            read: 0,
            input: crc32fast::Hasher::new(),
            reading: Reading::Open,
            unacked: Vec::new(),
            unflushed: 0,
            flushed: now,
            errand: None,
            pulse,
            told: None,
            cancelling: None,
            end_by: None,
            stalled: None,
            pool_is_gone: false,
            end: End::default(),
            plan,
        }
    }

    /// Submits and takes results until every item has its final one, or the batch is stopped: at `stop`'s drain no more is
    /// submitted, at its abort the batch ends as [`OnAbort`] says. `gone` says that nobody runs jobs any more.
    ///
    /// # Errors
    /// [`BatchError`]; what was submitted goes on.
    ///
    /// # Cancel safety
    /// Dropped, results that were taken since the last flush are not acked, and come again when the batch is resumed.
    pub async fn work(&mut self, stop: &Shutdown, gone: &CancellationToken) -> Result<(), BatchError> {
        self.tell_of_earlier_runs();
        while !self.is_done() {
            let (may_read, flush_at) = (self.may_read(), self.flush_at());
            tokio::select! {
                inbound = next(&mut self.inbox) => self.receive(inbound?).await?,
                () = tokio::time::sleep_until(flush_at), if self.unflushed > 0 => {
                    self.flush().await?;
                }
                sent = self.windows.next() => self.settle(sent)?,
                item = self.source.next(), if may_read => {
                    self.admit(item)?;
                    self.read_on()?;
                }
                () = stop.draining(), if self.reading == Reading::Open => self.stop_reading(),
                () = stop.aborting(), if self.end_by.is_none() => match self.plan.on_abort {
                    OnAbort::End => break,
                    OnAbort::Cancel(wait) => {
                        self.end_by = Some(Instant::now() + wait);
                        self.cancel();
                    }
                },
                () = wait_until(self.end_by) => break,
                () = gone.cancelled() => {
                    self.take_rest()?;
                    break;
                }
                () = tokio::time::sleep_until(self.backlog_until), if self.backlog > 0 => self.backlog = 0,
                () = poll(&mut self.cancelling) => self.cancelling = None,
                errand = poll(&mut self.errand) => self.return_from(errand)?,
                _ = self.pulse.tick() => self.pulse(),
            }
        }
        self.sinks
            .iter_mut()
            .try_for_each(|sink| sink.conclude())
            .map_err(BatchError::Sink)?;
        self.flush().await
    }

    fn tell_of_earlier_runs(&mut self) {
        let (mut finished, awaited) = (self.table.settled(), self.table.awaiting());
        finished.retain(|status, _| *status == Status::Succeeded || !self.plan.retry_failed);
        if awaited > 0 || !finished.is_empty() {
            self.watcher.on(&Progress::Resumed { finished, awaited });
        }
    }

    fn is_done(&self) -> bool {
        let submitted = self.reading != Reading::Open && self.windows.is_empty();
        let is_awaited = self.inbox.is_some() && (!self.open.is_empty() || self.unread > 0);
        submitted && !is_awaited && self.cancelling.is_none() && self.backlog == 0
    }

    fn may_read(&self) -> bool {
        self.reading == Reading::Open
            && self.backlog == 0
            && !self.pool_is_gone
            && self.windows.have_room()
            && self.open.len() < self.plan.max_in_flight
    }

    /// Reads what is there without waiting, and sends it.
    fn read_on(&mut self) -> Result<(), BatchError> {
        for _ in 0..windows::WINDOW {
            if !self.may_read() {
                break;
            }
            let Some(item) = self.source.next().now_or_never() else {
                break;
            };
            self.admit(item)?;
        }
        self.windows.send();
        Ok(())
    }

    fn admit(&mut self, item: std::io::Result<Option<Item>>) -> Result<(), BatchError> {
        match item {
            Ok(Some(item)) => self.give(item),
            Ok(None) => {
                self.reading = Reading::Ended;
                self.end.total = Some(self.read);
                self.watcher.on(&Progress::Total(self.read));
                let compared = self.journal.as_ref().map(|journal| journal.compare_end(self.read));
                Ok(compared.transpose().map(drop)?)
            }
            // The jobs before it still have their results.
            Err(error) => {
                self.read_no_more();
                self.end.source = Some(error);
                Ok(())
            }
        }
    }

    fn give(&mut self, item: Item) -> Result<(), BatchError> {
        self.read = item.seq;
        self.check_input(&item)?;
        let seq = item.seq;
        if self.table.awaited(seq).is_some() {
            self.unread = self.unread.saturating_sub(1);
            self.open(item.seq, item.name);
            return Ok(());
        }
        let number = match self.table.finished(seq) {
            None => 1,
            Some((before, status)) if self.plan.retry_failed && status != Status::Succeeded => before
                .number
                .checked_add(1)
                .ok_or_else(|| BatchError::TooOften(item.name.origin.clone()))?,
            Some(_) => {
                self.skip(seq);
                return Ok(());
            }
        };
        let submission = Submission { seq, number };
        match &item.job {
            Ok(body) => {
                let job = self.plan.address.job(submission, &item.name.origin, body.clone());
                self.windows.add(submission, job);
                self.open(item.seq, item.name);
                Ok(())
            }
            Err(error) => self.refuse(submission, &item, error),
        }
    }

    fn open(&mut self, seq: u64, name: Name) {
        if self.inbox.is_some() {
            self.open.insert(seq, name);
        }
    }

    fn check_input(&mut self, item: &Item) -> Result<(), BatchError> {
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        let text = match &item.job {
            Ok(job) => job,
            Err(error) => error.message.as_bytes(),
        };
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.input.update(&length.to_le_bytes());
        self.input.update(text);
        Ok(journal.compare(Checkpoint {
            seq: item.seq,
            sum: self.input.clone().finalize(),
        })?)
    }

    /// Deals with an item that is no job.
    fn refuse(&mut self, submission: Submission, item: &Item, error: &BadItem) -> Result<(), BatchError> {
        self.watcher.on(&Progress::Bad {
            origin: item.name.origin.clone(),
            error: error.clone(),
        });
        if self.plan.on_bad == OnBad::Stop {
            self.end.bad = Some((item.name.origin.clone(), error.clone()));
            self.skip(item.seq);
            self.read_no_more();
            return Ok(());
        }
        let result = self.plan.address.rejected(item, error, &self.plan.here);
        let json = result.encode();
        self.open.insert(item.seq, item.name.clone());
        self.finish(submission, &result, &json)
    }

    fn settle(&mut self, sent: Sent) -> Result<(), BatchError> {
        if !sent.confirmed.is_empty() {
            if let Some(journal) = &mut self.journal {
                let (seq, sum) = (self.read, self.input.clone().finalize());
                let written = journal.confirm(&sent.confirmed, Checkpoint { seq, sum });
                written.map_err(BatchError::Journal)?;
            }
            for submission in &sent.confirmed {
                self.table.publish(*submission);
            }
            let count = u64::try_from(sent.confirmed.len()).unwrap_or(u64::MAX);
            self.end.submitted += count;
            self.watcher.on(&Progress::Published(count));
        }
        match sent.refused {
            None => self.go_on(),
            Some(error) if is_passing(&error) => self.stall(error.to_string()),
            Some(error) => return Err(error.into()),
        }
        if self.reading == Reading::Stopped {
            self.drop_unsent();
        }
        let table = &self.table;
        self.windows.forget(|submission| table.has_finished(submission));
        self.windows.send();
        Ok(())
    }

    async fn receive(&mut self, inbound: Inbound) -> Result<(), BatchError> {
        match inbound {
            Inbound::Delivery(delivery) => {
                self.take(*delivery)?;
                while !self.is_full()
                    && let Some(delivery) = self.inbox.as_mut().and_then(Inbox::now)
                {
                    self.take(delivery)?;
                }
                if self.is_full() {
                    self.flush().await?;
                }
            }
            Inbound::Lost(reason) => {
                // What was not acked comes again, and what is open is known.
                self.stall(format!("no results come: {reason}"));
            }
            Inbound::Back => self.go_on(),
        }
        Ok(())
    }

    fn take(&mut self, delivery: Delivery) -> Result<(), BatchError> {
        self.backlog = self.backlog.saturating_sub(1);
        self.backlog_until = Instant::now() + BACKLOG_PATIENCE;
        let id = delivery.envelope.properties.correlation_id.as_deref();
        let submission = id.and_then(|id| id.parse::<Submission>().ok());
        let result = delivery.envelope.body.result();
        match (submission, result) {
            (Some(submission), Ok(result)) if self.is_of_batch(submission) => {
                if !self.table.has_finished(submission) {
                    self.finish(submission, &result, &delivery.envelope.body)?;
                }
            }
            // Nobody will ever make more of it.
            (submission, result) => tracing::warn!(
                correlation_id = id,
                "passed over a message that is no result of this batch{}",
                match (submission, result) {
                    (_, Err(error)) => format!(": {error}"),
                    _ => String::new(),
                }
            ),
        }
        self.unflushed += delivery.envelope.body.len().max(1);
        self.unacked.push(delivery);
        Ok(())
    }

    /// Whether the item was submitted by this run or can have been by an earlier one. Others have no place in the table.
    fn is_of_batch(&self, submission: Submission) -> bool {
        (1..=self.read.max(self.table.last()) + AHEAD).contains(&submission.seq)
    }

    /// Gives a result to the sinks. A final one closes its item.
    fn finish(&mut self, submission: Submission, result: &JobResult, json: &[u8]) -> Result<(), BatchError> {
        let seq = submission.seq;
        let was_awaited = self.table.awaited(seq).is_some();
        if result.is_final && !self.table.finish(submission, result.status) {
            return Ok(());
        }
        let unknown = Name::default();
        let finished = Finished {
            seq,
            submission: submission.number,
            name: self.open.get(&seq).unwrap_or(&unknown),
            result,
            json,
        };
        for sink in &mut self.sinks {
            sink.take(&finished).map_err(BatchError::Sink)?;
        }
        self.unflushed += 1;
        self.watcher.on(&Progress::Finished {
            status: result.status,
            is_final: result.is_final,
            duration: Duration::from_millis(result.duration_ms),
            title: finished.name.title.clone(),
        });
        if result.is_final {
            let was_open = self.open.remove(&seq).is_some();
            self.unread -= u64::from(was_awaited && !was_open && self.unread > 0);
            self.halt(result.status);
        }
        Ok(())
    }

    fn halt(&mut self, status: Status) {
        let Some(halt) = self.policy.step(status) else { return };
        let before = self.end.halted.map(|halted| halted.haste);
        if before.is_some_and(|before| before >= halt.haste) {
            return;
        }
        self.end.halted = Some(halt);
        match halt.haste {
            Haste::Soon => self.stop_reading(),
            Haste::Now => self.cancel(),
        }
    }

    /// Takes what was read so far for all there is.
    fn read_no_more(&mut self) {
        self.reading = Reading::Ended;
        self.end.cut_short = true;
    }

    /// Submits no more: what is not on the broker yet does not go there.
    fn stop_reading(&mut self) {
        if self.plan.expected == Some(self.read) {
            self.end.total = self.plan.expected; // there is no more, though the end was not seen
        } else {
            self.end.cut_short |= self.reading == Reading::Open;
        }
        self.reading = Reading::Stopped;
        self.drop_unsent();
    }

    fn drop_unsent(&mut self) {
        for submission in self.windows.drop_unsent() {
            self.open.remove(&submission.seq);
            self.end.cut_short = true;
            self.skip(submission.seq);
        }
    }

    /// Tells the sinks that nothing comes of an item.
    fn skip(&mut self, seq: u64) {
        for sink in &mut self.sinks {
            sink.skip(seq);
        }
    }

    fn cancel(&mut self) {
        self.stop_reading();
        self.end.cancelled = true;
        self.cancelling = Some((self.plan.cancel)());
    }

    /// Results that were published before nobody ran jobs any more.
    fn take_rest(&mut self) -> Result<(), BatchError> {
        self.stop_reading();
        while let Some(delivery) = self.inbox.as_mut().and_then(Inbox::now) {
            self.take(delivery)?;
        }
        Ok(())
    }

    /// Whether no more results are to be kept in memory.
    fn is_full(&self) -> bool {
        self.unacked.len() >= FLUSH_COUNT || self.unflushed >= FLUSH_BYTES
    }

    /// When what was taken is to be written at the latest. Where nothing else is under way, nothing is gained by waiting.
    fn flush_at(&self) -> Instant {
        let is_idle = self.open.is_empty() && self.unread == 0 && self.backlog == 0 && self.windows.is_empty();
        match is_idle && self.plan.flush_idle {
            true => self.flushed,
            false => self.flushed + self.plan.flush_every,
        }
    }

    async fn flush(&mut self) -> Result<(), BatchError> {
        for sink in &mut self.sinks {
            sink.flush().await.map_err(BatchError::Sink)?;
        }
        for delivery in self.unacked.drain(..) {
            // One whose session is gone comes again, and is known then.
            let _ = delivery.ack().await;
        }
        (self.unflushed, self.flushed) = (0, Instant::now());
        Ok(())
    }

    /// How it ended.
    #[must_use]
    pub fn end(self, outcome: Result<(), BatchError>) -> End {
        let awaited = u64::try_from(self.open.len()).unwrap_or(u64::MAX) + self.unread;
        End {
            error: outcome.err(),
            counts: self.table.settled(),
            awaited: if self.inbox.is_some() {
                awaited
            } else {
                self.table.awaiting()
            },
            cancelled: self.end.cancelled && self.cancelling.is_none(),
            unfinished: self.open.into_values().map(|name| name.origin).collect(),
            cut_short: self.end.cut_short || self.reading == Reading::Open,
            ..self.end
        }
    }
}

/// Whether publishing it again may help: a queue that refuses, or a broker that is away. A missing exchange is none of these.
fn is_passing(error: &PublishError) -> bool {
    error.is_transient() || matches!(error, PublishError::Unroutable { .. })
}

async fn next<T: Transport>(inbox: &mut Option<Inbox<T>>) -> Result<Inbound, BatchError> {
    match inbox {
        Some(inbox) => inbox.next().await.map_err(|error| BatchError::Publish(error.into())),
        None => std::future::pending().await,
    }
}

/// Polls a future that may be there.
async fn poll<R>(future: &mut Option<BoxFuture<'static, R>>) -> R {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
