//! A job's turn: when it may be started, and when it goes back instead.

use std::ffi::OsStr;
use std::time::Duration;

use super::super::admit::Ticket;
use super::super::hold::Claim;
use super::super::slots::Slot;
use super::super::trail::Phase;
use super::Pipeline;
use crate::supervise::Shutdown;
use crate::transport::Transport;

/// Redeliveries from which a job runs alone: its third attempt, if the first two ended with their workers.
const ALONE_FROM: u32 = 2;

/// Why a job gets no turn.
pub(super) enum PutOff {
    /// It may be started at once, elsewhere or when the pool goes on.
    ForNow,
    /// It is to be tried again later.
    ForAWhile,
}

/// The right to run one command; others may go on when it is dropped.
pub(super) struct Turn {
    _claim: Option<Claim>,
    _slot: Slot,
}

impl<T: Transport> Pipeline<T> {
    /// Waits for the job's turn to be started.
    ///
    /// # Errors
    /// When it is not to be, as the worker drains, its pool is held, or it was to run alone and could not.
    pub(super) async fn turn(&self, ticket: &Ticket, program: &OsStr, stop: &Shutdown) -> Result<Turn, PutOff> {
        let _waiting = ticket.trace.phase(Phase::Wait);
        let is_suspect = ticket.attempt.redeliveries >= ALONE_FROM;
        if is_suspect && let Some(patience) = self.holds.patience(ticket.attempt.put_offs) {
            return self.turn_alone(patience, program, stop).await;
        }
        let slot = tokio::select! {
            biased; // a free slot must not win over the drain
            () = self.ending.draining() => return Err(self.until_the_last_came(stop).await),
            () = self.holds.stopped(&self.pool.name) => return Err(PutOff::ForNow),
            slot = self.slot_at_its_pace(program) => slot,
        };
        if is_suspect {
            tracing::warn!(
                pool = &*self.pool.name,
                job.id = %ticket.job_id,
                "was redelivered {} times and may be what kills its workers, but runs beside others: {} times it waited to \
                 run alone, and other commands did not end",
                ticket.attempt.redeliveries,
                ticket.attempt.put_offs,
            );
        }
        Ok(Turn {
            _claim: None,
            _slot: slot,
        })
    }

    /// Waits, once the worker drains, until its consumer is gone: what goes back before makes room for more to come, and
    /// may itself come here again.
    async fn until_the_last_came(&self, stop: &Shutdown) -> PutOff {
        tokio::select! {
            () = self.last_came.cancelled() => {}
            () = stop.draining() => {} // the intake has ended, whichever way
        }
        PutOff::ForNow
    }

    /// A slot, when rates allow a start; who waits for that has none.
    async fn slot_at_its_pace(&self, program: &OsStr) -> Slot {
        let first = self.pace.first(program).await;
        let slot = self.slot().await;
        first.start();
        slot
    }

    /// A slot, which none gets while its pool is held.
    async fn slot(&self) -> Slot {
        loop {
            self.holds.free(&self.pool.name).await;
            let slot = self.slots.take().await;
            if self.holds.reason(&self.pool.name).is_none() {
                return slot;
            }
        }
    }

    /// The same for a job that may be killing workers: no other command runs beside it.
    async fn turn_alone(&self, patience: Duration, program: &OsStr, stop: &Shutdown) -> Result<Turn, PutOff> {
        let claim = match self.holds.reason(&self.pool.name) {
            None => self.holds.claim(),
            Some(_) => None,
        };
        let Some(claim) = claim else {
            return tokio::select! {
                () = self.ending.draining() => Err(self.until_the_last_came(stop).await),
                () = self.holds.stopped(&self.pool.name) => Err(PutOff::ForNow),
            };
        };
        let slot = async {
            match claim.alone(patience).await {
                true => {
                    let first = self.pace.first(program).await;
                    let slot = self.slots.take().await;
                    first.start();
                    Ok(slot)
                }
                false => Err(PutOff::ForAWhile),
            }
        };
        let slot = tokio::select! {
            biased;
            () = self.ending.draining() => return Err(self.until_the_last_came(stop).await),
            slot = slot => slot?,
        };
        Ok(Turn {
            _claim: Some(claim),
            _slot: slot,
        })
    }
}
