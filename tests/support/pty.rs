//! `synthex` on a terminal: a pseudoterminal, with an emulator that knows what would be seen on it.

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZeroU16,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::process::{Signal, wait_until};

/// How long anything may take to be seen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program that runs on a terminal of its own. Dropping it kills the program.
pub struct Terminal {
    child: Child,
    ours: File,
    theirs: OwnedFd,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    emulator: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts the `synthex` of this build on a terminal of this size, with nothing but `PATH` and `env` in its
    /// environment.
    pub fn start(args: &[&str], env: &[(&str, &str)], (columns, lines): (u16, u16)) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("there are terminals");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = open(&name, flags, Mode::empty()).expect("its other end can be opened");
        let size = Winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&ours, size).expect("it takes a size");
        let end = || Stdio::from(theirs.try_clone().expect("a descriptor is free"));
        let child = Command::new("/usr/bin/setpriv")
            .args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_synthex")])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("there is a PATH"))
            .env("TERM", "xterm-256color")
            .envs(env.iter().copied())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("it can be started");
        let ours = File::from(ours);
        let seen = Arc::new(Mutex::new(Seen {
            emulator: vt100::Parser::new(at_least_one(lines), at_least_one(columns), 0),
            bytes: Vec::new(),
        }));
        watch(ours.try_clone().expect("a descriptor is free"), Arc::clone(&seen));
        Self {
            child,
            ours,
            theirs,
            seen,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("who writes does not panic")
    }

    /// What is on the screen, line by line, without what trails.
    pub fn screen(&self) -> String {
        let seen = self.seen();
        let lines: Vec<String> = seen.emulator.screen().rows(0, u16::MAX).collect();
        lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
    }

    /// All that was written to the terminal.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.seen().bytes).into_owned()
    }

    /// Waits until the screen is as wanted, and gives it.
    ///
    /// # Panics
    /// When that does not come: with the screen.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let shown = self.shows_within(PATIENCE, wanted);
        shown.unwrap_or_else(|| panic!("no {what} on\n{}", self.screen()))
    }

    /// The screen, as soon as it is as wanted.
    fn shows_within(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let screen = self.screen();
            if wanted(&screen) {
                return Some(screen);
            }
            thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Presses keys until they have an effect, and gives the screen then. For those that may be pressed again.
    ///
    /// # Panics
    /// When they have none: with the screen.
    #[track_caller]
    pub fn press_until(&mut self, keys: &str, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        const TRIES: usize = 8;
        for _ in 1..TRIES {
            self.press(keys);
            if let Some(screen) = self.shows_within(Duration::from_secs(10), &wanted) {
                return screen;
            }
        }
        self.press(keys);
        self.wait_for(what, wanted)
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("it has a number"), signal).expect("it is there");
    }

    /// Waits for its end, and gives its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until(PATIENCE, "the program ends", || {
            code = self.child.try_wait().expect("it is ours");
            code.is_some()
        });
        code.and_then(|code| code.code())
    }

    /// Whether the terminal is as a shell wants it: lines, echo, the usual screen, and a cursor.
    pub fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.theirs).expect("it is there").local_modes;
        let seen = self.seen();
        let screen = seen.emulator.screen();
        modes.contains(LocalModes::ICANON | LocalModes::ECHO) && !screen.alternate_screen() && !screen.hide_cursor()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads what is written to a terminal, on a thread of its own, until nobody has it open any more.
fn watch(mut ours: File, seen: Arc<Mutex<Seen>>) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = ours.read(&mut buffer) {
            let mut seen = seen.lock().expect("who looks does not panic");
            seen.emulator.process(&buffer[..count]);
            seen.bytes.extend(&buffer[..count]);
        }
    });
}

fn at_least_one(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("a terminal has lines and columns")
}
