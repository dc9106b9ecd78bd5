//! `synthex pause`: no worker starts jobs of a pool.

use clap::Args;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, show, who};
use super::print;
use crate::message::Order;

/// Have no worker start jobs of a pool.
///
/// What runs goes on; jobs that were not started go back to the pool's queue, which takes new ones. The pause is in force
/// until `synthex resume`, for 7 days at most, also on workers that start later.
#[derive(Args)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    pool: PoolArgs,
}

/// What pause and resume are about.
#[derive(Args)]
pub(super) struct PoolArgs {
    /// The pool
    pool: String,
    /// Print the order that was given as a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: PauseArgs) -> Result<Exit, Failure> {
    args.pool.order("paused", pause).await
}

/// The order to pause a pool now.
pub(super) fn pause(pool: String) -> Order {
    let (at, by) = (crate::message::now(), Some(who()));
    Order::Pause { pool, at, by }
}

impl PoolArgs {
    /// Gives the order that `make` makes of the pool.
    pub(super) async fn order(self, done: &str, make: fn(String) -> Order) -> Result<Exit, Failure> {
        let operator = Operator::new(&self.operator)?;
        let given = async {
            operator.check_pool(&self.pool).await?;
            let order = make(self.pool.clone());
            operator.order(&order).await?;
            if self.json {
                show(&order).await?;
            } else {
                print::note(&format!("pool {:?} is {done}", self.pool));
            }
            Ok(Exit::Done)
        }
        .await;
        operator.end(given).await
    }
}
