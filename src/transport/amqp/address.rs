//! The broker's address list: `amqp://user:password@host1:5672,host2:5672/vhost`.
//!
//! lapin takes one host a URI, so the list is taken apart here and rotated by the connector. Nothing here prints a
//! password, not even in an error or a `Debug`.

use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri};

use crate::transport::TransportError;

/// Seconds between heartbeats, unless the address says otherwise (`?heartbeat=`): a connection whose other end is gone
/// without a word is given up after two of them. RabbitMQ's own wish is 60.
const HEARTBEAT: u16 = 15;

/// One or more hosts of a broker, with credentials and virtual host.
#[derive(Clone)]
pub struct Addresses {
    uris: Vec<AMQPUri>,
}

impl Addresses {
    /// Reads a list of hosts separated by commas: `amqp://user:password@host1:5672,host2:5673/vhost`.
    ///
    /// # Errors
    /// [`TransportError::Address`], which never repeats the credentials.
    pub fn parse(text: &str) -> Result<Self, TransportError> {
        let text = text.trim();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| address("expected amqp://user:password@host:5672/vhost, found no \"://\"".to_owned()))?;
        let split = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(split);
        let (credentials, hosts) = authority
            .rsplit_once('@')
            .map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if credentials.is_empty() { "" } else { "@" };
        let uris = hosts
            .split(',')
            .map(|host| parse_one(host, &format!("{scheme}://{credentials}{at}{host}{tail}")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { uris })
    }

    /// The hosts, at least one.
    pub(super) fn uris(&self) -> &[AMQPUri] {
        &self.uris
    }

    /// How many hosts there are, from 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.uris.len()).unwrap_or(u32::MAX)
    }

    /// The virtual host, the same on all hosts.
    #[must_use]
    pub fn vhost(&self) -> &str {
        self.uris.first().map_or("/", |uri| uri.vhost.as_str())
    }

    /// All hosts and ports, for messages.
    #[must_use]
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = self.uris.iter().map(host).collect();
        hosts.join(",")
    }
}

/// Shows the hosts and the virtual host, not the credentials.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vhost = self.vhost().replace('/', "%2f");
        write!(f, "amqp://{}/{vhost}", self.hosts())
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Addresses({self})")
    }
}

/// Host and port of one address.
pub(super) fn host(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

fn parse_one(host: &str, uri: &str) -> Result<AMQPUri, TransportError> {
    if host.is_empty() {
        let reason = "expected amqp://user:password@host:5672/vhost, found an empty host";
        return Err(address(reason.to_owned()));
    }
    // The parser's own error can hold the whole URI, and so the password; so can any part of it when a character was not
    // encoded. So nothing of it is repeated.
    let mut parsed: AMQPUri = uri.parse().map_err(|_| {
        address(
            "expected amqp://user:password@host:5672/vhost, with special characters of user, password and virtual host \
             percent-encoded"
                .to_owned(),
        )
    })?;
    if parsed.scheme == AMQPScheme::AMQPS {
        return Err(address(
            "amqps:// needs TLS, which this build does not have; use amqp://".to_owned(),
        ));
    }
    parsed.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(parsed)
}

fn address(reason: String) -> TransportError {
    TransportError::Address { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shares_credentials_and_virtual_host() {
        let list = Addresses::parse("amqp://u:p%40ss@a:1,b:2,c/%2fjobs?heartbeat=5").unwrap();
        assert_eq!(list.hosts(), "a:1,b:2,c:5672");
        for uri in list.uris() {
            assert_eq!(uri.authority.userinfo.username, "u");
            assert_eq!(uri.authority.userinfo.password, "p@ss");
            assert_eq!(uri.vhost, "/jobs");
            assert_eq!(uri.query.heartbeat, Some(5));
        }
    }

    #[test]
    fn a_dead_connection_is_noticed_sooner_than_the_broker_asks_for() {
        let list = Addresses::parse("amqp://broker").unwrap();
        assert_eq!(list.uris()[0].query.heartbeat, Some(HEARTBEAT));
    }

    #[test]
    fn a_host_alone_means_guest_and_the_default_virtual_host() {
        let list = Addresses::parse("amqp://broker").unwrap();
        assert_eq!(list.uris()[0].vhost, "/");
        assert_eq!(list.uris()[0].authority.userinfo.username, "guest");
    }

    #[test]
    fn no_form_of_printing_shows_the_password() {
        let list = Addresses::parse("amqp://u:secret@a,b/v").unwrap();
        for shown in [format!("{list}"), format!("{list:?}")] {
            assert!(!shown.contains("secret"), "{shown}");
            assert!(shown.contains("a:5672,b:5672/v"), "{shown}");
        }
        for bad in [
            "secret",
            "http://u:secret@a",
            "amqp://u:secret@a:port/v",
            "amqp://u:secret@a,,b",
        ] {
            let error = Addresses::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn tls_is_refused_clearly() {
        let error = Addresses::parse("amqps://a").unwrap_err().to_string();
        assert!(error.contains("TLS"), "{error}");
    }
}
