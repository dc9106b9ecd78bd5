//! Alerts and recording rules: each is tried with `promtool`, explained, and about metrics that are there.
//! `watched.rs` has a real Prometheus evaluate them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::compose::{read, yaml};
use crate::dashboards::dashboards;
use crate::support::cli::Cli;

/// The rules of a file, in its order.
pub fn rules(file: &str) -> Vec<Value> {
    let groups = yaml(&format!("deploy/prometheus/rules/{file}"))["groups"].clone();
    let groups = groups.as_array().expect("it has groups");
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("a group has rules"));
    rules.cloned().collect()
}

fn name(rule: &Value) -> &str {
    rule["alert"].as_str().expect("an alert has a name")
}

#[test]
fn every_alert_comes_when_it_should_and_only_then() {
    let tests = "deploy/prometheus/tests/alerts.yml";
    Cli::program("promtool", ["test", "rules", tests]).run().expect_code(0);

    // Each is tried both ways: an alert that nobody tries to silence may never be silent.
    let file = yaml(tests);
    let tests = file["tests"].as_array().expect("they are a list");
    let tried = |comes: bool| -> BTreeSet<&str> {
        let all = tests
            .iter()
            .flat_map(|test| test["alert_rule_test"].as_array().expect("it tries alerts"));
        all.filter(|tried| {
            tried["exp_alerts"]
                .as_array()
                .is_some_and(|alerts| alerts.is_empty() != comes)
        })
        .map(|tried| tried["alertname"].as_str().expect("it names one"))
        .collect()
    };
    let alerts = rules("alerts.yml");
    let names: BTreeSet<&str> = alerts.iter().map(name).collect();
    assert_eq!(names.len(), alerts.len(), "each has its own name");
    assert_eq!(tried(true), names, "tried to come");
    assert_eq!(tried(false), names, "tried to be silent");
}

#[test]
fn every_alert_says_how_bad_it_is_and_has_a_paragraph() {
    let page = read("docs/alerts.md");
    let sections: Vec<(&str, &str)> = page
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').expect("a title has a text"))
        .collect();
    let alerts = rules("alerts.yml");
    let explained: Vec<&str> = sections.iter().map(|(title, _)| *title).collect();
    let names: Vec<&str> = alerts.iter().map(name).collect();
    assert_eq!(explained, names, "docs/alerts.md, and the rules, in one order");
    for (title, text) in &sections {
        assert!(
            text.trim().len() > 200,
            "{title}: what does it mean, and what is to be done?"
        );
    }
    for alert in &alerts {
        let severity = alert["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("page" | "ticket")), "{}", name(alert));
        let runbook = alert["annotations"]["runbook"].as_str();
        let anchor = format!("docs/alerts.md#{}", name(alert).to_lowercase());
        assert_eq!(runbook, Some(&*anchor));
    }
}

#[test]
fn what_a_paragraph_sends_to_is_in_a_dashboard() {
    let dashboards = dashboards();
    let mut titles = BTreeSet::new();
    for (_, dashboard) in &dashboards {
        let panels = dashboard["panels"].as_array().expect("it has panels");
        titles.extend(
            panels
                .iter()
                .chain([dashboard])
                .filter_map(|titled| titled["title"].as_str()),
        );
    }
    let page = read("docs/alerts.md");
    let named: Vec<&str> = page.split('*').skip(1).step_by(2).collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        let name = name.replace('\n', " ");
        assert!(titles.contains(&*name), "no dashboard and no panel is called {name}");
    }
}

#[test]
fn every_metric_of_a_rule_is_one_that_is_explained_or_recorded() {
    let operations = read("docs/operations.md");
    let recorded = rules("recording.yml");
    let recorded: BTreeSet<&str> = recorded.iter().filter_map(|rule| rule["record"].as_str()).collect();
    let files = ["alerts.yml", "recording.yml"].map(rules);
    for rule in files.iter().flatten() {
        let expr = rule["expr"].as_str().expect("a rule has an expression");
        for word in expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
            if word.starts_with("synthex:") {
                assert!(recorded.contains(word), "nobody records {word}");
            } else if word.starts_with("synthex_") || word.starts_with("process_") {
                let family = ["_bucket", "_count"].iter().find_map(|end| word.strip_suffix(end));
                let row = format!("| `{}`", family.unwrap_or(word));
                assert!(operations.contains(&row), "docs/operations.md does not know {word}");
            }
        }
    }
}
