//! A supervisor: starts children in order, restarts what ends unasked, stops in reverse order.
//!
//! One loop in three parts: `Tree::watch` answers ends and due restarts until it is time to stop;
//! `Tree::stop_children` stops what runs; the report names what did not stop.
//!
//! Each child has a [`Shutdown`] of its own, because on a drain the children are told one at a
//! time: what was started last, and may lean on the others, ends first. An abort is told to all at
//! once.
//!
//! Invariants:
//! - No child is started once the supervisor was told to drain.
//! - No child outlives the supervisor: they are tasks of its [`TaskGroup`].
//! - A fault is logged once, here, with the child's name.
//!
//! It does not wait for a child to be ready before it starts the next one.

use std::{future::pending, mem, time::Duration};

use futures_util::future::OptionFuture;
use tokio::{
    select,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Budget, Child, Outcome, Shutdown, SupervisorEvent, TaskAccounts, TaskEnd, TaskGroup,
    budget::Ledger,
    child::{Slot, Verdict},
};

/// How long children may take to end once they were told to abort; then they are cut off. Killing
/// and reaping a command takes milliseconds, giving deliveries back one round trip to the broker.
pub const ABORT_GRACE: Duration = Duration::from_secs(5);

/// Says who is restarted when one child faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// That child. For children that stand alone.
    OneForOne,
    /// All: the others are stopped in reverse order, then all are started. For children that share
    /// a state which is void when one of them is gone.
    OneForAll,
}

/// Says how a supervisor ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// The children that did not end when told to, and were cut off, by name. Empty after a clean
    /// stop.
    pub left: Vec<String>,
    /// The child that faulted too often, and its last error: `session: connect: refused`.
    pub gave_up: Option<String>,
    /// Faults that were answered with a restart.
    pub restarts: u32,
}

/// Builds a supervisor, and [runs](Supervisor::run) it.
pub struct Supervisor {
    name: &'static str,
    strategy: Strategy,
    budget: Budget,
    accounts: TaskAccounts,
    drain_grace: Duration,
    children: Vec<Child>,
    observer: Box<dyn FnMut(&SupervisorEvent) + Send>,
}

impl Supervisor {
    /// Makes a supervisor without children. `name` is for the log; its tasks count in `accounts`.
    pub fn new(name: &'static str, strategy: Strategy, budget: Budget, accounts: TaskAccounts) -> Self {
        Self {
            name,
            strategy,
            budget,
            accounts,
            drain_grace: ABORT_GRACE,
            children: Vec::new(),
            observer: Box::new(|_| {}),
        }
    }

    /// Adds a child, to be started after those added before and stopped before them.
    #[must_use]
    pub fn child(mut self, child: Child) -> Self {
        self.children.push(child);
        self
    }

    /// Calls `observer` at each event, after it was logged. It must not block or panic.
    #[must_use]
    pub fn on_event(mut self, observer: impl FnMut(&SupervisorEvent) + Send + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Sets how long children may drain when the supervisor itself stops them, to restart all or
    /// because it gives up; then they are aborted. Default: [`ABORT_GRACE`]. A drain that the owner
    /// asked for has no limit here: the owner ends it with an abort.
    #[must_use]
    pub fn drain_grace(mut self, grace: Duration) -> Self {
        self.drain_grace = grace;
        self
    }

    /// Runs the children until `shutdown` is given, the budget is used up, or every child has ended
    /// for good; then stops what runs and reports.
    ///
    /// A drain is told to one child at a time, in reverse order of starting, and each is awaited.
    /// An abort is told to all; those still there after [`ABORT_GRACE`] are cut off and named in
    /// the report.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped, all children are cut off at once, in no order.
    pub async fn run(self, shutdown: Shutdown) -> StopReport {
        let mut tree = Tree::new(self, shutdown);
        tree.watch().await;
        let limit = tree.report.gave_up.is_some().then_some(tree.plan.drain_grace);
        tree.report.left = tree.stop_children(limit).await;
        tree.report
    }
}

/// A supervisor while it runs.
struct Tree {
    plan: Supervisor,
    shutdown: Shutdown,
    slots: Vec<Slot>,
    group: TaskGroup,
    ledger: Ledger,
    report: StopReport,
}

/// What a supervisor waits for.
enum Next {
    Ended(TaskEnd),
    Due,
    /// It was told to stop, or there is nothing left to wait for.
    Stop,
}

/// An end that has to be answered.
struct Fault {
    index: usize,
    ran: Duration,
    error: String,
}

impl Tree {
    fn new(mut plan: Supervisor, shutdown: Shutdown) -> Self {
        let children = mem::take(&mut plan.children);
        Self {
            slots: children.into_iter().map(Slot::new).collect(),
            group: TaskGroup::new(plan.accounts.clone()),
            ledger: Ledger::new(plan.budget),
            report: StopReport::default(),
            shutdown,
            plan,
        }
    }

    /// Starts what is due and answers what ends, until it is time to stop. Obeys the drain.
    async fn watch(&mut self) {
        while self.report.gave_up.is_none() {
            match self.next().await {
                Next::Ended(end) => {
                    if let Some(fault) = self.settle(end) {
                        self.answer(fault).await;
                    }
                }
                Next::Due => self.start_due(),
                Next::Stop => return,
            }
        }
    }

    async fn next(&mut self) -> Next {
        let due = self.slots.iter().filter_map(Slot::due).min();
        let running = self.slots.iter().any(Slot::is_running);
        if due.is_none() && !running {
            return Next::Stop;
        }
        select! {
            // A drain comes first, or a restart that is due at the same instant would still start.
            biased;
            () = self.shutdown.draining() => Next::Stop,
            Some(end) = self.group.next_end(), if running => Next::Ended(end),
            Some(()) = OptionFuture::from(due.map(sleep_until)) => Next::Due,
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            if self.slots[index].due().is_some_and(|due| due <= now) {
                self.start(index);
            }
        }
    }

    fn start(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.start(&mut self.group);
        let child = slot.name();
        self.tell(SupervisorEvent::Started { child });
    }

    /// Enters an end, tells it, and gives the fault if a restart may cure it.
    fn settle(&mut self, end: TaskEnd) -> Option<Fault> {
        let index = self.slots.iter().position(|slot| slot.runs(end.id))?;
        let (child, outcome) = (end.name, end.outcome);
        let verdict = self.slots[index].end(outcome, &self.shutdown);
        if verdict == Verdict::Meant {
            self.tell(SupervisorEvent::Finished { child });
            return None;
        }
        let error = end.error.unwrap_or_else(|| format!("{} unasked", outcome.as_str()));
        self.tell(SupervisorEvent::Faulted {
            child,
            outcome,
            error: error.clone(),
        });
        match verdict {
            Verdict::Restart { ran } => Some(Fault { index, ran, error }),
            Verdict::Meant | Verdict::Reported => None,
        }
    }

    /// Restarts after a delay, or gives up when there were too many restarts.
    async fn answer(&mut self, fault: Fault) {
        let slot = &mut self.slots[fault.index];
        let child = slot.name();
        if !self.ledger.grant(Instant::now()) {
            self.report.gave_up = Some(format!("{child}: {}", fault.error));
            return self.tell(SupervisorEvent::GaveUp { child });
        }
        let delay = slot.restart_delay(fault.ran, self.plan.budget.within);
        self.report.restarts = self.report.restarts.saturating_add(1);
        self.tell(SupervisorEvent::Restarting { child, delay });
        match self.plan.strategy {
            Strategy::OneForOne => self.slots[fault.index].restart_at(Instant::now() + delay),
            Strategy::OneForAll => self.restart_all(delay).await,
        }
    }

    async fn restart_all(&mut self, delay: Duration) {
        self.stop_children(Some(self.plan.drain_grace)).await;
        let due = Instant::now() + delay;
        self.slots.iter_mut().for_each(|slot| slot.restart_at(due));
    }

    /// Stops what runs: drains in reverse order, aborts when `limit` is over or the owner aborts.
    /// Names what had to be cut off.
    async fn stop_children(&mut self, limit: Option<Duration>) -> Vec<String> {
        let shutdown = self.shutdown.clone();
        let drained = select! {
            biased;
            () = shutdown.aborting() => false,
            () = self.drain_in_reverse() => true,
            () = patience(limit, &shutdown) => false,
        };
        if !drained {
            self.abort_all().await;
        }
        // No-one is left after a drain, but for a child that blocked its thread through an earlier
        // stop.
        let left = self.group.stop(Duration::ZERO).await;
        self.cut_off(&left);
        left
    }

    /// Tells the children to drain, each after the one started after it has ended.
    ///
    /// Cancel safe: the state of every child is in its slot.
    async fn drain_in_reverse(&mut self) {
        for index in (0..self.slots.len()).rev() {
            self.slots[index].drain();
            while self.slots[index].is_running() {
                self.settle_next().await;
            }
        }
    }

    /// Tells all children to abort, and waits for them up to [`ABORT_GRACE`].
    async fn abort_all(&mut self) {
        self.slots.iter().for_each(Slot::abort);
        let ended = async {
            while self.slots.iter().any(Slot::is_running) {
                self.settle_next().await;
            }
        };
        // What is still there after the grace is cut off by the caller.
        let _ = timeout(ABORT_GRACE, ended).await;
    }

    async fn settle_next(&mut self) {
        let end = self.group.next_end().await.expect("a running child is in the group");
        // While children are stopped, a fault is told but not answered.
        let _ = self.settle(end);
    }

    /// Enters the end of children that the group has stopped, and tells of those it had to cut off.
    fn cut_off(&mut self, left: &[String]) {
        for index in 0..self.slots.len() {
            if self.slots[index].is_running() {
                self.slots[index].end(Outcome::Cancelled, &self.shutdown);
                let child = self.slots[index].name();
                // One that is not there ended by itself in the last moment.
                if left.iter().any(|name| name == child) {
                    self.tell(SupervisorEvent::CutOff { child });
                }
            }
        }
    }

    fn tell(&mut self, event: SupervisorEvent) {
        event.log(self.plan.name);
        match event {
            SupervisorEvent::Restarting { child, .. } => self.plan.accounts.count_restart(child),
            SupervisorEvent::GaveUp { child } => self.plan.accounts.count_given_up(child),
            _ => {}
        }
        (self.plan.observer)(&event);
    }
}

/// Waits until a stop has used up its limit. Never ends once the owner drains: then the owner sets
/// the limit.
async fn patience(limit: Option<Duration>, shutdown: &Shutdown) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => pending().await,
    }
    if shutdown.is_draining() {
        pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
