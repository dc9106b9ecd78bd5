//! Which broker, and as whom.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::exit::{Exit, Failure};
use crate::flow::retry::Backoff;
use crate::message::Span;
use crate::transport::amqp::{Access, AddressSource, Addresses, Amqp, AmqpConfig, NamedFile, TlsOptions};
use crate::transport::{PublishError, TransportError};

/// The waits between a client's attempts.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

#[derive(Args)]
#[command(next_help_heading = "Broker")]
pub(super) struct BrokerArgs {
    /// The broker: amqp://user:password@host:port/vhost, or amqps:// for TLS; several hosts separated by commas
    /// [default: amqp://guest:guest@127.0.0.1:5672/%2f]
    ///
    /// Others on this machine can read a command line: give a password by the environment or a file.
    #[arg(long, value_name = "URL", env = "SYNTHEX_AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,
    /// A file that holds the broker's address, read instead of --amqp-url, and again for each connection
    #[arg(long, value_name = "FILE")]
    amqp_url_file: Option<PathBuf>,
    /// A file that holds the password, read instead of the one in the address, and again for each connection
    #[arg(long, value_name = "FILE", env = "SYNTHEX_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// Authorities that may sign the certificate of an amqps:// broker (PEM) [default: those of the system]
    #[arg(long, value_name = "FILE", env = "SYNTHEX_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Certificate to show to the broker (PEM)
    #[arg(long, value_name = "FILE", env = "SYNTHEX_CLIENT_CERT")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM) [default: in the certificate's file]
    #[arg(long, value_name = "FILE", env = "SYNTHEX_CLIENT_KEY")]
    client_key: Option<PathBuf>,
    /// What the names of all exchanges and queues begin with
    #[arg(long, value_name = "NAME", env = "SYNTHEX_NAMESPACE", default_value = "synthex", value_parser = namespace)]
    pub(super) namespace: String,
}

#[derive(Args)]
#[command(next_help_heading = "Broker")]
pub(super) struct ConnectArgs {
    /// How long to try to reach the broker before giving up
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    connect_timeout: Span,
}

impl ConnectArgs {
    fn timeout(&self) -> Duration {
        self.connect_timeout.get()
    }

    /// The patience of a client of `broker` that begins now.
    pub(super) fn patience(&self, broker: &BrokerArgs) -> Result<Patience, Failure> {
        Ok(Patience {
            hosts: broker.addresses()?.hosts(),
            limit: self.connect_timeout,
            deadline: Instant::now() + self.timeout(),
        })
    }
}

/// How long a client goes on trying to use a broker that is away, over all that it does.
pub(super) struct Patience {
    hosts: String,
    limit: Span,
    deadline: Instant,
}

impl Patience {
    /// Does `work` again and again until it succeeds, fails for good, or the time is over.
    pub(super) async fn persist<T, E: ClientError>(
        &self,
        mut work: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Failure> {
        let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
        let mut last = None;
        let trying = async {
            loop {
                match work().await {
                    Ok(done) => return Ok(done),
                    Err(error) if !error.is_transient() => return Err(error.into_failure()),
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        };
        match tokio::time::timeout_at(self.deadline, trying).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.gave_up(last)),
        }
    }

    fn gave_up(&self, last: Option<impl ClientError>) -> Failure {
        let limit = self.limit;
        let Some(error) = last else {
            let message = format!(
                "the broker at {} did not answer within {limit} (--connect-timeout); check that it runs, has no memory or \
                 disk alarm, and that --amqp-url is right",
                self.hosts
            );
            return Failure::new(Exit::Unavailable, message);
        };
        let failure = error.into_failure();
        let message = format!("{}; gave up after {limit} (--connect-timeout)", failure.message);
        Failure::new(Exit::Unavailable, message)
    }
}

/// An error that a client meets at a broker.
pub(super) trait ClientError {
    /// Whether trying again may help.
    fn is_transient(&self) -> bool;

    /// Whether an exchange is missing, of those that whoever comes first declares.
    fn is_missing_exchange(&self) -> bool {
        false
    }

    /// What to say and how to exit.
    fn into_failure(self) -> Failure;
}

impl ClientError for TransportError {
    fn is_transient(&self) -> bool {
        Self::is_transient(self)
    }

    fn is_missing_exchange(&self) -> bool {
        Self::is_missing_exchange(self)
    }

    fn into_failure(self) -> Failure {
        broker_failure(&self)
    }
}

impl ClientError for PublishError {
    fn is_transient(&self) -> bool {
        Self::is_transient(self)
    }

    fn is_missing_exchange(&self) -> bool {
        matches!(self, Self::Transport(error) if error.is_missing_exchange())
    }

    fn into_failure(self) -> Failure {
        match self {
            Self::Transport(error) => error.into_failure(),
            Self::Unroutable { .. } => Failure::new(Exit::Config, format!("failed to {self}")),
            Self::Refused { .. } | Self::Unknown { .. } => Failure::new(Exit::Unavailable, format!("failed to {self}")),
        }
    }
}

impl BrokerArgs {
    /// Where all comes from that it takes to be let in.
    pub(super) fn access(&self) -> Result<Access, Failure> {
        let address = match (&self.amqp_url_file, &self.amqp_url) {
            (Some(file), _) => AddressSource::File(file.clone()),
            (None, Some(url)) => AddressSource::Given(parse("--amqp-url (SYNTHEX_AMQP_URL)", url)?),
            (None, None) => AddressSource::Given(parse("the default", DEFAULT_URL)?),
        };
        let named = |path: &Option<PathBuf>, setting| {
            let path = path.clone()?;
            Some(NamedFile { path, setting })
        };
        Ok(Access {
            address,
            password_file: self.password_file.clone(),
            tls: TlsOptions {
                ca: named(&self.ca_file, "--ca-file"),
                cert: named(&self.client_cert, "--client-cert"),
                key: named(&self.client_key, "--client-key"),
                server_name: None,
            },
        })
    }

    /// The broker's hosts, as they are now.
    pub(super) fn addresses(&self) -> Result<Addresses, Failure> {
        self.access()?.read().map_err(|error| broker_failure(&error))
    }

    /// A client's transport, which gives each host its share of the client's time, so that all are tried before that
    /// is over.
    pub(super) fn client(&self, connect: &ConnectArgs) -> Result<Amqp, Failure> {
        let share = connect.timeout().mul_f64(0.9) / self.addresses()?.count();
        let mut config = AmqpConfig::new(self.access()?);
        config.connect_timeout = share;
        config.confirm_timeout = connect.timeout();
        Ok(Amqp::new(config))
    }
}

fn parse(origin: &str, url: &str) -> Result<Addresses, Failure> {
    Addresses::parse(url).map_err(|error| Failure::new(Exit::Config, format!("{origin}: failed to {error}")))
}

/// Names of the namespace's queues must fit into AMQP's 255 bytes.
fn namespace(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'".to_owned())
}

/// What a client says of a broker it could not use.
pub(super) fn broker_failure(error: &TransportError) -> Failure {
    let exit = match error {
        TransportError::Unreachable { .. } | TransportError::Unavailable { .. } | TransportError::Lost { .. } => {
            Exit::Unavailable
        }
        TransportError::LoginRefused { .. }
        | TransportError::Tls { .. }
        | TransportError::File { .. }
        | TransportError::Refused { .. }
        | TransportError::Address { .. } => Exit::Config,
        TransportError::Exhausted { .. } => Exit::Failure,
    };
    let hint = match error {
        TransportError::Unreachable { .. } => "; check that it runs and that --amqp-url is right",
        TransportError::Unavailable { .. } => "; try again once the queue's node runs; the broker's log says more",
        _ => "",
    };
    Failure::new(exit, format!("failed to {error}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_says_nothing_at_all_is_named_with_what_to_do() {
        let limit: Span = "1s".parse().unwrap();
        let patience = Patience {
            hosts: "there:5672".to_owned(),
            limit,
            deadline: Instant::now() + limit.get(),
        };
        let never = async || std::future::pending::<Result<(), TransportError>>().await;
        let failure = patience.persist(never).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        for word in ["there:5672", "within 1s (--connect-timeout)", "--amqp-url"] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}
