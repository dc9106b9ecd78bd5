//! Commands that cannot be started here, again and again: their jobs are put off instead of being ended as `not_started`,
//! one after the other, by a worker that can start none of them.
//!
//! What counts is a start that failed for want of something on this machine: a process, a descriptor, a mount, the program
//! itself. After so many in a row ([`Pool::breaker`]) of the *same command*, its circuit opens. The same are those of a pool
//! that have program, directory, search path and limits in common: all that a job can choose of what decides whether it
//! starts. So a job that asks for what there is not holds up its like, and nobody else.
//!
//! While the circuit is open, jobs go back through a delay queue as they came, with no attempt used up; then one is tried,
//! for all. A job that was put off as often as it may be is tried in any case, and has the result that comes of it.
//!
//! Circuits are kept of commands in trouble alone, and of a bounded number.

use std::collections::HashMap;
use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::event::{Circuit, Event, Observer};
use crate::config::Pool;
use crate::executor::{End, Fault, NotStarted, Outcome, Run};
use crate::flow::breaker::{self, Policy, Position, Role, State};

/// Commands in trouble that are kept account of; then those whose last failure is the longest ago are forgotten.
const COMMANDS: usize = 1024;
/// A command that runs for so long has started.
const STARTED: Duration = Duration::from_secs(1);

/// Where else a job may find what is missing on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// On another worker.
    Workers,
    /// Nowhere: there is no other.
    Nobody,
}

/// The circuits of commands. Clones are handles on the same.
#[derive(Clone)]
pub(super) struct Programs(Arc<Shared>);

struct Shared {
    elsewhere: Elsewhere,
    hasher: RandomState,
    troubles: Mutex<Troubles>,
    observer: Arc<dyn Observer>,
}

struct Troubles {
    commands: HashMap<u64, Trouble>,
    /// The worst position, as last told.
    told: Position,
}

struct Trouble {
    state: State,
    last: Instant,
}

/// A job's command, as far as its start goes.
pub(super) struct Command<'a> {
    programs: &'a Programs,
    key: u64,
    pool: Arc<str>,
    program: OsString,
    policy: Policy,
    /// It was put off as often as it may be.
    is_due: bool,
}

/// The right to start a command once.
pub(super) struct Trial<'a> {
    command: Command<'a>,
    role: Role,
}

impl Programs {
    pub(super) fn new(observer: Arc<dyn Observer>, elsewhere: Elsewhere) -> Self {
        let troubles = Troubles {
            commands: HashMap::new(),
            told: Position::Closed,
        };
        Self(Arc::new(Shared {
            elsewhere,
            hasher: RandomState::new(),
            troubles: Mutex::new(troubles),
            observer,
        }))
    }

    /// The command of a job that was put off so often.
    pub(super) fn command(&self, pool: &Pool, run: &Run, put_offs: u32) -> Command<'_> {
        let same = (&pool.name, &run.program, &run.cwd, run.env.get("PATH"), &run.limits);
        let delay = pool.breaker.delay;
        Command {
            programs: self,
            key: self.0.hasher.hash_one(same),
            pool: pool.name.clone(),
            program: run.program.clone(),
            policy: Policy {
                failures: pool.breaker.failures,
                delay,
                max_delay: delay,
            },
            is_due: put_offs >= pool.breaker.put_offs,
        }
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a failed start says something of this machine.
    fn counts(&self, reason: &NotStarted) -> bool {
        match reason.fault {
            Fault::Command => false,
            Fault::Missing => self.0.elsewhere == Elsewhere::Workers,
            Fault::Machine => true,
        }
    }
}

impl<'a> Command<'a> {
    /// How long its job is to be put off, as things are; `None`: not at all. Takes no trial.
    pub(super) fn put_off(&self) -> Option<Duration> {
        let now = Instant::now();
        let state = self.programs.troubles().state(self.key);
        match state.ask(now, self.policy) {
            (_, Some(_)) => None,
            (after, None) => self.wait(after, now),
        }
    }

    /// The right to start it now.
    ///
    /// # Errors
    /// How long its job is to be put off.
    pub(super) fn enter(self) -> Result<Trial<'a>, Duration> {
        let now = Instant::now();
        let (after, role) = self.change(now, |state| state.ask(now, self.policy));
        match (role, self.wait(after, now)) {
            (Some(role), _) => Ok(Trial { command: self, role }),
            (None, Some(wait)) => Err(wait),
            (None, None) => Ok(Trial {
                command: self,
                role: Role::Any,
            }),
        }
    }

    /// How long one waits who may not try; `None` when it has waited enough.
    fn wait(&self, state: State, now: Instant) -> Option<Duration> {
        let wait = match state {
            State::Open { until, .. } => until.saturating_duration_since(now),
            State::HalfOpen { .. } => self.policy.delay,
            State::Closed { .. } => return None,
        };
        (!self.is_due).then_some(wait)
    }

    fn tell(&self, event: breaker::Event, now: Instant) -> State {
        self.change(now, |state| (state.step(event, now, self.policy), ())).0
    }

    fn change<R>(&self, now: Instant, step: impl FnOnce(State) -> (State, R)) -> (State, R) {
        let mut troubles = self.programs.troubles();
        let before = troubles.state(self.key);
        let (after, answer) = step(before);
        if after != before {
            troubles.set(self.key, after, now);
            let worst = troubles.worst();
            if worst != troubles.told {
                troubles.told = worst;
                self.programs.0.observer.on(&Event::CircuitChanged {
                    circuit: Circuit::Programs,
                    position: worst,
                });
            }
            if before.position() != Position::Closed && after.position() == Position::Closed {
                let program = self.program.to_string_lossy();
                tracing::info!(pool = &*self.pool, "commands of {program:?} can be started here again");
            }
        }
        (after, answer)
    }

    fn log_opened(&self, reason: &NotStarted) {
        tracing::warn!(
            pool = &*self.pool,
            delay_s = self.policy.delay.as_secs_f64(),
            "failed to start a command {} times in a row, as {}; its like are put off until one can be started",
            self.policy.failures,
            reason.message
        );
    }
}

impl Trial<'_> {
    /// Awaits the run, which is lent: given, it would take its room twice in the task of each job. One that lasts has
    /// started, which those who wait are to hear before it ends.
    ///
    /// # Cancel safety
    /// As the run.
    pub(super) async fn over(&mut self, mut run: Pin<&mut impl Future<Output = Outcome>>) -> Outcome {
        if self.role == Role::Trial {
            tokio::select! {
                outcome = &mut run => return outcome,
                () = tokio::time::sleep(STARTED) => self.tell(breaker::Event::Succeeded),
            };
        }
        run.await
    }

    /// Takes what came of it; says how long the job is to be put off, if it is not to end with that.
    pub(super) fn ended(mut self, outcome: &Outcome) -> Option<Duration> {
        match &outcome.end {
            End::NotStarted(reason) if self.command.programs.counts(reason) => self.failed(reason),
            End::NotStarted(_) | End::HelperDied => None,
            _ if outcome.started_at.is_none() => None,
            _ => {
                self.tell(breaker::Event::Succeeded);
                None
            }
        }
    }

    fn failed(&mut self, reason: &NotStarted) -> Option<Duration> {
        let was_closed = self.command.programs.troubles().state(self.command.key).position() == Position::Closed;
        let after = self.tell(breaker::Event::Failed);
        if was_closed && after.position() == Position::Open {
            self.command.log_opened(reason);
        }
        self.command.wait(after, Instant::now())
    }

    fn tell(&mut self, event: breaker::Event) -> State {
        self.role = Role::Any;
        self.command.tell(event, Instant::now())
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.role == Role::Trial {
            self.tell(breaker::Event::GaveUp);
        }
    }
}

impl Troubles {
    fn state(&self, key: u64) -> State {
        self.commands.get(&key).map_or(State::CLOSED, |trouble| trouble.state)
    }

    fn set(&mut self, key: u64, state: State, now: Instant) {
        if state == State::CLOSED {
            self.commands.remove(&key);
            return;
        }
        if self.commands.len() >= COMMANDS && !self.commands.contains_key(&key) {
            let oldest = self.commands.iter().min_by_key(|(_, trouble)| trouble.last);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.commands.remove(&oldest);
            }
        }
        self.commands.insert(key, Trouble { state, last: now });
    }

    fn worst(&self) -> Position {
        let positions = self.commands.values().map(|trouble| trouble.state.position());
        positions.max().unwrap_or(Position::Closed)
    }
}

#[cfg(test)]
mod tests;
