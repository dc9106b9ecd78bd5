//! What docs/operations.md says of numbers, held by the program.

use std::collections::BTreeSet;
use std::fs;

use synthex::cli::exit::Exit;
use synthex::flow::channel::Channels;
use synthex::metrics::{Metrics, PoolInfo, Sources};
use synthex::supervise::TaskAccounts;

use super::root;

fn operations() -> String {
    fs::read_to_string(root().join("docs/operations.md")).unwrap()
}

fn is_metric(word: &str) -> bool {
    ["synthex_", "tokio_", "process_"]
        .iter()
        .any(|prefix| word.starts_with(prefix))
}

#[tokio::test]
async fn every_metric_is_explained_and_every_explained_one_is_there() {
    let (channels, tasks) = (Channels::default(), TaskAccounts::default());
    tasks.announce("job");
    let _channel = channels.bounded::<()>("deliveries", 1);
    let pool = PoolInfo {
        name: "default".into(),
        slots: 1,
        prefetch: 1,
    };
    let sources = Sources {
        channels,
        tasks,
        locks: synthex::worker::LOCKS.to_vec(),
        ..Sources::default()
    };
    let rendered = Metrics::new(&[pool], sources).unwrap().render();
    let shown: BTreeSet<&str> = rendered
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert!(shown.len() > 40, "{shown:?}");

    let text = operations();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let explained: BTreeSet<&str> = words.filter(|word| is_metric(word)).collect();
    assert_eq!(
        shown, explained,
        "what a worker shows, and what docs/operations.md explains"
    );
    // A row of a table, and not a mention elsewhere, is an explanation.
    for name in &shown {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{name}`")));
        let meaning = row.and_then(|row| row.split('|').nth(2)).unwrap_or_default();
        assert!(
            meaning.len() > 10,
            "{name} has no row of its own that says what it means"
        );
    }
}

#[test]
fn every_exit_code_is_explained() {
    let text = operations();
    for exit in [
        Exit::Done,
        Exit::Failure,
        Exit::Usage,
        Exit::JobsFailed,
        Exit::Unavailable,
        Exit::TimedOut,
        Exit::Config,
    ] {
        let row = format!("| {} |", exit.code());
        assert!(text.lines().any(|line| line.starts_with(&row)), "no row for {exit:?}");
    }
}

#[test]
fn files_that_are_named_are_there() {
    let text = operations();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files: Vec<&str> = links
        .filter(|link| !link.contains("://") && !link.starts_with('#'))
        .collect();
    assert!(!files.is_empty());
    for file in files {
        assert!(root().join("docs").join(file).exists(), "{file}");
    }
}
