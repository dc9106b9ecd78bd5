//! The orders that are in force, for an operator who asks when no worker is there to be asked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::message::harmless::harmless;
use crate::message::{JobId, Order};
use crate::transport::topology::{Declare, Names, ORDERS_KEPT};
use crate::transport::{StreamOffset, Subscribe, Subscription, Transport, TransportError};

/// Orders on their way to us at a time.
const PREFETCH: u16 = 500;
/// Nothing comes for so long: there is no more. Many times what a broker takes between two messages of a log.
const QUIET: Duration = Duration::from_millis(300);
/// The longest that reading may take: the log has a bound, and so has who waits.
const MOST: Duration = Duration::from_secs(20);

/// An order, by when and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// When it was given.
    pub at: Timestamp,
    /// Who gave it, as far as they said.
    pub by: Option<String>,
}

/// When and by whom, to stand after a word such as "paused".
impl fmt::Display for Given {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "since {}", self.at)?;
        match &self.by {
            Some(by) => write!(out, " by {}", harmless(by)),
            None => Ok(()),
        }
    }
}

/// Pauses, and the cancel of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The paused pools.
    pub paused: BTreeMap<String, Given>,
    /// The latest cancel that names the job.
    pub cancelled: Option<Given>,
}

impl Standing {
    /// Reads the log of orders to its end. `about` is the job whose cancel is wanted.
    ///
    /// # Errors
    /// When the broker cannot be reached, or does not let us read. A log that is not there holds nothing.
    pub async fn read<T: Transport>(
        transport: &T,
        names: &Names,
        about: Option<&JobId>,
    ) -> Result<Self, TransportError> {
        let mut standing = Self::default();
        let queue = names.orders();
        let Some(depth) = transport.queue_depth(&queue).await? else {
            return Ok(standing);
        };
        let counted = depth.messages; // perhaps without those of the last seconds
        let request = Subscribe {
            queue,
            prefetch: PREFETCH,
            consumer_timeout: None,
            from: Some(StreamOffset::First),
            topology: Arc::default(),
            declare: Declare::Passive,
        };
        let mut log = transport.subscribe(&request).await?;
        let (end, mut seen) = (Instant::now() + MOST, 0);
        loop {
            let until = if seen >= counted {
                end.min(Instant::now() + QUIET)
            } else {
                end
            };
            let Ok(Some(delivery)) = timeout_at(until, log.next()).await else {
                return Ok(standing);
            };
            seen += 1;
            if let Ok(order) = Order::decode(&delivery.envelope.body) {
                standing.apply(&order, about, Timestamp::now());
            }
            // An ack only asks for more; of a session that is gone, nothing more comes.
            let _ = delivery.ack().await;
        }
    }

    /// Enters an order, which counts after all that were entered before.
    fn apply(&mut self, order: &Order, about: Option<&JobId>, now: Timestamp) {
        let kept = SignedDuration::try_from(ORDERS_KEPT).unwrap_or(SignedDuration::MAX);
        if now.duration_since(order.at()) >= kept {
            return;
        }
        match order {
            Order::Pause { pool, at, by } => {
                let given = Given {
                    at: *at,
                    by: by.clone(),
                };
                self.paused.insert(pool.clone(), given);
            }
            Order::Resume { pool, .. } => {
                self.paused.remove(pool);
            }
            Order::Cancel { ids, at, by, .. } if about.is_some_and(|id| ids.contains(id)) => {
                self.cancelled = Some(Given {
                    at: *at,
                    by: by.clone(),
                });
            }
            Order::Cancel { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fleet;
    use crate::transport::memory::Memory;
    use crate::transport::topology::Topology;

    fn given(second: i64) -> Timestamp {
        crate::message::now() - SignedDuration::from_secs(100 - second)
    }

    fn pause(pool: &str, second: i64) -> Order {
        Order::Pause {
            pool: pool.to_owned(),
            at: given(second),
            by: None,
        }
    }

    async fn standing(orders: &[Order], about: &str) -> Standing {
        let (broker, names) = (Memory::new(), Names::new("n"));
        broker
            .declare(&Topology::control(&names), Declare::Active)
            .await
            .unwrap();
        for order in orders {
            broker.publish(&fleet::order(&names, order)).await.unwrap();
        }
        Standing::read(&broker, &names, about.parse().ok().as_ref())
            .await
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_order_about_a_pool_counts_and_the_cancel_of_the_job_alone() {
        let resume = Order::Resume {
            pool: "a".to_owned(),
            at: given(2),
            by: None,
        };
        let cancel = |id: &str| Order::Cancel {
            ids: vec![id.parse().unwrap()],
            labels: BTreeMap::new(),
            batch: None,
            pool: None,
            at: given(3),
            by: Some("me".to_owned()),
        };
        let orders = [pause("a", 1), resume, pause("b", 1), cancel("other"), cancel("mine")];
        let found = standing(&orders, "mine").await;
        assert_eq!(found.paused.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(found.cancelled.unwrap().by.as_deref(), Some("me"));
        assert_eq!(standing(&orders, "third").await.cancelled, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_over_and_no_log_is_no_order() {
        let old = Order::Pause {
            pool: "a".to_owned(),
            at: crate::message::now() - SignedDuration::from_hours(8 * 24),
            by: None,
        };
        assert_eq!(standing(&[old], "x").await, Standing::default());
        let nothing = Standing::read(&Memory::new(), &Names::new("n"), None).await;
        assert_eq!(nothing.unwrap(), Standing::default());
    }
}
