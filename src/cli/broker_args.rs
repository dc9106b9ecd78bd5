//! Which broker, and as whom.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use crate::message::Span;
use crate::transport::TransportError;
use crate::transport::amqp::{Addresses, Amqp, AmqpConfig};

const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

#[derive(Args)]
pub(super) struct BrokerArgs {
    /// The broker: amqp://user:password@host:port/vhost; several hosts separated by commas [default:
    /// amqp://guest:guest@127.0.0.1:5672/%2f]
    ///
    /// Others on this machine can read a command line: give a password by the environment or a file.
    #[arg(long, value_name = "URL", env = "SYNTHEX_AMQP_URL", hide_env_values = true)]
    amqp_url: Option<String>,
    /// A file that holds the broker's address, read instead of --amqp-url
    #[arg(long, value_name = "FILE", env = "SYNTHEX_AMQP_URL_FILE")]
    amqp_url_file: Option<PathBuf>,
    /// What the names of all exchanges and queues begin with
    #[arg(long, value_name = "NAME", env = "SYNTHEX_NAMESPACE", default_value = "synthex", value_parser = namespace)]
    pub(super) namespace: String,
}

#[derive(Args)]
pub(super) struct ConnectArgs {
    /// How long to try to reach the broker before giving up
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    connect_timeout: Span,
}

impl ConnectArgs {
    pub(super) fn timeout(&self) -> Duration {
        self.connect_timeout.get()
    }
}

impl BrokerArgs {
    /// The broker's hosts.
    pub(super) fn addresses(&self) -> Result<Addresses, Failure> {
        let (origin, url) = match (&self.amqp_url_file, &self.amqp_url) {
            (Some(file), _) => (file.display().to_string(), read(file)?),
            (None, Some(url)) => ("--amqp-url (SYNTHEX_AMQP_URL)".to_owned(), url.clone()),
            (None, None) => ("the default".to_owned(), DEFAULT_URL.to_owned()),
        };
        Addresses::parse(&url).map_err(|error| Failure::new(Exit::Config, format!("{origin}: failed to {error}")))
    }

    /// A client's transport, which gives up on a host as early as the whole client does.
    pub(super) fn client(&self, connect: &ConnectArgs) -> Result<Amqp, Failure> {
        let mut config = AmqpConfig::new(self.addresses()?);
        config.connect_timeout = connect.timeout();
        config.confirm_timeout = connect.timeout();
        Ok(Amqp::new(config))
    }
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|error| {
        let message = format!("{}: failed to read the broker's address: {error}", file.display());
        Failure::new(Exit::Config, message)
    })
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
        TransportError::Unreachable { .. } | TransportError::Lost { .. } => Exit::Unavailable,
        TransportError::LoginRefused { .. } | TransportError::Refused { .. } | TransportError::Address { .. } => {
            Exit::Config
        }
    };
    let hint = match error {
        TransportError::Unreachable { .. } => "; is it running, and is --amqp-url right?",
        _ => "",
    };
    Failure::new(exit, format!("failed to {error}{hint}"))
}
