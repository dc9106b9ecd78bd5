//! Synthex runs commands on a fleet of machines, fed by RabbitMQ.
//!
//! # The life of a job
//!
//! A producer publishes a JSON body to the exchange `synthex.jobs` with a pool's name as the routing key
//! ([`message::job`]; which exchanges and queues there are is data: [`transport::topology`]).
//!
//! 1. A worker consumes the pool's queue. Its *intake* subscribes, and subscribes again whenever the consumer ends; the
//!    broker holds back all that is over the prefetch. A redelivered job that is still in hand here is *adopted*: the new
//!    delivery takes the place of the lost one. RabbitMQ is [`transport::amqp`]; `synthex run` puts the embedded
//!    broker [`transport::memory`] in its place, and gives commands the caller's environment.
//! 2. The *dispatcher* starts a task for each delivery and owns it ([`supervise`]): a panic is contained, and a
//!    delivery that is dropped goes back to its queue.
//! 3. *Admission* decides from the message and the pool ([`config`]) what is to become of it. Not a valid job: a result
//!    `rejected` and a dead letter that names the field. Redelivered: published again with its attempt raised, so that
//!    starts are counted before they happen. Too early: through a delay queue. Else it waits for a free slot.
//! 4. The [`executor`] has a helper process start the command in a session of its own, feeds its stdin, keeps head and tail
//!    of its output; at the timeout the helper sends the signal that asks, waits the grace, and sends the one that does not.
//! 5. *Settling* decides from the outcome what the result is ([`message::result`]) and what comes after it: nothing,
//!    another attempt ([`flow::retry`]), a dead letter.
//! 6. The *outbox* publishes the result to `synthex.results` and to `reply_to` until the broker has confirmed it, and keeps
//!    it on disk while the broker is away. Only then is the delivery acked, by value: a second settling does not compile.
//!
//! Steps 1 to 6 are [`worker`]; every one of them tells an [`Event`](worker::event::Event) to observers, of which
//! [`metrics`], the log and [`events`], which publishes them and live output to whoever listens, are three; [`traces`] sends
//! its way to who follows traces. Operators tell workers what not to run, ask how they are, and see to what came to a bad end
//! through [`control`]; many jobs from one place are a [`batch`]. [`app`] puts the parts together, [`cli`] is one file a
//! subcommand.
//!
//! # Reading order
//!
//! The modules below stand in the order in which they may know each other, never backwards; a test holds them to it.

pub mod message;

pub mod flow;

pub mod supervise;

pub mod transport;

pub mod executor;

pub mod config;

pub mod worker;

pub mod control;

pub mod events;

pub mod batch;

pub mod metrics;

pub mod traces;

pub mod app;

pub mod cli;
