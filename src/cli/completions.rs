//! `synthex completions`: what a shell needs to complete this command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::exit::{Exit, Failure};
use super::{Cli, print};

/// Print a script that has a shell complete commands, flags and values
///
/// For bash: synthex completions bash > ~/.local/share/bash-completion/completions/synthex
#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) async fn run(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "synthex", &mut script);
    print::data(&script)
        .await
        .map_err(|error| Failure::io("write to stdout", &error))?;
    Ok(Exit::Done)
}
