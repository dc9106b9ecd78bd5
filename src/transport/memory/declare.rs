//! Makes what a topology asks for, or checks that it is there.

use tokio::time::Instant;

use super::queue::Lifetime;
use super::state::{State, refused};
use crate::transport::topology::{Binding, Declare, Queue, Topology};
use crate::transport::{Topic, TransportError};

impl State {
    pub(super) fn declare(&mut self, topology: &Topology, how: Declare, now: Instant) -> Result<(), TransportError> {
        match how {
            Declare::Active => self.make(topology, now),
            Declare::Passive => self.check(topology),
        }
    }

    fn make(&mut self, topology: &Topology, now: Instant) -> Result<(), TransportError> {
        for exchange in &topology.exchanges {
            let declared = self.exchanges.declare(exchange);
            declared.map_err(|why| refused(format!("declare exchange {:?}", exchange.name), why))?;
        }
        for queue in &topology.queues {
            let declared = self.declare_queue(queue);
            declared.map_err(|why| refused(format!("declare queue {:?}", queue.name), why))?;
        }
        for binding in &topology.bindings {
            self.bind(binding)?;
        }
        for letter in std::mem::take(&mut self.stranded) {
            self.send_dead(letter, now);
        }
        Ok(())
    }

    fn bind(&mut self, binding: &Binding) -> Result<(), TransportError> {
        let (queue, exchange) = (&binding.queue, &binding.exchange);
        let refused = |why| Err(refused(format!("bind queue {queue:?} to exchange {exchange:?}"), why));
        let Some(id) = self.names.get(queue) else {
            return refused("there is no such queue");
        };
        if !self.exchanges.bind(exchange, &binding.routing_key, *id) {
            return refused("there is no such exchange");
        }
        Ok(())
    }

    /// Binds an inbox to all it is to hear of.
    pub(super) fn bind_all(&mut self, queue: &str, topics: &[Topic]) -> Result<(), TransportError> {
        topics.iter().try_for_each(|topic| {
            self.bind(&Binding {
                exchange: topic.exchange.clone(),
                queue: queue.to_owned(),
                routing_key: topic.routing_key.clone(),
            })
        })
    }

    /// Bindings are not looked at: over AMQP nobody can.
    fn check(&self, topology: &Topology) -> Result<(), TransportError> {
        let mut exchanges = topology.exchanges.iter().map(|exchange| &exchange.name);
        if let Some(name) = exchanges.find(|name| !self.exchanges.contains(name)) {
            return Err(refused(
                format!("find exchange {name:?}"),
                "it is not there, and a passive declare makes nothing",
            ));
        }
        let mut queues = topology.queues.iter().map(|queue| &queue.name);
        if let Some(name) = queues.find(|name| !self.names.contains_key(*name)) {
            return Err(refused(
                format!("find queue {name:?}"),
                "it is not there, and a passive declare makes nothing",
            ));
        }
        Ok(())
    }

    fn declare_queue(&mut self, queue: &Queue) -> Result<(), String> {
        if let Some(id) = self.names.get(&queue.name) {
            let conflict = self.queues[id].conflict(queue);
            return conflict.map_or(Ok(()), Err);
        }
        let id = self.add_queue(queue.clone(), Lifetime::Durable);
        if self.queues[&id].stay().is_some() {
            self.timed.push(id);
        }
        Ok(())
    }
}
