//! What starting and ending commands costs, side by side with programs that do nothing else.
//!
//! ```text
//! cargo bench                                          all parts, about 4 minutes
//! cargo bench -- rate memory                           some of: rate, rabbitmq, timers, memory, scrape
//! cargo bench --bench spawn -- rate --rounds 9         more rounds, for a machine that has other work
//! cargo bench --bench spawn -- rate --against BINARY   another synthex beside this one, in the same rounds
//! ```
//!
//! Every number is one of a whole process that does nothing else, and is measured in rounds: each subject once, then
//! each again, so that what disturbs the machine disturbs all of them. Shown are medians. **Read the ratios**: they are
//! medians too, of the ratios within each round, and hold on another machine where jobs per second do not.
//!
//! - **rate**: jobs a second of `/bin/true`, and of a static program without libc that only exits: of `/bin/true`, most
//!   of the time is the program's own start, of the other it is who starts it. The yardstick is a loop of
//!   `posix_spawn` and `waitpid`, a thread a core, nothing captured; what it does cannot be left out. `executor` is the
//!   library's `execute` alone, output captured; `synthex run` is the whole binary with its embedded broker, fed
//!   through stdin, its results read. CPU is user and system time a job: of the service's own process, and of its helpers.
//! - **rabbitmq**: the same of `synthex worker`, on a node of its own that has the jobs beforehand. The node needs
//!   its part of the machine, so compare a version with another one, and only then with the yardstick.
//! - **timers**: 64 slots run `/bin/true` flat out while others run into a timeout of 100 ms. Shown is how long after that
//!   the result was there, and how long after that the last process of the job was dead, as a thread at real-time
//!   priority saw it. Both count from the moment that the executor says the command was started.
//! - **memory**: what a worker has resident with 1,000 jobs, and by how much a job that writes 10 GiB raises that. RSS
//!   counts pages that processes share in each of them, PSS divides them.
//! - **scrape**: how long Prometheus would wait for the metrics of a worker of 50 pools, on a node as above.
//!
//! Nothing fails here for being slow. It needs Linux, `cc`, and for `rabbitmq` and `scrape` what `tests/run` installs.

#![allow(
    clippy::disallowed_methods, // the product's bans: thread::sleep, spawning
    clippy::print_stdout,       // a table is what this is for
    clippy::print_stderr
)]

mod executor;
mod memory;
mod processes;
mod rabbitmq;
mod rate;
mod service;
mod statistics;
mod timers;
mod yardsticks;

/// RabbitMQ nodes and `/proc`, as tests have them.
#[path = "../../tests/support"]
#[allow(dead_code, unused_imports)]
mod support {
    pub mod broker;
    pub mod process;
}

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rate::Subject;

/// What can be measured, in this order.
const PARTS: [&str; 5] = ["rate", "rabbitmq", "timers", "memory", "scrape"];

/// Enough for a median that one disturbed round does not move.
const ROUNDS: usize = 5;

/// The binary under test.
pub const SYNTHEX: &str = env!("CARGO_BIN_EXE_synthex");

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Subjects that are not programs of their own are this one, started again.
    match args.first().map(String::as_str) {
        Some(yardsticks::ROLE) => yardsticks::main(&args[1..]),
        Some(executor::ROLE) => executor::main(&args[1..]),
        Some(timers::ROLE) => timers::main(),
        // Without the flag that `cargo bench` adds, this is `cargo test`, which has nothing to run here.
        _ if !args.iter().any(|arg| arg == "--bench") => {}
        _ => match Options::parse(args) {
            Ok(options) => measure(&options),
            Err(problem) => {
                eprintln!("{problem}; see the first lines of benches/spawn/main.rs");
                return ExitCode::from(2);
            }
        },
    }
    ExitCode::SUCCESS
}

/// What to measure.
struct Options {
    parts: Vec<String>,
    rounds: usize,
    against: Option<PathBuf>,
}

impl Options {
    fn parse(args: Vec<String>) -> Result<Self, String> {
        let mut options = Self {
            parts: Vec::new(),
            rounds: ROUNDS,
            against: None,
        };
        let mut args = args.into_iter().filter(|arg| arg != "--bench");
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--rounds" => options.rounds = value()?.parse().map_err(|_| "--rounds needs a number")?,
                "--against" => options.against = Some(value()?.into()),
                part if PARTS.contains(&part) => options.parts.push(arg),
                _ => return Err(format!("{arg} is none of {}", PARTS.join(", "))),
            }
        }
        if options.parts.is_empty() {
            options.parts = PARTS.map(str::to_owned).to_vec();
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    /// The binaries to measure, by what the table calls them.
    fn binaries(&self) -> Vec<(&'static str, PathBuf)> {
        let other = self.against.iter().map(|path| ("against", path.clone()));
        [("synthex", SYNTHEX.into())].into_iter().chain(other).collect()
    }
}

fn measure(options: &Options) {
    let start = Instant::now();
    host();
    let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
    let programs = [yardsticks::bin_true(), yardsticks::libc_free(folder.path())];
    let needs_node = options.wants("rabbitmq") || options.wants("scrape");
    let node = needs_node.then(rabbitmq::Node::start);
    for program in &programs {
        let mut subjects: Vec<Subject> = Vec::new();
        if options.wants("rate") || options.wants("rabbitmq") {
            subjects.extend(yardsticks::subjects(program));
        }
        if options.wants("rate") {
            subjects.extend(executor::subjects(program));
            subjects.extend(service::subjects(program, &options.binaries()));
        }
        if let Some(node) = node.as_ref().filter(|_| options.wants("rabbitmq")) {
            subjects.extend(node.subjects(program, &options.binaries()));
        }
        if !subjects.is_empty() {
            rate::table(program, &subjects, options.rounds);
        }
    }
    if let Some(node) = node.filter(|_| options.wants("scrape")) {
        node.scrapes(&options.binaries());
    }
    if options.wants("timers") {
        timers::table();
    }
    if options.wants("memory") {
        memory::table(&options.binaries());
    }
    println!("\nmeasured in {:.0} s", start.elapsed().as_secs_f64());
}

/// Says on what this was measured.
fn host() {
    let uname = rustix::system::uname();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{} cores, {} {} {}, load before: {}",
        yardsticks::cores(),
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
        load.trim()
    );
}
