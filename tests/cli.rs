//! The command line as its users meet it: `synthex` as a process, without a broker.
//!
//! Each file is a subject: what help and usage errors say, `run` with a command and with files of jobs, bad input, how
//! a run is stopped, the contracts that are printed, pool files, and what `worker` and `submit` do when something is
//! wrong. With a broker they are tested end to end.

#![allow(
    clippy::unwrap_used,        // a test that cannot go on should stop
    clippy::disallowed_methods  // thread::sleep, between looks at /proc
)]

mod support;

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/interrupted.rs"]
mod interrupted;
#[path = "cli/manual.rs"]
mod manual;
#[path = "cli/package.rs"]
mod package;
#[path = "cli/run_command.rs"]
mod run_command;
#[path = "cli/run_files.rs"]
mod run_files;
#[path = "cli/schema.rs"]
mod schema;
#[path = "cli/stopping.rs"]
mod stopping;
#[path = "cli/submit.rs"]
mod submit;
#[path = "cli/traces.rs"]
mod traces;
#[path = "cli/worker.rs"]
mod worker;
