//! Properties of messages, and the counts in their headers.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::any;
use proptest::prop_oneof;
use proptest::sample::select;
use proptest::strategy::{Just, Strategy};
use synthex::message::{Attempt, HeaderValue, Properties, header};

use crate::change::text;
use crate::for_all;

const COUNTS: [&str; 3] = [header::ATTEMPT, header::RUNS, header::REDELIVERIES];

fn value() -> impl Strategy<Value = HeaderValue> {
    let leaf = prop_oneof![
        text().prop_map(HeaderValue::Text),
        any::<i64>().prop_map(HeaderValue::Int),
        (-3..20_i64).prop_map(HeaderValue::Int),
        any::<bool>().prop_map(HeaderValue::Bool),
        any::<f64>().prop_map(HeaderValue::Float),
        Just(HeaderValue::Other),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(HeaderValue::List),
            btree_map(text(), inner, 0..6).prop_map(HeaderValue::Table),
        ]
    })
}

fn headers() -> impl Strategy<Value = BTreeMap<String, HeaderValue>> {
    let name = prop_oneof![3 => select(&COUNTS[..]).prop_map(str::to_owned), 1 => text()];
    btree_map(name, value(), 0..8)
}

fn with(headers: BTreeMap<String, HeaderValue>) -> Properties {
    Properties {
        headers,
        ..Properties::default()
    }
}

#[test]
fn any_headers_give_a_count_that_is_written_and_read_again_and_only_grows() {
    for_all(&headers(), |headers| {
        let mut properties = with(headers);
        let attempt = Attempt::read(&properties);
        assert!(attempt.number >= 1);
        for next in [attempt.after_redelivery(), attempt.after_run()] {
            assert!(next.number > attempt.number || attempt.number == u32::MAX);
            assert!(next.runs_ended >= attempt.runs_ended);
        }
        attempt.write(&mut properties);
        assert_eq!(Attempt::read(&properties), attempt);
    });
}

/// A count that is too large to be one is the largest, not none: a job would be tried for ever.
#[test]
fn a_number_counts_the_same_as_a_text_and_stops_at_the_largest() {
    let numbers = prop_oneof![any::<u64>(), any::<u32>().prop_map(u64::from), 0..3_u64];
    for_all(&(select(&COUNTS[..]), numbers, 0..40_usize), |(name, number, zeros)| {
        let read = |value| Attempt::read(&with([(name.to_owned(), value)].into()));
        let as_number = read(HeaderValue::Int(i64::try_from(number).unwrap_or(i64::MAX)));
        assert_eq!(read(HeaderValue::Text(number.to_string())), as_number);
        let padded = format!("{}{number}", "0".repeat(zeros));
        assert_eq!(read(HeaderValue::Text(padded)), as_number);
        let largest = u32::try_from(number).unwrap_or(u32::MAX);
        let counts = [as_number.number, as_number.runs_ended, as_number.redeliveries];
        assert!(
            counts.contains(&largest.max(u32::from(name == header::ATTEMPT))),
            "{as_number:?}"
        );
    });
}

#[test]
fn any_content_type_is_taken_or_refused_by_name() {
    let odd = select(vec![
        "application/json",
        "APPLICATION/JSON ; x",
        ";",
        " ",
        "application/json\0",
        "text/json",
    ]);
    let texts = prop_oneof![odd.prop_map(str::to_owned), text()];
    for_all(&option::of(texts), |content_type| {
        let properties = Properties {
            content_type,
            ..Properties::default()
        };
        if let Err(error) = properties.check_content_type() {
            assert_eq!(error.field, "content_type");
            assert!(
                error.message.len() < 800 && !error.message.contains(char::is_control),
                "{error:?}"
            );
        }
    });
}
