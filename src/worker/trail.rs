//! An attempt's way through the worker, written down for who follows traces.
//!
//! There are no spans that live in the pipeline. Where a [`Tracer`] is there and the job's trace is sampled, the job's task
//! notes when each [`Phase`] began and ended; when it lets go of the job, the whole [`Trail`] goes into a bounded channel,
//! to be made into spans elsewhere. A full channel loses the trail, which is counted, and holds nobody up. Without a tracer
//! nothing is noted and no clock is read.
//!
//! A trail holds ids, times and words for ends: no command, no environment, no output.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::event::{Event, Observer};
use crate::executor::{End, Outcome};
use crate::flow::channel::Sender;
use crate::message::{JobId, JobResult, Properties, SpanId, Status, TraceContext, TraceId};

/// What an attempt was busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From its delivery until it was decided what becomes of it.
    Receive,
    /// Until it had a slot.
    Wait,
    /// Until its command ran, or could not.
    Spawn,
    /// Until the last process of its command was gone.
    Run,
    /// A part of that: from the first signal that was sent to end it.
    Kill,
    /// Until what it sends at its end was confirmed.
    Publish,
    /// Until its ack was written.
    Ack,
}

/// An attempt's way, from its delivery to its ack or wherever it ended.
#[derive(Debug)]
pub struct Trail {
    /// What caused the attempt: the producer's span, or an earlier attempt; `None` where the trace begins with this one.
    pub parent: Option<SpanId>,
    /// The attempt itself, in its trace.
    pub context: TraceContext,
    /// The pool.
    pub pool: Arc<str>,
    /// The job.
    pub job_id: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// When it was delivered.
    pub began: Timestamp,
    /// When its worker was done with it.
    pub ended: Timestamp,
    /// When it was busy with what: each at most once.
    pub phases: Vec<(Phase, Timestamp, Timestamp)>,
    /// How it ended; `None` for one that went on elsewhere.
    pub ending: Option<AttemptEnd>,
}

/// How an attempt ended, without a word that was the job's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    /// The status in its result.
    pub status: Status,
    /// Whether it was the job's last attempt.
    pub is_final: bool,
    /// The exit code, where the command ended with one.
    pub exit_code: Option<i32>,
}

impl Trail {
    /// The span of a phase.
    #[must_use]
    pub fn span(&self, phase: Phase) -> SpanId {
        self.context.span_id.after(1 + phase as u8)
    }

    /// How many spans it makes.
    #[must_use]
    pub fn spans(&self) -> usize {
        1 + self.phases.len()
    }
}

/// Has attempts written down. Clones write to the same place.
#[derive(Clone)]
pub struct Tracer {
    trails: Sender<Trail>,
    /// Of traces that begin here, the share that is written down.
    ratio: f64,
    observer: Arc<dyn Observer>,
}

impl Tracer {
    /// Makes a tracer that puts trails into a channel and tells of those it has to drop. Of the jobs that bring no trace
    /// with them, `ratio` (0 to 1) are followed; of the others, those that their producer follows.
    #[must_use]
    pub fn new(trails: Sender<Trail>, ratio: f64, observer: Arc<dyn Observer>) -> Self {
        Self {
            trails,
            ratio,
            observer,
        }
    }

    fn take(&self, trail: Trail) {
        if let Err(refused) = self.trails.try_send(trail) {
            let count = refused.into_inner().spans();
            self.observer.on(&Event::SpansDropped { count });
        }
    }
}

/// A job's trace, as far as this attempt is concerned. Whatever is noted of it, is when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// What the job's message says, or what began here.
    context: Option<TraceContext>,
    writing: Option<Box<Writing>>,
}

/// A trail that is being written.
struct Writing {
    tracer: Tracer,
    trail: Mutex<Option<Trail>>,
}

/// What a trail is about.
pub(super) struct About<'a> {
    pub(super) pool: &'a Arc<str>,
    pub(super) job_id: &'a JobId,
    pub(super) attempt: u32,
    /// When it was delivered.
    pub(super) began: Timestamp,
}

impl Trace {
    /// What a job's message says.
    pub(super) fn read(properties: &Properties) -> Self {
        Self {
            context: TraceContext::read(properties),
            writing: None,
        }
    }

    /// Begins to write down, if this job is one of those to follow.
    pub(super) fn follow(&mut self, tracer: &Tracer, about: &About<'_>) {
        let own = SpanId::random();
        let parent = self.context.as_ref().map(|context| context.span_id);
        let context = match &self.context {
            Some(context) => context.at(own),
            None => {
                let trace_id = TraceId::random();
                // What comes after this attempt is a part of it, sampled or not.
                let begun = TraceContext::begin(trace_id, own, trace_id.is_within(tracer.ratio));
                self.context.insert(begun).clone()
            }
        };
        if !context.is_sampled() {
            return;
        }
        let trail = Trail {
            parent,
            context,
            pool: about.pool.clone(),
            job_id: about.job_id.clone(),
            attempt: about.attempt,
            began: about.began,
            ended: about.began,
            phases: Vec::with_capacity(8),
            ending: None,
        };
        self.writing = Some(Box::new(Writing {
            tracer: tracer.clone(),
            trail: Mutex::new(Some(trail)),
        }));
        self.note(Phase::Receive, about.began, Timestamp::now());
    }

    /// Its number, for the log.
    pub(super) fn id(&self) -> Option<TraceId> {
        self.context.as_ref().map(|context| context.trace_id)
    }

    /// What a command is told: that it is a part of its run, if that is written down.
    pub(super) fn of_command(&self) -> Option<TraceContext> {
        self.at_phase(Phase::Run)
    }

    /// What is told with a result: that it comes from its publishing.
    pub(super) fn of_result(&self) -> Option<TraceContext> {
        self.at_phase(Phase::Publish)
    }

    /// What goes on with the job: its attempts are all parts of what caused the first.
    pub(super) fn of_job(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    fn at_phase(&self, phase: Phase) -> Option<TraceContext> {
        let context = self.context.as_ref()?;
        let span = self.with(|trail| trail.span(phase));
        Some(span.map_or_else(|| context.clone(), |span| context.at(span)))
    }

    /// Notes a phase that begins now and ends when what is returned is dropped.
    pub(super) fn phase(&self, phase: Phase) -> Busy<'_> {
        let began = self.writing.is_some().then(Timestamp::now);
        Busy {
            trace: self,
            phase,
            began,
        }
    }

    /// Notes what became of a command that was to start at this time.
    pub(super) fn ran(&self, outcome: &Outcome, at: Timestamp) {
        if self.writing.is_none() {
            return;
        }
        let began = outcome.started_at.unwrap_or(at);
        let runs = later(began, outcome.spawn_time);
        self.note(Phase::Spawn, began, runs);
        if outcome.started_at.is_none() || matches!(outcome.end, End::NotStarted(_)) {
            return;
        }
        let signalled = later(runs, outcome.run_time);
        let gone = later(signalled, outcome.kill_time.unwrap_or_default());
        self.note(Phase::Run, runs, gone);
        if outcome.kill_time.is_some() {
            self.note(Phase::Kill, signalled, gone);
        }
    }

    /// Notes how the attempt ended.
    pub(super) fn ended(&self, result: &JobResult) {
        self.with(|trail| {
            trail.ending = Some(AttemptEnd {
                status: result.status,
                is_final: result.is_final,
                exit_code: result.exit_code,
            });
        });
    }

    fn note(&self, phase: Phase, began: Timestamp, ended: Timestamp) {
        // The clock of the wall may be set back meanwhile.
        self.with(|trail| trail.phases.push((phase, began, ended.max(began))));
    }

    fn with<R>(&self, act: impl FnOnce(&mut Trail) -> R) -> Option<R> {
        let writing = self.writing.as_ref()?;
        let mut trail = writing.trail.lock().unwrap_or_else(PoisonError::into_inner);
        trail.as_mut().map(act)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let trail = self.trail.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut trail) = trail.take() {
            trail.ended = Timestamp::now().max(trail.began);
            self.tracer.take(trail);
        }
    }
}

impl fmt::Debug for Writing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Writing")
            .field("trail", &self.trail)
            .finish_non_exhaustive()
    }
}

/// A phase that is going on.
#[must_use = "the phase ends when this is dropped"]
pub(super) struct Busy<'a> {
    trace: &'a Trace,
    phase: Phase,
    /// `None` when nobody wants to know.
    began: Option<Timestamp>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(began) = self.began {
            self.trace.note(self.phase, began, Timestamp::now());
        }
    }
}

fn later(at: Timestamp, by: std::time::Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::flow::channel::{Channels, Receiver};
    use crate::message::{LimitsApplied, Output};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Counts spans that were dropped.
    #[derive(Default)]
    struct Dropped(Mutex<usize>);

    impl Observer for Dropped {
        fn on(&self, event: &Event) {
            if let Event::SpansDropped { count } = event {
                *self.0.lock().unwrap() += count;
            }
        }
    }

    fn tracer(ratio: f64) -> (Tracer, Receiver<Trail>, Arc<Dropped>) {
        let (sender, receiver) = Channels::default().bounded("spans", 2);
        let dropped = Arc::new(Dropped::default());
        (Tracer::new(sender, ratio, dropped.clone()), receiver, dropped)
    }

    fn of(parent: Option<&str>) -> Trace {
        let mut properties = Properties::default();
        let headers = parent.map(|parent| ("traceparent".to_owned(), parent.into()));
        properties.headers.extend(headers);
        Trace::read(&properties)
    }

    fn follow(trace: &mut Trace, tracer: &Tracer) {
        let about = About {
            pool: &"p".into(),
            job_id: &"j".parse().unwrap(),
            attempt: 2,
            began: Timestamp::UNIX_EPOCH,
        };
        trace.follow(tracer, &about);
    }

    fn outcome() -> Outcome {
        Outcome {
            end: End::Exited(0),
            stdout: Output::empty(),
            stderr: Output::empty(),
            started_at: Some("2030-01-01T00:00:00Z".parse().unwrap()),
            finished_at: Timestamp::UNIX_EPOCH,
            duration: Duration::from_secs(3),
            spawn_time: Duration::from_secs(1),
            run_time: Duration::from_secs(2),
            kill_time: Some(Duration::from_secs(4)),
            ended_by: None,
            usage: None,
            limits_applied: LimitsApplied::default(),
        }
    }

    #[test]
    fn an_attempt_is_a_part_of_what_caused_it_and_its_phases_are_parts_of_it() {
        let (tracer, mut trails, _) = tracer(0.0);
        let mut trace = of(Some(PARENT));
        follow(&mut trace, &tracer);
        let (command, result) = (trace.of_command().unwrap(), trace.of_result().unwrap());
        trace.ran(&outcome(), Timestamp::UNIX_EPOCH);
        drop(trace.phase(Phase::Publish));
        assert_eq!(
            trace.of_job().unwrap().to_string(),
            PARENT,
            "every attempt has the same parent"
        );
        drop(trace);

        let trail = trails.try_recv().unwrap();
        assert_eq!(trail.context.trace_id.to_string(), PARENT[3..35]);
        assert_eq!(trail.parent, Some(TraceContext::parse(PARENT, None).unwrap().span_id));
        assert_eq!(command, trail.context.at(trail.span(Phase::Run)));
        assert_eq!(result, trail.context.at(trail.span(Phase::Publish)));
        let phases: Vec<Phase> = trail.phases.iter().map(|(phase, ..)| *phase).collect();
        assert_eq!(
            phases,
            [Phase::Receive, Phase::Spawn, Phase::Run, Phase::Kill, Phase::Publish]
        );
        let lasted = |at: usize| trail.phases[at].2.duration_since(trail.phases[at].1).as_secs();
        assert_eq!(
            (lasted(1), lasted(2), lasted(3)),
            (1, 6, 4),
            "what is killed still runs"
        );
        assert!(trail.ended > trail.began);
        assert_eq!(trail.spans(), 6);
    }

    #[test]
    fn a_command_that_did_not_start_did_not_run() {
        let (tracer, mut trails, _) = tracer(1.0);
        let mut trace = of(None);
        follow(&mut trace, &tracer);
        let outcome = Outcome {
            started_at: None,
            ..outcome()
        };
        trace.ran(&outcome, Timestamp::UNIX_EPOCH);
        drop(trace);
        let trail = trails.try_recv().unwrap();
        assert_eq!(trail.phases.len(), 2);
        assert_eq!(trail.phases[1].0, Phase::Spawn);
    }

    #[test]
    fn what_is_not_followed_is_passed_on_as_it_came_and_leaves_nothing() {
        let (tracer, mut trails, _) = tracer(1.0);
        let unsampled = PARENT.replace("-01", "-00");
        for (parent, followed) in [(PARENT, false), (unsampled.as_str(), true)] {
            let mut trace = of(Some(parent));
            if followed {
                follow(&mut trace, &tracer);
            }
            drop(trace.phase(Phase::Wait));
            trace.ran(&outcome(), Timestamp::UNIX_EPOCH);
            for passed_on in [trace.of_command(), trace.of_result(), trace.of_job().cloned()] {
                assert_eq!(passed_on.unwrap().to_string(), parent);
            }
        }
        assert_eq!(of(Some("nonsense")).of_command(), None);
        assert!(trails.try_recv().is_err());
    }

    #[test]
    fn a_job_without_a_trace_begins_one_that_its_retries_go_on_with() {
        let (recorded, mut trails, _) = tracer(1.0);
        let mut trace = of(None);
        follow(&mut trace, &recorded);
        let kept = trace.of_job().unwrap().clone();
        drop(trace);
        let first = trails.try_recv().unwrap();
        assert_eq!((first.parent, &first.context), (None, &kept));
        let mut again = of(Some(&kept.to_string()));
        follow(&mut again, &recorded);
        drop(again);
        let second = trails.try_recv().unwrap();
        assert_eq!(second.context.trace_id, kept.trace_id);
        assert_eq!(second.parent, Some(kept.span_id));

        let (unrecorded, mut trails, _) = tracer(0.0);
        let mut trace = of(None);
        follow(&mut trace, &unrecorded);
        assert!(
            !trace.of_command().unwrap().is_sampled(),
            "what it starts need not ask again"
        );
        drop(trace);
        assert!(trails.try_recv().is_err());
    }

    #[test]
    fn trails_that_nobody_takes_are_dropped_and_counted() {
        let (tracer, trails, dropped) = tracer(1.0);
        let leave = || follow(&mut of(None), &tracer);
        (0..3).for_each(|_| leave());
        assert_eq!(*dropped.0.lock().unwrap(), 2, "an attempt and its phase");
        drop(trails);
        leave();
        assert_eq!(*dropped.0.lock().unwrap(), 4);
    }
}
