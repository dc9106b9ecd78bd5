//! One pass over a queue: everything that was ready at its beginning, once, in order.
//!
//! What goes back to a quorum queue comes again before what has never been taken, so nothing goes back before the end:
//! until then the broker has every letter down as ours. And it comes after what went back before it, so a pass that
//! stops half-way turns the order round: who wants a few letters still goes over all.
//!
//! A prefetch that allows for a million letters would have a million bodies sent at once, so it allows for a few, and the
//! subscription is extended each time that they were taken. What has an end of its own is the time: RabbitMQ takes back
//! what a consumer holds for longer than its `consumer_timeout`, 30 minutes by default, and the pass has failed then.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::DeadError;
use crate::transport::topology::Declare;
use crate::transport::{Delivery, Settlement, Settler, Subscribe, Subscription, SubscriptionEnd, Transport};

/// Letters on their way at once: enough to keep a connection busy, and 64 MiB if each is as large as a pool allows for
/// by default.
const PAGE: u16 = 64;
/// How long nothing has to come until the rest counts as taken by somebody else.
const QUIET: Duration = Duration::from_secs(5);
/// How long the broker may take to count as ready what was given back.
const RETURN: Duration = Duration::from_secs(5);
/// How often it is asked whether it does.
const POLL: Duration = Duration::from_millis(2);
/// Letters that are given back before the broker is asked. From 32 commands under way on, RabbitMQ puts together what goes
/// back to a quorum queue, and puts it there in no order.
const BATCH: usize = 25;

/// A look at every message that is ready in a queue.
pub struct Pass<'a, T: Transport> {
    transport: &'a T,
    queue: String,
    subscription: T::Subscription,
    /// Letters yet to come.
    expected: u32,
    /// Letters that may come before the subscription has to be extended.
    room: u16,
    /// How long nothing has to come until the rest counts as gone.
    quiet: Duration,
    /// What goes back at the end.
    kept: Vec<Box<dyn Settler>>,
}

impl<'a, T: Transport> Pass<'a, T> {
    /// Begins a pass over what is ready now in a queue that has to be there.
    ///
    /// # Errors
    /// When there is no such queue, or the broker cannot be used.
    pub async fn begin(transport: &'a T, queue: String) -> Result<Self, DeadError> {
        let Some(depth) = transport.queue_depth(&queue).await? else {
            return Err(DeadError::NoQueue(queue));
        };
        let request = Subscribe {
            queue: queue.clone(),
            prefetch: PAGE,
            consumer_timeout: None,
            from: None,
            topology: Arc::default(),
            declare: Declare::Passive,
        };
        Ok(Self {
            transport,
            subscription: transport.subscribe(&request).await?,
            queue,
            expected: depth.messages,
            room: PAGE,
            quiet: QUIET,
            kept: Vec::new(),
        })
    }

    /// The same pass, which waits so long for what does not come: in a queue that messages leave by themselves, some do not.
    pub(in crate::control) fn waiting_for(self, quiet: Duration) -> Self {
        Self { quiet, ..self }
    }

    /// The next letter; `None` when all have come, or nothing comes any more.
    ///
    /// # Errors
    /// When the broker is lost.
    pub async fn next(&mut self) -> Result<Option<Delivery>, DeadError> {
        if self.expected == 0 {
            return Ok(None);
        }
        if self.room == 0 {
            self.subscription.extend().await?;
            self.room = PAGE;
        }
        let Ok(next) = timeout(self.quiet, self.subscription.next()).await else {
            return Ok(None);
        };
        let delivery = next.ok_or_else(|| self.lost())?;
        self.expected -= 1;
        self.room -= 1;
        Ok(Some(delivery))
    }

    /// Keeps a letter until the end, and then gives it back.
    pub fn keep(&mut self, delivery: Delivery) {
        self.kept.push(delivery.into_settler());
    }

    /// Gives back what was kept, and waits until others can see it. Returns how many letters have not come.
    pub async fn end(mut self) -> usize {
        // No more may come, or what goes back would come here again.
        self.subscription.cancel().await;
        while let Some(uninvited) = self.subscription.next().await {
            self.keep(uninvited);
        }
        self.give_back().await;
        usize::try_from(self.expected).unwrap_or(usize::MAX)
    }

    /// A broker takes a moment to give back, and who looks meanwhile would miss some.
    async fn give_back(&mut self) {
        let mut ready = self.ready().await;
        let mut kept = std::mem::take(&mut self.kept).into_iter().peekable();
        while kept.peek().is_some() {
            for letter in kept.by_ref().take(BATCH) {
                ready = match letter.settle(Settlement::GiveBack).await {
                    Ok(()) => ready.map(|ready| ready.saturating_add(1)),
                    Err(_) => None, // its session has ended, so all are back
                };
            }
            ready = self.until(ready).await;
        }
    }

    /// Waits until so many letters are ready. Returns `None` when that is not to be had: another client takes them, or the
    /// broker is gone. There is nothing to wait for then, and no order to be kept.
    async fn until(&self, wanted: Option<u32>) -> Option<u32> {
        let end = Instant::now() + RETURN;
        while let Some(count) = wanted
            && Instant::now() < end
        {
            if self.ready().await? >= count {
                return wanted;
            }
            sleep(POLL).await;
        }
        None
    }

    async fn ready(&self) -> Option<u32> {
        let depth = self.transport.queue_depth(&self.queue).await.ok()??;
        Some(depth.messages)
    }

    fn lost(&self) -> DeadError {
        let reason = match self.subscription.end() {
            SubscriptionEnd::Lost(reason) => reason,
            SubscriptionEnd::Unreadable(reason) => {
                format!("it has a message that cannot be read, and that has to be removed by other means: {reason}")
            }
        };
        DeadError::Lost {
            queue: self.queue.clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Envelope;
    use crate::transport::memory::Memory;
    use crate::transport::topology::{Names, Topology};
    use crate::transport::{Publication, Routing};

    async fn with_letters(count: u32) -> Memory {
        let broker = Memory::new();
        let topology = Topology::new(&Names::new("n"), []);
        broker.declare(&topology, Declare::Active).await.unwrap();
        for _ in 0..count {
            add_letter(&broker).await;
        }
        broker
    }

    async fn add_letter(broker: &Memory) {
        let letter = Publication {
            exchange: "n.dead".to_owned(),
            routing_key: "p".to_owned(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: "a body".into(),
                ..Envelope::default()
            }
            .into(),
        };
        broker.publish(&letter).await.unwrap();
    }

    async fn begin(broker: &Memory) -> Pass<'_, Memory> {
        Pass::begin(broker, "n.dead".to_owned()).await.unwrap()
    }

    async fn ready(broker: &Memory) -> u32 {
        broker.queue_depth("n.dead").await.unwrap().unwrap().messages
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_page_is_on_its_way() {
        let broker = with_letters(200).await;
        let mut pass = begin(&broker).await;
        for taken in 1..=200 {
            let delivery = pass.next().await.unwrap().expect("there are more");
            assert_eq!(**delivery.envelope.body, *b"a body");
            pass.keep(delivery);
            let on_their_way = 200 - taken - ready(&broker).await;
            assert!(on_their_way < u32::from(PAGE), "{on_their_way} after {taken}");
        }
        assert!(pass.next().await.unwrap().is_none());
        assert_eq!((pass.end().await, ready(&broker).await), (0, 200));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_later_is_not_seen_and_not_kept_from_others() {
        let broker = with_letters(2).await;
        let mut pass = begin(&broker).await;
        add_letter(&broker).await;
        for _ in 0..2 {
            let delivery = pass.next().await.unwrap().expect("there are more");
            pass.keep(delivery);
        }
        assert!(pass.next().await.unwrap().is_none());
        assert_eq!((pass.end().await, ready(&broker).await), (0, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_client_took_meanwhile_is_counted() {
        let broker = with_letters(100).await;
        let mut pass = begin(&broker).await; // a page is on its way
        let other = Subscribe {
            queue: "n.dead".to_owned(),
            prefetch: 100,
            consumer_timeout: None,
            from: None,
            topology: Arc::default(),
            declare: Declare::Passive,
        };
        let other = broker.subscribe(&other).await.unwrap();
        while let Some(delivery) = pass.next().await.unwrap() {
            pass.keep(delivery);
        }
        assert_eq!(pass.kept.len(), usize::from(PAGE));
        assert_eq!(pass.end().await, 100 - usize::from(PAGE));
        drop(other);
        assert_eq!(ready(&broker).await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_is_at_its_end_and_a_missing_one_is_named() {
        let broker = with_letters(0).await;
        let start = Instant::now();
        let mut pass = begin(&broker).await;
        assert!(pass.next().await.unwrap().is_none());
        assert_eq!(pass.end().await, 0);
        assert_eq!(start.elapsed(), Duration::ZERO, "there is nothing to wait for");

        let Err(error) = Pass::begin(&broker, "m.dead".to_owned()).await else {
            panic!("there is no such queue");
        };
        assert!(error.to_string().contains(r#""m.dead""#), "{error}");
    }
}
