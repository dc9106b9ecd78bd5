//! The broker's address list: `amqp://user:password@host1:5672,host2:5672/vhost`, or `amqps://` with TLS, and the
//! parameters that RabbitMQ's own clients know (<https://www.rabbitmq.com/docs/uri-query-parameters>).
//!
//! lapin takes one host a URI, so the list is taken apart here and rotated by the connector. Nothing here prints a
//! password, not even in an error or a `Debug`.

use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};

use super::tls::{NamedFile, SERVER_NAME, TlsOptions};
use crate::transport::TransportError;

/// Seconds between heartbeats, unless the address says otherwise (`?heartbeat=`): a connection whose other end is gone
/// without a word is given up after two of them. RabbitMQ's own wish is 60.
const HEARTBEAT: u16 = 15;

/// One or more hosts of a broker, with credentials and virtual host.
#[derive(Clone)]
pub struct Addresses {
    uris: Vec<AMQPUri>,
    /// There by `amqps://`.
    tls: Option<TlsOptions>,
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
        let path = tail.split('?').next().unwrap_or_default();
        if path.starts_with("//") || path.contains('@') {
            return Err(address(
                "expected amqp://user:password@host1:5672,host2/vhost: hosts in a list share scheme, user, password and \
                 virtual host, and / and @ in a virtual host are written %2f and %40"
                    .to_owned(),
            ));
        }
        let (credentials, hosts) = authority
            .rsplit_once('@')
            .map_or(("", authority), |(user, hosts)| (user, hosts));
        let at = if credentials.is_empty() { "" } else { "@" };
        let uris = hosts
            .split(',')
            .map(|host| parse_one(host, &format!("{scheme}://{credentials}{at}{host}{tail}")))
            .collect::<Result<Vec<_>, _>>()?;
        let is_tls = uris.iter().any(|uri| uri.scheme == AMQPScheme::AMQPS);
        let tls = is_tls.then(TlsOptions::default);
        Self { uris, tls }.with_tls(&tls_options(tail)?)
    }

    /// These addresses with these options, which go before their own.
    pub(super) fn with_tls(mut self, options: &TlsOptions) -> Result<Self, TransportError> {
        self.tls = self.tls.map(|own| options.clone().or(&own));
        match (&self.tls, options.first()) {
            (None, Some(setting)) => Err(address(format!(
                "{setting} is for TLS, and the address says amqp://, which is none; write amqps://"
            ))),
            (Some(tls), _) if tls.cert.is_none() && tls.key.is_some() => Err(address(
                "there is a private key, and no certificate that it is for; name that with --client-cert (or certfile=)"
                    .to_owned(),
            )),
            _ => Ok(self),
        }
    }

    /// These addresses with this password in place of their own.
    pub(super) fn with_password(mut self, password: &str) -> Self {
        for uri in &mut self.uris {
            password.clone_into(&mut uri.authority.userinfo.password);
        }
        self
    }

    /// What is asked of TLS, if there is to be any.
    pub(super) fn tls(&self) -> Option<&TlsOptions> {
        self.tls.as_ref()
    }

    /// Whether the client certificate says who we are.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn check_mechanism(&self) -> Result<(), TransportError> {
        let has_certificate = self.tls.as_ref().is_some_and(|tls| tls.cert.is_some());
        if self.uris.iter().any(is_external) && !has_certificate {
            return Err(address(
                "auth_mechanism=external needs amqps:// and a client certificate (--client-cert, certfile=)".to_owned(),
            ));
        }
        Ok(())
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
        let scheme = self.tls.as_ref().map_or("amqp", |_| "amqps");
        write!(f, "{scheme}://{}/{vhost}", self.hosts())
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Addresses({self})")
    }
}

/// Host and port of one address.
pub(super) fn host(uri: &AMQPUri) -> String {
    let (host, port) = (&uri.authority.host, uri.authority.port);
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Whether the client certificate says who we are.
pub(super) fn is_external(uri: &AMQPUri) -> bool {
    uri.query.auth_mechanism == Some(SASLMechanism::External)
}

/// What the parameters of an address say of TLS.
fn tls_options(tail: &str) -> Result<TlsOptions, TransportError> {
    let mut options = TlsOptions::default();
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let file = |setting| {
            let path = value.as_ref().into();
            Some(NamedFile { path, setting })
        };
        match &*key {
            "cacertfile" => options.ca = file("cacertfile="),
            "certfile" => options.cert = file("certfile="),
            "keyfile" => options.key = file("keyfile="),
            SERVER_NAME => options.server_name = Some(value.into_owned()),
            "verify" if value != "verify_peer" => {
                return Err(address(
                    "a broker's certificate is always checked, so that verify=verify_peer is all there is; name an \
                     authority to trust with --ca-file (or cacertfile=)"
                        .to_owned(),
                ));
            }
            "password" => {
                return Err(address(
                    "a private key under a password cannot be read, so that there is no password= for it; keep it \
                     without one, in a file that only its user may read"
                        .to_owned(),
                ));
            }
            _ => {}
        }
    }
    Ok(options)
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
    // The parser takes an IPv6 address for no host at all, and that for localhost.
    if let Some((inner, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        inner.clone_into(&mut parsed.authority.host);
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

    /// The second would be taken for a virtual host, which is told to the broker and to the log.
    #[test]
    fn whole_addresses_in_a_list_are_refused_and_not_repeated() {
        for text in [
            "amqp://u:p@a:5672,amqp://u:secret@b:5672/v",
            "amqp://u:p@a/v,amqp://u:secret@b",
            "amqp://a,amqps://u:secret@b/v?heartbeat=5",
        ] {
            let error = Addresses::parse(text).unwrap_err().to_string();
            assert!(
                error.contains("host1:5672,host2") && !error.contains("secret"),
                "{error}"
            );
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
    fn an_ipv6_host_is_not_taken_for_localhost() {
        let list = Addresses::parse("amqps://u:p@[::1]:5,[2001:db8::1]/v").unwrap();
        assert_eq!(list.uris()[0].authority.host, "::1");
        assert_eq!(list.hosts(), "[::1]:5,[2001:db8::1]:5671");
    }

    fn file(path: &str, setting: &'static str) -> Option<NamedFile> {
        let path = path.into();
        Some(NamedFile { path, setting })
    }

    #[test]
    fn the_parameters_of_rabbitmq_s_clients_are_understood() {
        let list = "amqps://h/v?cacertfile=/a%20b/ca.pem&certfile=c.pem&keyfile=k.pem&verify=verify_peer\
                    &server_name_indication=broker&auth_mechanism=external&fail_if_no_peer_cert=true&heartbeat=5";
        let list = Addresses::parse(list).unwrap();
        let wanted = TlsOptions {
            ca: file("/a b/ca.pem", "cacertfile="),
            cert: file("c.pem", "certfile="),
            key: file("k.pem", "keyfile="),
            server_name: Some("broker".to_owned()),
        };
        assert_eq!(list.tls(), Some(&wanted));
        assert_eq!((list.hosts().as_str(), is_external(&list.uris()[0])), ("h:5671", true));
        assert_eq!(list.to_string(), "amqps://h:5671/v");
        list.check_mechanism().unwrap();
        assert_eq!(Addresses::parse("amqp://h").unwrap().tls(), None);
        assert!(Addresses::parse("AMQPS://h").unwrap().tls().is_some());
    }

    #[test]
    fn flags_go_before_the_address_and_a_key_goes_with_its_certificate() {
        let list = Addresses::parse("amqps://h?cacertfile=a&certfile=c&keyfile=k").unwrap();
        let flags = TlsOptions {
            cert: file("C", "--client-cert"),
            ..TlsOptions::default()
        };
        let both = list.with_tls(&flags).unwrap();
        let wanted = TlsOptions {
            ca: file("a", "cacertfile="),
            ..flags
        };
        assert_eq!(both.tls(), Some(&wanted));
    }

    #[test]
    fn what_does_not_go_together_is_refused_and_named() {
        for (bad, named) in [
            ("amqps://h?verify=verify_none", "--ca-file"),
            ("amqps://h?certfile=c&keyfile=k&password=secret", "password="),
            ("amqp://h?cacertfile=a", "cacertfile= is for TLS"),
            ("amqp://h?server_name_indication=a", "server_name_indication is for TLS"),
            ("amqps://h?keyfile=k", "--client-cert"),
        ] {
            let error = Addresses::parse(bad).unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("secret"), "{bad}: {error}");
        }
        for bad in ["amqps://h?auth_mechanism=external", "amqp://h?auth_mechanism=external"] {
            let error = Addresses::parse(bad).unwrap().check_mechanism().unwrap_err();
            assert!(error.to_string().contains("--client-cert"), "{bad}: {error}");
        }
    }
}
