//! Tasks with a name and an owner: the one file that spawns.
//!
//! A [`TaskGroup`] owns its tasks. It hears of every end, contains panics, and takes its tasks with
//! it when it is dropped: they end at their next `.await`, as an abort has it. [`TaskAccounts`]
//! counts spawns and ends by name, and measures how tasks are polled.
//!
//! It restarts nothing and logs only what ends badly while [`TaskGroup::stop`] runs, because nobody
//! else sees that.

use std::{any::Any, collections::HashMap, error::Error, panic::resume_unwind, time::Duration};

pub use tokio::task::Id as TaskId;
use tokio::{
    runtime::Runtime,
    task::{JoinError, JoinSet},
    time::timeout,
};

use super::TaskAccounts;

/// How long [`TaskGroup::stop`] waits for tasks it has aborted. A task that reaches an `.await` is
/// gone at once; one that blocks its thread cannot be aborted, and waiting for it could take for
/// ever.
const JOIN_GRACE: Duration = Duration::from_secs(1);

/// Why a task failed.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// Owns running tasks. Dropping it aborts them all.
pub struct TaskGroup {
    set: JoinSet<Result<(), TaskError>>,
    labels: HashMap<TaskId, Label>,
    accounts: TaskAccounts,
}

/// Says which task ended, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEnd {
    /// What [`TaskGroup::spawn`] gave for it.
    pub id: TaskId,
    /// The name it was spawned with.
    pub name: &'static str,
    /// The detail it was spawned with.
    pub detail: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The error with its causes, or the text of the panic.
    pub error: Option<String>,
}

/// Says how a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It returned `Ok`.
    Completed,
    /// It returned an error.
    Failed,
    /// It panicked.
    Panicked,
    /// It was aborted before it returned.
    Cancelled,
}

impl TaskGroup {
    /// Makes a group without tasks that counts in `accounts`.
    pub fn new(accounts: TaskAccounts) -> Self {
        Self {
            set: JoinSet::new(),
            labels: HashMap::new(),
            accounts,
        }
    }

    /// Spawns a task. `name` is its kind, counted; `detail` tells it from others of its kind, and
    /// may be empty.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that spawns: the group owns what it spawns"
    )]
    pub fn spawn(
        &mut self,
        name: &'static str,
        detail: String,
        future: impl Future<Output = Result<(), TaskError>> + Send + 'static,
    ) -> TaskId {
        // Boxed, as it is moved a few times until it runs, and a job's is kilobytes.
        let (counted, monitor) = self.accounts.count(name, Box::pin(future));
        let id = match monitor {
            Some(monitor) => self.set.spawn(monitor.instrument(counted)).id(),
            None => self.set.spawn(counted).id(),
        };
        self.labels.insert(id, Label { name, detail });
        id
    }

    /// Waits until a task ends, and says which and how. Gives `None` at once when the group has no
    /// task, so a `select!` that should wait then needs the guard `if !group.is_empty()`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is ready, no end was taken.
    pub async fn next_end(&mut self) -> Option<TaskEnd> {
        let joined = self.set.join_next_with_id().await?;
        Some(self.end_of(joined))
    }

    /// Gives the number of tasks whose end was not taken yet.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Says whether there is no task whose end was not taken yet.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Names the tasks whose end was not taken yet, as `name` or `name (detail)`, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.labels.values().map(Label::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Waits up to `grace` for all tasks to end, then aborts and joins the rest. Returns the names
    /// of those that had to be aborted.
    ///
    /// A task that blocks its thread cannot be aborted: it is named, and stays in the group.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe in that no task is lost: dropped before it is ready, the group holds what has
    /// not ended. What had ended by then is not reported again.
    pub async fn stop(&mut self, grace: Duration) -> Vec<String> {
        let mut left = self.join_within(grace).await;
        self.set.abort_all();
        left.extend(self.join_within(JOIN_GRACE).await);
        left.extend(self.names());
        left.sort_unstable();
        left
    }

    /// Takes ends for `grace` or until no task is there, and names the tasks that were cancelled.
    async fn join_within(&mut self, grace: Duration) -> Vec<String> {
        let mut cancelled = Vec::new();
        let joined = async {
            while let Some(end) = self.next_end().await {
                match end.outcome {
                    Outcome::Completed => {}
                    Outcome::Cancelled => cancelled.push(label(end.name, &end.detail)),
                    Outcome::Failed | Outcome::Panicked => log_fault(&end),
                }
            }
        };
        // Who is late is still in the group: the caller's to deal with.
        let _ = timeout(grace, joined).await;
        cancelled
    }

    fn end_of(&mut self, joined: Result<(TaskId, Result<(), TaskError>), JoinError>) -> TaskEnd {
        let (id, outcome, error) = match joined {
            Ok((id, Ok(()))) => (id, Outcome::Completed, None),
            Ok((id, Err(error))) => (id, Outcome::Failed, Some(with_causes(&*error))),
            Err(error) => {
                let id = error.id();
                match error.try_into_panic() {
                    Ok(payload) => (id, Outcome::Panicked, Some(panic_text(&*payload))),
                    Err(_cancelled) => (id, Outcome::Cancelled, None),
                }
            }
        };
        let Label { name, detail } = self
            .labels
            .remove(&id)
            .expect("each task is labelled when it is spawned");
        TaskEnd {
            id,
            name,
            detail,
            outcome,
            error,
        }
    }
}

/// Runs the program's one root future on a thread of the runtime, and gives what it gives. A panic of it is one here.
pub async fn on_the_runtime<F>(runtime: &Runtime, root: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match runtime.spawn(root).await {
        Ok(output) => output,
        Err(error) => resume_unwind(error.into_panic()), // nobody aborts it
    }
}

impl Outcome {
    /// Every outcome, in the order of [`TaskStats::ended`](super::TaskStats::ended).
    pub const ALL: [Self; 4] = [Self::Completed, Self::Failed, Self::Panicked, Self::Cancelled];

    /// Gives the word for it in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::Cancelled => "cancelled",
        }
    }
}

struct Label {
    name: &'static str,
    detail: String,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&label(self.name, &self.detail))
    }
}

fn label(name: &str, detail: &str) -> String {
    if detail.is_empty() {
        name.to_owned()
    } else {
        format!("{name} ({detail})")
    }
}

fn log_fault(end: &TaskEnd) {
    let error = end.error.as_deref().unwrap_or_default();
    tracing::error!(
        task = end.name,
        detail = end.detail,
        outcome = end.outcome.as_str(),
        error,
        "task failed while it was stopped"
    );
}

/// Writes an error with its causes: `publish: channel closed`.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Gives the message of a panic, which is text unless somebody panicked with a value of their own.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("(no text)"))
}

#[cfg(test)]
mod tests {
    use std::{future::pending, io, panic::panic_any};

    use tokio::{
        sync::oneshot,
        time::{Instant, sleep},
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn group() -> (TaskGroup, TaskAccounts) {
        let accounts = TaskAccounts::default();
        (TaskGroup::new(accounts.clone()), accounts)
    }

    fn counts(accounts: &TaskAccounts) -> (u64, [u64; 4]) {
        let all = accounts.snapshot();
        assert_eq!(all.len(), 1, "one name: {all:?}");
        (all[0].spawned, all[0].ended.map(|(_, count)| count))
    }

    #[derive(Debug, thiserror::Error)]
    #[error("publish to results")]
    struct Outer(#[source] io::Error);

    async fn end_of(future: impl Future<Output = Result<(), TaskError>> + Send + 'static) -> (TaskEnd, [u64; 4]) {
        let (mut group, accounts) = group();
        let id = group.spawn("job", "17".into(), future);
        let end = group.next_end().await.expect("a task");
        assert_eq!((end.id, end.name, end.detail.as_str()), (id, "job", "17"));
        assert_eq!(group.next_end().await, None, "an end is told once");
        (end, counts(&accounts).1)
    }

    #[tokio::test]
    async fn tells_of_a_task_that_completed() {
        let (end, ended) = end_of(async { Ok(()) }).await;
        assert_eq!((end.outcome, end.error), (Outcome::Completed, None));
        assert_eq!(ended, [1, 0, 0, 0]);
    }

    #[tokio::test]
    async fn tells_of_a_task_that_failed_with_the_causes() {
        let (end, ended) = end_of(async { Err(Outer(io::Error::other("gone")).into()) }).await;
        assert_eq!(end.outcome, Outcome::Failed);
        assert_eq!(end.error.as_deref(), Some("publish to results: gone"));
        assert_eq!(ended, [0, 1, 0, 0]);
    }

    #[tokio::test]
    async fn contains_a_panic_and_tells_its_text() {
        let (end, ended) = end_of(async { panic!("slot {}", 3) }).await;
        assert_eq!(
            (end.outcome, end.error.as_deref()),
            (Outcome::Panicked, Some("panicked: slot 3"))
        );
        assert_eq!(ended, [0, 0, 1, 0]);

        let (end, _) = end_of(async { panic!("plain") }).await;
        assert_eq!(end.error.as_deref(), Some("panicked: plain"));
        let (end, _) = end_of(async { panic_any(3) }).await;
        assert_eq!(end.error.as_deref(), Some("panicked: (no text)"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_leaves_the_other_tasks_alone() {
        let (mut group, _) = group();
        group.spawn("bad", String::new(), async { panic!("bad") });
        group.spawn("good", String::new(), async {
            sleep(SECOND).await;
            Ok(())
        });
        let outcomes = [group.next_end().await, group.next_end().await].map(|end| end.expect("a task").outcome);
        assert_eq!(outcomes, [Outcome::Panicked, Outcome::Completed]);
    }

    #[tokio::test(start_paused = true)]
    async fn next_end_loses_no_end_when_it_is_dropped() {
        let (mut group, _) = group();
        group.spawn("late", String::new(), async {
            sleep(SECOND).await;
            Ok(())
        });
        assert!(timeout(SECOND / 2, group.next_end()).await.is_err());
        assert_eq!((group.len(), group.names()), (1, vec!["late".to_owned()]));
        sleep(SECOND).await; // it ends while nobody looks
        assert_eq!(group.next_end().await.map(|end| end.name), Some("late"));
        assert!(group.is_empty() && group.names().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn stop_waits_for_the_grace_then_aborts_and_names() {
        let (mut group, accounts) = group();
        let start = Instant::now();
        group.spawn("task", "quick".into(), async {
            sleep(SECOND).await;
            Ok(())
        });
        group.spawn("task", "stuck".into(), pending());
        group.spawn("task", "failing".into(), async { Err("no".into()) });
        assert_eq!(group.stop(3 * SECOND).await, ["task (stuck)"]);
        assert_eq!(start.elapsed(), 3 * SECOND);
        assert_eq!(counts(&accounts), (3, [1, 1, 0, 1]));
        assert!(group.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn stop_ends_when_the_last_task_ends() {
        let (mut group, _) = group();
        let start = Instant::now();
        group.spawn("task", String::new(), async {
            sleep(SECOND).await;
            Ok(())
        });
        assert!(group.stop(Duration::MAX).await.is_empty());
        assert_eq!(start.elapsed(), SECOND);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stop_names_a_task_that_blocks_its_thread_and_does_not_wait_for_it() {
        let (mut group, accounts) = group();
        let (release, blocked) = std::sync::mpsc::sync_channel::<()>(1);
        let (begun, begins) = oneshot::channel();
        group.spawn("blocker", String::new(), async move {
            begun.send(()).map_err(|()| "test gone")?;
            blocked.recv().map_err(Into::into)
        });
        begins.await.expect("the task began");
        let stopped = timeout(30 * SECOND, group.stop(Duration::ZERO)).await;
        assert_eq!(stopped.expect("it does not wait for ever"), ["blocker"]);
        assert_eq!((group.len(), counts(&accounts)), (1, (1, [0; 4])), "it still exists");
        release.send(()).expect("the task waits");
        assert!(group.next_end().await.is_some());
    }

    #[tokio::test]
    async fn dropping_the_group_ends_its_tasks_and_counts_them() {
        let (mut group, accounts) = group();
        let (held, dropped) = oneshot::channel::<()>();
        group.spawn("task", String::new(), async move {
            let _held = held;
            pending().await
        });
        group.spawn("task", "never polled".into(), pending());
        tokio::task::yield_now().await;
        drop(group);
        assert!(dropped.await.is_err(), "the task was dropped");
        tokio::task::yield_now().await;
        assert_eq!(counts(&accounts), (2, [0, 0, 0, 2]));
    }

    #[tokio::test]
    async fn counts_by_name_sorted() {
        let (mut group, accounts) = group();
        for name in ["b", "a", "b"] {
            group.spawn(name, String::new(), async { Ok(()) });
        }
        let spawned: Vec<_> = accounts
            .snapshot()
            .iter()
            .map(|stats| (stats.name, stats.spawned))
            .collect();
        assert_eq!(spawned, [("a", 1), ("b", 2)]);
        let order: Vec<_> = accounts.snapshot()[0]
            .ended
            .iter()
            .map(|(outcome, _)| outcome.as_str())
            .collect();
        assert_eq!(order, ["completed", "failed", "panicked", "cancelled"]);
    }
}
