//! TLS to the broker: the files it needs, and what it means when the two sides do not agree.
//!
//! The broker's certificate has to be signed by an authority that we trust, to be in force now, and to be for the name
//! that the broker is called by (RFC 5280, RFC 6125). No check can be switched off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore};

use crate::transport::TransportError;

/// How a connection by `amqps://` is to be trusted, and what it shows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Authorities that may sign the broker's certificate, in PEM form; those of the system when there is no such file.
    pub ca: Option<NamedFile>,
    /// The certificate that we show the broker, and those between it and its authority, in PEM form.
    pub cert: Option<NamedFile>,
    /// Its private key, in PEM form; in the certificate's own file when there is no other.
    pub key: Option<NamedFile>,
    /// The name that the broker's certificate has to be for; the host of the address when there is none.
    pub server_name: Option<String>,
}

/// A file, and the setting that named it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its user has to look at: a flag, or a parameter of the address.
    pub setting: &'static str,
}

impl TlsOptions {
    /// These options, and those of `others` where these say nothing.
    pub(super) fn or(self, others: &Self) -> Self {
        Self {
            ca: self.ca.or_else(|| others.ca.clone()),
            // A key belongs to its certificate, and comes from where that comes from.
            key: if self.cert.is_some() {
                self.key
            } else {
                self.key.or_else(|| others.key.clone())
            },
            cert: self.cert.or_else(|| others.cert.clone()),
            server_name: self.server_name.or_else(|| others.server_name.clone()),
        }
    }

    /// The first setting that is there.
    pub(super) fn first(&self) -> Option<&'static str> {
        let files = [&self.ca, &self.cert, &self.key];
        let file = files.into_iter().flatten().map(|file| file.setting).next();
        file.or(self.server_name.as_ref().map(|_| SERVER_NAME))
    }
}

/// The parameter of an address that says which name a certificate has to be for.
pub(super) const SERVER_NAME: &str = "server_name_indication";

/// What a certificate's private key is called in messages.
const KEY: &str = "the client certificate's private key";

/// All that a connection by TLS needs, read from its files.
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
    /// Who may sign the broker's certificate, in words.
    authorities: String,
    shows_certificate: bool,
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// [`TransportError::File`] for a file that cannot be used.
    pub(super) fn load(options: &TlsOptions) -> Result<Self, TransportError> {
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("this provider knows TLS 1.2 and 1.3")
            .with_root_certificates(match &options.ca {
                Some(file) => authorities_of(file)?,
                None => authorities_of_the_system()?,
            });
        let config = match &options.cert {
            Some(cert) => {
                let ours = identity(cert, options.key.as_ref(), &provider)?;
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ours)))
            }
            None => config.with_no_client_auth(),
        };
        Ok(Self {
            config: Arc::new(config),
            server_name: options.server_name.clone(),
            authorities: options.ca.as_ref().map_or_else(
                || "this system trusts; name the right one with --ca-file".to_owned(),
                |file| format!("{} ({}) holds; add the right one", file.path.display(), file.setting),
            ),
            shows_certificate: options.cert.is_some(),
        })
    }

    /// Shakes hands with the broker at `host`, whose name is `name` unless we were told another one.
    ///
    /// # Errors
    /// [`TransportError::Tls`] for what a wait does not mend.
    pub(super) async fn shake_hands(
        &self,
        name: &str,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, TransportError> {
        let name = self.server_name.as_deref().unwrap_or(name);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TransportError::Tls {
            host: host.to_owned(),
            reason: format!("{name:?} is not a name that a certificate can be for"),
        })?;
        let connected = TlsConnector::from(self.config.clone()).connect(name, stream).await;
        connected.map_err(|error| self.failure(host, &error))
    }

    /// What an error of a connection means. The broker may refuse our certificate after our side of the handshake is
    /// done, when the connection is first read from (RFC 8446, section 4.4.2.4).
    pub(super) fn failure(&self, host: &str, error: &io::Error) -> TransportError {
        let host = host.to_owned();
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
        match cause {
            Some(Error::AlertReceived(AlertDescription::InternalError)) | None => TransportError::Unreachable {
                host,
                reason: format!("{error}{}", self.hint()),
            },
            Some(cause) => TransportError::Tls {
                host,
                reason: self.reason(cause),
            },
        }
    }

    fn reason(&self, error: &Error) -> String {
        match error {
            Error::InvalidCertificate(error) => flaw(error, &self.authorities),
            Error::AlertReceived(alert) => self.objection(*alert),
            Error::InvalidMessage(_) => {
                "it does not answer in TLS; plain amqp:// is usually on port 5672, amqps:// on 5671".to_owned()
            }
            other => other.to_string(),
        }
    }

    /// What the broker has against us.
    fn objection(&self, alert: AlertDescription) -> String {
        match alert {
            AlertDescription::CertificateRequired => {
                "it wants a client certificate; name one with --client-cert and --client-key".to_owned()
            }
            AlertDescription::UnknownCA => {
                "it does not know the authority of our client certificate (--client-cert)".to_owned()
            }
            AlertDescription::CertificateExpired => {
                "our client certificate (--client-cert) is not in force by its clock".to_owned()
            }
            AlertDescription::ProtocolVersion => "it speaks no TLS from 1.2 on".to_owned(),
            other => format!("it refuses the handshake ({other:?}){}", self.hint()),
        }
    }

    /// A broker that misses a client certificate may just hang up.
    fn hint(&self) -> &'static str {
        if self.shows_certificate {
            ""
        } else {
            "; if the broker wants a client certificate, name one with --client-cert and --client-key"
        }
    }
}

/// What is wrong with the broker's certificate, and what to do about it.
fn flaw(error: &CertificateError, authorities: &str) -> String {
    const CLOCK: &str = "or set the clock of this machine";
    match error {
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate, or one that vouches for it, expired on {}, and now is {}; renew it, {CLOCK}",
            date(*not_after),
            date(*time)
        ),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate, or one that vouches for it, is valid from {} on, and now is {}; wait, {CLOCK}",
            date(*not_before),
            date(*time)
        ),
        CertificateError::UnknownIssuer => {
            format!("its certificate is signed by an unknown authority, none that {authorities}")
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is for {}, not for {}; call it by that name in --amqp-url, or say there which name is \
             right with {SERVER_NAME}=",
            names(presented),
            expected.to_str()
        ),
        // rustls passes on what its verifier says, and not the type of it.
        CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is one of an authority (CA:TRUE); have that sign another one for the broker".to_owned()
        }
        other => format!("its certificate cannot be trusted: {other}"),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| format!("second {seconds}"), |date| date.to_string())
}

/// The names of a certificate, which come as `DnsName("broker.example.org")` and `IpAddress(127.0.0.1)`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let name = name
            .strip_prefix("DnsName(")
            .or_else(|| name.strip_prefix("IpAddress("))
            .unwrap_or(name);
        name.trim_end_matches(')').trim_matches('"').to_owned()
    };
    match presented {
        [] => "no host (it has no subjectAltName)".to_owned(),
        some => some.iter().map(bare).collect::<Vec<_>>().join(", "),
    }
}

fn authorities_of(file: &NamedFile) -> Result<RootCertStore, TransportError> {
    const WHAT: &str = "the authorities that may sign the broker's certificate";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, WHAT)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(file, WHAT, format!("a certificate there cannot be used: {error}")))?;
    }
    Ok(roots)
}

fn authorities_of_the_system() -> Result<RootCertStore, TransportError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Among those of a system there may be some that no one understands.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable > 0 {
        return Ok(roots);
    }
    let errors: Vec<String> = found.errors.iter().map(|error| format!(": {error}")).collect();
    Err(TransportError::Address {
        reason: format!(
            "amqps:// needs authorities, and this system has none{}; install ca-certificates, or name a file of them \
             with --ca-file",
            errors.concat()
        ),
    })
}

/// A client certificate with its chain, and its key.
fn identity(
    cert: &NamedFile,
    key: Option<&NamedFile>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TransportError> {
    const CERTIFICATE: &str = "the client certificate";
    let chain = certificates(cert, CERTIFICATE)?;
    let file = key.unwrap_or(cert);
    let private = PrivateKeyDer::from_pem_slice(&bytes(file, KEY)?).map_err(|error| {
        let reason = match error {
            pem::Error::NoItemsFound if key.is_none() => {
                "there is none in it; name the key's own file with --client-key (or keyfile=)".to_owned()
            }
            pem::Error::NoItemsFound => {
                "there is no private key in PEM form in it, or only one under a password; write it there without"
                    .to_owned()
            }
            error => format!("it is damaged: {error}"),
        };
        unusable(file, KEY, reason)
    })?;
    let signing = provider.key_provider.load_private_key(private);
    let signing = signing.map_err(|error| unusable(file, KEY, format!("it cannot be used: {error}")))?;
    let ours = CertifiedKey::new(chain, signing);
    match ours.keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let (path, setting) = (cert.path.display(), cert.setting);
            let reason = format!("it is the key of another certificate than that in {path} ({setting})");
            Err(unusable(file, KEY, reason))
        }
        Err(Error::InvalidCertificate(CertificateError::BadEncoding)) => {
            Err(unusable(cert, CERTIFICATE, "it is damaged".to_owned()))
        }
        // Whether a certificate that rustls would not take, as one of version 1, is good enough is the broker's to say.
        _ => Ok(ours),
    }
}

/// The certificates of a file, at least one.
fn certificates(file: &NamedFile, what: &str) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let bytes = bytes(file, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| unusable(file, what, format!("it is damaged: {error}")))?;
    if found.is_empty() {
        let reason = "there is no certificate in PEM form in it (\"-----BEGIN CERTIFICATE-----\")";
        return Err(unusable(file, what, reason.to_owned()));
    }
    Ok(found)
}

fn bytes(file: &NamedFile, what: &str) -> Result<Vec<u8>, TransportError> {
    std::fs::read(&file.path).map_err(|error| unusable(file, what, error.to_string()))
}

fn unusable(file: &NamedFile, what: &str, reason: String) -> TransportError {
    unreadable(&file.path, format!("{what} ({})", file.setting), reason)
}

/// A file that a connection needs and cannot use.
pub(super) fn unreadable(path: &Path, what: String, reason: String) -> TransportError {
    TransportError::File {
        what,
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
