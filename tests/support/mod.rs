//! What test binaries share: a private RabbitMQ node, programs run as processes, and a look at processes from outside.
//!
//! - [`broker`]: RabbitMQ nodes on ports of their own, which die with the tests that started them.
//! - [`certificates`]: certificates good and bad.
//! - [`cli`]: `synthex` and foreign clients as processes, with a clean environment and a hard time limit.
//! - [`process`]: what `/proc` says of processes, and waiting for what gives no event.
//! - [`pty`]: `synthex` on a terminal, and what is seen there.
//! - [`proxy`]: a way to a server on which connections are cut or go silent.
//! - [`random`]: choices from a seed.
//! - [`faulty`]: a transport that has the faults a test tells it to have.
//! - [`observer`]: an observer that keeps a worker's events, and lets a test wait for one.
//!
//! But for the last two, nothing here knows Synthex's modules: it sees the program as its users do.
//!
//! # Clients that are not ours
//!
//! `amqp-tools` 0.11 prove that any AMQP client will do. `URL` is [`broker::Vhost::url`]; the path of a URL is a
//! percent-encoded virtual host, so `/a%2fb` is the host `a/b`, and `/%2f` the default one.
//!
//! ```text
//! amqp-declare-queue -u URL -d -q replies                          prints the queue's name
//! amqp-publish -u URL -e synthex.jobs -r default -C application/json -p -t replies -H 'key: value' -b '{"command":["true"]}'
//! amqp-publish -u URL -r synthex.jobs.default < body               to a queue by its name; body from stdin, any bytes
//! amqp-get -u URL -q replies                                       prints one body as it is, acked; exit 2: queue empty
//! amqp-consume -u URL -q replies -c 3 -p 1 -- sh -c 'cat; echo'    runs the command for each body, ends after three
//! amqp-consume -u URL -e synthex.results -r '#' -A -c 1 cat        through a queue of its own, named on stderr
//! ```
//!
//! `-p` is persistent, `-t` is `reply_to`, `-C` and `-E` the content type and encoding, `-l` one message a line of stdin
//! (with its newline). There is no flag for `message_id`, `correlation_id`, `priority` or `timestamp`, no confirm
//! and no `mandatory`: exit 0 says that it was written to the socket, even if no queue took it. Header values are always
//! strings, and one without a colon makes it fail. Without `--`, `amqp-consume` takes the command's flags for its own.
//! Exit 1, with the reason on stderr: no connection, refused login, missing queue or exchange.
//!
//! The `pika` scripts are in `tests/fixtures/producers`, run with [`cli::Cli::pika`].
#![allow(
    dead_code,                   // each test binary is compiled with all of this and uses a part
    unused_imports,              // so are re-exports
    clippy::disallowed_methods,  // the product's bans: thread::sleep, env::var, spawning
    clippy::print_stderr         // a test has its own words
)]

pub mod broker;
pub mod certificates;
pub mod cli;
pub mod faulty;
pub mod observer;
pub mod process;
pub mod proxy;
pub mod pty;
pub mod random;
pub mod schema;
