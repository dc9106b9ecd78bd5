//! Who listens to this worker now, and to what: so that nothing is said while nobody does.
//!
//! Who wants to hear something asks for it, for [`LEASE`], and asks again before that is over; who is gone costs nothing
//! any more a moment later. Somebody else reads what is asked ([`Audience::watch`], [`Audience::follow`]); a run of a job
//! asks for those who follow it ([`Audience::hearing`]). A job need not run yet to be followed.
//!
//! Invariants:
//! - while nobody listens, a run reads one number at its start, and nothing when it reads its output;
//! - who follows a job is told once in each run of it what was written before, and misses nothing after that;
//! - at most [`LISTENERS_MAX`] listeners are known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::event::{Event, Kept, Listener, Observer, RunOf};
use crate::executor::{Ear, Listeners, SoFar};
use crate::message::{JobId, JobResult, Stream};

/// How long a worker goes on talking to one who says no more.
pub const LEASE: Duration = Duration::from_secs(30);
/// How long what a job wrote so far is kept in mind as asked for: a moment, as only who runs it now is to answer.
const GLANCE: Duration = Duration::from_secs(1);
/// Most listeners at a time.
const LISTENERS_MAX: usize = 1_000;

/// The listeners of a worker. A clone is another handle to the same ones.
#[derive(Clone, Default)]
pub struct Audience(Arc<Shared>);

#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    /// How many are in the book, to be read without its lock.
    count: AtomicUsize,
    /// Told when somebody comes.
    came: Notify,
    runs: AtomicU64,
    /// Nobody can listen.
    is_closed: bool,
}

#[derive(Default)]
struct Book {
    watched_until: Option<Instant>,
    followed: HashMap<JobId, Vec<Seat>>,
    seats: usize,
    last: u64,
}

/// One listener of a job.
struct Seat {
    number: u64,
    listener: Listener,
    until: Instant,
    stay: Stay,
}

/// What a listener wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// What was written so far.
    Glance,
    /// That, and what is written from then on.
    Follow,
}

/// There are too many listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{LISTENERS_MAX} others listen to jobs of this worker: it takes no more")]
pub struct Crowded;

impl Audience {
    /// Nobody can listen: a live job is as any other.
    #[must_use]
    pub fn nobody() -> Self {
        Self(Arc::new(Shared {
            is_closed: true,
            ..Shared::default()
        }))
    }

    /// Has what happens to jobs told for [`LEASE`].
    pub fn watch(&self) {
        self.book().watched_until = Some(Instant::now() + LEASE);
        self.recount();
    }

    /// Whether somebody wants to hear what happens to jobs.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.is_anybody() && self.book().watched_until.is_some_and(|until| until > Instant::now())
    }

    /// Has a listener hear a job: for [`LEASE`] from now, also one who is known.
    ///
    /// # Errors
    /// When there are too many.
    pub fn follow(&self, job: &JobId, listener: Listener, stay: Stay) -> Result<(), Crowded> {
        let now = Instant::now();
        let until = match stay {
            Stay::Glance => now + GLANCE,
            Stay::Follow => now + LEASE,
        };
        let mut book = self.book();
        book.forget(now);
        let is_full = book.seats >= LISTENERS_MAX;
        let number = book.last + 1;
        let seats = book.followed.entry(job.clone()).or_default();
        if let Some(known) = seats.iter_mut().find(|seat| seat.listener == listener) {
            known.until = until;
            return Ok(());
        }
        if is_full {
            book.forget(now); // the entry that was just made
            return Err(Crowded);
        }
        seats.push(Seat {
            number,
            listener,
            until,
            stay,
        });
        (book.last, book.seats) = (number, book.seats + 1);
        drop(book);
        self.recount();
        self.0.came.notify_waiters();
        Ok(())
    }

    /// Whether somebody follows a job.
    #[must_use]
    pub fn follows(&self, job: &JobId) -> bool {
        self.is_anybody() && self.book().is_followed(job, Instant::now())
    }

    /// Forgets who is gone; for now and then, so that nobody is asked for in vain.
    pub fn tidy(&self) {
        self.book().forget(Instant::now());
        self.recount();
    }

    /// Those who may listen to a run that begins now; `is_live` has it heard whoever listens.
    pub(super) fn hearing<'a>(&'a self, about: Heard<'a>, is_live: bool) -> Hearing<'a> {
        Hearing {
            audience: self,
            about,
            number: self.0.runs.fetch_add(1, Ordering::Relaxed),
            is_live: is_live && !self.0.is_closed,
            told: Vec::new(),
            ear: None,
        }
    }

    fn is_anybody(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    fn recount(&self) {
        let book = self.book();
        let count = book.seats + usize::from(book.watched_until.is_some());
        self.0.count.store(count, Ordering::Relaxed);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic under the lock is a bug, but what was in the book is still the best there is.
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn forget(&mut self, now: Instant) {
        self.watched_until = self.watched_until.filter(|until| *until > now);
        for seats in self.followed.values_mut() {
            seats.retain(|seat| seat.until > now);
        }
        self.followed.retain(|_, seats| !seats.is_empty());
        self.seats = self.followed.values().map(Vec::len).sum();
    }

    fn seats(&self, job: &JobId, now: Instant) -> impl Iterator<Item = &Seat> {
        let seats = self.followed.get(job).into_iter().flatten();
        seats.filter(move |seat| seat.until > now)
    }

    fn is_followed(&self, job: &JobId, now: Instant) -> bool {
        self.seats(job, now).any(|seat| seat.stay == Stay::Follow)
    }
}

/// What is heard.
#[derive(Clone, Copy)]
pub(super) struct Heard<'a> {
    pub(super) pool: &'a Arc<str>,
    pub(super) job_id: &'a JobId,
    pub(super) attempt: u32,
    pub(super) observer: &'a Arc<dyn Observer>,
}

/// The listeners of one run. It copies nothing before somebody comes.
pub(super) struct Hearing<'a> {
    audience: &'a Audience,
    about: Heard<'a>,
    /// Of the run, as no other of this worker has it.
    number: u64,
    is_live: bool,
    /// Who was told what was written before, by number.
    told: Vec<u64>,
    /// Made for the first who stays.
    ear: Option<Arc<RunEar>>,
}

impl Hearing<'_> {
    fn run(&self) -> RunOf {
        let Heard {
            pool, job_id, attempt, ..
        } = self.about;
        RunOf {
            number: self.number,
            pool: pool.clone(),
            job_id: job_id.clone(),
            attempt,
        }
    }

    fn tell(&self, event: &Event) {
        self.about.observer.on(event);
    }

    fn is_followed(&self) -> bool {
        self.is_live || self.audience.follows(self.about.job_id)
    }

    /// Tells those who listened, or wait for the job, how the attempt ended.
    pub(super) fn tell_end(&self, result: &JobResult) {
        if self.ear.is_some() || self.is_followed() {
            self.tell(&Event::OutputEnded {
                run: self.run(),
                status: result.status,
                is_final: result.is_final,
                stdout_bytes: result.stdout.bytes,
                stderr_bytes: result.stderr.bytes,
            });
        }
    }

    fn newcomers(&self) -> Vec<(u64, Listener)> {
        if !self.audience.is_anybody() {
            return Vec::new();
        }
        let (book, now) = (self.audience.book(), Instant::now());
        let seats = book.seats(self.about.job_id, now);
        let untold = seats.filter(|seat| !self.told.contains(&seat.number));
        untold.map(|seat| (seat.number, seat.listener.clone())).collect()
    }

    /// Who is to hear what comes, if anybody is.
    fn ear(&mut self) -> Option<Arc<dyn Ear>> {
        if !self.is_followed() {
            return None;
        }
        if self.ear.is_none() {
            self.ear = Some(Arc::new(RunEar {
                audience: self.audience.clone(),
                run: self.run(),
                is_live: self.is_live,
                observer: self.about.observer.clone(),
            }));
        }
        self.ear.clone().map(|ear| ear as Arc<dyn Ear>)
    }
}

impl Listeners for Hearing<'_> {
    fn are_there(&self) -> bool {
        self.is_live || self.audience.is_anybody()
    }

    async fn come(&mut self) {
        loop {
            // Made before the look, it is told of all who come after it.
            let came = self.audience.0.came.notified();
            if !self.newcomers().is_empty() {
                return;
            }
            came.await;
        }
    }

    fn begin(&mut self, so_far: [SoFar<'_>; 2]) -> Option<Arc<dyn Ear>> {
        let (numbers, listeners): (Vec<_>, Vec<_>) = self.newcomers().into_iter().unzip();
        self.told.extend(numbers);
        if !listeners.is_empty() {
            let [stdout, stderr] = so_far;
            let kept = [pieces(Stream::Stdout, stdout), pieces(Stream::Stderr, stderr)].concat();
            self.tell(&Event::OutputKept {
                run: self.run(),
                kept: kept.into(),
                listeners: listeners.into(),
            });
        }
        self.ear()
    }
}

/// What is kept of a stream, as one piece if nothing is missing.
fn pieces(stream: Stream, so_far: SoFar<'_>) -> Vec<Kept> {
    let SoFar { head, tail, total } = so_far;
    let tail = tail.concat();
    let len = |bytes: &[u8]| bytes.len() as u64;
    let gap = total - len(head) - len(&tail);
    let piece = |offset, dropped, bytes: Vec<u8>| Kept {
        stream,
        offset,
        dropped,
        bytes: bytes.into(),
    };
    match (total, gap) {
        (0, _) => Vec::new(),
        (_, 0) => vec![piece(0, 0, [head, &tail].concat())],
        _ if head.is_empty() => vec![piece(gap, gap, tail)],
        _ => {
            let after = len(head) + gap;
            vec![piece(0, 0, head.to_vec()), piece(after, gap, tail)]
        }
    }
}

/// Tells what it hears as events. It is dropped with its run.
struct RunEar {
    audience: Audience,
    run: RunOf,
    is_live: bool,
    observer: Arc<dyn Observer>,
}

impl Ear for RunEar {
    fn hear(&self, stream: Stream, offset: u64, bytes: &[u8]) -> bool {
        let is_heard = self.is_live || self.audience.follows(&self.run.job_id);
        if is_heard && !bytes.is_empty() {
            self.observer.on(&Event::OutputHeard {
                run: self.run.clone(),
                stream,
                offset,
                bytes: Bytes::copy_from_slice(bytes),
            });
        }
        is_heard
    }
}

impl Drop for RunEar {
    fn drop(&mut self) {
        self.observer.on(&Event::OutputClosed { run: self.run.number });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Keeps what it is told.
    #[derive(Default)]
    struct Told(Mutex<Vec<Event>>);

    impl Observer for Told {
        fn on(&self, event: &Event) {
            self.0.lock().unwrap().push(event.clone());
        }
    }

    impl Told {
        /// A word for each event: who was told what, and what was heard.
        fn words(&self) -> Vec<String> {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let word = |event: &Event| match event {
                Event::OutputKept { kept, listeners, .. } => {
                    let to: Vec<_> = listeners.iter().map(|to| to.reply_to.as_str()).collect();
                    let kept: Vec<_> = kept
                        .iter()
                        .map(|kept| format!("{}@{}", text(&kept.bytes), kept.offset))
                        .collect();
                    format!("{}: {}", to.join(" "), kept.join(" "))
                }
                Event::OutputHeard { offset, bytes, .. } => format!("{}@{offset}", text(bytes)),
                Event::OutputClosed { .. } => "closed".to_owned(),
                other => panic!("{other:?}"),
            };
            std::mem::take(&mut *self.0.lock().unwrap()).iter().map(word).collect()
        }
    }

    fn job() -> JobId {
        "j".parse().unwrap()
    }

    fn listener(name: &str) -> Listener {
        Listener {
            reply_to: name.to_owned(),
            correlation_id: None,
        }
    }

    /// What a run of the job tells, and to whom.
    struct Stage {
        told: Arc<Told>,
        observer: Arc<dyn Observer>,
        pool: Arc<str>,
        job: JobId,
    }

    impl Stage {
        fn new() -> Self {
            let told = Arc::new(Told::default());
            Self {
                observer: told.clone(),
                told,
                pool: "p".into(),
                job: job(),
            }
        }

        fn hearing<'a>(&'a self, audience: &'a Audience, is_live: bool) -> Hearing<'a> {
            let about = Heard {
                pool: &self.pool,
                job_id: &self.job,
                attempt: 1,
                observer: &self.observer,
            };
            audience.hearing(about, is_live)
        }
    }

    const NOTHING: [SoFar<'_>; 2] = [SoFar {
        head: b"",
        tail: [b"", b""],
        total: 0,
    }; 2];

    /// The stream "abcdefg" of which two bytes are missing, on stdout.
    const SOMETHING: [SoFar<'_>; 2] = [
        SoFar {
            head: b"ab",
            tail: [b"e", b"fg"],
            total: 7,
        },
        NOTHING[1],
    ];

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_for_while_nobody_listens() {
        let audience = Audience::default();
        let stage = Stage::new();
        let mut hearing = stage.hearing(&audience, false);
        assert!(!hearing.are_there() && !audience.is_watching());
        assert!(hearing.come().now_or_never().is_none());
        assert!(hearing.begin(NOTHING).is_none());
        drop(hearing);
        assert!(stage.told.words().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_in_the_middle_is_told_once_and_hears_what_follows_until_his_time_is_over() {
        let audience = Audience::default();
        let stage = Stage::new();
        let mut hearing = stage.hearing(&audience, false);
        audience
            .follow(&"other".parse().unwrap(), listener("x"), Stay::Follow)
            .unwrap();
        assert!(hearing.come().now_or_never().is_none(), "he is here for another job");

        {
            let mut come = std::pin::pin!(hearing.come());
            assert!(come.as_mut().now_or_never().is_none());
            audience.follow(&job(), listener("a"), Stay::Follow).unwrap();
            assert!(come.now_or_never().is_some(), "told while it waits");
        }
        let ear = hearing.begin(SOMETHING).expect("he stays");
        assert!(ear.hear(Stream::Stdout, 7, b"h"));
        audience.follow(&job(), listener("a"), Stay::Follow).unwrap();
        assert!(hearing.come().now_or_never().is_none(), "he only asks for more time");
        audience.follow(&job(), listener("b"), Stay::Glance).unwrap();
        assert!(hearing.come().now_or_never().is_some());
        assert!(hearing.begin(NOTHING).is_some(), "the first is still there");
        assert_eq!(stage.told.words(), ["a: ab@0 efg@4", "h@7", "b: "]);

        tokio::time::advance(LEASE).await;
        assert!(!ear.hear(Stream::Stdout, 8, b"i"));
        audience.tidy();
        assert!(!audience.is_anybody());
        drop((hearing, ear));
        assert_eq!(stage.told.words(), ["closed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_a_job_before_it_starts_is_told_in_each_run_of_it() {
        let audience = Audience::default();
        audience.follow(&job(), listener("a"), Stay::Follow).unwrap();
        for _ in 0..2 {
            let stage = Stage::new();
            let mut hearing = stage.hearing(&audience, false);
            assert!(hearing.are_there());
            assert!(hearing.begin(NOTHING).is_some());
            assert_eq!(stage.told.words(), ["a: "]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_job_is_heard_whoever_listens() {
        let audience = Audience::default();
        let stage = Stage::new();
        let mut hearing = stage.hearing(&audience, true);
        assert!(hearing.are_there());
        let ear = hearing.begin(NOTHING).expect("it is live");
        assert!(ear.hear(Stream::Stderr, 0, b"x"));
        assert_eq!(stage.told.words(), ["x@0"]);
    }

    #[tokio::test]
    async fn where_nobody_can_listen_a_live_job_is_as_any_other() {
        let (audience, stage) = (Audience::nobody(), Stage::new());
        assert!(!stage.hearing(&audience, true).are_there());
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_than_there_is_room_for_is_refused_until_another_is_gone() {
        let audience = Audience::default();
        for number in 0..LISTENERS_MAX {
            audience
                .follow(&JobId::random(), listener(&number.to_string()), Stay::Follow)
                .unwrap();
        }
        assert_eq!(audience.follow(&job(), listener("a"), Stay::Follow), Err(Crowded));
        tokio::time::advance(LEASE).await;
        assert_eq!(audience.follow(&job(), listener("a"), Stay::Follow), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_over_after_its_time() {
        let audience = Audience::default();
        audience.watch();
        assert!(audience.is_watching());
        tokio::time::advance(LEASE).await;
        assert!(!audience.is_watching());
    }
}
