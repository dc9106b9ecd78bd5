//! The files of the whole stack, looked at without running it: what a container engine would refuse, and what nobody
//! would notice until it hurts. `stack.rs` runs them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

use crate::dashboards::dashboards;
use crate::support::cli::Cli;

/// A file of the repository.
pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The texts of a list.
pub fn words(list: &Value) -> Vec<&str> {
    let list = list
        .as_array()
        .unwrap_or_else(|| panic!("a list is expected, not {list}"));
    list.iter()
        .map(|word| word.as_str().unwrap_or_else(|| panic!("not a text: {word}")))
        .collect()
}

/// The services of `compose.yaml` with their names.
fn services(compose: &Value) -> impl Iterator<Item = (&String, &Value)> {
    compose["services"].as_object().expect("it has services").iter()
}

/// The names in a map, or in a list of names and of objects that have it in `field`.
fn names(value: &Value, field: &str) -> BTreeSet<String> {
    match value {
        Value::Object(map) => map.keys().cloned().collect(),
        Value::Array(list) => list
            .iter()
            .map(|entry| {
                entry[field]
                    .as_str()
                    .or(entry.as_str())
                    .expect("it has a name")
                    .to_owned()
            })
            .collect(),
        _ => BTreeSet::new(),
    }
}

/// Folders and files of the repository that a service sees, and where.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let all = service["volumes"].as_array().into_iter().flatten();
    let of_files = |volume: &'_ Value| volume.as_str().is_some_and(|text| text.starts_with("./"));
    all.filter(|volume| of_files(volume))
        .map(|volume| {
            let mut parts = volume.as_str().expect("it is a text").split(':');
            let mut next = || parts.next().expect("source, target, mode");
            let (source, target, mode) = (next(), next(), next());
            assert_eq!(mode, "ro", "no service may change {source}");
            (source.trim_start_matches("./"), target)
        })
        .collect()
}

#[test]
fn compose_accepts_the_file() {
    let schema: Value = serde_json::from_str(&read("tests/fixtures/compose/compose-spec.json")).expect("it is JSON");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.enable_format_assertions();
    compiler
        .add_resource("compose-spec.json", schema)
        .expect("it is a schema");
    let index = compiler
        .compile("compose-spec.json", &mut schemas)
        .expect("it is a schema");
    let compose = yaml("compose.yaml");
    if let Err(error) = schemas.validate(&compose, index) {
        panic!("{error:#}");
    }
    let mut wrong = compose;
    wrong["services"]["worker"]["memory"] = json!("2G");
    assert!(schemas.validate(&wrong, index).is_err(), "it looks into services");
}

#[test]
fn every_name_leads_somewhere() {
    let compose = yaml("compose.yaml");
    let declared = |what: &str| names(&compose[what], "");
    let mut used = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (name, service) in services(&compose) {
        used.0.extend(names(&service["secrets"], "source"));
        used.1.extend(names(&service["networks"], ""));
        let volumes = service["volumes"].as_array().into_iter().flatten();
        let named = volumes.filter_map(|volume| volume.as_str()?.split(':').next());
        used.2
            .extend(named.filter(|source| !source.starts_with('.')).map(str::to_owned));
        for (other, how) in service["depends_on"].as_object().into_iter().flatten() {
            let condition = how["condition"].as_str().expect("it says what it waits for");
            let other = &compose["services"][other];
            assert!(other.is_object(), "{name} depends on what is not there");
            if condition == "service_healthy" {
                assert!(
                    other["healthcheck"]["test"].is_array(),
                    "{name} waits for a health without a check"
                );
            }
        }
        for (source, _) in mounts(service) {
            assert!(root(source).exists(), "{name} mounts {source}, which is not there");
        }
    }
    assert_eq!(used.0, declared("secrets"));
    assert_eq!(used.1, declared("networks"));
    assert_eq!(used.2, declared("volumes"));
}

#[test]
fn every_service_is_bounded_watched_and_brought_back() {
    let compose = yaml("compose.yaml");
    for (name, service) in services(&compose) {
        assert_eq!(service["init"], json!(true), "{name}");
        assert!(service["restart"].is_string(), "{name} has no restart policy");
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(
            limits["cpus"].is_string() && limits["memory"].is_string(),
            "{name} has no limits"
        );
        assert!(
            service["logging"]["options"]["max-size"].is_string(),
            "the log of {name} has no bound"
        );
        // The worker's check is its image's.
        let ends = service["healthcheck"]["disable"] == json!(true);
        let is_worker = name == "worker" && read("deploy/Dockerfile").contains("\nHEALTHCHECK ");
        let checked = service["healthcheck"]["test"].is_array();
        assert!(ends || is_worker || checked, "nobody looks whether {name} is well");
    }
    let grace = |text: &Value| {
        let seconds = text.as_str().and_then(|text| text.strip_suffix('s'));
        seconds
            .and_then(|seconds| seconds.parse::<u64>().ok())
            .expect("it is in seconds")
    };
    let shown = Cli::new(["config", "show", "--json", "deploy/pools/default.toml"])
        .run()
        .expect_code(0);
    let of_pool = grace(&shown.json_lines()[0]["values"]["stop_grace"]["value"]);
    let of_container = grace(&compose["services"]["worker"]["stop_grace_period"]);
    assert!(
        of_container > of_pool,
        "the engine kills a worker that still waits for its commands"
    );
}

#[test]
fn nothing_is_reached_from_other_machines_and_nobody_gains_rights() {
    let compose = yaml("compose.yaml");
    for (name, service) in services(&compose) {
        for port in service["ports"].as_array().into_iter().flatten() {
            let port = port.as_str().expect("ports are texts here");
            assert!(port.starts_with("127.0.0.1:"), "{name} publishes {port}");
        }
        assert_eq!(words(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        for key in ["privileged", "network_mode", "pid", "ipc", "cap_add", "devices"] {
            assert!(service[key].is_null(), "{name} has {key}");
        }
        // RabbitMQ's image begins as root to give its volume to its user, and needs some.
        if name != "rabbitmq" {
            assert_eq!(words(&service["cap_drop"]), ["ALL"], "{name}");
        }
    }
    let shared = |one: &str, other: &str| {
        let networks = |name: &str| names(&compose["services"][name]["networks"], "");
        networks(one).intersection(&networks(other)).count()
    };
    assert_eq!(shared("worker", "grafana"), 0, "commands can reach Grafana");
}

#[test]
fn secrets_are_files_that_one_command_makes_and_makes_once() {
    let compose = yaml("compose.yaml");
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let secrets = folder.path().join("secrets");
    let make = || {
        Cli::program(root("deploy/make-secrets"), [&secrets])
            .run()
            .expect_code(0)
    };
    assert_eq!(make().stdout, "", "nothing is shown");
    let made = |name: &str| fs::read_to_string(secrets.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    for (name, secret) in compose["secrets"].as_object().expect("there are some") {
        let file = secret["file"]
            .as_str()
            .and_then(|file| file.strip_prefix("./deploy/secrets/"));
        assert!(!made(file.unwrap_or_else(|| panic!("{name} is no file"))).is_empty());
    }
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&secrets), 0o700, "nobody else gets in");
    assert_eq!(
        mode(&secrets.join("worker.url")),
        0o644,
        "a container's user can read it"
    );

    let roles = ["worker", "producer", "operator", "monitoring", "grafana"];
    let passwords = || roles.map(|role| made(&format!("{role}.password")));
    let first = passwords();
    assert_eq!(
        first.iter().collect::<BTreeSet<_>>().len(),
        roles.len(),
        "each has its own"
    );
    assert!(first.iter().all(|password| password.trim().len() == 24));
    fs::remove_file(secrets.join("worker.password")).expect("it is there");
    make();
    let second = passwords();
    assert_ne!(first[0], second[0], "a password that was removed is another one");
    assert_eq!(first[1..], second[1..], "the others are kept");
    assert!(made("worker.url").contains(second[0].trim()));
    assert!(!made("users.json").contains(second[0].trim()), "the broker gets a hash");
    assert!(read(".gitignore").lines().any(|line| line == "/deploy/secrets"));
}

#[test]
fn no_password_is_in_a_file_of_the_repository() {
    let compose = yaml("compose.yaml");
    for (name, service) in services(&compose) {
        for (key, _) in service["environment"].as_object().into_iter().flatten() {
            let secret = ["PASS", "SECRET", "TOKEN", "URL"].iter().any(|word| key.contains(word));
            assert!(
                !secret || key.ends_with("__FILE"),
                "{name} gets {key} in its environment"
            );
        }
    }
    let files = [
        "compose.yaml",
        "deploy",
        "-type",
        "f",
        "-not",
        "-path",
        "deploy/secrets/*",
    ];
    let listed = Cli::program("find", files).run().expect_code(0);
    for file in listed.stdout.lines() {
        for line in read(file).lines() {
            let credentials = line.split("amqp://").nth(1).and_then(|rest| rest.split_once('@'));
            let literal = credentials.is_some_and(|(login, _)| !login.contains('%'));
            assert!(!literal, "{file}: {line}");
            assert!(!line.contains("guest:guest"), "{file}: {line}");
        }
    }
}

#[test]
fn prometheus_and_the_pool_files_are_right() {
    Cli::program("promtool", ["check", "config", "deploy/prometheus/prometheus.yml"])
        .run()
        .expect_code(0);
    Cli::new(["config", "check", "deploy/pools/default.toml"])
        .run()
        .expect_code(0);
}

#[test]
fn grafana_finds_its_datasource_and_dashboards() {
    let compose = yaml("compose.yaml");
    let grafana = &compose["services"]["grafana"];
    let seen = mounts(grafana);
    let source = &yaml("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"][0];
    assert_eq!(
        source["url"],
        json!("http://prometheus:9090"),
        "the service and its port"
    );
    let provider = &yaml("deploy/grafana/provisioning/dashboards/synthex.yaml")["providers"][0];
    let folder = provider["options"]["path"].as_str().expect("it has a path");
    assert!(seen.contains(&("deploy/grafana/dashboards", folder)), "{seen:?}");
    assert!(seen.contains(&("deploy/grafana/provisioning", "/etc/grafana/provisioning")));
    let home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].as_str();
    assert_eq!(home, Some(&*format!("{folder}/fleet.json")));
    for (name, dashboard) in dashboards() {
        let first = &dashboard["templating"]["list"][0];
        assert_eq!(
            first["current"]["value"], source["uid"],
            "{name}: the source that is chosen at first"
        );
    }
}

/// What a line of the Dockerfile copies out of the repository.
fn copied(line: &str) -> Vec<&str> {
    let Some(rest) = line.strip_prefix("COPY ") else {
        return Vec::new();
    };
    let mut words: Vec<&str> = rest.split(' ').collect();
    if words.iter().any(|word| word.starts_with("--from=")) {
        return Vec::new();
    }
    words.retain(|word| !word.starts_with("--"));
    words.pop(); // where to
    words
}

#[test]
fn an_image_is_built_from_all_that_cargo_needs_and_nothing_else() {
    let dockerfile = read("deploy/Dockerfile");
    let sources: BTreeSet<&str> = dockerfile.lines().flat_map(copied).collect();
    let ignored = read("deploy/Dockerfile.dockerignore");
    let allowed: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert_eq!(sources, allowed, "what is copied is what gets in");
    assert!(ignored.lines().any(|line| line == "*"), "all else stays out");

    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    for source in &sources {
        let to = folder.path().join(source);
        fs::create_dir_all(to.parent().expect("it is in the folder")).expect("the folder can be written");
        let copy = Cli::program("cp", [Path::new("-r"), &root(source), &to]);
        copy.run().expect_code(0);
    }
    let included = folder.path().join("workers/default.toml");
    assert!(included.exists(), "src/config.rs includes it");
    let home = tempfile::tempdir().expect("the temporary folder can be written");
    let metadata = ["metadata", "--locked", "--offline", "--no-deps", "--format-version=1"];
    let metadata = Cli::program(env!("CARGO"), metadata)
        .env("CARGO_HOME", home.path())
        .current_dir(folder.path());
    let package = metadata.run().expect_code(0).json_lines()[0]["packages"][0].clone();
    let found = names(&package["targets"], "name");
    for kind in ["bin", "bench"] {
        for target in manifest()[kind].as_array().expect("Cargo.toml has a list of them") {
            let name = target["name"].as_str().expect("it has a name");
            assert!(found.contains(name), "cargo builds nothing without the code of {name}");
        }
    }
}

#[test]
fn an_image_has_no_root_and_no_compiler() {
    let dockerfile = read("deploy/Dockerfile");
    let user = dockerfile.lines().rev().find_map(|line| line.strip_prefix("USER "));
    let user = user.expect("it names its user");
    let is_nobody_else = |number: &str| number.parse::<u32>().is_ok_and(|number| number > 0);
    assert!(user.split(':').all(is_nobody_else), "{user}");
    let stages: Vec<&str> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("FROM "))
        .collect();
    let rust = manifest()["package"]["rust-version"].clone();
    let rust = rust.as_str().expect("Cargo.toml names a version");
    assert_eq!(stages.len(), 2);
    assert!(stages[0].starts_with(&format!("rust:{rust}-slim-")), "{stages:?}");
    assert!(stages[1].starts_with("debian:"), "{stages:?}");
}

fn manifest() -> toml::Table {
    read("Cargo.toml").parse().expect("it is TOML")
}
