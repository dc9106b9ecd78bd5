use super::super::tally::Tally;
use serde_json::{Value, json};

use super::*;
use crate::batch::Progress;
use crate::message::Status;

/// What is written at each of these seconds.
fn written(screen: &Screen, tally: &mut Tally, begin: Instant, seconds: &[u64]) -> Vec<String> {
    let at = |second: &u64| {
        let now = begin + Duration::from_secs(*second);
        screen.text(&tally.snapshot(now), &[], now)
    };
    seconds.iter().map(at).collect()
}

#[test]
fn lines_come_less_and_less_often() {
    let begin = Instant::now();
    let (screen, mut tally) = (Screen::lines(begin), Tally::new(begin));
    let due: Vec<u64> = (0..2000)
        .filter(|second| !written(&screen, &mut tally, begin, &[*second])[0].is_empty())
        .collect();
    assert_eq!(due, [10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]);
    assert_eq!(
        written(&screen, &mut tally, begin, &[3000]),
        ["synthex: 0 done, 0 under way, 0.0 a second\n"]
    );
}

#[test]
fn json_is_an_object_a_second() {
    let begin = Instant::now();
    let (screen, mut tally) = (Screen::json(), Tally::new(begin));
    tally.count(&Progress::Published(2));
    tally.count(&Progress::Finished {
        status: Status::Succeeded,
        is_final: true,
        duration: Duration::ZERO,
        title: String::new(),
    });
    let written = written(&screen, &mut tally, begin, &[0, 0, 1, 1, 2]);
    let count: Vec<usize> = written.iter().map(|text| text.lines().count()).collect();
    assert_eq!(count, [1, 0, 1, 0, 1]);
    let object: Value = serde_json::from_str(&written[4]).unwrap();
    assert_eq!(object["event"], "progress");
    assert_eq!((&object["done"], &object["under_way"]), (&json!(1), &json!(1)));
}

#[test]
fn the_bar_is_known_by_its_total() {
    // A template that is not well-formed would stop the program.
    for total in [None, Some(1)] {
        for has_colours in [false, true] {
            let _ = style(total, has_colours);
        }
    }
}
