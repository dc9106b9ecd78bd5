//! Draws the state: a heading, pools, workers, jobs, and what the keys are for.
//!
//! It fits into 80 columns and 24 lines; what does not fit is scrolled so that the selected row is seen.

use std::collections::VecDeque;

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row as TableRow, Table};

use super::state::{Mode, Row, State};
use crate::cli::{jobs, pools, workers};
use crate::control::snapshot::{JobRow, PoolRow};
use crate::message::{JobState, PoolState, WorkerState};

/// Columns that a bar has.
const BAR: usize = 10;
/// Columns that a pool's rates have.
const SPARKS: usize = 12;
/// From here on there is room for more columns.
const WIDE: u16 = 110;

const HELP: &str = "\
 up, down, page up, page down   select
 tab                            next section
 p   pause the selected pool, or the job's; resume it if it is paused
 d   drain the selected worker, or the job's: it finishes what runs
 c   cancel the selected job
 q   quit

 Each asks first; y does it, any other key does not.";

/// Colours, or none (`NO_COLOR`). What they say is said by words as well.
#[derive(Clone, Copy)]
pub(super) struct Colours(bool);

impl Colours {
    pub(super) const fn new(wanted: bool) -> Self {
        Self(wanted)
    }

    fn of(self, colour: Color) -> Style {
        if self.0 { Style::new().fg(colour) } else { Style::new() }
    }

    /// Of a word that says how something is.
    fn state(self, word: &str) -> Style {
        match word {
            "consuming" | "running" => self.of(Color::Green),
            "paused" | "draining" | "waiting" | "settling" => self.of(Color::Yellow),
            _ => self.of(Color::Red),
        }
    }
}

/// Draws all of it.
pub(super) fn draw(state: &State, colours: Colours, now: Timestamp, frame: &mut Frame<'_>) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(heading(state, colours, now), head);
    sections(state, colours, now, frame, body);
    frame.render_widget(footer(state, colours), foot);
    if state.mode == Mode::Help {
        help(frame);
    }
}

fn heading<'a>(state: &'a State, colours: Colours, now: Timestamp) -> Paragraph<'a> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let time = now.strftime("%H:%M:%SZ").to_string();
    let first = Line::from(vec![
        Span::styled("synthex top", bold),
        Span::raw(format!("  {} on {}  {time}", state.namespace, state.hosts)),
    ]);
    let second = match &state.lost {
        Some((why, since)) => Line::styled(
            format!(
                "BROKER LOST {} ago: {why}",
                jobs::seconds(now.duration_since(*since).as_secs())
            ),
            colours.of(Color::Red).add_modifier(Modifier::BOLD),
        ),
        None => Line::raw(summary(state)),
    };
    Paragraph::new(vec![first, second])
}

fn summary(state: &State) -> String {
    let rows = &state.snapshot.pools;
    let sum = |of: fn(&PoolRow) -> u64| rows.iter().map(of).sum::<u64>();
    let rate = rows.iter().filter_map(|row| row.rate).fold(0.0, |sum, rate| sum + rate); // the sum of none is -0.0
    format!(
        "{} workers  {}/{} slots busy  {} ready  {} unacked  {rate:.1} jobs/s  {} failed",
        state.snapshot.workers.len(),
        sum(|row| row.running),
        sum(|row| row.slots),
        sum(|row| row.ready.unwrap_or(0)),
        sum(|row| row.unacked),
        sum(PoolRow::failures),
    )
}

/// A quarter of the height for pools and workers each, at most; the jobs have the rest.
fn sections(state: &State, colours: Colours, now: Timestamp, frame: &mut Frame<'_>, area: Rect) {
    let snapshot = &state.snapshot;
    let quarter = (area.height / 4).max(2);
    let height = |rows: usize| u16::try_from(rows + 1).unwrap_or(u16::MAX).min(quarter);
    let [pools_area, workers_area, jobs_area] = Layout::vertical([
        Constraint::Length(height(snapshot.pools.len())),
        Constraint::Length(height(snapshot.workers.len())),
        Constraint::Min(2),
    ])
    .areas(area);
    let rows = state.rows();
    let (pools, rest) = rows.split_at(snapshot.pools.len());
    let (workers, jobs) = rest.split_at(snapshot.workers.len());
    let selected = state.selected();
    let of = |first: usize, count: usize| selected.and_then(|at| at.checked_sub(first)).filter(|at| *at < count);
    let sections = [
        (Section::Pools, pools, pools_area, of(0, pools.len())),
        (Section::Workers, workers, workers_area, of(pools.len(), workers.len())),
        (
            Section::Jobs,
            jobs,
            jobs_area,
            of(pools.len() + workers.len(), jobs.len()),
        ),
    ];
    for (section, rows, area, selected) in sections {
        let room = usize::from(area.height.saturating_sub(1));
        let first = first_shown(selected, rows.len(), room);
        let drawn = rows.iter().enumerate().skip(first).take(room).map(|(at, row)| {
            let drawn = draw_row(state, colours, now, row, area.width >= WIDE);
            match selected == Some(at) {
                true => drawn.style(Style::new().add_modifier(Modifier::REVERSED)),
                false => drawn,
            }
        });
        frame.render_widget(section.table(drawn.collect(), area.width >= WIDE), area);
    }
}

/// The first row to be shown so that the selected one is seen.
fn first_shown(selected: Option<usize>, rows: usize, room: usize) -> usize {
    let after = selected.map_or(0, |at| (at + 1).saturating_sub(room));
    after.min(rows.saturating_sub(room))
}

#[derive(Clone, Copy)]
enum Section {
    Pools,
    Workers,
    Jobs,
}

impl Section {
    fn table<'a>(self, rows: Vec<TableRow<'a>>, is_wide: bool) -> Table<'a> {
        use Constraint::{Fill, Length};
        let sparks = u16::try_from(SPARKS).unwrap_or(u16::MAX);
        let bar = u16::try_from(BAR + 8).unwrap_or(u16::MAX);
        let (heading, widths) = match self {
            Self::Pools => (
                vec!["POOL", "STATE", "READY", "UNACKED", "RUNNING", "FAILED", "RATE", ""],
                vec![
                    Fill(1),
                    Length(12),
                    Length(7),
                    Length(7),
                    Length(9),
                    Length(6),
                    Length(7),
                    Length(sparks),
                ],
            ),
            Self::Workers => (
                vec!["WORKER", "STATE", "SLOTS", "IN HAND", "VERSION", "UP"],
                vec![Fill(1), Length(13), Length(bar), Length(7), Length(8), Length(7)],
            ),
            Self::Jobs => (
                vec!["JOB", "POOL", "PROGRAM", "STATE", "AGE", "TO TIMEOUT", "LEFT", "WORKER"],
                vec![
                    Fill(2),
                    Length(9),
                    Length(11),
                    Length(8),
                    Length(6),
                    Length(10),
                    Length(6),
                ],
            ),
        };
        let mut widths = widths;
        if is_wide {
            widths.push(Fill(1));
        }
        let heading = TableRow::new(heading.into_iter().take(widths.len()).collect::<Vec<_>>());
        let heading = heading.style(Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED));
        Table::new(rows, widths).header(heading)
    }
}

fn draw_row<'a>(state: &State, colours: Colours, now: Timestamp, row: &Row<'a>, is_wide: bool) -> TableRow<'a> {
    match row {
        Row::Pool(row) => pool_row(row, colours, state.history.get(&row.pool)),
        Row::Worker(worker) => worker_row(worker, colours, now),
        Row::Job(row) => job_row(row, colours, now, is_wide),
    }
}

fn pool_row<'a>(row: &'a PoolRow, colours: Colours, history: Option<&VecDeque<f64>>) -> TableRow<'a> {
    let word = pools::state(row);
    let failures = row.failures();
    let failed = if failures > 0 {
        colours.of(Color::Red)
    } else {
        Style::new()
    };
    TableRow::new(vec![
        Span::raw(&*row.pool),
        Span::styled(word, colours.state(word)),
        Span::raw(row.ready.map_or("-".to_owned(), |ready| ready.to_string())),
        Span::raw(row.unacked.to_string()),
        Span::raw(format!("{}/{}", row.running, row.slots)),
        Span::styled(failures.to_string(), failed),
        Span::raw(row.rate.map_or("-".to_owned(), |rate| format!("{rate:.1}/s"))),
        Span::styled(sparkline(history), colours.of(Color::Cyan)),
    ])
}

fn worker_row<'a>(worker: &'a WorkerState, colours: Colours, now: Timestamp) -> TableRow<'a> {
    let sum = |of: fn(&PoolState) -> u64| worker.pools.iter().map(of).sum::<u64>();
    let (running, slots) = (sum(|pool| pool.running), sum(|pool| pool.slots));
    let states = worker.pools.iter().map(|pool| workers::state(worker, pool));
    // Of several pools, one that does not take jobs is worth a look.
    let word = states.reduce(|one, other| if one == "consuming" { other } else { one });
    let word = word.unwrap_or("no pool");
    TableRow::new(vec![
        Span::raw(&*worker.id),
        Span::styled(word, colours.state(word)),
        Span::raw(format!("{} {running}/{slots}", bar(ratio(running, slots)))),
        Span::raw(sum(|pool| pool.in_hand).to_string()),
        Span::raw(&*worker.version),
        Span::raw(jobs::seconds(now.duration_since(worker.started_at).as_secs())),
    ])
}

fn job_row<'a>(row: &'a JobRow, colours: Colours, now: Timestamp, is_wide: bool) -> TableRow<'a> {
    let job = &row.job;
    let program = job.program.as_deref().and_then(|program| program.rsplit('/').next());
    let word = job.state.as_str();
    let mut cells = vec![
        Span::raw(job.id.as_str()),
        Span::raw(&*job.pool),
        Span::raw(program.unwrap_or("-")),
        Span::styled(word, colours.state(word)),
        Span::raw(jobs::age(row, now)),
        Span::raw(way(row, now).map(bar).unwrap_or_default()),
        Span::raw(jobs::left(row, now)),
    ];
    if is_wide {
        cells.push(Span::raw(&*row.worker));
    }
    TableRow::new(cells)
}

/// How much of its time a running job has used, from 0 to 1.
fn way(row: &JobRow, now: Timestamp) -> Option<f64> {
    let job = &row.job;
    let (started, deadline) = (job.started_at?, job.deadline?);
    let whole = deadline.duration_since(started).as_secs_f64();
    (job.state == JobState::Running && whole > 0.0)
        .then(|| (now.duration_since(started).as_secs_f64() / whole).clamp(0.0, 1.0))
}

#[expect(clippy::cast_precision_loss, reason = "a bar has ten steps")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        (part as f64 / whole as f64).clamp(0.0, 1.0)
    }
}

/// A bar that is so full. What has begun has a step, and only what is full has all.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "from 0 to the bar's length"
)]
fn bar(ratio: f64) -> String {
    let full = match ratio {
        ..=0.0 => 0,
        1.0.. => BAR,
        ratio => ((ratio * BAR as f64).round() as usize).clamp(1, BAR - 1),
    };
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

/// The last rates as a line of bars, each a part of the highest of them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to the last of the steps"
)]
fn sparkline(history: Option<&VecDeque<f64>>) -> String {
    const STEPS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let all: Vec<f64> = history.into_iter().flatten().copied().collect();
    let rates = &all[all.len().saturating_sub(SPARKS)..];
    let highest = rates.iter().copied().fold(0.0, f64::max);
    let step = |rate: &f64| match highest {
        0.0 => STEPS[1],
        highest => STEPS[((rate / highest * 8.0).ceil() as usize).clamp(1, 8)],
    };
    let drawn: String = rates.iter().map(step).collect();
    format!("{drawn:>SPARKS$}")
}

fn footer<'a>(state: &'a State, colours: Colours) -> Line<'a> {
    match (&state.mode, &state.note) {
        (Mode::Asking(command), _) => Line::styled(
            format!("{} y: yes, any other key: no", command.question()),
            colours.of(Color::Yellow).add_modifier(Modifier::REVERSED),
        ),
        (_, Some(note)) => Line::raw(&**note),
        _ if state.snapshot.jobs_left_out > 0 => Line::raw(format!(
            "{} more jobs are in hand than are shown",
            state.snapshot.jobs_left_out
        )),
        _ => Line::raw("arrows: select  p: pause/resume  d: drain  c: cancel  ?: help  q: quit"),
    }
}

fn help(frame: &mut Frame<'_>) {
    let lines = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX);
    let widest = HELP.lines().map(str::len).max().unwrap_or(0);
    let widest = u16::try_from(widest).unwrap_or(u16::MAX);
    let area = frame.area();
    let (width, height) = ((widest + 3).min(area.width), (lines + 2).min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" keys ")), place);
}

#[cfg(test)]
#[path = "view/tests.rs"]
pub(super) mod tests;
