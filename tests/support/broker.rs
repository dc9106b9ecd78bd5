//! RabbitMQ nodes for tests, on ports of their own, with credentials and a virtual host made per node.
//!
//! - [`Broker::start`]: a node for one test, to be stopped, killed, frozen and restarted at will.
//! - [`Broker::lent`]: the same, from the test before, for a test that leaves it as it was.
//! - [`Broker::shared`]: one node for the whole run. A test takes a virtual host of its own on it ([`Broker::vhost`],
//!   some milliseconds) and never harms the node.
//!
//! A node takes about 5 s to start (10 s on a busy machine) and 150 MB. It uses nothing of the system's own RabbitMQ but
//! its files, runs as whoever runs the tests, and listens on 127.0.0.1 only.
//!
//! # Who ends a node
//!
//! Each of a node's two processes (the server, and `epmd`, through which its tools find it) has a *keeper*: a small shell
//! that looks five times a second whether the node's owner lives, and kills the process when it does not, whichever
//! way it went. The kernel kills the process when its keeper dies (`PR_SET_PDEATHSIG`).
//! The owner of a node from [`Broker::start`] is the test's process; dropping the [`Broker`] ends it at once.
//! Dropping one that was lent leaves it to the next test.
//! cargo-nextest runs every test in a process of its own, so there the owner of the shared node is nextest itself: the
//! first test that wants the node starts it under a file lock, in a folder named after the run, and later ones find it there.
//! Under `cargo test` each test binary has a shared node of its own.

mod node;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use synthex::transport::TransportError;
use synthex::transport::amqp::{Addresses, Amqp, AmqpConfig};

use super::process::Signal;
pub use node::Setup;
use node::{Node, random_name};

/// A RabbitMQ node. Dropping one that [`Broker::start`] gave ends it, and removes what it stored.
pub struct Broker {
    node: Arc<Node>,
}

/// A virtual host of a node, for one test. It goes when the node goes.
pub struct Vhost {
    node: Arc<Node>,
    name: String,
}

/// A transport to a virtual host's address that waits so long for a connection: a test's broker may be busy.
pub fn transport(url: &str, connect_timeout: Duration) -> Amqp {
    let addresses = Addresses::parse(url).expect("the broker's own address");
    Amqp::new(AmqpConfig {
        connect_timeout,
        ..AmqpConfig::new(addresses)
    })
}

/// Asks a broker until it does as it is asked: one that has to wait for its processor may give up a queue's declaration.
///
/// # Panics
/// When it refuses for good, or does nothing within a minute.
pub async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T, TransportError>) -> T {
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(60), asking).await;
    answered.expect("the broker does as it is asked")
}

impl Broker {
    /// Starts a node for this test alone.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// Starts a node for this test alone, with plugins and a configuration of its own.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn start_with(setup: Setup) -> Self {
        let node = off_thread(move || node::own(&setup)).await;
        Self { node: Arc::new(node) }
    }

    /// Borrows a node that this test has to itself until it ends. It may do everything to it, but has to leave it running
    /// and with the settings it found. After a test that fails, or leaves it with an alarm, the next one gets a new node.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn lent() -> Self {
        Self {
            node: Arc::new(off_thread(node::lent).await),
        }
    }

    /// Starts a node for this test alone that listens for TLS as well. In the folder are its certificate `broker.pem`
    /// with `broker.key`, and `ca.pem`, the authorities of clients; a client is the user that its certificate names.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn start_with_tls(certificates: &Path) -> Self {
        Self::start_with(Setup {
            certificates: Some(certificates.to_owned()),
            ..Setup::default()
        })
        .await
    }

    /// Gives the node that all tests of this run share, started by the first that asks.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn shared() -> Self {
        static SHARED: OnceLock<Arc<Node>> = OnceLock::new();
        let node = off_thread(|| Arc::clone(SHARED.get_or_init(|| Arc::new(node::shared()))));
        Self { node: node.await }
    }

    /// Makes a virtual host with a random name, on which the node's user may do everything.
    pub async fn vhost(&self) -> Vhost {
        self.vhost_named(&format!("test-{}", random_name())).await
    }

    /// Makes a virtual host with this name, on which the node's user may do everything.
    pub async fn vhost_named(&self, name: &str) -> Vhost {
        let user = &self.node.facts.user;
        self.eval(&format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"{user}\">>), \
             ok = rabbit_auth_backend_internal:set_permissions(<<\"{user}\">>, <<\"{name}\">>, \
             <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"{user}\">>)."
        ))
        .await;
        Vhost {
            node: Arc::clone(&self.node),
            name: name.to_owned(),
        }
    }

    /// URL of the node's first virtual host, with the credentials made for it.
    pub fn amqp_url(&self) -> String {
        self.amqp_url_as(&self.node.facts.user, &self.node.facts.password)
    }

    /// URL of the node's first virtual host, with these credentials.
    pub fn amqp_url_as(&self, user: &str, password: &str) -> String {
        self.node.url(user, password, &self.node.facts.vhost)
    }

    /// Port on 127.0.0.1 where it speaks AMQP.
    pub fn port(&self) -> u16 {
        self.node.facts.ports.amqp
    }

    /// Port on 127.0.0.1 where it speaks AMQP by TLS.
    pub fn tls_port(&self) -> u16 {
        self.node.facts.ports.amqps
    }

    /// Port on 127.0.0.1 of its management page and HTTP API, if it has that plugin.
    pub fn management_port(&self) -> u16 {
        self.node.facts.ports.management
    }

    /// Port on 127.0.0.1 where Prometheus can ask it, if it has that plugin.
    pub fn metrics_port(&self) -> u16 {
        self.node.facts.ports.metrics
    }

    /// Name of the user made for it, who may do everything.
    pub fn user(&self) -> &str {
        &self.node.facts.user
    }

    /// Runs `rabbitmqctl` on the node (half a second, as that starts an Erlang machine), and returns what it printed.
    ///
    /// # Panics
    /// When it fails: with what it printed.
    pub async fn ctl(&self, args: &[&str]) -> String {
        let node = Arc::clone(&self.node);
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        off_thread(move || node.ctl(&args)).await
    }

    /// Evaluates an Erlang expression in the node, and returns its value as text.
    pub async fn eval(&self, expression: &str) -> String {
        let (node, expression) = (Arc::clone(&self.node), expression.to_owned());
        off_thread(move || node.eval(&expression)).await
    }

    /// Evaluates an Erlang expression whose value is a list of strings.
    pub async fn eval_strings(&self, expression: &str) -> Vec<String> {
        let answer = self.eval(expression).await;
        // It looks like one of JSON's.
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    /// Makes a user; what it may do is a matter of each virtual host ([`Vhost::permit`]).
    pub async fn add_user(&self, user: &str, password: &str) {
        let [user, password] = [user, password].map(binary);
        let expression = format!("rabbit_auth_backend_internal:add_user({user}, {password}, <<\"test\">>).");
        assert_eq!(self.eval(&expression).await, "ok");
    }

    /// Cuts every connection to the node, as an operator would.
    pub async fn close_connections(&self, reason: &str) {
        self.node.assert_private();
        self.eval(&closing("_", reason)).await;
    }

    /// Asks the node to stop, and waits until it has.
    pub async fn stop(&self) {
        let node = self.private();
        off_thread(move || node.stop()).await;
    }

    /// Ends the node with SIGKILL. What it had made durable is there after [`Broker::restart`].
    ///
    /// RabbitMQ 3.10 writes the terms of its quorum queues to disk every five seconds only, and a queue that was declared
    /// since may find no leader when the node is back. That is the broker's own, so the terms are written first.
    pub async fn kill(&self) {
        self.eval("[ok = dets:sync(Table) || Table <- dets:all()].").await;
        self.private().kill();
    }

    /// Starts the node again, with its data, on the same port; stops it first if it runs.
    ///
    /// # Panics
    /// When it does not start: with its log.
    pub async fn restart(&self) {
        let node = self.private();
        off_thread(move || {
            node.stop();
            node.launch().unwrap_or_else(|why| panic!("{why}"));
        })
        .await;
    }

    /// Freezes the node: connections stay open, and nothing answers.
    pub fn pause(&self) {
        self.private().signal(Signal::STOP);
    }

    /// Lets a frozen node go on.
    pub fn resume(&self) {
        self.private().signal(Signal::CONT);
    }

    /// The node's log so far.
    pub fn log(&self) -> String {
        self.node.log()
    }

    fn private(&self) -> Arc<Node> {
        self.node.assert_private();
        Arc::clone(&self.node)
    }
}

impl Vhost {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// URL of this virtual host, with the node's own user.
    pub fn url(&self) -> String {
        self.url_as(&self.node.facts.user, &self.node.facts.password)
    }

    /// URL of this virtual host, with these credentials.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.node.url(user, password, &self.name)
    }

    /// Runs a `rabbitmqctl` command on this virtual host.
    pub async fn ctl(&self, args: &[&str]) -> String {
        let mut all = args.to_vec();
        all.extend(["--vhost", &self.name]);
        self.broker().ctl(&all).await
    }

    /// Lets a user configure, write and read what the patterns match; an empty pattern is nothing.
    pub async fn permit(&self, user: &str, configure: &str, write: &str, read: &str) {
        let [user, vhost, configure, write, read] = [user, &self.name, configure, write, read].map(binary);
        let expression = format!(
            "rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {configure}, {write}, {read}, <<\"test\">>)."
        );
        assert_eq!(self.broker().eval(&expression).await, "ok");
    }

    /// Cuts the connections to this virtual host.
    pub async fn close_connections(&self, reason: &str) {
        self.broker().eval(&closing(&binary(&self.name), reason)).await;
    }

    /// Its queues, each with how many messages are in it or in somebody's hands.
    pub async fn queues(&self) -> Vec<(String, usize)> {
        let all = format!(
            "[binary_to_list(Name) ++ \"=\" ++ integer_to_list(Count) || [{{name, {{resource, _, _, Name}}}}, \
             {{messages, Count}}] <- rabbit_amqqueue:info_all({}, [name, messages])].",
            binary(&self.name)
        );
        let lines = self.broker().eval_strings(&all).await;
        let queue = |line: &String| {
            let (name, count) = line.rsplit_once('=').expect("it was put together so");
            (name.to_owned(), count.parse().expect("it is a number"))
        };
        lines.iter().map(queue).collect()
    }

    fn broker(&self) -> Broker {
        let node = Arc::clone(&self.node);
        Broker { node }
    }
}

/// A text as Erlang's broker has it.
fn binary(text: &str) -> String {
    format!("<<{text:?}/utf8>>")
}

/// The expression that cuts the connections to the virtual hosts that match.
fn closing(vhost: &str, reason: &str) -> String {
    format!(
        "[catch rabbit_networking:close_connection(Pid, {reason:?}) || [{{pid, Pid}}, {{vhost, {vhost}}}] <- \
         rabbit_networking:connection_info_all([pid, vhost])]."
    )
}

/// Runs what blocks on a thread for it, so that the test's own tasks go on; a panic there is a panic here.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
