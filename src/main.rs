//! The `synthex` binary: arguments in, exit code out. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    synthex::cli::main()
}
