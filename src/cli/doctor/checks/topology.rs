//! What is declared on the broker, held against what is to be.

use super::Finding;
use crate::config::Pool;
use crate::transport::amqp::{Found, Presence};
use crate::transport::topology::Declare;

/// How many of those that are missing are named.
const NAMED: usize = 5;

pub(in crate::cli::doctor) fn topology(found: &[Found], pools: &[Pool]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let same = found.iter().filter(|found| found.presence == Presence::Same).count();
    if same > 0 {
        let text = format!("{same} of {} exchanges and queues are as they are to be", found.len());
        findings.push(Finding::ok("topology", text));
    }
    findings.extend(missing(found, pools));
    findings.extend(found.iter().filter_map(differing));
    findings.extend(hidden(found));
    findings
}

fn missing(found: &[Found], pools: &[Pool]) -> Option<Finding> {
    let is_missing = |found: &&Found| found.presence == Presence::Missing;
    let missing: Vec<String> = found
        .iter()
        .filter(is_missing)
        .map(|found| format!("{} {:?}", found.kind, found.name))
        .collect();
    let text = match missing.len() {
        0 => return None,
        all if all == found.len() => format!("none of the {all} exchanges and queues is there; is --namespace right?"),
        1..=NAMED => format!("not there: {}", missing.join(", ")),
        many => format!("not there: {}, and {} more", missing[..NAMED].join(", "), many - NAMED),
    };
    Some(match pools.iter().any(|pool| pool.declare == Declare::Passive) {
        true => Finding::problem(
            "topology",
            text,
            "declare it with `synthex config apply`, as one who may: declare = \"passive\" leaves it to you",
        ),
        false => Finding::note(
            "topology",
            text,
            "the first worker declares it, or `synthex config apply` does",
        ),
    })
}

fn differing(found: &Found) -> Option<Finding> {
    let Found { kind, name, presence } = found;
    match presence {
        Presence::Same | Presence::Missing => None,
        Presence::Differs(words) => {
            let delete = match *kind {
                "queue" => format!("let it be emptied, delete it (`rabbitmqctl delete_queue {name}`)"),
                _ => "delete it".to_owned(),
            };
            Some(Finding::problem(
                check_of(words),
                format!("{kind} {name:?} has other arguments than it is to have: {words}"),
                format!(
                    "{delete}, and have `synthex config apply` declare it again; a policy may set the argument too"
                ),
            ))
        }
        Presence::Hidden(words) if is_refusal(words) => None, // told of all at once
        Presence::Hidden(words) => Some(Finding::problem(
            "arguments",
            format!("{kind} {name:?} is there, and its arguments cannot be told: {words}"),
            "delete it and have it declared again",
        )),
        Presence::Unavailable(words) => Some(Finding::problem(
            "arguments",
            format!("{kind} {name:?} is there, and the broker cannot reach it: {words}"),
            "start its node, or try again once that has started; the broker's log says more",
        )),
    }
}

/// Who may not declare cannot ask how things are.
fn hidden(found: &[Found]) -> Option<Finding> {
    let is_hidden = |found: &&Found| matches!(&found.presence, Presence::Hidden(words) if is_refusal(words));
    let hidden = found.iter().filter(is_hidden).count();
    (hidden > 0).then(|| {
        Finding::note(
            "arguments",
            format!("those of {hidden} exchanges and queues cannot be told: this user may not declare them"),
            "run this once more as one who may",
        )
    })
}

fn is_refusal(words: &str) -> bool {
    words.contains("ACCESS_REFUSED")
}

/// The check that an argument belongs to, by the broker's words for it.
fn check_of(words: &str) -> &'static str {
    match words {
        words if words.contains("x-delivery-limit") => "delivery_limit",
        words if words.contains("x-consumer-timeout") => "consumer_timeout",
        _ => "arguments",
    }
}
