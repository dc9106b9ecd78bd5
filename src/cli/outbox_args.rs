//! Where results wait on disk.

use std::convert::Infallible;
use std::path::PathBuf;

use clap::Args;

use super::environment;
use crate::app::{OutboxChoice, OutboxOptions};
use crate::message::ByteSize;

#[derive(Args)]
#[command(next_help_heading = "Outbox")]
pub(super) struct OutboxArgs {
    /// Where results wait on disk while the broker is away, so that a crash does not lose them; none for in memory alone
    /// [default: outbox in $STATE_DIRECTORY, $XDG_STATE_HOME/synthex or ~/.local/state/synthex, as root in
    /// /var/lib/synthex]
    ///
    /// They may hold secrets: directory and files are for this user alone.
    #[arg(long, value_name = "DIR", env = "SYNTHEX_OUTBOX", value_parser = named)]
    outbox: Option<Named>,
    /// Most bytes of results on disk; what is over it waits in memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    outbox_max_bytes: ByteSize,
}

/// What was asked for by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    None,
    Dir(PathBuf),
}

impl OutboxArgs {
    pub(super) fn options(self) -> OutboxOptions {
        let choice = match self.outbox {
            Some(Named::None) => OutboxChoice::None,
            Some(Named::Dir(dir)) => OutboxChoice::Named(dir),
            None => environment::state_folder()
                .map_or(OutboxChoice::None, |state| OutboxChoice::Usual(state.join("outbox"))),
        };
        OutboxOptions {
            choice,
            max_bytes: self.outbox_max_bytes,
        }
    }
}

fn named(text: &str) -> Result<Named, Infallible> {
    Ok(match text {
        "none" => Named::None,
        dir => Named::Dir(dir.into()),
    })
}
