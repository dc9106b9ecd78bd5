//! How to be let in: the broker's address, the password, the certificates. Those in files are read anew for each
//! connection, so that who changes them need not stop anybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::address::Addresses;
use super::tls::{Tls, TlsOptions, unreadable};
use crate::transport::TransportError;

/// Where an address comes from.
#[derive(Clone, Debug)]
pub enum AddressSource {
    /// It was given.
    Given(Addresses),
    /// It is in this file.
    File(PathBuf),
}

/// Where everything comes from that it takes to be let in.
#[derive(Clone, Debug)]
pub struct Access {
    /// The hosts, with user and virtual host.
    pub address: AddressSource,
    /// A file with the user's password, which goes before the one in the address.
    pub password_file: Option<PathBuf>,
    /// Goes before what the address says of TLS.
    pub tls: TlsOptions,
}

/// An address alone.
impl From<Addresses> for Access {
    fn from(addresses: Addresses) -> Self {
        Self {
            address: AddressSource::Given(addresses),
            password_file: None,
            tls: TlsOptions::default(),
        }
    }
}

/// What the next connection needs.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) addresses: Addresses,
    pub(super) tls: Option<Arc<Tls>>,
}

impl Access {
    /// The address as it is now, with password and TLS options. Blocks when there is a file to read.
    ///
    /// # Errors
    /// [`TransportError::File`] for a file that cannot be used, [`TransportError::Address`] for options that do not go
    /// together; neither shows a password.
    pub fn read(&self) -> Result<Addresses, TransportError> {
        const ADDRESS: &str = "the broker's address";
        let addresses = match &self.address {
            AddressSource::Given(addresses) => addresses.clone(),
            AddressSource::File(path) => Addresses::parse(&text(path, ADDRESS)?).map_err(|error| match error {
                TransportError::Address { reason } => unreadable(path, ADDRESS.to_owned(), reason),
                other => other,
            })?,
        };
        let addresses = addresses.with_tls(&self.tls)?;
        addresses.check_mechanism()?;
        match &self.password_file {
            Some(path) => Ok(addresses.with_password(&password(path)?)),
            None => Ok(addresses),
        }
    }

    /// Reads all that the next connection needs.
    pub(super) async fn load(&self) -> Result<Way, TransportError> {
        if matches!(self.address, AddressSource::Given(_)) && self.password_file.is_none() {
            let addresses = self.read()?;
            if addresses.tls().is_none() {
                return Ok(Way { addresses, tls: None });
            }
        }
        let access = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let addresses = access.read()?;
            let tls = addresses.tls().map(Tls::load).transpose()?.map(Arc::new);
            Ok(Way { addresses, tls })
        });
        match reading.await {
            Ok(way) => way,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

/// The first line, and only line, of a password's file.
fn password(path: &Path) -> Result<String, TransportError> {
    const WHAT: &str = "the password (--password-file)";
    let text = text(path, WHAT)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let wrong = |reason: &str| unreadable(path, WHAT.to_owned(), reason.to_owned());
    match line {
        "" => Err(wrong("it is empty; write the password into it")),
        line if line.contains('\n') => Err(wrong("it has more than one line; write the password alone into it")),
        line => Ok(line.to_owned()),
    }
}

fn text(path: &Path, what: &str) -> Result<String, TransportError> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, what.to_owned(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn password_of(addresses: &Addresses) -> &str {
        &addresses.uris()[0].authority.userinfo.password
    }

    #[tokio::test]
    async fn files_are_read_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (url, secret) = (folder.path().join("url"), folder.path().join("password"));
        let mut access = Access::from(Addresses::parse("amqp://u:old@h").unwrap());
        access.address = AddressSource::File(url.clone());
        fs::write(&url, "amqp://u:one@a,b/v\n").unwrap();
        let way = access.load().await.unwrap();
        assert_eq!((password_of(&way.addresses), way.addresses.count()), ("one", 2));
        fs::write(&url, "amqp://u:two@c/v\n").unwrap();
        let way = access.load().await.unwrap();
        assert_eq!((password_of(&way.addresses), way.addresses.count()), ("two", 1));

        access.password_file = Some(secret.clone());
        for text in ["p/@:%41 ", "three\n", "four\r\n"] {
            fs::write(&secret, text).unwrap();
            let way = access.load().await.unwrap();
            assert_eq!(password_of(&way.addresses), text.trim_end_matches(['\r', '\n']));
        }
    }

    #[test]
    fn a_file_that_holds_no_password_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("password");
        let mut access = Access::from(Addresses::parse("amqp://u@h").unwrap());
        access.password_file = Some(secret.clone());
        for text in [None, Some(""), Some("\n"), Some("hunter2\nhunter2\n")] {
            let _ = text.map(|text| fs::write(&secret, text).unwrap());
            let error = access.read().unwrap_err().to_string();
            assert!(
                error.contains("--password-file") && error.contains(secret.to_str().unwrap()),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused_wherever_they_come_from() {
        let mut access = Access::from(Addresses::parse("amqp://h").unwrap());
        access.tls.ca = Some(super::super::NamedFile {
            path: "ca.pem".into(),
            setting: "--ca-file",
        });
        let error = access.read().unwrap_err().to_string();
        assert!(
            error.contains("--ca-file is for TLS") && error.contains("amqps://"),
            "{error}"
        );
        access = Access::from(Addresses::parse("amqps://h?auth_mechanism=external").unwrap());
        assert!(access.read().is_err());
    }
}
