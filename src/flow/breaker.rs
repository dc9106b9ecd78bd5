//! Circuit breakers: after so many failures in a row, nobody tries for a while; then one does, for all.
//!
//! ```text
//!             failures in a row            its delay is over, and somebody asks
//!   Closed ───────────────────────► Open ──────────────────────────────────────► HalfOpen
//!     ▲                              ▲                                              │
//!     │                              └────────────── it fails ──────────────────────┤
//!     └───────────────────────────────────────────── it succeeds ───────────────────┘
//! ```
//!
//! [`State::step`] decides, and is pure. [`Breaker`] is one state with a gate in front: who may not try waits there, or goes
//! away. Each open period is twice as long as the one before, up to a bound, as what is down for long is asked less often.
//!
//! Words are those of M. Nygard, *Release It!* (2007): closed lets all through, as a current.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row, from 1 (0 counts as 1), that open it.
    pub failures: u32,
    /// How long it is open, the first time.
    pub delay: Duration,
    /// The longest that it is open at a time.
    pub max_delay: Duration,
}

/// A breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All is let through.
    Closed {
        /// Failures since the last success.
        failures: u32,
    },
    /// Nothing is let through.
    Open {
        /// From then on, one may try.
        until: Instant,
        /// Trials that failed since it opened.
        trials: u32,
    },
    /// One tries, for all.
    HalfOpen {
        /// Trials that failed since it opened.
        trials: u32,
    },
}

/// What happens to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants to try.
    Asked,
    /// Somebody tried, and it worked.
    Succeeded,
    /// Somebody tried, and it did not.
    Failed,
    /// The one who tried for all went away, and nobody knows.
    GaveUp,
}

/// What shows of a state; the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// See [`State::Closed`].
    Closed,
    /// See [`State::HalfOpen`].
    HalfOpen,
    /// See [`State::Open`].
    Open,
}

impl Policy {
    fn delay_after(self, trials: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(trials);
        self.delay.saturating_mul(doubled).min(self.max_delay.max(self.delay))
    }

    fn open(self, now: Instant, trials: u32) -> State {
        let until = now + self.delay_after(trials);
        State::Open { until, trials }
    }
}

impl State {
    /// Nothing has failed yet.
    pub const CLOSED: Self = Self::Closed { failures: 0 };

    /// The state after an event.
    #[must_use]
    pub fn step(self, event: Event, now: Instant, policy: Policy) -> Self {
        match (self, event) {
            (_, Event::Succeeded) => Self::CLOSED,
            (Self::Closed { failures }, Event::Failed) => match failures.saturating_add(1) {
                failures if failures >= policy.failures => policy.open(now, 0),
                failures => Self::Closed { failures },
            },
            (Self::HalfOpen { trials }, Event::Failed) => policy.open(now, trials.saturating_add(1)),
            (Self::HalfOpen { trials }, Event::GaveUp) => Self::Open { until: now, trials },
            (Self::Open { until, trials }, Event::Asked) if until <= now => Self::HalfOpen { trials },
            // Who had begun before it opened tells nothing new; nor does who asks in vain.
            (same, _) => same,
        }
    }

    /// Whether one who asked, and was answered with `after`, may try; and if so, whether for all.
    fn admits(self, after: Self) -> Option<Role> {
        match (self, after) {
            (Self::Closed { .. }, _) => Some(Role::Any),
            (Self::Open { .. }, Self::HalfOpen { .. }) => Some(Role::Trial),
            _ => None,
        }
    }

    /// Asks; the state after it, and as who one may try, if one may.
    #[must_use]
    pub fn ask(self, now: Instant, policy: Policy) -> (Self, Option<Role>) {
        let after = self.step(Event::Asked, now, policy);
        (after, self.admits(after))
    }

    /// What shows of it.
    #[must_use]
    pub const fn position(self) -> Position {
        match self {
            Self::Closed { .. } => Position::Closed,
            Self::HalfOpen { .. } => Position::HalfOpen,
            Self::Open { .. } => Position::Open,
        }
    }
}

/// As who one tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As one of many.
    Any,
    /// For all, who wait for what comes of it.
    Trial,
}

/// A breaker that many share.
pub struct Breaker {
    policy: Policy,
    state: watch::Sender<State>,
    on_change: Box<dyn Fn(Position, Position) + Send + Sync>,
}

/// The right to try once. Whoever has it says what came of it; dropped without a word, another may try in its place.
#[must_use = "what came of the trial is to be told"]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    role: Role,
}

impl Breaker {
    /// A closed breaker. `on_change` is told of each change of its position, from one to another, in their order; it must
    /// neither block nor use the breaker.
    pub fn new(policy: Policy, on_change: impl Fn(Position, Position) + Send + Sync + 'static) -> Self {
        Self {
            policy,
            state: watch::Sender::new(State::CLOSED),
            on_change: Box::new(on_change),
        }
    }

    /// What shows of its state.
    #[must_use]
    pub fn position(&self) -> Position {
        self.state.borrow().position()
    }

    /// The right to try now; `None` while nobody, or another one for all, may.
    pub fn try_pass(&self) -> Option<Pass<'_>> {
        // Nearly always closed, and then nobody has to wait for anybody.
        if self.position() == Position::Closed {
            return Some(self.admit(Role::Any));
        }
        let mut role = None;
        self.change(|state, now| {
            let (after, admitted) = state.ask(now, self.policy);
            role = admitted;
            after
        });
        role.map(|role| self.admit(role))
    }

    /// Waits for the right to try.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn pass(&self) -> Pass<'_> {
        let mut state = self.state.subscribe();
        loop {
            let seen = *state.borrow_and_update();
            if let Some(pass) = self.try_pass() {
                return pass;
            }
            let over = async {
                match seen {
                    State::Open { until, .. } => tokio::time::sleep_until(until).await,
                    // What comes of the trial is a change.
                    State::HalfOpen { .. } | State::Closed { .. } => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {}
                // Its sender is ours.
                _ = state.changed() => {}
            }
        }
    }

    fn admit(&self, role: Role) -> Pass<'_> {
        Pass { breaker: self, role }
    }

    fn tell(&self, event: Event) {
        if event == Event::Succeeded && *self.state.borrow() == State::CLOSED {
            return; // as nearly always
        }
        self.change(|state, now| state.step(event, now, self.policy));
    }

    fn change(&self, step: impl FnOnce(State, Instant) -> State) {
        self.state.send_if_modified(|state| {
            let before = std::mem::replace(state, step(*state, Instant::now()));
            let (from, to) = (before.position(), state.position());
            if from != to {
                (self.on_change)(from, to);
            }
            before != *state
        });
    }
}

impl Pass<'_> {
    /// It worked.
    pub fn succeeded(mut self) {
        self.role = Role::Any;
        self.breaker.tell(Event::Succeeded);
    }

    /// It did not work.
    pub fn failed(mut self) {
        self.role = Role::Any;
        self.breaker.tell(Event::Failed);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.role == Role::Trial {
            self.breaker.tell(Event::GaveUp);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const POLICY: Policy = Policy {
        failures: 3,
        delay: SECOND,
        max_delay: Duration::from_secs(5),
    };

    fn closed(failures: u32) -> State {
        State::Closed { failures }
    }

    #[tokio::test(start_paused = true)]
    async fn each_state_answers_each_event() {
        let now = Instant::now();
        let open = |seconds, trials| State::Open {
            until: now + SECOND * seconds,
            trials,
        };
        let half = |trials| State::HalfOpen { trials };
        for (before, event, after) in [
            (closed(0), Event::Asked, closed(0)),
            (closed(0), Event::Failed, closed(1)),
            (closed(1), Event::Failed, closed(2)),
            (closed(2), Event::Failed, open(1, 0)),
            (closed(2), Event::Succeeded, closed(0)),
            (closed(2), Event::GaveUp, closed(2)),
            (open(1, 0), Event::Asked, open(1, 0)),
            (open(0, 0), Event::Asked, half(0)),
            (open(0, 7), Event::Asked, half(7)),
            (open(1, 0), Event::Failed, open(1, 0)),
            (open(1, 0), Event::Succeeded, closed(0)),
            (half(0), Event::Asked, half(0)),
            (half(0), Event::Failed, open(2, 1)),
            (half(1), Event::Failed, open(4, 2)),
            (half(2), Event::Failed, open(5, 3)),
            (half(u32::MAX), Event::Failed, open(5, u32::MAX)),
            (half(3), Event::GaveUp, open(0, 3)),
            (half(3), Event::Succeeded, closed(0)),
        ] {
            assert_eq!(before.step(event, now, POLICY), after, "{before:?} and {event:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_in_between_begins_the_row_anew() {
        let mut state = State::CLOSED;
        for event in [
            Event::Failed,
            Event::Failed,
            Event::Succeeded,
            Event::Failed,
            Event::Failed,
        ] {
            state = state.step(event, Instant::now(), POLICY);
            assert_eq!(state.position(), Position::Closed);
        }
        let state = state.step(Event::Failed, Instant::now(), POLICY);
        assert_eq!(state.position(), Position::Open);
    }

    /// A breaker that has just opened, and the changes of its position.
    fn opened() -> (Breaker, Arc<Mutex<Vec<Position>>>) {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let told = changes.clone();
        let breaker = Breaker::new(POLICY, move |_, to| told.lock().unwrap().push(to));
        for _ in 0..POLICY.failures {
            assert_eq!(breaker.position(), Position::Closed);
            breaker.try_pass().expect("it is closed").failed();
        }
        assert_eq!(breaker.position(), Position::Open);
        (breaker, changes)
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_lets_one_through_when_its_delay_is_over_and_not_before() {
        let (breaker, changes) = opened();
        advance(SECOND - Duration::from_millis(1)).await;
        assert!(breaker.try_pass().is_none());
        advance(Duration::from_millis(1)).await;
        let trial = breaker.try_pass().expect("its delay is over");
        assert!(breaker.try_pass().is_none(), "one at a time");
        trial.failed();
        advance(2 * SECOND - Duration::from_millis(1)).await;
        assert!(breaker.try_pass().is_none(), "twice as long");
        advance(Duration::from_millis(1)).await;
        breaker.try_pass().expect("its delay is over").succeeded();
        assert!(breaker.try_pass().is_some() && breaker.try_pass().is_some());
        use Position::{Closed, HalfOpen, Open};
        assert_eq!(*changes.lock().unwrap(), [Open, HalfOpen, Open, HalfOpen, Closed]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_at_the_gate_goes_on_when_the_trial_has_worked() {
        let (breaker, _) = opened();
        let begun = Instant::now();
        let trial = breaker.pass().await;
        assert_eq!(begun.elapsed(), SECOND);
        let mut others = [Box::pin(breaker.pass()), Box::pin(breaker.pass())];
        for other in &mut others {
            assert!(other.as_mut().now_or_never().is_none());
        }
        trial.succeeded();
        for other in others {
            let pass = other.now_or_never().expect("it is closed");
            assert_eq!(pass.role, Role::Any);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_a_trial_leaves_it_to_the_next() {
        let (breaker, _) = opened();
        let trial = breaker.pass().await;
        let mut next = Box::pin(breaker.pass());
        assert!(next.as_mut().now_or_never().is_none());
        drop(trial);
        assert_eq!(next.await.role, Role::Trial);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_success_of_one_who_began_before_closes_it() {
        let breaker = Breaker::new(POLICY, |_, _| {});
        let early = breaker.try_pass().expect("it is closed");
        for _ in 0..POLICY.failures {
            breaker.try_pass().expect("it is closed").failed();
        }
        early.succeeded();
        assert_eq!(breaker.position(), Position::Closed);
    }
}
