//! Operating a fleet: what operators tell workers, what workers answer, and what came to a bad end.
//!
//! - [`dead`] looks at dead letters, has their jobs run again, throws them away.
//! - [`fleet`] is an operator's side: it gives orders, asks workers, and collects their answers.
//! - [`snapshot`] puts the answers of workers and what the broker says of queues into one view of the fleet.
//! - [`explain`] says why a job does not run, from what [`fleet`], [`standing`], [`delayed`] and [`dead`] have found.
//! - [`Control`] is a worker's side, two tasks that run beside its pools and end after them: the *follower* reads the
//!   log of orders from its beginning and enters them in the worker's [`Orders`]; the *desk* answers requests. Neither
//!   needs a slot, so both work while all slots are full.
//!
//! Orders ([`crate::message::Order`]) last: they are in the stream `synthex.control.log` for 7 days, and each worker reads
//! it by itself, so one order is one message, and a worker that starts makes none at all. Requests
//! ([`crate::message::Request`]) go to a private queue of each live worker, and are answered once by each.
//!
//! All of it is generic over the [`Transport`]. Who asked, and how the answer is printed, is not known here; what an order
//! means for a job is decided in [`crate::worker`].

mod board;
pub mod dead;
pub mod delayed;
mod desk;
pub mod explain;
pub mod fleet;
mod follower;
pub mod snapshot;
pub mod standing;

use std::sync::Arc;

use jiff::Timestamp;

use crate::message::WorkerState;
use crate::supervise::{Child, Restart, Shutdown};
use crate::transport::Transport;
use crate::transport::topology::{Declare, Names, Topology};
use crate::worker::event::Observer;
use crate::worker::orders::Orders;
use crate::worker::{Audience, Identity, InHand, Worker};
pub use board::{Board, BoardPool};
use desk::Desk;
use follower::Follower;

/// A worker's side of it all.
pub struct Control<T> {
    transport: T,
    names: Names,
    identity: Identity,
    orders: Orders,
    in_hand: InHand,
    audience: Audience,
    observer: Arc<dyn Observer>,
    board: Board,
    /// What it finds or makes on the broker.
    topology: Arc<Topology>,
    declare: Declare,
    /// Stops the whole worker.
    everything: Shutdown,
    started_at: Timestamp,
}

impl<T: Transport> Control<T> {
    /// The control of `worker`, whose observers include `board`; a drain drains `everything`.
    #[must_use]
    pub fn of(worker: &Worker<T>, board: Board, declare: Declare, everything: Shutdown) -> Self {
        Self {
            transport: worker.transport.clone(),
            names: worker.names.clone(),
            identity: worker.identity.clone(),
            orders: worker.orders.clone(),
            in_hand: worker.in_hand.clone(),
            audience: worker.audience.clone(),
            observer: worker.observer.clone(),
            board,
            topology: Arc::new(Topology::control(&worker.names)),
            declare,
            everything,
            started_at: crate::message::now(),
        }
    }

    /// How the worker is now.
    #[must_use]
    pub fn state(&self) -> WorkerState {
        WorkerState {
            id: self.identity.id.clone(),
            host: self.identity.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at,
            draining: self.everything.is_draining() || self.board.is_draining(),
            clock: Some(crate::message::now()),
            pools: self.board.pools(&self.orders),
        }
    }

    /// The two tasks, to be started before the pools, which wait for the orders that were given before.
    #[must_use]
    pub fn children(self: &Arc<Self>) -> Vec<Child> {
        let control = self.clone();
        let follower = Arc::new(Follower::new(control.clone()));
        let desk = Arc::new(Desk(control));
        vec![
            Child::new("control_follower", Restart::Permanent, move |shutdown| {
                follower.clone().run(shutdown)
            }),
            Child::new("control_desk", Restart::Permanent, move |shutdown| {
                desk.clone().run(shutdown)
            }),
        ]
    }
}

#[cfg(test)]
mod tests;
