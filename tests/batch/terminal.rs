//! Progress on a terminal: a real one, of which the test sees the screen.

use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long the screen may take to show what it has to.
const LIMIT: Duration = Duration::from_secs(30);
const ROWS: NonZeroU16 = NonZeroU16::new(12).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(80).unwrap();

/// A program on a terminal.
struct OnTerminal {
    child: Child,
    shown: Arc<Shown>,
}

#[derive(Default)]
struct Shown {
    written: Mutex<(Vec<u8>, bool)>,
    news: Condvar,
}

impl OnTerminal {
    /// Starts `synthex` with stdout and stderr on a terminal of its own.
    fn start(folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Self {
        let (terminal, screen) = open();
        let child = Command::new(env!("CARGO_BIN_EXE_synthex"))
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "xterm")
            .envs(env.iter().copied())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::from(terminal.try_clone().unwrap()))
            .stderr(Stdio::from(terminal))
            .spawn()
            .unwrap();
        let shown = Arc::new(Shown::default());
        let written = Arc::clone(&shown);
        thread::spawn(move || written.collect(screen));
        Self { child, shown }
    }

    /// Waits until the screen is as wanted, and gives its lines, without the empty ones below.
    fn wait_for(&self, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = Instant::now() + LIMIT;
        let mut state = self.shown.written.lock().unwrap();
        loop {
            let lines = lines(&state.0);
            if wanted(&lines) {
                return lines;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !state.1, "the screen is {lines:#?}");
            state = self.shown.news.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the program's end; gives what was on the screen then, and all that was written.
    fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        let code = self.child.wait().unwrap().code();
        let mut state = self.shown.written.lock().unwrap();
        while !state.1 {
            state = self.shown.news.wait_timeout(state, LIMIT).unwrap().0;
        }
        (code, lines(&state.0), String::from_utf8_lossy(&state.0).into_owned())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Shown {
    fn collect(&self, mut screen: File) {
        let mut buffer = [0; 4096];
        loop {
            // An error is how a terminal says that nobody has it open any more.
            let count = screen.read(&mut buffer).unwrap_or(0);
            let mut state = self.written.lock().unwrap();
            state.0.extend_from_slice(&buffer[..count]);
            state.1 = count == 0;
            self.news.notify_all();
            if count == 0 {
                return;
            }
        }
    }
}

/// The two ends of a new terminal.
fn open() -> (OwnedFd, File) {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap();
    let terminal = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let size = Winsize {
        ws_row: ROWS.get(),
        ws_col: COLUMNS.get(),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).unwrap();
    (terminal, screen.into())
}

fn lines(written: &[u8]) -> Vec<String> {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    terminal.process(written);
    let mut lines: Vec<String> = terminal
        .screen()
        .rows(0, COLUMNS.get())
        .map(|line| line.trim_end().to_owned())
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// The first two end, the others wait for a file.
const HALF: &str = "echo job $0; [ $0 -le 2 ] || while [ ! -e go ]; do sleep 0.01; done; [ $0 -le 3 ]";

#[test]
fn a_bar_is_below_what_the_jobs_write_and_gone_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "run",
        "--keep-order",
        "--slots",
        "2",
        "--range",
        "1-4",
        "--",
        "sh",
        "-c",
        HALF,
    ];
    let running = OnTerminal::start(folder.path(), &[], &args);
    let half = running.wait_for(|lines| lines.len() == 3 && lines[2].contains(" 2/4  2 under way  "));
    assert_eq!(half[..2], ["job 1", "job 2"], "{half:#?}");
    assert_eq!(half.len(), 3, "{half:#?}");
    assert!(
        half[2].starts_with("[==========>         ] 2/4  2 under way  "),
        "{half:#?}"
    );
    fs::write(folder.path().join("go"), "").unwrap();
    let (code, end, written) = running.end();
    assert_eq!(code, Some(3));
    assert_eq!(end[..4], ["job 1", "job 2", "job 3", "job 4"], "{end:#?}");
    assert!(
        end[4].starts_with("synthex: job ") && end[4].contains("(item 4) failed with exit code 1"),
        "{end:#?}"
    );
    assert_eq!(end[5], "synthex: 4 jobs: 3 succeeded, 1 failed", "{end:#?}");
    assert!(end[6].starts_with("synthex: took "), "{end:#?}");
    // Jobs of over a second, as they are on a busy machine, are named below that.
    let slowest = |line: &String| line.starts_with("synthex: slowest: ");
    assert!(end.get(7).is_none_or(slowest), "{end:#?}");
    assert!(!end.iter().any(|line| line.starts_with('[')), "{end:#?}");
    assert!(written.contains("\x1b[32m"), "the bar has a colour");
}

#[test]
fn no_color_is_honoured() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("go"), "").unwrap();
    let args = ["run", "--range", "1-3", "--", "sh", "-c", HALF];
    let is_coloured = |written: &str| {
        written.split("\x1b[").skip(1).any(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
                .starts_with('m')
        })
    };
    for (env, colours) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let (code, _, written) = OnTerminal::start(folder.path(), env, &args).end();
        assert_eq!((code, is_coloured(&written)), (Some(0), colours), "{written:?}");
        // What goes wrong is red, or not.
        let (code, _, written) = OnTerminal::start(folder.path(), env, &["run", "--each", "none", "--", "x"]).end();
        assert_eq!((code, is_coloured(&written)), (Some(2), colours), "{written:?}");
        // So is the log.
        let (code, _, written) = OnTerminal::start(folder.path(), env, &["-vv", "run", "--", "true"]).end();
        assert_eq!((code, is_coloured(&written)), (Some(0), colours), "{written:?}");
    }
}

#[test]
fn a_terminal_that_can_only_write_lines_gets_lines() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("go"), "").unwrap();
    let args = ["run", "--keep-order", "--range", "1-2", "--", "sh", "-c", HALF];
    let (_, mut lines, written) = OnTerminal::start(folder.path(), &[("TERM", "dumb"), ("NO_COLOR", "1")], &args).end();
    lines.retain(|line| !line.contains(" done, ")); // progress, if it took long
    assert_eq!(lines, ["job 1", "job 2", "synthex: 2 jobs: 2 succeeded"]);
    assert!(!written.contains('\x1b'), "{written:?}");
}
