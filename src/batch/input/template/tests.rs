use proptest::prelude::*;

use super::*;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn fill(template: &[&str], fields: &[&str]) -> Vec<String> {
    let template = Template::parse(&words(template), &Shape::Fields(fields.len())).unwrap();
    template.fill(&words(fields), 7)
}

fn columns(names: &[&str]) -> Shape {
    Shape::Columns(words(names))
}

fn error(template: &[&str], shape: &Shape) -> String {
    Template::parse(&words(template), shape).unwrap_err().to_string()
}

/// What GNU parallel 20221122 made of `{}`, `{.}`, `{/}`, `{//}` and `{/.}`.
const GNU: [[&str; 5]; 32] = [
    ["a", "a", "a", ".", "a"],
    ["a.b", "a", "a.b", ".", "a"],
    ["d/a.b.c", "d/a.b", "a.b.c", "d", "a.b"],
    ["d/.hid", "d/", ".hid", "d", ""],
    [".hid", "", ".hid", ".", ""],
    ["d.x/a", "d.x/a", "a", "d.x", "a"],
    ["/a.b", "/a", "a.b", "/", "a"],
    ["a/", "a/", "", ".", ""],
    ["/", "/", "", "/", ""],
    ["a.", "a", "a.", ".", "a"],
    ["d/a.", "d/a", "a.", "d", "a"],
    ["", "", "", ".", ""],
    [".", "", ".", ".", ""],
    ["..", ".", "..", ".", "."],
    ["a b", "a b", "a b", ".", "a b"],
    ["//a", "//a", "a", "/", "a"],
    ["a//b.c", "a//b", "b.c", "a", "b"],
    ["./a.txt", "./a", "a.txt", ".", "a"],
    ["d.x/.hid", "d.x/", ".hid", "d.x", ""],
    ["a.b/", "a.b/", "", ".", ""],
    [".a.b", ".a", ".a.b", ".", ".a"],
    ["///", "///", "", "/", ""],
    ["/a/", "/a/", "", "/", ""],
    ["a//", "a//", "", ".", ""],
    ["a/b/", "a/b/", "", "a", ""],
    ["/a/b", "/a/b", "b", "/a", "b"],
    ["/a//b", "/a//b", "b", "/a", "b"],
    ["a/..", "a/.", "..", "a", "."],
    ["a...", "a..", "a...", ".", "a.."],
    ["/.x", "/", ".x", "/", ""],
    ["a/.", "a/", ".", "a", ""],
    ["a.b/c.d/", "a.b/c.d/", "", "a.b", ""],
];

#[test]
fn the_parts_of_a_path_are_those_of_gnu_parallel() {
    for row in GNU {
        let [item, ..] = row;
        assert_eq!(fill(&["{}", "{.}", "{/}", "{//}", "{/.}"], &[item]), row, "{item:?}");
    }
}

#[test]
fn places_stand_where_gnu_parallel_has_them() {
    for (template, fields, command) in [
        (&["echo"][..], &["A"][..], &["echo", "A"][..]),
        (&["echo"], &["A", "B"], &["echo", "A", "B"]),
        (&["echo", "a{#}b"], &["A"], &["echo", "a7b"]),
        (&["echo", "x{}y{}"], &["A"], &["echo", "xAyA"]),
        (
            &["echo", "{{}}", "{{.}}", "{.}}", "{}."],
            &["A"],
            &["echo", "{A}", "{A}", "A}", "A."],
        ),
        (&["echo", "{2}", "{1}", "x{-1}"], &["a", "1"], &["echo", "1", "a", "x1"]),
        (
            &["echo", "{1/.}", "{2//}", "{01}", "{-2.}"],
            &["a/b.c", "1/2"],
            &["echo", "b", "1", "a/b.c", "a/b"],
        ),
        (&["echo", "{1}{2}"], &["A", "B"], &["echo", "AB"]),
        (&["echo", "{}", "{/}"], &["d/A", "B"], &["echo", "d/A", "B", "A", "B"]),
        (&["{}", "x"], &["prog"], &["prog", "x"]),
        // Left as they are there, too.
        (
            &[
                "echo", "{}", "{foo}", "{print}", "{ }", "x{1:}", "{+1}", "{/ }", "{a,b}", "{1..3}", "{1,2}", "{", "}",
                "{-}",
            ],
            &["A"],
            &[
                "echo", "A", "{foo}", "{print}", "{ }", "x{1:}", "{+1}", "{/ }", "{a,b}", "{1..3}", "{1,2}", "{", "}",
                "{-}",
            ],
        ),
        (
            &["sh", "-c", "echo ${HOME}", "{}"],
            &["A"],
            &["sh", "-c", "echo ${HOME}", "A"],
        ),
        (
            &["echo", r#"{"a": {"b": "{}"}}"#],
            &["A"],
            &["echo", r#"{"a": {"b": "A"}}"#],
        ),
        (&["echo", "é{}ü{"], &["ä"], &["echo", "éäü{"]),
    ] {
        assert_eq!(fill(template, fields), command, "{template:?}");
    }
}

#[test]
fn several_fields_inside_an_argument_have_spaces_between() {
    assert_eq!(
        fill(&["echo", "<{}>", "<{.}>"], &["a.x", "b"]),
        ["echo", "<a.x b>", "<a b>"]
    );
}

#[test]
fn columns_have_names() {
    let shape = columns(&["name", "first name", "", "2"]);
    let template = [
        "f",
        "{name}",
        "{name/.}",
        "{first name}",
        "{2}",
        "{3}",
        "x{name.}",
        "${name}",
        "{4}",
    ];
    let template = Template::parse(&words(&template), &shape).unwrap();
    assert_eq!(
        template.fill(&words(&["d/n.x", "F", "e", "two"]), 1),
        ["f", "d/n.x", "n", "F", "two", "e", "xd/n", "$d/n.x", "two"]
    );
    let all = Template::parse(&words(&["echo", "{}"]), &shape).unwrap();
    assert_eq!(all.fill(&words(&["a", "b", "", "d"]), 1), ["echo", "a", "b", "", "d"]);
}

#[test]
fn a_name_that_is_no_columns_is_an_error_with_the_nearest() {
    let shape = columns(&["host", "user"]);
    assert_eq!(
        error(&["ssh", "{hots}"], &shape),
        r#"no column is called "hots"; did you mean {host}?"#
    );
    assert_eq!(
        error(&["ssh", "{Host/.}"], &shape),
        r#"no column is called "Host"; did you mean {host}?"#
    );
    assert_eq!(
        error(&["ssh", "{address}"], &shape),
        r#"no column is called "address"; there are {host} {user}; with spaces in the braces it is left as it is"#
    );
    assert_eq!(
        error(&["ssh", "{3}"], &shape),
        "{3}: an item has 2 fields here, counted from 1"
    );
    let twice = columns(&["a", "b", "b"]);
    assert_eq!(
        error(&["x", "{b}"], &twice),
        r#"several columns are called "b"; the first is {2}"#
    );
    // What is the shell's or another program's stays.
    let kept = ["sh", "-c", "echo ${HOME} { print }", "{host}"];
    let template = Template::parse(&words(&kept), &shape).unwrap();
    assert_eq!(
        template.fill(&words(&["h", "u"]), 1),
        ["sh", "-c", "echo ${HOME} { print }", "h"]
    );
}

#[test]
fn a_place_that_items_have_nothing_for_is_an_error() {
    let one = Shape::Fields(1);
    for place in ["{2}", "{0}", "{-2}", "{00}", "{2/.}"] {
        assert_eq!(
            error(&["x", place], &one),
            format!("{place}: an item has one field here, counted from 1")
        );
    }
    assert_eq!(
        error(&["x", "{..}"], &one),
        "unknown placeholder {..}; did you mean {.}?"
    );
    assert_eq!(
        error(&["x", "{///}"], &one),
        "unknown placeholder {///}; did you mean {//}?"
    );
    assert_eq!(error(&["x", "{%}"], &one), "unknown placeholder {%}; did you mean {#}?");
    let name = error(&["ssh", "root@{host}", "uptime"], &one);
    assert!(name.starts_with("unknown placeholder {host}: an item is {}"), "{name}");
    assert_eq!(
        error(&[], &one),
        "a command goes after --; to run each line as a command of a shell: -- sh -c {}"
    );
}

#[test]
fn a_place_that_nothing_fills_is_known_by_the_whole_word() {
    let idle = |text: &str| {
        let command: Vec<String> = text.split('|').map(str::to_owned).collect();
        idle_place(&command).map(str::to_owned)
    };
    for place in ["{}", "{.}", "{/}", "{//}", "{/.}", "{#}", "{1}", "{-2}", "{2/.}"] {
        assert_eq!(idle(&format!("echo|x|{place}")).as_deref(), Some(place));
    }
    for other in [
        "{x}",
        "{ }",
        "x{}",
        "{}.txt",
        "{",
        "{}{}",
        "awk|{print}",
        "sh|-c|echo {}",
        "{..}",
    ] {
        assert_eq!(idle(other), None, "{other}");
    }
}

proptest! {
    #[test]
    fn an_item_stays_whole_in_its_argument(item in any::<String>(), before in "[^{}$]*", after in "[^{}]*") {
        let around = format!("{before}{{}}{after}");
        let filled = fill(&["x", &around, "{}"], &[&item]);
        prop_assert_eq!(filled, ["x".to_owned(), format!("{before}{item}{after}"), item]);
    }

    #[test]
    fn every_field_is_an_argument_of_its_own(fields in prop::collection::vec(any::<String>(), 1..5), word in "[^{}]*") {
        let shape = Shape::Fields(fields.len());
        let appended = Template::parse(std::slice::from_ref(&word), &shape).unwrap().fill(&fields, 1);
        prop_assert_eq!((&appended[0], &appended[1..]), (&word, &fields[..]));
        let places: Vec<String> = (1..=fields.len()).map(|position| format!("{{{position}}}")).collect();
        prop_assert_eq!(Template::parse(&places, &shape).unwrap().fill(&fields, 1), fields);
    }

    #[test]
    fn a_word_is_refused_or_keeps_all_that_is_no_place(word in "[{}a./#$ 1-]{0,12}") {
        if let Ok(template) = Template::parse(&[word.clone(), "{}".to_owned()], &Shape::Fields(1)) {
            // An item that puts nothing in leaves what is around the places, each of its characters in order.
            let filled = template.fill(&[String::new()], 1);
            prop_assert_eq!(filled.len(), 2);
            let mut left = word.chars();
            prop_assert!(filled[0].replace("1", "").chars().all(|c| c == '.' || left.any(|from| from == c)), "{} -> {}", word, filled[0]);
        }
    }
}
