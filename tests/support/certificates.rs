//! Certificates made in a test: an authority, and what it signs.

use std::{fs, path::Path, time::SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// What signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its private key.
pub struct Signed {
    cert: String,
    key: String,
}

impl Authority {
    /// One that nobody knows yet.
    pub fn new(name: &str) -> Self {
        let mut params = params(name, []);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, key()).expect("the authority's own name is fine"))
    }

    /// Its own certificate, in PEM form.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate in force, for a host or of a user.
    pub fn signs(&self, name: &str) -> Signed {
        self.sign(params(name, [name.to_owned()]))
    }

    /// One whose last second was at the end of 2020.
    pub fn signed_until_2020(&self, name: &str) -> Signed {
        let mut params = params(name, [name.to_owned()]);
        params.not_after = (SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_609_459_199)).into();
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Signed {
        let key = key();
        let cert = params.signed_by(&key, &self.0).expect("an authority can sign");
        Signed {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Signed {
    /// Writes it over what is there.
    pub fn write(&self, cert: &Path, key: &Path) {
        fs::write(cert, &self.cert).expect("the test's own folder can be written");
        fs::write(key, &self.key).expect("the test's own folder can be written");
    }
}

fn params(common_name: &str, names: impl IntoIterator<Item = String>) -> CertificateParams {
    let names: Vec<String> = names.into_iter().collect();
    let mut params = CertificateParams::new(names).expect("the names are host names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().expect("there is randomness")
}
