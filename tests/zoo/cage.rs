//! Where the commands of one test live, and how all their processes are found.
//!
//! A process may leave its parent, group and session, take its environment, name and directory off, and close all it has
//! open. So it is known by any one of these:
//!
//! - it wrote itself down, with its start time, before it did anything else (`zoo.h`, `here.bash`);
//! - its program's file, or its directory, is in the cage;
//! - its environment or its arguments name the cage.
//!
//! The worker and its helper processes have none of these marks.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::process::{self, Process, Signal, wait_until};

/// How long anything may take that has to come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often `/proc` is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Looks by which whatever is left at the end of a test is killed, and how many of them in a row have to find nothing.
const ROUNDS: usize = 300;
const ROUNDS_EMPTY: usize = 10;

/// A folder of one test. Whatever still lives in it when it goes is killed.
pub struct Cage {
    folder: TempDir,
}

/// A process that wrote itself down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    pub pid: u32,
    started: u64,
    job: String,
}

impl Cage {
    pub fn new() -> Self {
        let cage = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(cage.record()).unwrap();
        // Commands that run as another user are at home here too.
        for (folder, mode) in [
            (cage.folder.path(), 0o755),
            (&cage.inside(), 0o777),
            (&cage.record(), 0o777),
        ] {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
        }
        cage
    }

    /// A path outside of the cage, for what belongs to the worker.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The directory of commands, by whose name their processes are known.
    pub fn inside(&self) -> PathBuf {
        self.folder.path().join("cage")
    }

    /// Where processes write themselves down, and leave word: `$ZOO_DIR`.
    pub fn record(&self) -> PathBuf {
        self.inside().join("record")
    }

    /// A script of the zoo.
    pub fn script(name: &str) -> String {
        let path = fixtures().join(name);
        assert!(path.exists(), "{} is missing", path.display());
        text(&path)
    }

    /// A program of the zoo, in a copy of the cage's own.
    pub fn program(&self, name: &str) -> String {
        let path = self.inside().join(name);
        if !path.exists() {
            // By another process: a program that is open for writing here could be so in a fork of this one too.
            let copied = Command::new("cp").arg(compiled(name)).arg(&path).status().unwrap();
            assert!(copied.success());
        }
        text(&path)
    }

    /// Lets a job end.
    pub fn open(&self, job: &str) {
        fs::write(self.record().join(format!("open-{job}")), "").unwrap();
    }

    /// Whether a process of a job has left this word.
    pub fn has_word(&self, word: &str, job: &str) -> bool {
        self.record().join(format!("{word}-{job}")).exists()
    }

    /// All processes of a job that wrote themselves down, living or not.
    pub fn recorded(&self, job: &str) -> Vec<Recorded> {
        let mut all = self.all_recorded();
        all.retain(|one| one.job == job);
        all
    }

    fn all_recorded(&self) -> Vec<Recorded> {
        let entries = fs::read_dir(self.record()).into_iter().flatten();
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let pid = path.file_name()?.to_str()?.parse().ok()?;
                let text = fs::read_to_string(path).ok()?;
                // A line that is not whole is of a process killed while it wrote, or about to write.
                let (started, job) = text.strip_suffix('\n')?.split_once(' ')?;
                Some(Recorded {
                    pid,
                    started: started.parse().ok()?,
                    job: job.to_owned(),
                })
            })
            .collect()
    }

    /// Waits until a job says that all its processes are up, and gives them.
    #[track_caller]
    pub fn wait_for(&self, job: &str, count: usize) -> Vec<Recorded> {
        wait_until(PATIENCE, &format!("{job} is up"), || self.has_word("up", job));
        let found = self.living(job);
        assert_eq!(found.len(), count, "of {job}: {found:?}");
        found
    }

    /// The processes of a job that wrote themselves down and live.
    pub fn living(&self, job: &str) -> Vec<Recorded> {
        let mut all = self.recorded(job);
        all.retain(Recorded::is_alive);
        all
    }

    /// All processes that live and were started by jobs of this test, as texts for people.
    pub fn alive(&self) -> Vec<String> {
        let alive = self.processes();
        alive
            .into_iter()
            .map(|process| format!("{} {}", process.pid, process.command))
            .collect()
    }

    /// Fails unless every process of this test's jobs is gone by then.
    #[track_caller]
    pub fn assert_empty_within(&self, limit: Duration) {
        gone_by(Instant::now() + limit, "of this test's jobs", || self.alive());
    }

    fn processes(&self) -> Vec<Process> {
        let recorded = self.all_recorded();
        let mark = text(&self.inside());
        let is_ours = |process: &Process| {
            let written = recorded
                .iter()
                .any(|one| (one.pid, one.started) == (process.pid, process.started));
            written || has_mark(process, mark.as_bytes())
        };
        process::all().into_iter().filter(is_ours).collect()
    }
}

/// Looks until nothing is left alive, and fails with what is if the last look began too late.
#[track_caller]
pub fn gone_by<T: Debug>(deadline: Instant, of_what: &str, alive: impl Fn() -> Vec<T>) {
    loop {
        let is_late = Instant::now() >= deadline; // before the look, which takes its time
        let left = alive();
        if left.is_empty() {
            return;
        }
        assert!(!is_late, "still alive {of_what}: {left:#?}");
        std::thread::sleep(POLL);
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // A chain of forks goes on between two looks, so it takes several that find nothing.
        let mut empty = 0;
        for _ in 0..ROUNDS {
            let left = self.processes();
            empty = if left.is_empty() { empty + 1 } else { 0 };
            if empty == ROUNDS_EMPTY {
                return;
            }
            for process in left {
                process.signal(Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Recorded {
    /// Whether it still runs, or is stopped.
    pub fn is_alive(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Whether it has a number yet: zombies are counted too.
    pub fn exists(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// The start time of a process, or of a zombie.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn has_mark(process: &Process, mark: &[u8]) -> bool {
    let proc = |name: &str| format!("/proc/{}/{name}", process.pid);
    let contains = |text: &[u8]| text.windows(mark.len()).any(|part| part == mark);
    let is_inside = |link: &str| fs::read_link(proc(link)).is_ok_and(|path| contains(path.as_os_str().as_bytes()));
    contains(process.command.as_bytes())
        || is_inside("exe")
        || is_inside("cwd")
        || fs::read(proc("environ")).is_ok_and(|environment| contains(&environment))
}

/// Compiles a C program of the zoo, unless that was done before, and gives its path.
fn compiled(name: &str) -> PathBuf {
    let (source, header) = (fixtures().join(format!("{name}.c")), fixtures().join("zoo.h"));
    let mut hasher = DefaultHasher::new();
    for file in [&source, &header] {
        fs::read(file).unwrap().hash(&mut hasher);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("zoo");
    let program = folder.join(format!("{name}-{:016x}", hasher.finish()));
    if !program.exists() {
        fs::create_dir_all(&folder).unwrap();
        // Tests that run at the same time may do the same; each gives a whole file its name.
        let new = folder.join(format!("{name}.{}", std::process::id()));
        let made = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Werror", "-O1", "-o"])
            .args([&new, &source])
            .status()
            .expect("Rust links with cc, so it is there");
        assert!(made.success(), "{} does not compile", source.display());
        fs::rename(&new, &program).unwrap();
    }
    program
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/zoo")
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
