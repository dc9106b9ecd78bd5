//! The `synthex` binary: arguments in, exit code out. Everything is in the library.

use std::process::ExitCode;

use synthex::executor::spawner::{self, SPAWNER_ARGUMENT};

fn main() -> ExitCode {
    // A helper process of a worker: the same program, told by its first argument. No runtime, no thread.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == SPAWNER_ARGUMENT)
    {
        spawner::main()
    }
    synthex::cli::main()
}
