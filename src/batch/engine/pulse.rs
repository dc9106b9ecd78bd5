//! What a batch does once a second: it looks whether its pool is still there, tells others how far it is, and says to people
//! when it does not get on.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::inbox::Inbox;
use super::super::{Progress, Source};
use super::{BatchError, Engine};
use crate::message::{BatchEvent, Status};
use crate::transport::{QueueDepth, Transport, TransportError};

/// Without any answer to what was sent for so long, people are told.
const SILENCE: Duration = Duration::from_secs(3);

/// What a look at the broker found.
pub(super) struct Errand {
    pool: Result<Option<QueueDepth>, TransportError>,
    /// What was told to others, if that has arrived.
    told: Option<(BTreeMap<Status, u64>, Option<u64>)>,
}

impl<T: Transport, S: Source> Engine<'_, T, S> {
    pub(super) fn pulse(&mut self) {
        if self.windows.silent_for() > SILENCE {
            self.stall("the broker does not confirm what is published".to_owned());
        }
        if self.errand.is_some() {
            return;
        }
        let Some(herald) = &self.plan.herald else { return };
        let news = (self.table.settled(), self.end.total);
        let is_news = self.told.as_ref() != Some(&news);
        let event = match (self.end.total, self.windows.is_empty() && !self.end.cut_short) {
            (Some(_), true) => BatchEvent::Submitted,
            _ => BatchEvent::Progress,
        };
        let record = is_news.then(|| herald.say(event, news.1, news.0.clone()));
        let (transport, queue) = (self.plan.transport.clone(), herald.names.pool_queue(&herald.pool));
        self.errand = Some(Box::pin(async move {
            let told = match record {
                Some(record) => transport.publish(&record).await.is_ok(),
                None => false,
            };
            Errand {
                pool: transport.queue_depth(&queue).await,
                told: told.then_some(news),
            }
        }));
    }

    pub(super) fn return_from(&mut self, errand: Errand) -> Result<(), BatchError> {
        self.errand = None;
        self.told = errand.told.or(self.told.take());
        match errand.pool {
            Ok(found) => {
                let was_gone = std::mem::replace(&mut self.pool_is_gone, found.is_none());
                self.windows.hold(self.pool_is_gone);
                if self.pool_is_gone {
                    let pool = &self.plan.address.pool;
                    self.stall(format!("pool {pool:?} has no queue on this broker any more"));
                    return Ok(());
                }
                self.go_on();
                if was_gone {
                    self.windows.send();
                }
                Ok(())
            }
            Err(error) if error.is_transient() || error.is_refusal() => {
                self.stall(error.to_string());
                Ok(())
            }
            Err(error) => Err(BatchError::Publish(error.into())),
        }
    }

    pub(super) fn stall(&mut self, reason: String) {
        if self.stalled.is_none() {
            self.watcher.on(&Progress::Stalled(Some(reason.clone())));
        }
        self.stalled = Some(reason);
    }

    /// Says that it goes on, if nothing keeps it any more.
    pub(super) fn go_on(&mut self) {
        let is_well = !self.pool_is_gone
            && !self.windows.are_refused()
            && self.windows.silent_for() <= SILENCE
            && self.inbox.as_ref().is_none_or(Inbox::is_live);
        if is_well && self.stalled.take().is_some() {
            self.watcher.on(&Progress::Stalled(None));
        }
    }
}
