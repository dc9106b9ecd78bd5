//! How a run comes to its end: a machine that takes facts and the time, and says what is to be done.
//!
//! A run goes this road, and every wait on it has a bound:
//!
//! 1. *Running*, until the command's own process (the leader) exits, the timeout is reached or a stop is asked for. A
//!    warning is sent on the way, if one was asked for.
//! 2. *Terminating*, at the timeout, or when the end is asked for before: `term_signal`, then SIGCONT, to the whole
//!    tree, as a stopped process sees no signal but SIGKILL; then up to `kill_grace` for all of the tree to be gone (a
//!    shell dies at once, the server it started needs longer).
//! 3. *Leaving*, after an exit only: what the leader left running may still be writing (`cmd > >(tee log)`), and has
//!    [`LEAVE_GRACE`] to end by itself. With [`Leftovers::Allow`] it is released instead.
//! 4. *Killing*: SIGKILL to whatever is left, again and again, until nothing is. One process that hangs inside the
//!    kernel (a dead network disk) may be left after [`KILL_WAIT`], and is reaped when it can be.
//!
//! A timed-out run stays timed out, whatever the command exits with in its grace. Nothing here looks at a clock or at a
//! process, so a test walks it through any case without waiting.

use std::time::{Duration, Instant};

use super::Leftovers;
use super::protocol::{Cause, Schedule};
use crate::message::{EndedBy, SignalName};

/// How long what a leader left may go on after its exit.
const LEAVE_GRACE: Duration = Duration::from_millis(100);

/// How long killed processes may take to be gone.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(5);

/// How often a kill is repeated while something is left: new processes of a tree that goes on forking are seen at the
/// death of their parents, this is for those that are not.
const KILL_AGAIN: Duration = Duration::from_millis(10);

/// What happened to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    /// The leader has ended.
    LeaderExited,
    /// No process is left.
    TreeGone,
    /// The end is wanted, in the time that the timeout would give.
    EndAsked,
    /// The end is wanted now.
    StopAsked,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Wait for the next fact, at most until [`Ending::due`].
    Wait,
    /// Send this signal to the whole tree.
    Warn(SignalName),
    /// Send this signal and SIGCONT to the whole tree.
    Terminate(SignalName),
    /// Send SIGKILL to the whole tree.
    Kill,
    /// It is over; what is left lives on.
    Release,
    /// It is over.
    Done,
}

/// The state of a run's end.
#[derive(Debug)]
pub(super) struct Ending {
    schedule: Schedule,
    leftovers: Leftovers,
    started: Instant,
    stage: Stage,
    cause: Cause,
    warned: bool,
    /// When the leader was seen to have ended.
    exited: Option<Instant>,
    ended_by: EndedBy,
    /// When the first signal to make an end was sent.
    kill_started: Option<Instant>,
    finished: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Terminating { until: Instant },
    Leaving { until: Instant },
    Killing { again: Instant, until: Instant },
    Over,
}

impl Ending {
    /// A run whose program was loaded at `started`.
    pub(super) fn new(schedule: Schedule, leftovers: Leftovers, started: Instant) -> Self {
        Self {
            schedule,
            leftovers,
            started,
            stage: Stage::Running,
            cause: Cause::Exit,
            warned: false,
            exited: None,
            ended_by: EndedBy::Itself,
            kill_started: None,
            finished: None,
        }
    }

    /// Takes a fact, and says what is to be done about it.
    pub(super) fn on(&mut self, fact: Fact, now: Instant) -> Action {
        match fact {
            Fact::LeaderExited => self.leader_exited(now),
            Fact::TreeGone => self.over(now, Action::Done),
            Fact::EndAsked => self.end(now),
            Fact::StopAsked => self.stop(now),
            Fact::Tick => self.tick(now),
        }
    }

    /// When [`Fact::Tick`] is next of interest; `None` if never.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running => self.warning().map(|(at, _)| at).or_else(|| self.deadline()),
            Stage::Terminating { until } | Stage::Leaving { until } => Some(until),
            Stage::Killing { again, until } => Some(again.min(until)),
            Stage::Over => None,
        }
    }

    /// What brought the end about.
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    /// Whether the leader has ended.
    pub(super) fn leader_has_exited(&self) -> bool {
        self.exited.is_some()
    }

    /// Whether all that is left is to be killed.
    pub(super) fn is_killing(&self) -> bool {
        matches!(self.stage, Stage::Killing { .. })
    }

    /// The step at which the leader was gone.
    pub(super) fn ended_by(&self) -> EndedBy {
        self.ended_by
    }

    /// The time from the start to the leader's end or to the first signal to make one.
    pub(super) fn run_time(&self) -> Duration {
        let end = [self.exited, self.kill_started].into_iter().flatten().min();
        end.map_or(Duration::ZERO, |end| end.duration_since(self.started))
    }

    /// The time from the start to the leader's end, or to the end of all waiting for it.
    pub(super) fn lasted(&self) -> Duration {
        let end = self.exited.or(self.finished);
        end.map_or(Duration::ZERO, |end| end.duration_since(self.started))
    }

    /// The time from the first signal to make an end until nothing was left; `None` when there was none.
    pub(super) fn kill_time(&self) -> Option<Duration> {
        Some(self.finished?.duration_since(self.kill_started?))
    }

    fn leader_exited(&mut self, now: Instant) -> Action {
        self.exited = Some(now);
        self.ended_by = match self.stage {
            Stage::Running if self.warned => EndedBy::WarnSignal,
            Stage::Running => EndedBy::Itself,
            Stage::Terminating { .. } if self.schedule.term_signal != SignalName::KILL => EndedBy::TermSignal,
            _ => EndedBy::Kill,
        };
        if self.stage != Stage::Running {
            return Action::Wait;
        }
        match self.leftovers {
            Leftovers::Allow => self.over(now, Action::Release),
            Leftovers::Kill => {
                self.stage = Stage::Leaving {
                    until: now + LEAVE_GRACE,
                };
                Action::Wait
            }
        }
    }

    fn end(&mut self, now: Instant) -> Action {
        if self.stage == Stage::Running {
            self.cause = Cause::Stop;
            return self.terminate(now);
        }
        Action::Wait // its end has begun
    }

    fn stop(&mut self, now: Instant) -> Action {
        match self.stage {
            Stage::Killing { .. } | Stage::Over => return Action::Wait,
            // Its end has begun for another reason, which is what its result says.
            Stage::Leaving { .. } | Stage::Terminating { .. } => {}
            Stage::Running => self.cause = Cause::Stop,
        }
        self.kill(now)
    }

    fn tick(&mut self, now: Instant) -> Action {
        match self.stage {
            Stage::Running => self.tick_running(now),
            Stage::Terminating { until } | Stage::Leaving { until } if now >= until => self.kill(now),
            Stage::Killing { until, .. } if now >= until => self.over(now, Action::Done),
            Stage::Killing { again, until } if now >= again => {
                self.stage = Stage::Killing {
                    again: now + KILL_AGAIN,
                    until,
                };
                Action::Kill
            }
            _ => Action::Wait,
        }
    }

    fn tick_running(&mut self, now: Instant) -> Action {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.cause = Cause::Timeout;
            return self.terminate(now);
        }
        match self.warning() {
            Some((at, signal)) if now >= at => {
                self.warned = true;
                Action::Warn(signal)
            }
            _ => Action::Wait,
        }
    }

    fn terminate(&mut self, now: Instant) -> Action {
        self.kill_started = Some(now);
        let Some(until) = now.checked_add(self.schedule.kill_grace) else {
            return self.kill(now);
        };
        self.stage = Stage::Terminating { until };
        Action::Terminate(self.schedule.term_signal)
    }

    fn kill(&mut self, now: Instant) -> Action {
        self.kill_started.get_or_insert(now);
        self.stage = Stage::Killing {
            again: now + KILL_AGAIN,
            until: now + KILL_WAIT,
        };
        Action::Kill
    }

    fn over(&mut self, now: Instant, action: Action) -> Action {
        if self.exited.is_none() {
            self.ended_by = EndedBy::Kill; // which it does not obey yet
        }
        self.finished = Some(now);
        self.stage = Stage::Over;
        action
    }

    /// `None` for a timeout that no clock reaches.
    fn deadline(&self) -> Option<Instant> {
        self.started.checked_add(self.schedule.timeout)
    }

    /// When the warning is to be sent, and which; `None` when it was sent, or is none.
    fn warning(&self) -> Option<(Instant, SignalName)> {
        let warning = self.schedule.warning.filter(|_| !self.warned)?;
        let at = self.deadline()?.checked_sub(warning.before)?;
        Some((at.max(self.started), warning.signal))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Warning;
    use super::*;

    const USR1: &str = "USR1";

    fn signal(name: &str) -> SignalName {
        name.parse().unwrap()
    }

    /// 10 s, a warning 3 s before, 2 s of grace.
    fn ending(leftovers: Leftovers) -> (Ending, Instant) {
        let start = Instant::now();
        let schedule = Schedule {
            warning: Some(Warning {
                before: Duration::from_secs(3),
                signal: signal(USR1),
            }),
            timeout: Duration::from_secs(10),
            term_signal: SignalName::TERM,
            kill_grace: Duration::from_secs(2),
        };
        (Ending::new(schedule, leftovers, start), start)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_command_that_ends_alone_is_done_at_once() {
        let (mut ending, start) = ending(Leftovers::Kill);
        assert_eq!(ending.due(), Some(start + seconds(7)));
        assert_eq!(ending.on(Fact::LeaderExited, start + seconds(1)), Action::Wait);
        assert_eq!(ending.on(Fact::TreeGone, start + seconds(1)), Action::Done);
        assert_eq!((ending.cause(), ending.ended_by()), (Cause::Exit, EndedBy::Itself));
        assert_eq!((ending.run_time(), ending.kill_time()), (seconds(1), None));
        assert_eq!(ending.due(), None);
    }

    #[test]
    fn the_road_of_a_command_that_hears_nothing() {
        let (mut ending, start) = ending(Leftovers::Allow);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(ending.on(Fact::Tick, at(6_999)), Action::Wait);
        assert_eq!(ending.on(Fact::Tick, at(7_000)), Action::Warn(signal(USR1)));
        assert_eq!(ending.due(), Some(at(10_000)));
        assert_eq!(ending.on(Fact::Tick, at(7_001)), Action::Wait);
        assert_eq!(ending.on(Fact::Tick, at(10_000)), Action::Terminate(SignalName::TERM));
        assert_eq!(ending.due(), Some(at(12_000)));
        assert_eq!(ending.on(Fact::Tick, at(11_999)), Action::Wait);
        assert_eq!(ending.on(Fact::Tick, at(12_000)), Action::Kill);
        assert_eq!(ending.on(Fact::Tick, at(12_010)), Action::Kill);
        // A killed command's leftovers are killed too, whatever the pool allows.
        assert_eq!(ending.on(Fact::LeaderExited, at(12_011)), Action::Wait);
        assert_eq!(ending.on(Fact::TreeGone, at(12_020)), Action::Done);
        assert_eq!((ending.cause(), ending.ended_by()), (Cause::Timeout, EndedBy::Kill));
        assert_eq!(ending.run_time(), seconds(10));
        assert_eq!(ending.kill_time(), Some(Duration::from_millis(2_020)));
    }

    #[test]
    fn a_grace_lasts_until_all_are_gone() {
        let (mut ending, start) = ending(Leftovers::Kill);
        ending.on(Fact::Tick, start + seconds(7));
        ending.on(Fact::Tick, start + seconds(10));
        assert_eq!(ending.on(Fact::LeaderExited, start + seconds(11)), Action::Wait);
        assert_eq!(ending.ended_by(), EndedBy::TermSignal);
        assert_eq!(ending.on(Fact::Tick, start + seconds(12)), Action::Kill);
        assert_eq!(ending.on(Fact::TreeGone, start + seconds(12)), Action::Done);
        assert_eq!(
            (ending.cause(), ending.ended_by()),
            (Cause::Timeout, EndedBy::TermSignal)
        );
    }

    #[test]
    fn leftovers_have_a_moment_or_are_released() {
        let (mut killed, start) = ending(Leftovers::Kill);
        killed.on(Fact::LeaderExited, start);
        assert_eq!(killed.due(), Some(start + LEAVE_GRACE));
        assert_eq!(killed.on(Fact::Tick, start + LEAVE_GRACE), Action::Kill);
        assert_eq!((killed.cause(), killed.ended_by()), (Cause::Exit, EndedBy::Itself));

        let (mut released, start) = ending(Leftovers::Allow);
        assert_eq!(released.on(Fact::LeaderExited, start), Action::Release);
        assert_eq!(released.kill_time(), None);
    }

    #[test]
    fn an_end_that_is_asked_for_goes_the_road_of_the_timeout() {
        let (mut asked, start) = ending(Leftovers::Allow);
        assert_eq!(
            asked.on(Fact::EndAsked, start + seconds(1)),
            Action::Terminate(SignalName::TERM)
        );
        assert_eq!(asked.on(Fact::EndAsked, start + seconds(2)), Action::Wait);
        assert_eq!(asked.due(), Some(start + seconds(3)));
        assert_eq!(asked.on(Fact::Tick, start + seconds(3)), Action::Kill);
        asked.on(Fact::LeaderExited, start + seconds(3));
        assert_eq!(asked.on(Fact::TreeGone, start + seconds(3)), Action::Done);
        assert_eq!((asked.cause(), asked.ended_by()), (Cause::Stop, EndedBy::Kill));
        assert_eq!((asked.run_time(), asked.kill_time()), (seconds(1), Some(seconds(2))));
    }

    #[test]
    fn an_end_that_is_asked_for_can_be_cut_short_and_rewrites_no_other() {
        let (mut asked, start) = ending(Leftovers::Kill);
        asked.on(Fact::EndAsked, start);
        assert_eq!(asked.on(Fact::StopAsked, start), Action::Kill);
        assert_eq!(asked.on(Fact::EndAsked, start), Action::Wait, "it does not begin again");
        assert_eq!(asked.cause(), Cause::Stop);

        let (mut late, start) = ending(Leftovers::Kill);
        late.on(Fact::Tick, start + seconds(10));
        assert_eq!(late.on(Fact::EndAsked, start + seconds(10)), Action::Wait);
        assert_eq!(late.cause(), Cause::Timeout);

        let (mut over, start) = ending(Leftovers::Kill);
        over.on(Fact::LeaderExited, start);
        assert_eq!(over.on(Fact::EndAsked, start), Action::Wait);
        assert_eq!(over.cause(), Cause::Exit);
    }

    #[test]
    fn a_stop_kills_at_every_stage_and_rewrites_no_other_end() {
        let (mut running, start) = ending(Leftovers::Kill);
        assert_eq!(running.on(Fact::StopAsked, start), Action::Kill);
        assert_eq!(running.on(Fact::StopAsked, start), Action::Wait);
        assert_eq!(running.cause(), Cause::Stop);

        let (mut terminating, start) = ending(Leftovers::Kill);
        terminating.on(Fact::Tick, start + seconds(10));
        assert_eq!(terminating.on(Fact::StopAsked, start + seconds(10)), Action::Kill);
        assert_eq!(terminating.cause(), Cause::Timeout);

        let (mut leaving, start) = ending(Leftovers::Kill);
        leaving.on(Fact::LeaderExited, start);
        assert_eq!(leaving.on(Fact::StopAsked, start), Action::Kill);
        assert_eq!(leaving.cause(), Cause::Exit);
    }

    #[test]
    fn what_cannot_be_killed_is_given_up() {
        let (mut ending, start) = ending(Leftovers::Kill);
        ending.on(Fact::StopAsked, start);
        assert_eq!(ending.on(Fact::Tick, start + KILL_WAIT), Action::Done);
        assert!(!ending.leader_has_exited());
        assert_eq!(ending.ended_by(), EndedBy::Kill);
    }

    #[test]
    fn what_a_leader_left_and_cannot_be_killed_changes_nothing_of_its_own_end() {
        let (mut ending, start) = ending(Leftovers::Kill);
        ending.on(Fact::LeaderExited, start);
        ending.on(Fact::Tick, start + LEAVE_GRACE);
        assert_eq!(ending.on(Fact::Tick, start + LEAVE_GRACE + KILL_WAIT), Action::Done);
        assert_eq!((ending.cause(), ending.ended_by()), (Cause::Exit, EndedBy::Itself));
    }

    #[test]
    fn an_end_after_the_warning_is_told() {
        let (mut ending, start) = ending(Leftovers::Kill);
        ending.on(Fact::Tick, start + seconds(7));
        ending.on(Fact::LeaderExited, start + seconds(8));
        assert_eq!((ending.cause(), ending.ended_by()), (Cause::Exit, EndedBy::WarnSignal));
    }

    #[test]
    fn times_that_no_clock_reaches_are_never_due() {
        let (_, start) = ending(Leftovers::Kill);
        let schedule = Schedule {
            warning: None,
            timeout: Duration::MAX,
            term_signal: SignalName::TERM,
            kill_grace: Duration::MAX,
        };
        let mut ending = Ending::new(schedule, Leftovers::Kill, start);
        assert_eq!(ending.due(), None);
        assert_eq!(ending.on(Fact::Tick, start + seconds(1)), Action::Wait);
    }
}
