//! What installs Synthex on a machine: the systemd unit, and the Debian package with it. Nothing of this machine is
//! changed: the unit is only read, the package goes into a root of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::bench::{Bench, repository};
use crate::support::cli::{Cli, Finished};

const SYNTHEX: &str = env!("CARGO_BIN_EXE_synthex");
const UNIT: &str = "deploy/systemd/synthex-worker@.service";

fn unit() -> String {
    fs::read_to_string(repository().join(UNIT)).unwrap()
}

/// What systemd says of a unit, whose program is the one of this build.
fn verify(bench: &Bench, unit: &str) -> Finished {
    assert!(unit.contains("/usr/bin/synthex "));
    let file = bench.file(
        "synthex-worker@default.service",
        unit.replace("/usr/bin/synthex ", &format!("{SYNTHEX} ")),
    );
    Cli::program("systemd-analyze", ["verify", "--man=no", &file]).run()
}

#[test]
fn systemd_takes_the_unit() {
    let bench = Bench::new();
    let verified = verify(&bench, &unit());
    // Of other units of this machine it may say what it likes.
    assert!(!verified.stderr.contains("synthex"), "{}", verified.stderr);
    // How much of the system is kept from it is to be seen, not a score to win.
    let unit = bench.arg("synthex-worker@default.service");
    let exposure = Cli::program("systemd-analyze", ["security", "--offline=true", "--no-pager", &unit]).run();
    println!("{}", exposure.stdout.lines().last().unwrap_or_default());
}

#[test]
fn systemd_would_say_what_is_wrong_with_it() {
    let bench = Bench::new();
    let misspelt = unit().replace("KillMode=", "KilMode=");
    assert!(verify(&bench, &misspelt).stderr.contains("KilMode"), "nothing was read");
}

/// The values of a setting.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .collect()
}

#[test]
fn the_unit_starts_a_worker_with_flags_that_there_are() {
    let bench = Bench::new();
    let unit = unit();
    let pool = bench.file("default.toml", "pool = \"default\"\nstop_grace = \"1s\"\nslots = 0\n");
    let url = bench.file(
        "amqp-url",
        fs::read(repository().join("deploy/debian/amqp-url")).unwrap(),
    );
    let command = values(&unit, "ExecStart")[0]
        .replace("%d/amqp-url", &url)
        .replace("/etc/synthex/pools/%i.toml", &pool);
    let mut words = command.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/synthex"));
    // It gets as far as the pool's file, whose mistake it names.
    let refused = Cli::new(words).run().expect_code(78);
    assert!(refused.stderr.contains("slots:"), "{}", refused.stderr);
}

#[test]
fn the_unit_keeps_what_the_worker_relies_on() {
    let unit = unit();
    for (key, value) in [
        ("Type", "notify"),
        ("KillMode", "mixed"),           // a signal to commands would end them, not drain
        ("TimeoutStartSec", "infinity"), // it waits for its broker
        ("RestartPreventExitStatus", "2 78"),
        ("Delegate", "memory pids"),
        ("OOMPolicy", "continue"),
        ("StateDirectory", "synthex"),
    ] {
        assert_eq!(values(&unit, key), [value], "{key}");
    }
    // These would take the cgroup away again, or commands their tools.
    for key in [
        "ProtectControlGroups",
        "MemoryDenyWriteExecute",
        "PrivateNetwork",
        "SystemCallFilter",
    ] {
        assert!(values(&unit, key).is_empty(), "{key}");
    }
}

/// A file system with nothing but an empty database of packages.
struct Root(PathBuf);

impl Root {
    fn new(bench: &Bench) -> Self {
        let root = bench.path("root");
        for folder in ["info", "updates", "triggers"] {
            fs::create_dir_all(root.join("var/lib/dpkg").join(folder)).unwrap();
        }
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        Self(root)
    }

    fn dpkg(&self, args: &[&str]) -> Finished {
        let root = format!("--root={}", self.0.display());
        let log = format!("--log={}", self.0.join("dpkg.log").display());
        // What it depends on is outside; its scripts run there too, and are told of the root.
        let forced = "--force-not-root,script-chrootless,depends,bad-path";
        Cli::program("dpkg", [&[&*root, &*log, forced], args].concat())
            .run()
            .expect_code(0)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.at(path)).unwrap().permissions().mode() & 0o7777
    }
}

fn build(bench: &Bench) -> String {
    // Without what a debugger needs, which is most of a test build.
    let (small, script) = (bench.arg("synthex"), repository().join("deploy/debian/build"));
    Cli::program("strip", ["--strip-debug", "-o", &small, SYNTHEX])
        .run()
        .expect_code(0);
    let built = Cli::program(script, [&small, &bench.arg("packages")])
        .env("SYNTHEX_DEB_COMPRESSION", "none")
        .run()
        .expect_code(0);
    assert_eq!(built.stderr, "");
    built.stdout.trim_end().to_owned()
}

fn is_gzip(path: &Path) -> bool {
    fs::read(path).unwrap().starts_with(&[0x1f, 0x8b])
}

#[test]
fn the_debian_package_is_built_installed_and_purged() {
    let bench = Bench::new();
    let package = build(&bench);
    let version = env!("CARGO_PKG_VERSION");
    assert!(package.contains(&format!("/synthex_{version}_")), "{package}");

    let root = Root::new(&bench);
    root.dpkg(&["--install", &package]);
    let installed = Cli::program(root.at("usr/bin/synthex"), ["--version"])
        .run()
        .expect_code(0);
    assert_eq!(installed.stdout, format!("synthex {version}\n"));
    assert_eq!(
        fs::read_to_string(root.at("usr/lib/systemd/system/synthex-worker@.service")).unwrap(),
        unit()
    );
    for file in [
        "usr/share/bash-completion/completions/synthex",
        "usr/share/zsh/vendor-completions/_synthex",
    ] {
        assert!(fs::read_to_string(root.at(file)).unwrap().contains("workers"), "{file}");
    }
    assert!(is_gzip(&root.at("usr/share/man/man1/synthex-worker.1.gz")));
    assert!(root.at("usr/share/doc/synthex/docs/operations.md").exists());
    assert_eq!(
        root.mode("etc/synthex/amqp-url"),
        0o600,
        "others could read the password"
    );
    assert_eq!(root.mode("etc/synthex/pools/default.toml"), 0o644);
    assert!(
        fs::read_to_string(root.at("etc/passwd")).unwrap().contains("synthex:"),
        "no user"
    );
    let pool = root.at("etc/synthex/pools/default.toml");
    Cli::program(
        root.at("usr/bin/synthex"),
        ["config".as_ref(), "check".as_ref(), pool.as_os_str()],
    )
    .run()
    .expect_code(0);
    root.dpkg(&["--verify", "synthex"]); // the sums are right

    // What somebody has changed outlives an upgrade and a removal, and what waits in the outbox too.
    fs::write(&pool, "pool = \"default\"\nslots = 3\n").unwrap();
    fs::create_dir_all(root.at("var/lib/synthex/outbox")).unwrap();
    root.dpkg(&["--install", &package]);
    root.dpkg(&["--remove", "synthex"]);
    assert!(!root.at("usr/bin").exists() && root.at("var/lib/synthex/outbox").exists());
    assert!(fs::read_to_string(&pool).unwrap().contains("slots = 3"));
    root.dpkg(&["--purge", "synthex"]);
    assert!(!root.at("etc/synthex").exists() && !root.at("var/lib/synthex").exists());
}
