//! One job's way through a worker, from its delivery to its ack.
//!
//! Results are published before the ack, and what comes after a result (another attempt, a dead letter) between the
//! two: wherever this is cut off, the job comes again, and nothing is lost.
//!
//! It obeys the drain while a job waits for its slot, and the abort always. A job that an operator cancels ends where it
//! is: at its admission, while it waits for its slot, or with its command.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::admit::{Admission, Plan, Refusal, Ticket, admit};
use super::event::{Event, Observer, RunAccount, StreamAccount};
use super::hold::{Claim, Present};
use super::ledger::{Held, Ledger, Recognised};
use super::orders::{Cancellation, Job, Orders, Watched};
use super::outbox::Outbox;
use super::outgoing;
use super::parcel::Parcel;
use super::post::Post;
use super::pulse::Pulse;
use super::settle::{self, Conclusion};
use super::slots::{Slot, Slots};
use super::trail::{About, Phase, Tracer};
use super::{Ending, Holds, Worker};
use crate::config::Pool;
use crate::executor::{self, End, Environment, Outcome, Run, Spawners, Stop};
use crate::message::{Envelope, FailureKind, JobId, Output, Status, TraceContext, WorkerInfo};
use crate::supervise::Shutdown;
use crate::transport::topology::Names;
use crate::transport::{Delivery, Publication, SettleError, Transport};

pub(super) struct Pipeline<T> {
    pool: Arc<Pool>,
    names: Names,
    identity: WorkerInfo,
    spawners: Spawners,
    slots: Slots,
    post: Post<T>,
    ledger: Arc<Ledger>,
    holds: Holds,
    orders: Orders,
    pulse: Arc<Pulse>,
    observer: Arc<dyn Observer>,
    /// Who follows jobs, if somebody does.
    tracer: Option<Tracer>,
    ending: Ending,
    /// The worker drains, and no delivery comes any more.
    last_came: CancellationToken,
}

impl<T: Transport> Pipeline<T> {
    pub(super) fn new(worker: &Worker<T>, pool: &Arc<Pool>, pulse: Arc<Pulse>) -> Self {
        Self {
            pool: pool.clone(),
            names: worker.names.clone(),
            identity: worker.identity.in_pool(&pool.name),
            spawners: worker.spawners.clone(),
            slots: Slots::new(pool.slots),
            post: Post {
                outbox: Outbox {
                    transport: worker.transport.clone(),
                    pool: pool.name.clone(),
                    topology: worker.topology(pool),
                    declare: pool.declare,
                },
                spool: worker.spool.clone(),
                observer: worker.observer.clone(),
            },
            ledger: worker.ledgers.of(&pool.name),
            holds: worker.holds.clone(),
            orders: worker.orders.clone(),
            pulse,
            observer: worker.observer.clone(),
            tracer: worker.tracer.clone(),
            ending: worker.ending.clone(),
            last_came: CancellationToken::new(),
        }
    }

    /// Says that the worker drains and the pool's consumer is gone.
    pub(super) fn nothing_more_comes(&self) {
        self.last_came.cancel();
    }

    /// When a delivery came, if somebody wants to know.
    pub(super) fn now_if_followed(&self) -> Option<Timestamp> {
        self.tracer.is_some().then(Timestamp::now)
    }

    /// What is remembered of messages.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Finds a delivery's place if it is a message that is known here; gives it back if there is something to do.
    pub(super) async fn recognise(&self, delivery: Delivery) -> Option<Delivery> {
        if !delivery.redelivered {
            return Some(delivery); // as nearly all are, and nothing is copied for them
        }
        let envelope = delivery.envelope.clone();
        match self.ledger.recognise(delivery) {
            Recognised::New(delivery) => Some(delivery),
            Recognised::Adopted => {
                self.tell_adopted(&envelope);
                None
            }
            Recognised::Ended(delivery) => {
                if delivery.ack().await.is_err() {
                    self.ledger.doubt(&envelope);
                }
                self.tell_adopted(&envelope);
                None
            }
        }
    }

    /// Handles one delivery to its end.
    ///
    /// # Cancel safety
    /// Not cancel safe, but nothing is lost: dropped half-way, it kills the command and gives the delivery back.
    pub(super) async fn handle(&self, taken: Taken, stop: &Shutdown) {
        let Taken {
            delivery,
            present,
            came_at,
        } = taken;
        let _unacked = Between::new(
            self,
            |pool| Event::DeliveryTaken { pool },
            |pool| Event::DeliverySettled { pool },
        );
        let _in_hand = self.pulse.take();
        let held = self.ledger.hold(delivery);
        let _present = present; // goes when the delivery is settled
        if !held.is_live() {
            return held.was_not_started(); // of a session that is gone: the broker hands it out again
        }
        let now = Timestamp::now();
        let (mut ticket, admission) = admit(&self.pool, held.envelope(), held.redelivered(), now);
        self.follow(&mut ticket, came_at.unwrap_or(now));
        let job = self.watch(&ticket, held.envelope());
        let admission = match (admission, job.cancellation()) {
            (Admission::Run(_) | Admission::Wait(_), Some(cancellation)) => {
                Admission::End(Status::Cancelled, refusal(cancellation))
            }
            (admission, _) => admission,
        };
        match admission {
            Admission::Run(plan) => self.run(held, ticket, *plan, &job, stop).await,
            Admission::Wait(wait) => self.delay(held, &ticket, wait, stop).await,
            Admission::Recount => self.recount(held, &ticket, stop).await,
            Admission::End(status, refusal) => self.refuse(held, &ticket, status, refusal, stop).await,
        }
    }

    /// Has the attempt written down, if somebody follows it.
    fn follow(&self, ticket: &mut Ticket, began: Timestamp) {
        if let Some(tracer) = &self.tracer {
            let about = About {
                pool: &self.pool.name,
                job_id: &ticket.job_id,
                attempt: ticket.attempt.number,
                began,
            };
            ticket.trace.follow(tracer, &about);
        }
    }

    /// Has the job told when it is cancelled.
    fn watch(&self, ticket: &Ticket, envelope: &Envelope) -> Watched {
        self.orders.watch(Job {
            id: ticket.job_id.clone(),
            labels: ticket.labels.clone(),
            pool: self.pool.name.clone(),
            submitted_at: envelope.properties.submitted_at(),
        })
    }

    /// Gives back a job that was not started. A nack would count as a redelivery, and a worker that stops in good
    /// order is none: the job is published again as it was, and this delivery of it is acked.
    pub(super) async fn hand_back(&self, delivery: Delivery, stop: &Shutdown) {
        self.hand_back_held(self.ledger.hold(delivery), stop).await;
    }

    async fn hand_back_held(&self, held: Held, stop: &Shutdown) {
        self.ending.count_given_back();
        self.tell(Event::JobGivenBack {
            pool: self.pool.name.clone(),
            job_id: None,
            was_running: false,
        });
        let unstarted = outgoing::unstarted(&self.names, &self.pool.name, held.envelope());
        // A redelivered job has yet to be counted, so it must keep its mark.
        if !held.redelivered() && held.is_live() && self.post.outbox.try_deliver(&unstarted, stop).await {
            settled(held.ack().await);
        } else {
            settled(held.give_back().await);
        }
    }

    async fn run(&self, held: Held, ticket: Ticket, plan: Plan, job: &Watched, stop: &Shutdown) {
        let waiting = ticket.trace.phase(Phase::Wait);
        let turn = tokio::select! {
            biased; // its turn must not win over its end
            cancellation = job.cancelled() => {
                drop(waiting);
                return self.refuse(held, &ticket, Status::Cancelled, refusal(cancellation), stop).await;
            }
            turn = self.turn(&ticket, stop) => turn,
        };
        drop(waiting);
        let turn = match turn {
            Ok(turn) => turn,
            Err(PutOff::ForNow) => return self.hand_back_held(held, stop).await,
            Err(PutOff::ForAWhile) => return self.put_off(held, &ticket, stop).await,
        };
        let now = Timestamp::now();
        if !held.is_live() {
            return held.was_not_started();
        }
        if let Some(refusal) = plan.expired(now) {
            drop(turn);
            return self.refuse(held, &ticket, Status::Expired, refusal, stop).await;
        }
        if let Err(refusal) = plan.check_place().await {
            drop(turn);
            return self.refuse(held, &ticket, Status::Rejected, refusal, stop).await;
        }
        let Plan {
            run, retry, ready_at, ..
        } = plan;
        let started = Started { now, ready_at };
        let outcome = self.execute(&ticket, run, started, job, stop).await;
        drop(turn);
        let cancellation = job.cancellation();
        if outcome.end == End::Cancelled && cancellation.is_none() {
            return self.cut(held, &ticket).await;
        }
        let conclusion = settle::conclude(&ticket, &retry, outcome, self.identity.clone());
        self.conclude(held, &ticket, conclusion.told(cancellation), stop).await;
    }

    /// Waits for the job's turn to be started.
    ///
    /// # Errors
    /// When it is not to be, as the worker drains, its pool is held, or it was to run alone and could not.
    async fn turn(&self, ticket: &Ticket, stop: &Shutdown) -> Result<Turn, PutOff> {
        let is_suspect = ticket.attempt.redeliveries >= ALONE_FROM;
        if is_suspect && let Some(patience) = self.holds.patience(ticket.attempt.put_offs) {
            return self.turn_alone(patience, stop).await;
        }
        let slot = tokio::select! {
            biased; // a free slot must not win over the drain
            () = self.ending.draining() => return Err(self.until_the_last_came(stop).await),
            () = self.holds.stopped(&self.pool.name) => return Err(PutOff::ForNow),
            slot = self.slot() => slot,
        };
        if is_suspect {
            tracing::warn!(
                pool = &*self.pool.name,
                job.id = %ticket.job_id,
                "was redelivered {} times and may be what kills its workers, but runs beside others: {} times it waited to \
                 run alone, and other commands did not end",
                ticket.attempt.redeliveries,
                ticket.attempt.put_offs,
            );
        }
        Ok(Turn {
            _claim: None,
            _slot: slot,
        })
    }

    /// Waits, once the worker drains, until its consumer is gone: what goes back before makes room for more to come, and
    /// may itself come here again.
    async fn until_the_last_came(&self, stop: &Shutdown) -> PutOff {
        tokio::select! {
            () = self.last_came.cancelled() => {}
            () = stop.draining() => {} // the intake has ended, whichever way
        }
        PutOff::ForNow
    }

    /// A slot, which none gets while its pool is held.
    async fn slot(&self) -> Slot {
        loop {
            self.holds.free(&self.pool.name).await;
            let slot = self.slots.take().await;
            if self.holds.reason(&self.pool.name).is_none() {
                return slot;
            }
        }
    }

    /// The same for a job that may be killing workers: no other command runs beside it.
    async fn turn_alone(&self, patience: Duration, stop: &Shutdown) -> Result<Turn, PutOff> {
        let claim = match self.holds.reason(&self.pool.name) {
            None => self.holds.claim(),
            Some(_) => None,
        };
        let Some(claim) = claim else {
            return tokio::select! {
                () = self.ending.draining() => Err(self.until_the_last_came(stop).await),
                () = self.holds.stopped(&self.pool.name) => Err(PutOff::ForNow),
            };
        };
        let slot = async {
            match claim.alone(patience).await {
                true => Ok(self.slots.take().await),
                false => Err(PutOff::ForAWhile),
            }
        };
        let slot = tokio::select! {
            biased;
            () = self.ending.draining() => return Err(self.until_the_last_came(stop).await),
            slot = slot => slot?,
        };
        Ok(Turn {
            _claim: Some(claim),
            _slot: slot,
        })
    }

    async fn execute(&self, ticket: &Ticket, run: Run, started: Started, job: &Watched, stop: &Shutdown) -> Outcome {
        let Started { now, ready_at } = started;
        let mut running = Running::start(self, ticket, waited(ticket, ready_at, now));
        let run = self.with_facts(run, ticket, now);
        let stop = Stop {
            end: CancellationToken::new(),
            kill: stop.abort_token(),
        };
        let mut run = pin!(executor::execute(&self.spawners, run, stop.clone()));
        let outcome = tokio::select! {
            outcome = &mut run => outcome,
            _ = job.cancelled() => {
                stop.end.cancel();
                run.await
            }
        };
        running.account = account(&outcome);
        ticket.trace.ran(&outcome, now);
        outcome
    }

    /// Adds what every command may know of its job.
    fn with_facts(&self, mut run: Run, ticket: &Ticket, now: Timestamp) -> Run {
        let deadline = now.checked_add(run.timeout).unwrap_or(Timestamp::MAX);
        let facts = [
            ("SYNTHEX_JOB_ID", ticket.job_id.to_string()),
            ("SYNTHEX_ATTEMPT", ticket.attempt.number.to_string()),
            ("SYNTHEX_POOL", self.pool.name.to_string()),
            ("SYNTHEX_DEADLINE", deadline.to_string()),
        ];
        run.env.extend(facts.map(|(name, value)| (name.to_owned(), value)));
        if let Some(context) = ticket.trace.of_command() {
            trace_env(&mut run.env, &context);
        }
        run
    }

    /// A job that the worker had begun with when it had to stop at once: its command was killed, or its result was
    /// not confirmed.
    async fn cut(&self, held: Held, ticket: &Ticket) {
        self.ending.count_cut();
        self.tell(Event::JobGivenBack {
            pool: self.pool.name.clone(),
            job_id: Some(ticket.job_id.clone()),
            was_running: true,
        });
        // Given back while there is a consumer, it would come here again.
        let _ = tokio::time::timeout(LAST_COMES_WITHIN, self.last_came.cancelled()).await;
        settled(held.give_back().await);
    }

    async fn refuse(&self, held: Held, ticket: &Ticket, status: Status, refusal: Refusal, stop: &Shutdown) {
        let conclusion = settle::refuse(ticket, status, refusal, Timestamp::now(), self.identity.clone());
        self.conclude(held, ticket, conclusion, stop).await;
    }

    /// Result, then what comes after it, then the ack.
    async fn conclude(&self, held: Held, ticket: &Ticket, conclusion: Conclusion, stop: &Shutdown) {
        let (names, pool, key) = (&self.names, &*self.pool.name, held.key().into());
        let parcel = Parcel::of(names, pool, key, held.envelope(), ticket, &conclusion);
        let publishing = ticket.trace.phase(Phase::Publish);
        let Some(receipt) = self.post.send(&parcel, stop).await else {
            return self.cut(held, ticket).await; // the worker stops at once
        };
        drop(publishing);
        ticket.trace.ended(&conclusion.result);
        self.tell(Event::finished(
            self.pool.name.clone(),
            &conclusion.result,
            ticket.trace.id(),
        ));
        let acking = ticket.trace.phase(Phase::Ack);
        let acked = held.ack().await;
        drop(acking);
        if let Err(error) = acked {
            tracing::warn!(pool, job.id = %ticket.job_id, "failed to {error}, though it has ended");
        }
        receipt.close().await;
    }

    async fn delay(&self, held: Held, ticket: &Ticket, wait: Duration, stop: &Shutdown) {
        let later = outgoing::waiting(&self.names, &self.pool.name, held.envelope(), ticket, wait);
        self.send_later(held, ticket, &later, wait, stop).await;
    }

    /// A job that could not run alone, for another worker to try it, or this one later.
    async fn put_off(&self, held: Held, ticket: &Ticket, stop: &Shutdown) {
        let wait = self.holds.pause_between();
        let later = outgoing::put_off(&self.names, &self.pool.name, held.envelope(), ticket, wait);
        self.send_later(held, ticket, &later, wait, stop).await;
    }

    async fn send_later(&self, held: Held, ticket: &Ticket, later: &Publication, wait: Duration, stop: &Shutdown) {
        if self.post.outbox.deliver(later, stop).await {
            self.tell(Event::JobDelayed {
                pool: self.pool.name.clone(),
                job_id: ticket.job_id.clone(),
                remaining: wait,
            });
            settled(held.ack().await);
        }
    }

    async fn recount(&self, held: Held, ticket: &Ticket, stop: &Shutdown) {
        let attempt = ticket.attempt.after_redelivery();
        let job = held.envelope();
        let again = outgoing::recounted(&self.names, &self.pool.name, job, ticket, attempt);
        if self.post.outbox.deliver(&again, stop).await {
            self.tell(Event::JobRecounted {
                pool: self.pool.name.clone(),
                job_id: ticket.job_id.clone(),
                attempt: attempt.number,
            });
            settled(held.ack().await);
        }
    }

    fn tell_adopted(&self, envelope: &Envelope) {
        self.tell(Event::JobAdopted {
            pool: self.pool.name.clone(),
            message_id: envelope.properties.message_id.clone(),
        });
    }

    fn tell(&self, event: Event) {
        self.observer.on(&event);
    }
}

/// A delivery on its way to its task.
pub(super) struct Taken {
    pub(super) delivery: Delivery,
    pub(super) present: Present,
    /// When it came; `None` when nobody wants to know.
    pub(super) came_at: Option<Timestamp>,
}

/// Redeliveries from which a job runs alone: its third attempt, if the first two ended with their workers.
const ALONE_FROM: u32 = 2;

/// How long a job that was cut waits for its consumer to be gone: less than its task has once all has to stop.
const LAST_COMES_WITHIN: Duration = Duration::from_secs(2);

/// Why a job gets no turn.
enum PutOff {
    /// It may be started at once, elsewhere or when the pool goes on.
    ForNow,
    /// It is to be tried again later.
    ForAWhile,
}

/// The right to run one command; others may go on when it is dropped.
struct Turn {
    _claim: Option<Claim>,
    _slot: Slot,
}

/// When a job starts, and since when it could have.
struct Started {
    now: Timestamp,
    ready_at: Option<Timestamp>,
}

/// Tells a command which trace it is a part of. A state that the environment may have is another trace's.
fn trace_env(env: &mut Environment, context: &TraceContext) {
    let state = context.state.clone();
    if state.is_some() || env.get("TRACESTATE").is_some() {
        env.extend([("TRACESTATE".to_owned(), state.unwrap_or_default())]);
    }
    env.extend([("TRACEPARENT".to_owned(), context.to_string())]);
}

/// The refusal of a job that an operator has cancelled.
fn refusal(cancellation: &Cancellation) -> Refusal {
    Refusal {
        kind: FailureKind::Cancelled,
        field: None,
        message: cancellation.to_string(),
    }
}

/// A settlement that did not arrive: the session is gone, and the broker hands the job out again, marked.
fn settled(settled: Result<(), SettleError>) {
    if let Err(error) = settled {
        tracing::debug!("failed to {error}");
    }
}

/// From the moment a job could have started to the moment it does.
fn waited(ticket: &Ticket, ready_at: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let ready = ticket.queued_at?.max(ready_at.unwrap_or(Timestamp::MIN));
    Some(Duration::try_from(now.duration_since(ready)).unwrap_or_default())
}

/// How long the start of a command took that did start; a helper that died took its knowledge along.
fn spawn_time(outcome: &Outcome) -> Option<Duration> {
    let is_known = outcome.started_at.is_some() && outcome.end != End::HelperDied;
    is_known.then_some(outcome.spawn_time)
}

fn account(outcome: &Outcome) -> RunAccount {
    let stream = |output: &Output| StreamAccount {
        bytes: output.bytes,
        dropped: output.truncated_bytes,
    };
    RunAccount {
        spawn: spawn_time(outcome),
        kill: outcome.kill_time,
        duration: outcome.duration,
        stdout: stream(&outcome.stdout),
        stderr: stream(&outcome.stderr),
    }
}

/// Tells one event now, and its counterpart when dropped, however the task ends.
struct Between<'a> {
    observer: &'a dyn Observer,
    pool: &'a Arc<str>,
    end: fn(Arc<str>) -> Event,
}

impl<'a> Between<'a> {
    fn new<T>(pipeline: &'a Pipeline<T>, begin: fn(Arc<str>) -> Event, end: fn(Arc<str>) -> Event) -> Self {
        let (observer, pool) = (&*pipeline.observer, &pipeline.pool.name);
        observer.on(&begin(pool.clone()));
        Self { observer, pool, end }
    }
}

impl Drop for Between<'_> {
    fn drop(&mut self) {
        self.observer.on(&(self.end)(self.pool.clone()));
    }
}

/// Tells that a job started, and, however its task ends, that it ended.
struct Running<'a> {
    observer: &'a dyn Observer,
    pool: &'a Arc<str>,
    job_id: &'a JobId,
    account: RunAccount,
}

impl<'a> Running<'a> {
    fn start<T>(pipeline: &'a Pipeline<T>, ticket: &'a Ticket, waited: Option<Duration>) -> Self {
        let (observer, pool) = (&*pipeline.observer, &pipeline.pool.name);
        observer.on(&Event::JobStarted {
            pool: pool.clone(),
            job_id: ticket.job_id.clone(),
            attempt: ticket.attempt.number,
            waited,
        });
        Self {
            observer,
            pool,
            job_id: &ticket.job_id,
            account: RunAccount::default(),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.observer.on(&Event::JobEnded {
            pool: self.pool.clone(),
            job_id: self.job_id.clone(),
            run: self.account,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::NotStarted;
    use crate::message::{FailureKind, LimitsApplied};

    fn outcome(end: End, started_at: Option<Timestamp>) -> Outcome {
        Outcome {
            end,
            stdout: Output::from_kept(b"ab", b"cd", 10),
            stderr: Output::from_kept(b"e", b"", 1),
            started_at,
            finished_at: Timestamp::UNIX_EPOCH,
            duration: Duration::from_secs(3),
            spawn_time: Duration::from_millis(1),
            run_time: Duration::from_secs(2),
            kill_time: Some(Duration::from_secs(1)),
            ended_by: None,
            usage: None,
            limits_applied: LimitsApplied::default(),
        }
    }

    #[test]
    fn the_account_of_a_run_is_that_of_its_outcome() {
        let account = account(&outcome(End::Exited(0), Some(Timestamp::UNIX_EPOCH)));
        let expected = RunAccount {
            spawn: Some(Duration::from_millis(1)),
            kill: Some(Duration::from_secs(1)),
            duration: Duration::from_secs(3),
            stdout: StreamAccount { bytes: 10, dropped: 6 },
            stderr: StreamAccount { bytes: 1, dropped: 0 },
        };
        assert_eq!(account, expected);
    }

    #[test]
    fn only_a_command_that_is_known_to_have_run_has_a_spawn_time() {
        let spawn = |end, started_at| account(&outcome(end, started_at)).spawn;
        assert_eq!(spawn(End::Cancelled, None), None);
        let refused = NotStarted {
            kind: FailureKind::ProgramMissing,
            message: String::new(),
        };
        assert_eq!(spawn(End::NotStarted(refused), None), None);
        assert_eq!(spawn(End::HelperDied, Some(Timestamp::UNIX_EPOCH)), None);
        assert!(spawn(End::Cancelled, Some(Timestamp::UNIX_EPOCH)).is_some());
    }
}
