use clap::Parser;

use super::*;

#[derive(Parser)]
struct Some {
    #[command(flatten)]
    input: InputArgs,
}

fn parse(args: &[&str]) -> Result<Result<(Request, Job), Failure>, String> {
    let args = std::iter::once("x").chain(args.iter().copied());
    let parsed = Some::try_parse_from(args).map_err(|error| error.to_string())?;
    Ok(parsed.input.request())
}

fn request(args: &[&str]) -> Request {
    parse(args).unwrap().unwrap().0
}

/// The message of an error, of clap or our own.
fn refused(args: &[&str]) -> String {
    match parse(args) {
        Err(error) => error.lines().next().unwrap_or_default().to_owned(),
        Ok(request) => {
            let failure = request.unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            failure.message
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn flags_say_what_the_items_are() {
    assert_eq!(request(&["a", "-"]), Request::Jobs(vec!["a".into(), "-".into()]));
    assert_eq!(request(&["--", "echo", "{}"]), Request::One(words("echo {}")));
    let lines = |file: &str, end| Request::Each(Items::Lines { file: file.into(), end }, words("echo"));
    assert_eq!(request(&["--each", "f", "--", "echo"]), lines("f", LineEnd::Newline));
    assert_eq!(request(&["-0", "--each", "-", "--", "echo"]), lines("-", LineEnd::Nul));
    // As GNU parallel and the array jobs of schedulers call them.
    assert_eq!(request(&["-0a", "-", "--", "echo"]), lines("-", LineEnd::Nul));
    assert_eq!(
        request(&["--arg-file", "f", "--", "echo"]),
        lines("f", LineEnd::Newline)
    );
    assert_eq!(
        request(&["--null", "--each", "f.csv", "--", "echo"]),
        lines("f.csv", LineEnd::Nul)
    );
    let rows = |file: &str, separator| {
        Request::Each(
            Items::Rows {
                file: file.into(),
                separator,
            },
            words("echo"),
        )
    };
    assert_eq!(
        request(&["--each", "f.CSV", "--", "echo"]),
        rows("f.CSV", Separator::Comma)
    );
    assert_eq!(
        request(&["--each", "f.tsv", "--", "echo"]),
        rows("f.tsv", Separator::Tab)
    );
    assert_eq!(
        request(&["--csv", "--each", "f.tsv", "--", "echo"]),
        rows("f.tsv", Separator::Comma)
    );
    assert_eq!(
        request(&["--tsv", "--each", "-", "--", "echo"]),
        rows("-", Separator::Tab)
    );
    let numbers = Items::Numbers("1-9:2".parse().unwrap());
    assert_eq!(
        request(&["--range", "1-9:2", "--", "echo"]),
        Request::Each(numbers, words("echo"))
    );
    assert_eq!(
        request(&["--array", "1-9:2", "--", "echo"]),
        request(&["--range", "1-9:2", "--", "echo"])
    );
    let lists = Lists::split_off(&mut words("::: a b ::: 1")).unwrap().unwrap();
    assert_eq!(
        request(&["--", "echo", ":::", "a", "b", ":::", "1"]),
        Request::Each(Items::Lists(lists), words("echo"))
    );
}

#[test]
fn two_inputs_or_none_are_refused() {
    for (args, message) in [
        (
            &["--each", "f", "--", "echo", ":::", "a"][..],
            "--each and ::: both give items",
        ),
        (
            &["--range", "1-2", "--", "echo", ":::", "a"],
            "--range and ::: both give items",
        ),
        (
            &["--each", "f", "--range", "1-2", "--", "x"],
            "error: the argument '--each <FILE>' cannot be used with",
        ),
        (&["f", "--", "x"], "error: the argument '[FILE]...' cannot be used with"),
        (
            &["--each", "f"],
            "error: the following required arguments were not provided",
        ),
        (&[], "error: the following required arguments were not provided"),
        (
            &["--csv", "--tsv", "--each", "f", "--", "x"],
            "error: the argument '--csv' cannot be used with",
        ),
        (&["--csv", "f"], "--csv, --tsv and --null are about the file of --each"),
        (
            &["--range", "9-1", "--", "x"],
            "error: invalid value '9-1' for '--range <FROM-TO[:STEP]>': expected FROM-TO",
        ),
        (
            &["--each", "-", "--stdin", "-", "--", "x"],
            "--stdin -: the items come from there",
        ),
        (
            &["--each", "f", "--id", "i", "--", "x"],
            "--id: an id is for one job, and these are many",
        ),
        (&["--id", "i", "f"], "--id: an id is for one job, and these are many"),
        (
            &["--", "echo", ":::", "a", "::::", "f"],
            ":::: is not supported; give a file with --each",
        ),
        (
            &["--", "echo", "::::", "f"],
            ":::: is not supported; give a file with --each FILE",
        ),
        (
            &["--each", "f", "--", "echo", ":::+", "a"],
            ":::+ is not supported; ::: gives all combinations",
        ),
    ] {
        let refused = refused(args);
        assert!(refused.starts_with(message), "{args:?}: {refused}");
    }
}

#[test]
fn common_options_are_for_all_jobs() {
    let (_, job) = parse(&["--timeout", "9s", "--retry", "3", "--label", "a=b", "--env", "X=", "f"])
        .unwrap()
        .unwrap();
    assert_eq!(
        serde_json::to_value(job).unwrap(),
        serde_json::json!({"timeout": "9s", "retry": {"max_attempts": 3}, "labels": {"a": "b"}, "env": {"X": ""}})
    );
    let (request, job) = parse(&["--id", "i", "--", "x"]).unwrap().unwrap();
    assert_eq!((request, job.id), (Request::One(words("x")), "i".parse().ok()));
    assert_eq!(job.command, None);
}

#[test]
fn what_is_no_file_was_meant_for_a_command() {
    let advice = |args: &[&str], name, subcommands: &[&str]| {
        let parsed = Some::try_parse_from([&["x"][..], args].concat()).unwrap();
        let subcommands = subcommands.iter().map(ToString::to_string).collect();
        parsed.input.advice(&Caller { name, subcommands })
    };
    let own = ["status", "wait", "results", "cancel"];
    let batch = |args: &[&str]| advice(args, "batch", &own);
    assert_eq!(batch(&["stauts", "b"]).unwrap(), "did you mean `synthex batch status`?");
    for other in ["list", "nope.jsonl"] {
        assert_eq!(
            batch(&[other]).unwrap(),
            "a command goes after --: synthex batch -- CMD"
        );
    }
    assert_eq!(
        advice(&["stauts"], "run", &[]).unwrap(),
        "a command goes after --: synthex run -- CMD"
    );
    assert_eq!(batch(&["--each", "stauts", "--", "echo"]), None);
}
