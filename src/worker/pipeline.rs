//! One job's way through a worker, from its delivery to its ack.
//!
//! Results are published before the ack, and what comes after a result (another attempt, a dead letter) between the
//! two: wherever this is cut off, the job comes again, and nothing is lost.
//!
//! It obeys the drain while a job waits for its slot, and the abort always. A job that an operator cancels ends where it
//! is: at its admission, while it waits for its slot, or with its command.

mod telling;
mod turn;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Audience;
use super::admit::{Admission, Plan, Refusal, Ticket, admit};
use super::audience::{Heard, Hearing};
use super::event::{Event, Observer};
use super::hold::Present;
use super::in_hand::{Entry, InHand, Known};
use super::ledger::{Held, Ledger, Recognised};
use super::orders::{Cancellation, Job, Orders, Watched};
use super::outbox::Outbox;
use super::outgoing;
use super::pace::Pace;
use super::parcel::Parcel;
use super::post::Post;
use super::programs::Programs;
use super::pulse::Pulse;
use super::settle::{self, Conclusion};
use super::slots::Slots;
use super::trail::{About, Phase, Tracer};
use super::{Ending, Holds, Worker};
use crate::config::Pool;
use crate::executor::{self, End, Environment, Outcome, Run, Spawners, Stop};
use crate::message::{Envelope, FailureKind, Status, TraceContext, WorkerInfo, header};
use crate::supervise::Shutdown;
use crate::transport::topology::Names;
use crate::transport::{Delivery, Publication, SettleError, Transport};
use telling::{Between, Running, account, waited};
use turn::PutOff;

pub(super) struct Pipeline<T> {
    pool: Arc<Pool>,
    names: Names,
    identity: WorkerInfo,
    spawners: Spawners,
    slots: Slots,
    pace: Pace,
    programs: Programs,
    post: Post<T>,
    ledger: Arc<Ledger>,
    holds: Holds,
    orders: Orders,
    in_hand: InHand,
    audience: Audience,
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
            pace: Pace::new(pool, worker.observer.clone()),
            programs: worker.circuits.programs.clone(),
            post: Post {
                outbox: Outbox {
                    transport: worker.transport.clone(),
                    pool: pool.name.clone(),
                    topology: worker.topology(pool),
                    declare: pool.declare,
                    circuit: worker.circuits.results.clone(),
                },
                spool: worker.spool.clone(),
                observer: worker.observer.clone(),
            },
            ledger: worker.ledgers.of(&pool.name),
            holds: worker.holds.clone(),
            orders: worker.orders.clone(),
            in_hand: worker.in_hand.clone(),
            audience: worker.audience.clone(),
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
        let entry = self.enter(&ticket, &admission);
        let admission = match (admission, job.cancellation()) {
            (Admission::Run(_) | Admission::Wait(_), Some(cancellation)) => {
                Admission::End(Status::Cancelled, refusal(cancellation))
            }
            (admission, _) => admission,
        };
        match admission {
            Admission::Run(plan) => self.run(held, ticket, *plan, InCare { job, entry }, stop).await,
            Admission::Wait(wait) => self.delay(held, &ticket, wait, stop).await,
            Admission::Recount => self.recount(held, &ticket, stop).await,
            Admission::End(status, refusal) => self.refuse(held, &ticket, status, refusal, stop).await,
        }
    }

    /// Has operators see the job.
    fn enter(&self, ticket: &Ticket, admission: &Admission) -> Entry {
        let known = Known::new(ticket.job_id.clone(), ticket.attempt.number, self.pool.name.clone());
        let program = match admission {
            Admission::Run(plan) => Some(plan.run.program.to_string_lossy()),
            _ => None,
        };
        let entry = self.in_hand.enter(known.of(program.as_deref(), &ticket.labels));
        if !matches!(admission, Admission::Run(_)) {
            entry.settle();
        }
        entry
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
            batch: envelope.properties.text_header(header::BATCH).map(str::to_owned),
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

    async fn run(&self, held: Held, ticket: Ticket, plan: Plan, care: InCare, stop: &Shutdown) {
        let InCare { job, entry } = &care;
        let command = self.programs.command(&self.pool, &plan.run, ticket.attempt.put_offs);
        if let Some(wait) = command.put_off() {
            return self.hold_back(held, &ticket, wait, stop).await; // and waits in no line
        }
        let turn = tokio::select! {
            biased; // its turn must not win over its end
            cancellation = job.cancelled() => {
                entry.settle();
                return self.refuse(held, &ticket, Status::Cancelled, refusal(cancellation), stop).await;
            }
            () = plan.expiry() => Ok(None), // which is seen below
            turn = self.turn(&ticket, &plan.run.program, stop) => turn.map(Some),
        };
        let turn = match turn {
            Err(PutOff::ForNow) => return self.hand_back_held(held, stop).await,
            Err(PutOff::ForAWhile) => return self.put_off(held, &ticket, stop).await,
            Ok(turn) => turn,
        };
        let now = Timestamp::now();
        if !held.is_live() {
            return held.was_not_started();
        }
        if let Err((status, refusal)) = plan.check(now).await {
            drop(turn);
            entry.settle();
            return self.refuse(held, &ticket, status, refusal, stop).await;
        }
        let mut trial = match command.enter() {
            Ok(trial) => trial,
            Err(wait) => {
                drop(turn);
                return self.hold_back(held, &ticket, wait, stop).await;
            }
        };
        let started = Started {
            now,
            ready_at: plan.ready_at,
        };
        entry.start(now, deadline(now, &plan.run));
        let mut hearing = self.hearing(&ticket, plan.is_live);
        let outcome = {
            let execution = pin!(self.execute(&ticket, plan.run, started, &mut hearing, job, stop));
            trial.over(execution).await
        };
        entry.settle();
        drop(turn);
        let cancellation = job.cancellation();
        if outcome.end == End::Cancelled && cancellation.is_none() {
            return self.cut(held, &ticket).await;
        }
        if let Some(wait) = trial.ended(&outcome) {
            return self.hold_back(held, &ticket, wait, stop).await;
        }
        let conclusion = settle::conclude(&ticket, &plan.retry, outcome, self.identity.clone());
        self.conclude(held, &ticket, conclusion.told(cancellation), &hearing, stop)
            .await;
    }

    /// Those who may listen to the job.
    fn hearing<'a>(&'a self, ticket: &'a Ticket, is_live: bool) -> Hearing<'a> {
        let about = Heard {
            pool: &self.pool.name,
            job_id: &ticket.job_id,
            attempt: ticket.attempt.number,
            observer: &self.observer,
        };
        self.audience.hearing(about, is_live)
    }

    async fn execute(
        &self,
        ticket: &Ticket,
        run: Run,
        started: Started,
        hearing: &mut Hearing<'_>,
        job: &Watched,
        stop: &Shutdown,
    ) -> Outcome {
        let Started { now, ready_at } = started;
        let mut running = Running::start(self, ticket, waited(ticket, ready_at, now));
        let run = self.with_facts(run, ticket, now);
        let stop = Stop {
            end: CancellationToken::new(),
            kill: stop.abort_token(),
        };
        let mut run = pin!(executor::execute_before(hearing, &self.spawners, run, stop.clone()));
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
        let deadline = deadline(now, &run);
        let facts = [
            ("SYNTHEX_JOB_ID", ticket.job_id.to_string()),
            ("SYNTHEX_ATTEMPT", ticket.attempt.number.to_string()),
            ("SYNTHEX_POOL", self.pool.name.to_string()),
            ("SYNTHEX_DEADLINE", deadline.to_string()),
        ];
        run.env.extend(facts);
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
        let hearing = self.hearing(ticket, false);
        self.conclude(held, ticket, conclusion, &hearing, stop).await;
    }

    /// Result, then what comes after it, then the ack.
    async fn conclude(
        &self,
        held: Held,
        ticket: &Ticket,
        conclusion: Conclusion,
        hearing: &Hearing<'_>,
        stop: &Shutdown,
    ) {
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
        hearing.tell_end(&conclusion.result);
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

    /// A job whose command cannot be started here for now: for another worker to try, or this one later.
    async fn hold_back(&self, held: Held, ticket: &Ticket, wait: Duration, stop: &Shutdown) {
        let at = Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX);
        let later = outgoing::held_back(&self.names, &self.pool.name, held.envelope(), ticket, at, wait);
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

/// How long a job that was cut waits for its consumer to be gone: less than its task has once all has to stop.
const LAST_COMES_WITHIN: Duration = Duration::from_secs(2);

/// A job in hand, as operators see it and as they may end it.
struct InCare {
    job: Watched,
    entry: Entry,
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
        env.extend([("TRACESTATE", state.unwrap_or_default())]);
    }
    env.extend([("TRACEPARENT", context.to_string())]);
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

/// The end of a run that begins now, if nothing else ends it.
fn deadline(now: Timestamp, run: &Run) -> Timestamp {
    now.checked_add(run.timeout).unwrap_or(Timestamp::MAX)
}
