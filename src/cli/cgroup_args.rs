//! Which cgroup is divided among jobs.

use std::convert::Infallible;

use clap::Args;

use crate::app::CgroupChoice;

#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct CgroupArgs {
    /// The cgroup (version 2) in which each job gets one of its own: auto takes the one this process runs in if it was
    /// delegated to it (systemd: Delegate=yes), none uses no cgroups, a directory takes that one
    ///
    /// With a cgroup, limits count a job as a whole; without, each of its processes.
    #[arg(long, value_name = "DIR", env = "SYNTHEX_CGROUP", default_value = "auto", value_parser = choice)]
    pub(super) cgroup: CgroupChoice,
}

fn choice(text: &str) -> Result<CgroupChoice, Infallible> {
    Ok(match text {
        "auto" => CgroupChoice::Auto,
        "none" => CgroupChoice::None,
        path => CgroupChoice::Path(path.into()),
    })
}
