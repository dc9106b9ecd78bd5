//! Tasks that somebody owns: named, counted, restarted within bounds, and stopped in order.
//!
//! - [`tasks`]: a [`TaskGroup`] owns running tasks and hears of every end; it is the one place
//!   where a task is spawned, so a task nobody owns cannot exist.
//! - [`accounts`]: [`TaskAccounts`] counts them all by name, and measures how they are polled.
//! - [`shutdown`]: [`Shutdown`], the two signals every loop obeys: drain (finish, take no more) and
//!   abort (end now).
//! - [`tree`]: a [`Supervisor`] starts children in order, restarts what ends unasked, and stops in
//!   reverse order.
//! - [`child`]: what a supervisor keeps, and where it is in its life.
//! - [`budget`]: how many restarts are too many.
//! - [`event`]: what a supervisor tells its log and its observer.
//!
//! ```text
//!  Shutdown ──► Supervisor ── one Shutdown a child ──► child future
//!                  │  ▲                                   │
//!                  │  └────────── TaskGroup ◄── end ──────┘
//!                  └─► restart after a back-off, or give up ─► StopReport
//! ```
//!
//! It does not know what its tasks do. It cannot end a task that blocks its thread; such a task is
//! named in the stop report instead of being waited for.

pub mod accounts;
pub mod budget;
pub mod child;
pub mod event;
pub mod shutdown;
pub mod tasks;
pub mod tree;

pub use accounts::{LOCK, PollStats, TaskAccounts, TaskStats};
pub use budget::Budget;
pub use child::{Child, Restart};
pub use event::SupervisorEvent;
pub use shutdown::Shutdown;
pub use tasks::{Outcome, TaskEnd, TaskError, TaskGroup, TaskId, on_the_runtime};
pub use tree::{ABORT_GRACE, StopReport, Strategy, Supervisor};
