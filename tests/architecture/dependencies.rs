//! What comes into the program from outside: `deny.toml` held without cargo-deny, by what cargo tells of the packages
//! that are built on Linux. Known faults of packages (advisories) are for cargo-deny alone: they are in no file here.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use super::root;

/// A package that is built, for the program or its tests.
struct Package {
    name: String,
    license: String,
    source: Option<String>,
    rust_version: Option<String>,
}

static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(packages);

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let asked = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let told: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let nodes = told["resolve"]["nodes"].as_array().unwrap();
    let built: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
    let all = told["packages"].as_array().unwrap().iter();
    let all = all.filter(|package| built.contains(package["id"].as_str().unwrap()));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let package = |package: &Value| Package {
        name: text(&package["name"]).unwrap(),
        license: text(&package["license"]).unwrap_or_default(),
        source: text(&package["source"]),
        rust_version: text(&package["rust_version"]),
    };
    let packages: Vec<Package> = all.map(package).collect();
    assert!(packages.len() > 100, "not all packages were read");
    packages
}

fn table(file: &str) -> toml::Table {
    fs::read_to_string(root().join(file)).unwrap().parse().unwrap()
}

fn is_built(name: &str) -> bool {
    PACKAGES.iter().any(|package| package.name == name)
}

fn strings(value: &toml::Value) -> Vec<&str> {
    let values = value.as_array().unwrap().iter();
    values.map(|value| value.as_str().unwrap()).collect()
}

/// Whether a licence that `may` be used satisfies an SPDX expression (and those from before SPDX, `MIT/Apache-2.0`).
fn satisfies(expression: &str, may: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let found = any(&mut words, may);
    assert_eq!(words.next(), None, "not understood: {expression}");
    found
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, may: &dyn Fn(&str) -> bool) -> bool {
    let mut found = all(words, may);
    while words.next_if_eq(&"OR").is_some() {
        found |= all(words, may);
    }
    found
}

fn all(words: &mut Words<'_>, may: &dyn Fn(&str) -> bool) -> bool {
    let mut found = one(words, may);
    while words.next_if_eq(&"AND").is_some() {
        found &= one(words, may);
    }
    found
}

fn one(words: &mut Words<'_>, may: &dyn Fn(&str) -> bool) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let found = any(words, may);
        assert_eq!(words.next(), Some(")"));
        return found;
    }
    let license = words.next().unwrap_or_default();
    match words.next_if_eq(&"WITH") {
        Some(_) => may(&format!("{license} WITH {}", words.next().unwrap_or_default())),
        None => may(license),
    }
}

#[test]
fn every_licence_is_allowed_and_every_allowance_is_needed() {
    let deny = table("deny.toml");
    assert_eq!(deny["licenses"]["include-dev"].as_bool(), Some(true));
    let allowed = strings(&deny["licenses"]["allow"]);
    let refused = |without: Option<&str>| {
        let may = |license: &str| allowed.contains(&license) && Some(license) != without;
        let refused = PACKAGES.iter().filter(|package| !satisfies(&package.license, &may));
        let told = refused.map(|package| format!("{}: {:?}", package.name, package.license));
        told.collect::<Vec<_>>()
    };
    assert_eq!(refused(None), [""; 0], "licences that deny.toml does not allow");
    for license in &allowed {
        assert_ne!(
            refused(Some(license)),
            [""; 0],
            "no package needs {license}: deny.toml need not allow it"
        );
    }
}

#[test]
fn licences_are_read_as_spdx_has_them() {
    let may = |license: &str| ["MIT", "ISC"].contains(&license);
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "(GPL-3.0 OR MIT) AND ISC",
        "GPL-3.0 OR MIT AND ISC",
    ] {
        assert!(satisfies(good, &may), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "MIT WITH x",
        "(MIT OR ISC) AND GPL-3.0",
    ] {
        assert!(!satisfies(bad, &may), "{bad}");
    }
}

#[test]
fn every_package_comes_from_the_registry_that_is_allowed() {
    let deny = table("deny.toml");
    assert_eq!(deny["sources"]["unknown-registry"].as_str(), Some("deny"));
    let allowed = strings(&deny["sources"]["allow-registry"]);
    for Package { name, source, .. } in PACKAGES.iter().filter(|package| package.name != env!("CARGO_PKG_NAME")) {
        let registry = source.as_deref().and_then(|source| source.strip_prefix("registry+"));
        assert!(
            registry.is_some_and(|url| allowed.contains(&url)),
            "{name} comes from {source:?}"
        );
    }
}

#[test]
fn no_package_is_banned_or_wanted_in_any_version() {
    let deny = table("deny.toml");
    for banned in deny["bans"]["deny"].as_array().unwrap() {
        let name = banned["crate"].as_str().unwrap();
        assert!(
            !is_built(name),
            "{name} is built, but {}",
            banned["reason"].as_str().unwrap()
        );
    }
    let manifest = table("Cargo.toml");
    for kind in ["dependencies", "dev-dependencies"] {
        for (name, wanted) in manifest[kind].as_table().unwrap() {
            let version = wanted.as_str().or_else(|| wanted.get("version")?.as_str());
            assert!(
                version.is_some_and(|version| !version.contains('*')),
                "{name} = {wanted}"
            );
        }
    }
}

/// Faults that are known and put up with, by their numbers, and the packages that have them.
const PUT_UP_WITH: [(&str, &str); 2] = [("RUSTSEC-2025-0012", "backoff"), ("RUSTSEC-2024-0384", "instant")];

#[test]
fn what_is_put_up_with_is_there_and_has_a_reason() {
    let deny = table("deny.toml");
    let ignored = deny["advisories"]["ignore"].as_array().unwrap();
    let ids: Vec<&str> = ignored.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, PUT_UP_WITH.map(|(id, _)| id));
    for ((_, package), entry) in PUT_UP_WITH.iter().zip(ignored) {
        assert!(is_built(package), "{package} is gone: nothing is left to put up with");
        assert!(entry["reason"].as_str().unwrap().contains(package));
    }
}

fn version(text: &str) -> Vec<u32> {
    let digits = text.split(['.', '-']).map_while(|part| part.parse().ok());
    digits.take(2).collect()
}

#[test]
fn this_compiler_and_every_package_keep_to_our_rust_version() {
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));
    for Package { name, rust_version, .. } in PACKAGES.iter() {
        let theirs = rust_version.as_deref().map(version).unwrap_or_default();
        assert!(
            theirs <= ours,
            "{name} needs Rust {theirs:?}, and rust-version promises {ours:?}"
        );
    }
    let asked = Command::new("rustc").arg("--version").output().unwrap();
    let told = String::from_utf8(asked.stdout).unwrap();
    let compiler = told.split(' ').nth(1).map(version).unwrap_or_default();
    assert!(
        compiler >= ours,
        "rust-version is {ours:?}, which {told:?} has not reached"
    );
}
