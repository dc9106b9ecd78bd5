use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::OtherError;

use super::*;

/// A certificate for `broker` and its key, in PEM form.
fn pair() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["broker".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Files with these texts.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>, setting: &'static str) -> Option<NamedFile> {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        Some(NamedFile { path, setting })
    }
}

fn refused(options: &TlsOptions) -> String {
    let error = Tls::load(options).err().expect("it is to be refused");
    assert!(!error.is_transient());
    error.to_string()
}

#[track_caller]
fn assert_has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text:?}");
    }
}

#[test]
fn a_certificate_and_its_key_may_be_in_one_file_or_in_two() {
    let (files, (cert, key)) = (Files::new(), pair());
    let ca = files.file("ca.pem", &cert, "--ca-file");
    let both = files.file("both.pem", format!("{key}{cert}"), "--client-cert");
    let options = TlsOptions {
        ca,
        cert: both,
        ..TlsOptions::default()
    };
    Tls::load(&options).unwrap();
    let cert = files.file("cert.pem", cert, "--client-cert");
    let key = files.file("key.pem", key, "--client-key");
    Tls::load(&TlsOptions { cert, key, ..options }).unwrap();
}

#[test]
fn a_file_of_authorities_that_cannot_be_used_is_named_with_its_setting() {
    let files = Files::new();
    let damaged = pair().0.replace("MII", "M!I");
    for (text, wanted) in [
        ("not a certificate", "no certificate in PEM form"),
        ("", "no certificate in PEM form"),
        (&pair().1, "no certificate in PEM form"),
        (&damaged, "damaged"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "cannot be used",
        ),
    ] {
        let ca = files.file("ca.pem", text, "--ca-file");
        let ca = TlsOptions {
            ca,
            ..TlsOptions::default()
        };
        assert_has(&refused(&ca), &["ca.pem", "--ca-file", wanted]);
    }
    let ca = TlsOptions {
        ca: Some(NamedFile {
            path: files.0.path().join("missing.pem"),
            setting: "cacertfile=",
        }),
        ..TlsOptions::default()
    };
    assert_has(&refused(&ca), &["missing.pem", "cacertfile=", "No such file"]);
}

#[test]
fn a_key_that_does_not_go_with_its_certificate_is_told_from_one_that_is_no_key() {
    let (files, (cert, _)) = (Files::new(), pair());
    let ca = files.file("ca.pem", &cert, "--ca-file");
    let cert = files.file("cert.pem", &cert, "--client-cert");
    let mut options = TlsOptions {
        ca,
        cert,
        ..TlsOptions::default()
    };
    assert_has(
        &refused(&options),
        &["cert.pem", "--client-cert", "none in it", "--client-key"],
    );
    let locked = pair().1.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (text, wanted) in [
        (pair().1, "another certificate"),
        (locked, "under a password"),
        (pair().0, "no private key"),
        (String::new(), "no private key"),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned(),
            "cannot be used",
        ),
    ] {
        options.key = files.file("key.pem", text, "--client-key");
        assert_has(&refused(&options), &["key.pem", "--client-key", wanted]);
    }
}

fn tls(cert: bool) -> Tls {
    let (files, (certificate, key)) = (Files::new(), pair());
    let ca = files.file("ca.pem", &certificate, "--ca-file");
    let both = files.file("both.pem", format!("{certificate}{key}"), "--client-cert");
    let cert = both.filter(|_| cert);
    Tls::load(&TlsOptions {
        ca,
        cert,
        ..TlsOptions::default()
    })
    .unwrap()
}

#[test]
fn what_a_broker_has_against_our_certificate_is_told() {
    let told = |cert, alert| {
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(alert));
        tls(cert).failure("broker:5671", &error)
    };
    for (cert, alert, wanted) in [
        (
            false,
            AlertDescription::CertificateRequired,
            "wants a client certificate",
        ),
        (false, AlertDescription::HandshakeFailure, "--client-cert"),
        (true, AlertDescription::UnknownCA, "does not know the authority"),
        (true, AlertDescription::CertificateExpired, "not in force"),
        (true, AlertDescription::BadCertificate, "BadCertificate"),
    ] {
        let error = told(cert, alert);
        assert!(!error.is_transient(), "{error}");
        assert_has(&error.to_string(), &["broker:5671", wanted]);
    }
    assert!(told(true, AlertDescription::InternalError).is_transient());
}

/// Some brokers say nothing of why they hang up; that may pass.
#[test]
fn a_connection_that_just_ends_may_want_a_certificate() {
    let ended = io::Error::from(io::ErrorKind::ConnectionReset);
    for (cert, hint) in [(false, true), (true, false)] {
        let error = tls(cert).failure("broker:5671", &ended);
        assert!(error.is_transient(), "{error}");
        assert_eq!(error.to_string().contains("--client-cert"), hint, "{error}");
    }
}

/// As it is shown when a certificate that `openssl req -x509` made is the broker's own.
#[test]
fn an_authority_s_own_certificate_is_told_from_other_flaws() {
    #[derive(Debug)]
    struct CaUsedAsEndEntity;
    impl std::fmt::Display for CaUsedAsEndEntity {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("?")
        }
    }
    impl std::error::Error for CaUsedAsEndEntity {}
    let other = CertificateError::Other(OtherError(Arc::new(CaUsedAsEndEntity)));
    assert_has(&flaw(&other, "?"), &["CA:TRUE"]);
}

#[test]
fn names_of_a_certificate_are_shown_as_they_are_in_it() {
    let presented = ["DnsName(\"a.example.org\")", "IpAddress(127.0.0.1)"].map(String::from);
    assert_eq!(names(&presented), "a.example.org, 127.0.0.1");
    assert!(names(&[]).contains("no host"));
}
