//! What is known of the fleet, what is selected, and what a key does.
//!
//! Pure: no key is read here, and nothing is done but by who gets the [`Command`].

use std::collections::{BTreeMap, VecDeque};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;

use crate::control::snapshot::{JobRow, PoolRow, Snapshot};
use crate::message::{JobId, WorkerState};

/// Rates of a pool that are remembered, one a look.
const HISTORY: usize = 60;
/// Rows that a page key goes over.
const PAGE: usize = 10;

/// All that is shown.
pub(super) struct State {
    /// The namespace.
    pub(super) namespace: String,
    /// The broker's hosts.
    pub(super) hosts: String,
    /// The last look that succeeded.
    pub(super) snapshot: Snapshot,
    /// The rates of each pool, the latest last.
    pub(super) history: BTreeMap<String, VecDeque<f64>>,
    /// Why there was no look since, and since when; `None` while all is well.
    pub(super) lost: Option<(String, Timestamp)>,
    /// What was said last.
    pub(super) note: Option<String>,
    /// What the keys are for at this moment.
    pub(super) mode: Mode,
    /// What is selected, as long as it is there.
    selected: Option<Key>,
    /// Where it was.
    at: usize,
}

/// What the keys are for.
#[derive(Debug, PartialEq)]
pub(super) enum Mode {
    /// To select, and to ask for something.
    Watching,
    /// To say yes or no to this.
    Asking(Command),
    /// To leave the help.
    Help,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    /// A pool.
    Pause(String),
    /// A pool.
    Resume(String),
    /// A worker.
    Drain(String),
    /// A job.
    Cancel {
        /// Its id.
        id: JobId,
        /// Its pool.
        pool: String,
    },
}

/// What a key has brought about.
#[derive(Debug, PartialEq)]
pub(super) enum Pressed {
    Nothing,
    Quit,
    Do(Command),
}

/// A row, as it is found again after the next look.
#[derive(Clone, Debug, PartialEq)]
enum Key {
    Pool(String),
    Worker(String),
    Job(String, JobId, u32),
}

/// A row that can be selected.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    Pool(&'a PoolRow),
    Worker(&'a WorkerState),
    Job(&'a JobRow),
}

impl Row<'_> {
    fn key(&self) -> Key {
        match self {
            Self::Pool(row) => Key::Pool(row.pool.clone()),
            Self::Worker(worker) => Key::Worker(worker.id.clone()),
            Self::Job(row) => Key::Job(row.worker.clone(), row.job.id.clone(), row.job.attempt),
        }
    }
}

impl State {
    pub(super) fn new(namespace: String, hosts: String, snapshot: Snapshot) -> Self {
        Self {
            namespace,
            hosts,
            snapshot,
            history: BTreeMap::new(),
            lost: None,
            note: None,
            mode: Mode::Watching,
            selected: None,
            at: 0,
        }
    }

    /// Takes over what a look has shown.
    pub(super) fn update(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot.after(&self.snapshot);
        self.lost = None;
        let served = |pool: &String| self.snapshot.pool(pool).is_some();
        self.history.retain(|pool, _| served(pool));
        for row in &self.snapshot.pools {
            let rates = self.history.entry(row.pool.clone()).or_default();
            rates.extend(row.rate);
            let over = rates.len().saturating_sub(HISTORY);
            rates.drain(..over);
        }
        self.settle();
    }

    /// A look has failed.
    pub(super) fn lose(&mut self, why: String, now: Timestamp) {
        let since = self.lost.take().map_or(now, |(_, since)| since);
        self.lost = Some((why, since));
    }

    pub(super) fn say(&mut self, note: String) {
        self.note = Some(note);
    }

    /// Pools, then workers, then jobs.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let Snapshot {
            pools, workers, jobs, ..
        } = &self.snapshot;
        let pools = pools.iter().map(Row::Pool);
        let workers = workers.iter().map(Row::Worker);
        pools.chain(workers).chain(jobs.iter().map(Row::Job)).collect()
    }

    /// Which of the rows is selected.
    pub(super) fn selected(&self) -> Option<usize> {
        self.selected.as_ref().map(|_| self.at)
    }

    /// Finds the selected row where it is now; if it is gone, the one in its place.
    fn settle(&mut self) {
        let Some(wanted) = &self.selected else { return };
        let rows = self.rows();
        let at = rows.iter().position(|row| row.key() == *wanted);
        let at = at.unwrap_or(self.at.min(rows.len().saturating_sub(1)));
        let selected = rows.get(at).map(Row::key);
        drop(rows);
        (self.at, self.selected) = (at, selected);
    }

    fn select(&mut self, to: impl FnOnce(usize) -> usize) {
        let first = self.selected.is_none();
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let at = if first { 0 } else { to(self.at).min(last) };
        let selected = rows.get(at).map(Row::key);
        drop(rows);
        (self.at, self.selected) = (at, selected);
    }

    /// The first row of the next section.
    fn next_section(&mut self) {
        let (pools, workers) = (self.snapshot.pools.len(), self.snapshot.workers.len());
        let starts = [0, pools, pools + workers];
        self.select(|at| starts.into_iter().find(|start| *start > at).unwrap_or(0));
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Pressed {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Pressed::Quit;
        }
        match std::mem::replace(&mut self.mode, Mode::Watching) {
            Mode::Help => Pressed::Nothing,
            Mode::Asking(command) => match key.code {
                KeyCode::Char('y' | 'Y') => Pressed::Do(command),
                _ => {
                    self.say("nothing was done".to_owned());
                    Pressed::Nothing
                }
            },
            Mode::Watching => self.command(key.code),
        }
    }

    fn command(&mut self, key: KeyCode) -> Pressed {
        self.note = None;
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Pressed::Quit,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Up | KeyCode::Char('k') => self.select(|at| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(|at| at + 1),
            KeyCode::PageUp => self.select(|at| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.select(|at| at + PAGE),
            KeyCode::Home => self.select(|_| 0),
            KeyCode::End => self.select(|_| usize::MAX),
            KeyCode::Tab => self.next_section(),
            KeyCode::Char(letter @ ('p' | 'd' | 'c')) => self.ask(letter),
            _ => {}
        }
        Pressed::Nothing
    }

    /// Asks whether to do to the selected row what a letter stands for.
    fn ask(&mut self, letter: char) {
        let rows = self.rows();
        let row = self.selected().and_then(|at| rows.get(at).copied());
        let command = row.and_then(|row| self.meant(letter, row));
        drop(rows);
        match command {
            Some(command) => self.mode = Mode::Asking(command),
            None => self.say(
                match letter {
                    'p' => "select a pool, or a job of it, to pause or resume it",
                    'd' => "select a worker, or a job of it, to drain it",
                    _ => "select a job to cancel it",
                }
                .to_owned(),
            ),
        }
    }

    fn meant(&self, letter: char, row: Row<'_>) -> Option<Command> {
        match (letter, row) {
            ('p', Row::Pool(row)) => Some(pause_or_resume(row)),
            ('p', Row::Job(row)) => self.snapshot.pool(&row.job.pool).map(pause_or_resume),
            ('d', Row::Worker(worker)) => Some(Command::Drain(worker.id.clone())),
            ('d', Row::Job(row)) => Some(Command::Drain(row.worker.clone())),
            ('c', Row::Job(row)) => Some(Command::Cancel {
                id: row.job.id.clone(),
                pool: row.job.pool.clone(),
            }),
            _ => None,
        }
    }
}

fn pause_or_resume(row: &PoolRow) -> Command {
    match row.paused {
        true => Command::Resume(row.pool.clone()),
        false => Command::Pause(row.pool.clone()),
    }
}

impl Command {
    /// What it is to do, as a question.
    pub(super) fn question(&self) -> String {
        match self {
            Self::Pause(pool) => format!("pause pool {pool}: no worker starts jobs of it?"),
            Self::Resume(pool) => format!("resume pool {pool}?"),
            Self::Drain(worker) => format!("drain worker {worker}: it finishes what runs, and ends?"),
            Self::Cancel { id, .. } => format!("cancel job {id}?"),
        }
    }

    /// What is said until it is done.
    pub(super) fn begun(&self) -> String {
        match self {
            Self::Pause(pool) => format!("pausing pool {pool} ..."),
            Self::Resume(pool) => format!("resuming pool {pool} ..."),
            Self::Drain(worker) => format!("draining worker {worker} ..."),
            Self::Cancel { id, .. } => format!("cancelling job {id} ..."),
        }
    }

    /// What is said then.
    pub(super) fn done(&self) -> String {
        match self {
            Self::Pause(pool) => format!("pool {pool} is paused"),
            Self::Resume(pool) => format!("pool {pool} is resumed"),
            Self::Drain(worker) => format!("worker {worker} drains"),
            Self::Cancel { id, .. } => format!("job {id} is cancelled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{at, snapshot};
    use super::*;

    fn state() -> State {
        State::new("n".to_owned(), "h:1".to_owned(), snapshot(0))
    }

    fn press(state: &mut State, keys: &str) -> Vec<Pressed> {
        let code = |key| match key {
            'v' => KeyCode::Down,
            '^' => KeyCode::Up,
            't' => KeyCode::Tab,
            other => KeyCode::Char(other),
        };
        keys.chars()
            .map(|key| state.press(KeyEvent::new(code(key), KeyModifiers::NONE)))
            .filter(|pressed| *pressed != Pressed::Nothing)
            .collect()
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        let pause = Command::Pause("render".to_owned());
        assert_eq!(
            press(&mut state(), "vvpy"),
            [Pressed::Do(pause)],
            "the second row, a pool"
        );
        for no in ["vpn", "vpq", "vp?", "py"] {
            assert_eq!(press(&mut state(), no), [], "{no}");
        }
        let mut asked = state();
        press(&mut asked, "vpn");
        assert_eq!(asked.note.as_deref(), Some("nothing was done"));
    }

    #[test]
    fn a_key_means_the_selected_row() {
        let cancel = Command::Cancel {
            id: "job-a".parse().unwrap(),
            pool: "render".to_owned(),
        };
        for (keys, command) in [
            ("vtdy", Command::Drain("web-1-42-abcdef".to_owned())),
            ("vttcy", cancel),
            ("vttdy", Command::Drain("web-1-42-abcdef".to_owned())),
            ("vttpy", Command::Pause("render".to_owned())),
            ("vpy", Command::Resume("default".to_owned())),
        ] {
            assert_eq!(press(&mut state(), keys), [Pressed::Do(command)], "{keys}");
        }
        for (keys, hint) in [
            ("vc", "select a job"),
            ("vd", "select a worker"),
            ("vtp", "select a pool"),
            ("p", "select"),
        ] {
            let mut state = state();
            assert_eq!(press(&mut state, keys), []);
            assert!(
                state.note.as_ref().is_some_and(|note| note.contains(hint)),
                "{keys}: {:?}",
                state.note
            );
        }
    }

    #[test]
    fn q_and_ctrl_c_quit_wherever_one_is() {
        assert_eq!(press(&mut state(), "q"), [Pressed::Quit]);
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for before in ["", "?", "vp"] {
            let mut state = state();
            press(&mut state, before);
            assert_eq!(state.press(ctrl_c), Pressed::Quit, "{before:?}");
        }
    }

    #[test]
    fn the_selection_follows_its_row() {
        let mut state = state();
        press(&mut state, "vttv"); // the second job
        let Some(Row::Job(row)) = state.rows().get(state.selected().unwrap()).copied() else {
            panic!("a job is selected");
        };
        let id = row.job.id.clone();
        let mut moved = snapshot(1);
        moved.jobs.reverse();
        state.update(moved.clone());
        assert!(matches!(state.rows()[state.selected().unwrap()], Row::Job(row) if row.job.id == id));
        moved.jobs.clear();
        state.update(moved);
        assert!(
            matches!(state.rows()[state.selected().unwrap()], Row::Worker(_)),
            "the last row that is left"
        );
    }

    #[test]
    fn rates_are_remembered_for_a_while_and_forgotten_with_their_pool() {
        let mut state = state();
        for second in 1..=100 {
            state.update(snapshot(second));
        }
        assert_eq!(state.history["render"].len(), HISTORY);
        assert!(state.history["render"].iter().all(|rate| *rate > 0.0));
        let mut without = snapshot(101);
        without.pools.clear();
        state.update(without);
        assert!(state.history.is_empty());
    }

    #[test]
    fn a_lost_broker_stays_lost_since_the_first_look_that_failed() {
        let mut state = state();
        state.lose("first".to_owned(), at(1));
        state.lose("second".to_owned(), at(5));
        assert_eq!(state.lost, Some(("second".to_owned(), at(1))));
        state.update(snapshot(6));
        assert_eq!(state.lost, None);
    }
}
