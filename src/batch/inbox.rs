//! The results of a batch as they come, over any number of lost sessions.

use std::time::Duration;

use futures_util::FutureExt;

use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::transport::{BoxFuture, Delivery, Subscribe, Subscription, SubscriptionEnd, Transport, TransportError};

/// The first wait after a lost or failed subscription.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
/// Refusals in a row that may pass: a queue that has just lost its leader.
const PASSING_REFUSALS: u32 = 10;

pub(super) struct Inbox<T: Transport> {
    transport: T,
    request: Subscribe,
    state: State<T>,
    backoff: Backoff,
    refusals: u32,
}

enum State<T: Transport> {
    Live(T::Subscription),
    Away(BoxFuture<'static, Result<T::Subscription, TransportError>>),
}

/// What comes.
pub(super) enum Inbound {
    Delivery(Box<Delivery>),
    /// Nothing can come for now, for this reason.
    Lost(String),
    /// It can again.
    Back,
}

impl<T: Transport> Inbox<T> {
    pub(super) fn new(transport: T, request: Subscribe, subscription: T::Subscription) -> Self {
        Self {
            transport,
            request,
            state: State::Live(subscription),
            backoff: Backoff::new(RETRY_INITIAL, RECONNECT_MAX),
            refusals: 0,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// When the broker lets us subscribe no more.
    ///
    /// # Cancel safety
    /// Cancel safe: an attempt to subscribe goes on where it was.
    pub(super) async fn next(&mut self) -> Result<Inbound, TransportError> {
        match &mut self.state {
            State::Live(subscription) => match subscription.next().await {
                Some(delivery) => {
                    self.backoff.reset();
                    Ok(Inbound::Delivery(Box::new(delivery)))
                }
                None => {
                    let (SubscriptionEnd::Lost(reason) | SubscriptionEnd::Unreadable(reason)) = subscription.end();
                    Ok(self.lose(reason))
                }
            },
            State::Away(attempt) => match attempt.await {
                Ok(subscription) => {
                    self.state = State::Live(subscription);
                    self.refusals = 0;
                    Ok(Inbound::Back)
                }
                Err(error) if self.may_pass(&error) => Ok(self.lose(error.to_string())),
                Err(error) => Err(error),
            },
        }
    }

    /// Whether results can come now.
    pub(super) const fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }

    /// What has come already.
    pub(super) fn now(&mut self) -> Option<Delivery> {
        match &mut self.state {
            State::Live(subscription) => subscription.next().now_or_never().flatten(),
            State::Away(_) => None,
        }
    }

    fn may_pass(&mut self, error: &TransportError) -> bool {
        self.refusals += u32::from(error.is_refusal());
        error.is_transient() || (error.is_refusal() && self.refusals <= PASSING_REFUSALS)
    }

    fn lose(&mut self, reason: String) -> Inbound {
        let (transport, request, wait) = (self.transport.clone(), self.request.clone(), self.backoff.next_delay());
        self.state = State::Away(Box::pin(async move {
            tokio::time::sleep(wait).await;
            transport.subscribe(&request).await
        }));
        Inbound::Lost(reason)
    }
}
