//! What Grafana would refuse in a dashboard, and what nobody would notice until it is needed. `watched.rs` runs the queries.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::compose::{read, root, words};

/// The dashboards by the names of their files.
pub fn dashboards() -> Vec<(&'static str, Value)> {
    let names = ["broker", "fleet", "worker"];
    let files = std::fs::read_dir(root("deploy/grafana/dashboards")).expect("the folder is there");
    assert_eq!(files.count(), names.len(), "each is looked at");
    let dashboard = |name: &'static str| {
        let text = read(&format!("deploy/grafana/dashboards/{name}.json"));
        (name, serde_json::from_str(&text).expect("it is JSON"))
    };
    names.map(dashboard).to_vec()
}

fn list(value: &Value) -> &Vec<Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("a list is expected, not {value}"))
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a text is expected, not {value}"))
}

/// What each panel and annotation asks, so that the source can be chosen.
fn has_the_chosen_source(value: &Value) -> bool {
    value["datasource"] == json!({"type": "prometheus", "uid": "${datasource}"})
}

#[test]
fn each_is_found_by_its_name_and_leads_to_the_others() {
    for (name, dashboard) in dashboards() {
        assert_eq!(text(&dashboard["uid"]), format!("synthex-{name}"));
        assert_eq!(text(&dashboard["title"]).to_lowercase(), name);
        assert!(text(&dashboard["description"]).ends_with('.'), "{name}");
        let version = dashboard["schemaVersion"].as_u64();
        assert!(version >= Some(42), "{name}: older ones are migrated at each load");
        assert_eq!(words(&dashboard["tags"]), ["synthex"], "{name}");
        let link = &dashboard["links"][0];
        assert_eq!(
            (&link["type"], &link["tags"]),
            (&json!("dashboards"), &json!(["synthex"])),
            "{name}"
        );
        assert_eq!(link["includeVars"], json!(true), "{name}: what was chosen is kept");
    }
}

#[test]
fn each_can_be_narrowed_down_and_shows_deploys_and_reconnects() {
    for (name, dashboard) in dashboards() {
        let variables = list(&dashboard["templating"]["list"]);
        let names: Vec<&str> = variables.iter().map(|variable| text(&variable["name"])).collect();
        let known = ["datasource", "namespace", "worker", "pool"];
        assert!(known.starts_with(&names) && names.len() >= 3, "{name}: {names:?}");
        for variable in variables.iter().filter(|variable| variable["type"] == "query") {
            assert!(has_the_chosen_source(variable), "{name}: {variable}");
            assert_eq!(
                variable["query"]["query"], variable["definition"],
                "{name}: what is asked is what is shown"
            );
            assert_eq!(
                (&variable["multi"], &variable["includeAll"]),
                (&json!(true), &json!(true))
            );
        }
        let annotations = list(&dashboard["annotations"]["list"]);
        let names: Vec<&str> = annotations.iter().map(|annotation| text(&annotation["name"])).collect();
        assert_eq!(names, ["Deploys", "Reconnects"], "{name}");
        for annotation in annotations {
            assert!(has_the_chosen_source(annotation), "{name}: {annotation}");
            assert_eq!(annotation["enable"], json!(true));
        }
    }
}

#[test]
fn panels_say_what_they_show_in_which_unit_and_none_covers_another() {
    for (_, dashboard) in dashboards() {
        let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for panel in list(&dashboard["panels"]) {
            let title = text(&panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().expect("it has a number")), "{title}");
            let place = |side: &str| panel["gridPos"][side].as_u64().expect("it has a place");
            let (left, top) = (place("x"), place("y"));
            assert!(left + place("w") <= 24, "{title} is beyond the edge");
            for cell in (0..place("w")).flat_map(|x| (0..place("h")).map(move |y| (x, y))) {
                assert!(taken.insert((left + cell.0, top + cell.1)), "{title} covers another");
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(titles.insert(title), "{title} twice");
            let description = panel["description"].as_str().unwrap_or_default();
            let says_it = description.len() > 30 && description.ends_with('.');
            assert!(says_it, "{title} does not say what it shows");
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{title} has no unit"
            );
            assert!(["stat", "timeseries"].contains(&text(&panel["type"])), "{title}");
            assert!(has_the_chosen_source(panel), "{title}");
            let mut letters = BTreeSet::new();
            for target in list(&panel["targets"]) {
                assert!(
                    letters.insert(text(&target["refId"])),
                    "{title}: each query has its own letter"
                );
                assert!(
                    !text(&target["expr"]).is_empty() && !text(&target["legendFormat"]).is_empty(),
                    "{title}"
                );
            }
            assert!(!letters.is_empty(), "{title} asks nothing");
        }
    }
}
