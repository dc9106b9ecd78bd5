//! `synthex resume`: ends the pause of a pool.

use clap::Args;

use super::exit::{Exit, Failure};
use super::operator::who;
use super::pause::PoolArgs;
use crate::message::Order;

/// Have workers start jobs of a paused pool again.
#[derive(Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    pool: PoolArgs,
}

pub(super) async fn run(args: ResumeArgs) -> Result<Exit, Failure> {
    args.pool.order("resumed", resume).await
}

/// The order to resume a pool now.
pub(super) fn resume(pool: String) -> Order {
    let (at, by) = (crate::message::now(), Some(who()));
    Order::Resume { pool, at, by }
}
