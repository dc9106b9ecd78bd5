//! `synthex` and a RabbitMQ node that do and do not trust each other, and secrets that change while a worker runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::private_broker::{is_consuming, is_not_consuming, pool_file, rig};
use crate::rig::{PATIENCE, Rig};
use crate::support::broker::Broker;
use crate::support::certificates::{Authority, Signed};
use crate::support::cli::{Cli, Finished, Running};
use crate::support::process::Signal;
use synthex::transport::amqp::Amqp;

/// A node with certificates that a test changes, and what a client needs to trust it.
struct Tls {
    folder: tempfile::TempDir,
    ours: Authority,
    broker: Broker,
    rig: Rig<Amqp>,
}

impl Tls {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
        let ours = Authority::new("ours");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("ca.pem"), ours.pem()).expect("the test's own folder can be written");
        ours.signs("localhost").write(&at("broker.pem"), &at("broker.key"));
        let broker = Broker::start_with_tls(folder.path()).await;
        let (rig, _) = rig(broker.vhost().await).await;
        Self {
            folder,
            ours,
            broker,
            rig,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The certificate that the node shows from the next connection on.
    fn shows(&self, certificate: &Signed) {
        certificate.write(&self.path("broker.pem"), &self.path("broker.key"));
    }

    /// Users who may do everything.
    async fn add_users(&self, users: &[&str]) {
        for user in users {
            self.broker.add_user(user, "not used").await;
            self.rig.vhost().permit(user, ".*", ".*", ".*").await;
        }
    }

    /// The certificate that the worker shows from its next connection on.
    fn is_user(&self, name: &str) {
        let (cert, key) = (self.path("client.pem"), self.path("client.key"));
        self.ours.signs(name).write(&cert, &key);
    }

    /// The node's address by TLS, with its own user.
    fn url(&self) -> String {
        let (ports, url) = ((self.broker.port(), self.broker.tls_port()), self.rig.vhost().url());
        let (plain, tls) = (format!("127.0.0.1:{}", ports.0), format!("localhost:{}", ports.1));
        url.replace("amqp://", "amqps://").replace(&plain, &tls)
    }

    /// The address by which a client is who its certificate says.
    fn url_by_certificate(&self) -> String {
        let (port, vhost) = (self.broker.tls_port(), self.rig.vhost().name());
        format!("amqps://localhost:{port}/{vhost}?auth_mechanism=external")
    }

    /// Has a client declare something.
    async fn client(&self, url: &str, with: impl FnOnce(Cli) -> Cli) -> Finished {
        let client = Cli::new(["config", "apply", "workers/default.toml"]).env("SYNTHEX_AMQP_URL", url);
        with(client).run_async().await
    }

    /// A client that trusts our authority.
    async fn trusting(&self, url: &str) -> Finished {
        let ca = self.path("ca.pem");
        self.client(url, |client| client.env("SYNTHEX_CA_FILE", ca)).await
    }

    /// Who is logged in by TLS; a connection that is not that far is nobody's.
    async fn users(&self) -> Vec<String> {
        let by_tls = "[binary_to_list(User) || [{user, User}, {ssl, true}] <- \
                      rabbit_networking:connection_info_all([user, ssl]), is_binary(User)].";
        let users: BTreeSet<String> = self.broker.eval_strings(by_tls).await.into_iter().collect();
        users.into_iter().filter(|user| !user.is_empty()).collect()
    }

    /// Cuts all connections by TLS. One that was just being opened is cut the next time.
    async fn cut(&self) {
        while !self.users().await.is_empty() {
            self.rig.close_sessions().await;
        }
    }
}

#[track_caller]
fn assert_refused(finished: Finished, words: &[&str]) {
    let finished = finished.expect_code(78);
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in: {}", finished.stderr);
    }
}

/// A worker of the rig's pool.
fn worker(rig: &Rig<Amqp>, args: &[&str], url: &str) -> Running {
    let file = pool_file(rig, "slots = 1");
    let args = [&["worker", &file, "--metrics-addr", "none"], args].concat();
    let worker = Cli::new(args).limit(PATIENCE);
    if url.is_empty() {
        return worker.spawn();
    }
    worker.env("SYNTHEX_AMQP_URL", url).spawn()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in ASCII")
}

/// One worker lives through all of it: started while all was well, it tries again, as it would for a password that was
/// refused. Who begins with what a wait does not mend is refused.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_both_ways_at_each_connection() {
    let tls = Tls::start().await;
    tls.add_users(&["alice", "bob"]).await;
    let rig = &tls.rig;
    tls.trusting(&tls.url()).await.expect_code(0);
    tls.is_user("alice");
    let (ca, cert, key) = (tls.path("ca.pem"), tls.path("client.pem"), tls.path("client.key"));
    let files = [
        "--ca-file",
        text(&ca),
        "--client-cert",
        text(&cert),
        "--client-key",
        text(&key),
    ];
    let worker = worker(rig, &files, &tls.url_by_certificate());
    worker.wait_for_line(is_consuming);
    rig.publish("job-1", &json!({ "command": ["true"] })).await;
    rig.wait_for_ends(["job-1".to_owned()]).await;
    assert_eq!(tls.users().await, ["alice"]);

    let before = worker.lines();
    tls.shows(&tls.ours.signed_until_2020("localhost"));
    tls.is_user("bob");
    tls.cut().await;
    let expired = ["failed to set up TLS", "localhost:", "expired on 2020-12-31T23:59:59Z"];
    worker.wait_for_line_after(before, |line| expired.iter().all(|word| line.contains(word)));
    assert_refused(tls.trusting(&tls.url()).await, &expired);

    a_certificate_for_another_name_is_refused_unless_it_is_meant(&tls).await;
    a_certificate_of_an_unknown_authority_is_refused(&tls).await;

    let before = worker.lines();
    tls.shows(&tls.ours.signs("localhost"));
    worker.wait_for_line_after(before, is_consuming);
    rig.publish("job-2", &json!({ "command": ["true"] })).await;
    rig.wait_for_ends(["job-2".to_owned()]).await;
    assert_eq!(tls.users().await, ["bob"]);
    worker.signal(Signal::TERM);
    worker.wait().expect_code(0);

    let plain = tls
        .url()
        .replace(&tls.broker.tls_port().to_string(), &tls.broker.port().to_string());
    assert_refused(tls.trusting(&plain).await, &["does not answer in TLS", "5671"]);
}

async fn a_certificate_for_another_name_is_refused_unless_it_is_meant(tls: &Tls) {
    tls.shows(&tls.ours.signs("broker.example.org"));
    let wrong_name = [
        "is for broker.example.org, not for localhost",
        "server_name_indication=",
    ];
    assert_refused(tls.trusting(&tls.url()).await, &wrong_name);
    let named = format!("{}?server_name_indication=broker.example.org", tls.url());
    tls.trusting(&named).await.expect_code(0);
}

async fn a_certificate_of_an_unknown_authority_is_refused(tls: &Tls) {
    let theirs = Authority::new("theirs");
    tls.shows(&theirs.signs("localhost"));
    assert_refused(
        tls.trusting(&tls.url()).await,
        &["unknown authority", text(&tls.path("ca.pem")), "--ca-file"],
    );
    // Without a file of our own, those that the system trusts.
    let system = tls.path("system.pem");
    let by_system = async |trusted: &Authority| {
        fs::write(&system, trusted.pem()).expect("the test's own folder can be written");
        tls.client(&tls.url(), |client| client.env("SSL_CERT_FILE", &system))
            .await
    };
    assert_refused(
        by_system(&tls.ours).await,
        &["unknown authority", "this system", "--ca-file"],
    );
    by_system(&theirs).await.expect_code(0);
}

/// On the node that all share. One worker has the password in a file, the other the whole address.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_is_read_from_its_file_when_the_worker_connects_again() {
    let broker = Broker::shared().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let user = format!("user-{}", uuid::Uuid::now_v7().simple());
    broker.add_user(&user, "old").await;
    rig.vhost().permit(&user, ".*", ".*", ".*").await;
    let (_, host) = url.split_once('@').expect("an address with credentials");
    let (password, address) = (rig.path("password"), rig.path("address"));
    let tell = |word: &str| {
        fs::write(&password, format!("{word}\n")).expect("the test's own folder can be written");
        let url = format!("amqp://{user}:{word}@{host}\n");
        fs::write(&address, url).expect("the test's own folder can be written");
    };
    tell("old");
    let no_password = format!("amqp://{user}@{host}");
    let workers = [
        worker(&rig, &["--password-file", text(&password)], &no_password),
        worker(&rig, &["--amqp-url-file", text(&address)], ""),
    ];
    for worker in &workers {
        worker.wait_for_line(is_consuming);
    }
    broker.ctl(&["change_password", &user, "new"]).await;
    rig.close_sessions().await;
    for worker in &workers {
        worker.wait_for_line(|line| is_not_consuming(line) && line.contains("failed to log in"));
    }
    let before: Vec<usize> = workers.iter().map(Running::lines).collect();
    tell("new");
    for (worker, before) in workers.iter().zip(before) {
        worker.wait_for_line_after(before, is_consuming);
    }
    rig.publish("job-1", &json!({ "command": ["true"] })).await;
    rig.wait_for_ends(["job-1".to_owned()]).await;
    for worker in workers {
        worker.signal(Signal::TERM);
        worker.wait().expect_code(0);
    }
}
