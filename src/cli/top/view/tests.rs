//! Screens, compared as text.

use std::collections::BTreeMap;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::control::snapshot::Snapshot;
use crate::message::{Inventory, JobInHand};
use crate::transport::QueueDepth;

pub(in crate::cli::top) fn at(second: i64) -> Timestamp {
    let noon: Timestamp = "2030-01-31T12:00:00Z".parse().unwrap();
    noon.checked_add(jiff::SignedDuration::from_secs(second)).unwrap()
}

fn job(id: &str, state: JobState, started: Option<i64>) -> JobInHand {
    JobInHand {
        id: id.parse().unwrap(),
        attempt: 1,
        pool: "render".to_owned(),
        state,
        program: Some("/usr/bin/ffmpeg".to_owned()),
        labels: BTreeMap::new(),
        taken_at: at(-90),
        started_at: started.map(at),
        deadline: started.map(|second| at(second + 600)),
    }
}

fn pool(name: &str, running: u64, ended: u64, paused: bool) -> PoolState {
    PoolState {
        pool: name.to_owned(),
        slots: 4,
        running,
        in_hand: running + 1,
        paused,
        consuming: !paused,
        started: None,
        finished: [("succeeded".to_owned(), ended), ("failed".to_owned(), 3)].into(),
    }
}

/// A fleet some seconds after noon: two jobs a second end in one pool, the other one is paused.
pub(in crate::cli::top) fn snapshot(second: i64) -> Snapshot {
    let ended = 100 + 2 * u64::try_from(second).unwrap();
    let worker = WorkerState {
        id: "web-1-42-abcdef".to_owned(),
        host: "web-1".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: at(-3_700),
        draining: false,
        clock: None,
        pools: vec![pool("render", 3, ended, false), pool("default", 0, 7, true)],
    };
    let inventory = Inventory {
        worker,
        jobs: vec![
            job("job-a", JobState::Running, Some(-300)),
            job("job-b", JobState::Running, Some(-5)),
            job("job-c", JobState::Waiting, None),
        ],
        left_out: 0,
        recent: Vec::new(),
    };
    let depth = |messages| Some(QueueDepth { messages, consumers: 1 });
    let depths = [("default".to_owned(), depth(0)), ("render".to_owned(), depth(120))];
    Snapshot::new(at(second), vec![inventory], &depths.into())
}

fn screen(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let colours = Colours::new(true);
    terminal.draw(|frame| draw(state, colours, at(2), frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width)).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn state() -> State {
    let mut state = State::new("synthex".to_owned(), "broker:5672".to_owned(), snapshot(0));
    state.update(snapshot(1));
    state.update(snapshot(2));
    state
}

fn press(state: &mut State, keys: &[KeyCode]) {
    for code in keys {
        let _ = state.press(KeyEvent::new(*code, KeyModifiers::NONE));
    }
}

#[test]
fn a_fleet_fits_into_eighty_columns_and_twenty_four_lines() {
    let expected = "\
synthex top  synthex on broker:5672  12:00:02Z
1 workers  3/8 slots busy  120 ready  5 unacked  2.0 jobs/s  6 failed
POOL          STATE        READY   UNACKED RUNNING   FAILED RATE
default       paused       0       1       0/4       3      0.0/s             ▁▁
render        consuming    120     4       3/4       3      2.0/s             ██
WORKER                 STATE         SLOTS              IN HAND VERSION  UP
web-1-42-abcdef        paused        ████░░░░░░ 3/8     5       0.1.0    1h01m
JOB                      POOL      PROGRAM     STATE    AGE    TO TIMEOUT LEFT
job-a                    render    ffmpeg      running  5m02s  █████░░░░░ 4m58s
job-b                    render    ffmpeg      running  7s     █░░░░░░░░░ 9m53s
job-c                    render    ffmpeg      waiting  1m32s";
    let shown = screen(&state(), 80, 24);
    let (body, footer) = shown.rsplit_once('\n').unwrap();
    assert_eq!(body.trim_end(), expected, "\n{shown}");
    assert_eq!(
        footer,
        "arrows: select  p: pause/resume  d: drain  c: cancel  ?: help  q: quit"
    );
}

#[test]
fn a_question_a_note_and_a_lost_broker_are_said_in_words() {
    let mut state = state();
    press(&mut state, &[KeyCode::End, KeyCode::End, KeyCode::Char('c')]);
    let shown = screen(&state, 80, 24);
    assert!(
        shown.ends_with("cancel job job-c? y: yes, any other key: no"),
        "{shown}"
    );
    press(&mut state, &[KeyCode::Char('n')]);
    assert!(screen(&state, 80, 24).ends_with("nothing was done"));
    state.lose("failed to reach the broker at broker:5672: refused".to_owned(), at(-3));
    let shown = screen(&state, 80, 24);
    assert!(shown.contains("BROKER LOST 5s ago: failed to reach"), "{shown}");
    assert!(shown.contains("job-a"), "what was known stays\n{shown}");
}

#[test]
fn help_lies_over_the_rest() {
    let mut state = state();
    press(&mut state, &[KeyCode::Char('?')]);
    let shown = screen(&state, 80, 24);
    assert!(
        shown.contains("┌ keys ") && shown.contains("c   cancel the selected job"),
        "{shown}"
    );
    press(&mut state, &[KeyCode::Char('x')]);
    assert!(!screen(&state, 80, 24).contains("keys "));
}

#[test]
fn the_selected_row_is_seen_however_many_there_are() {
    let mut many = snapshot(3);
    let row = many.jobs[0].clone();
    many.jobs = (0..100)
        .map(|number| {
            let mut row = row.clone();
            row.job.id = format!("job-{number}").parse().unwrap();
            row
        })
        .collect();
    let mut state = state();
    state.update(many);
    press(&mut state, &[KeyCode::End, KeyCode::End]);
    let shown = screen(&state, 80, 24);
    assert!(shown.contains("job-99 ") && !shown.contains("job-0 "), "{shown}");
    assert!(screen(&state, 160, 50).contains("WORKER"));
    // A terminal that has room for nothing has nothing drawn, and nobody harmed.
    for (width, height) in [(1, 1), (20, 3), (10, 40), (300, 2)] {
        screen(&state, width, height);
    }
}

#[test]
fn without_colours_there_are_none() {
    let mut state = state();
    press(&mut state, &[KeyCode::Down]);
    for (wanted, expected) in [(true, true), (false, false)] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let colours = Colours::new(wanted);
        terminal.draw(|frame| draw(&state, colours, at(2), frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), expected);
        assert!(
            cells.iter().any(|cell| cell.modifier.contains(Modifier::REVERSED)),
            "the selected row"
        );
    }
}

#[test]
fn a_bar_shows_what_has_begun_and_what_is_full() {
    assert_eq!(bar(0.0), "░░░░░░░░░░");
    assert_eq!(bar(0.001), "█░░░░░░░░░");
    assert_eq!(bar(0.999), "█████████░");
    assert_eq!(bar(1.0), "██████████");
}

#[test]
fn a_job_cannot_draw_outside_of_its_cell() {
    let mut state = state();
    let mut odd = snapshot(3);
    odd.jobs[0].job.program = Some("\x1b[2J\n\u{9b}1m".to_owned());
    state.update(odd);
    let shown = screen(&state, 80, 24);
    assert!(!shown.contains('\x1b') && !shown.contains('\u{9b}'), "{shown:?}");
    assert_eq!(shown.lines().count(), 24);
}
