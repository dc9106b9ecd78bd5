use std::fs;

use futures_util::FutureExt;
use serde_json::{Value, json};

use super::*;

const MAX: usize = 1000;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

async fn open(request: Request) -> Input {
    Input::open(request, Job::default(), MAX).await.unwrap()
}

async fn all(input: &mut Input) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(item) = input.next().await.unwrap() {
        items.push(item);
        assert_eq!(items.last().unwrap().seq, items.len() as u64);
    }
    items
}

/// Each item as `origin title: job`.
async fn told(request: Request) -> Vec<String> {
    let mut input = open(request).await;
    let items = all(&mut input).await;
    if let Some(total) = input.total() {
        assert_eq!(total, items.len() as u64);
    }
    let tell = |item: &Item| match &item.job {
        Ok(job) => format!(
            "{} {}: {}",
            item.name.origin,
            item.name.title,
            String::from_utf8_lossy(job)
        ),
        Err(error) => format!("{} ! {:?} {error}", item.name.origin, error.field),
    };
    items.iter().map(tell).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// What was told, without the folder's name.
    fn without(&self, told: Vec<String>) -> Vec<String> {
        let own = format!("{}/", self.0.path().display());
        told.into_iter().map(|line| line.replace(&own, "")).collect()
    }
}

#[tokio::test]
async fn a_line_of_jobs_is_kept_as_it_came() {
    let folder = Folder::new();
    let lines = [
        r#"{"command": ["a"],  "labels": {}}"#,
        "",
        r#"{"script":"x","timeout":"soon"}"#,
        "not json",
        r#" {"script":"last"} "#,
    ];
    let first = folder.file("a.jsonl", lines.join("\n"));
    let second = folder.file("b.jsonl", b"\xff\n");
    let told = folder.without(told(Request::Jobs(vec![first, second])).await);
    assert_eq!(
        told,
        [
            r#"a.jsonl:1 a.jsonl:1: {"command": ["a"],  "labels": {}}"#,
            r#"a.jsonl:3 ! Some("timeout") timeout: expected a duration such as "30s", got "soon""#,
            "a.jsonl:4 ! None body: not valid JSON: expected ident at column 2; for a command a line: --each FILE -- CMD {}",
            r#"a.jsonl:5 a.jsonl:5:  {"script":"last"} "#,
            "b.jsonl:1 ! None body: expected UTF-8, got an invalid byte at offset 0",
        ]
    );
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let folder = Folder::new();
    let fits = format!(r#"{{"script":"{}"}}"#, "x".repeat(MAX - 13));
    let marked = |text: &str| [&b"\xef\xbb\xbf"[..], text.as_bytes()].concat();
    let first = folder.file("a.jsonl", marked(&format!("{fits}\n")));
    let second = folder.file("b.jsonl", marked("{\"script\":\"b\"}\n\u{feff}{}\n"));
    let jobs = folder.without(told(Request::Jobs(vec![first, second])).await);
    assert_eq!(jobs[0], format!("a.jsonl:1 a.jsonl:1: {fits}"));
    assert_eq!(jobs[1], r#"b.jsonl:1 b.jsonl:1: {"script":"b"}"#);
    assert!(
        jobs[2].contains("not valid JSON: expected value at column 1"),
        "{}",
        jobs[2]
    );
    let file = folder.file("items", marked("a"));
    for (end, item) in [(LineEnd::Newline, "a"), (LineEnd::Nul, "\u{feff}a")] {
        let lines = Items::Lines {
            file: file.clone(),
            end,
        };
        let told = told(Request::Each(lines, words("echo"))).await;
        assert!(
            told[0].ends_with(&format!(r#"{{"command":["echo","{item}"]}}"#)),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn no_line_takes_more_memory_than_allowed() {
    let folder = Folder::new();
    let fits = format!(r#"{{"script":"{}"}}"#, "x".repeat(MAX - 13));
    assert_eq!(fits.len(), MAX);
    let content = format!("{fits}\n{fits} \n{{}}\n{}\n", "y".repeat(MAX * 3));
    let file = folder.file("f", content);
    let jobs = told(Request::Jobs(vec![file.clone()])).await;
    assert!(jobs[0].ends_with("x\"}"), "{}", jobs[0]);
    for too_long in [&jobs[1], &jobs[3]] {
        assert!(
            too_long.ends_with("! Some(\"body\") body: expected at most 1000 bytes, got more"),
            "{too_long}"
        );
    }
    let lines = Items::Lines {
        file,
        end: LineEnd::Newline,
    };
    let lines = told(Request::Each(lines, words("echo"))).await;
    assert_eq!(lines.len(), 4);
    assert!(lines[3].ends_with("got a longer one"), "{}", lines[3]);
    let mut reader = Lines::new(vec![folder.file("g", "y".repeat(MAX * 9))], b'\n', MAX);
    let kept = reader.next().await.unwrap().unwrap().bytes;
    assert_eq!(kept.len(), MAX + 1);
}

#[tokio::test]
async fn each_line_is_an_item_whatever_is_in_it() {
    let folder = Folder::new();
    let file = folder.file("items", b"a b\n\n'x' $y\r\n\xff\nnul\0\n\"last");
    let lines = Items::Lines {
        file,
        end: LineEnd::Newline,
    };
    let told = folder.without(told(Request::Each(lines, words("echo {} {#}"))).await);
    assert_eq!(
        told,
        [
            r#"items:1 echo 'a b' 1: {"command":["echo","a b","1"]}"#,
            r#"items:2 echo '' 2: {"command":["echo","","2"]}"#,
            r#"items:3 echo $'\'x\' $y\r' 3: {"command":["echo","'x' $y\r","3"]}"#,
            "items:4 ! None line: expected UTF-8, got an invalid byte at offset 0",
            r#"items:5 ! Some("command[1]") command[1]: expected text without NUL, got one at byte 3"#,
            r#"items:6 echo '"last' 6: {"command":["echo","\"last","6"]}"#,
        ]
    );
}

#[tokio::test]
async fn items_that_end_in_nul_may_have_lines() {
    let folder = Folder::new();
    let file = folder.file("items", b"a\nb\0c\0");
    let lines = Items::Lines {
        file,
        end: LineEnd::Nul,
    };
    let told = folder.without(told(Request::Each(lines, words("echo"))).await);
    assert_eq!(
        told,
        [
            r#"items:1 echo $'a\nb': {"command":["echo","a\nb"]}"#,
            r#"items:2 echo c: {"command":["echo","c"]}"#
        ]
    );
}

#[tokio::test]
async fn rows_are_filled_in_by_the_names_of_their_columns() {
    let folder = Folder::new();
    let file = folder.file("t.csv", "host,\"full name\"\nh1,\"A, B\nC\"\nh2\n\nh3,x,y\nh4,z\n");
    let rows = Items::Rows {
        file,
        separator: Separator::Comma,
    };
    let told = folder.without(told(Request::Each(rows, words("ssh {host} {2}"))).await);
    assert_eq!(
        told,
        [
            r#"t.csv:2 ssh h1 $'A, B\nC': {"command":["ssh","h1","A, B\nC"]}"#,
            "t.csv:4 ! None expected 2 columns, as the header has, got 1",
            "t.csv:6 ! None expected 2 columns, as the header has, got 3",
            r#"t.csv:7 ssh h4 z: {"command":["ssh","h4","z"]}"#,
        ]
    );
}

#[tokio::test]
async fn numbers_and_lists_are_items() {
    let numbers = Items::Numbers("8-10:2".parse().unwrap());
    assert_eq!(
        told(Request::Each(numbers, words("echo n{}"))).await,
        [
            r#"item 1 echo n8: {"command":["echo","n8"]}"#,
            r#"item 2 echo n10: {"command":["echo","n10"]}"#
        ]
    );
    let mut command = words("echo {2}-{1} ::: a b ::: 1 2");
    let lists = Items::Lists(Lists::split_off(&mut command).unwrap().unwrap());
    let told = told(Request::Each(lists, command)).await;
    assert_eq!(told[1], r#"item 2 echo 2-a: {"command":["echo","2-a"]}"#);
    assert_eq!(told.len(), 4);
}

#[tokio::test]
async fn one_command_is_left_as_it_is() {
    assert_eq!(
        told(Request::One(words("echo {} {x}"))).await,
        [r#"command line echo '{}' '{x}': {"command":["echo","{}","{x}"]}"#]
    );
}

#[tokio::test]
async fn common_options_fill_what_a_line_leaves_out() {
    let folder = Folder::new();
    let lines = [r#"{"script":"a"}"#, r#"{"script":"b","timeout":"1s"}"#];
    let file = folder.file("jobs", lines.join("\n"));
    let common = Job {
        timeout: "9s".parse().ok(),
        warn_before: "2s".parse().ok(),
        ..Job::default()
    };
    let jobs = |common: Job, request: Request| async move {
        let mut input = Input::open(request, common, MAX).await.unwrap();
        let items = all(&mut input).await;
        let read = |item: Item| match item.job {
            Ok(job) => serde_json::from_slice::<Value>(&job).unwrap(),
            Err(error) => json!({"field": error.field, "message": error.message}),
        };
        items.into_iter().map(read).collect::<Vec<_>>()
    };
    assert_eq!(
        jobs(common.clone(), Request::Jobs(vec![file])).await,
        [
            json!({"script": "a", "timeout": "9s", "warn_before": "2s"}),
            // Together they are no job any more.
            json!({"field": "warn_before",
                "message": r#"warn_before: expected less than timeout ("1s"), got "2s""#}),
        ]
    );
    let numbers = Items::Numbers("5-5".parse().unwrap());
    assert_eq!(
        jobs(common, Request::Each(numbers, words("x"))).await,
        [json!({"command": ["x", "5"], "timeout": "9s", "warn_before": "2s"})]
    );
}

/// A pipe of which the test holds the other end.
fn pipe(folder: &Folder) -> PathBuf {
    let path = folder.0.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    path
}

#[tokio::test]
async fn a_pipe_that_does_not_end_gives_its_items_as_they_come() {
    use std::io::Write;
    let folder = Folder::new();
    let path = pipe(&folder);
    // Held for reading, too, so that neither open waits for the other.
    let mut writer = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let lines = Items::Lines {
        file: path,
        end: LineEnd::Newline,
    };
    let mut input = open(Request::Each(lines, words("echo"))).await;
    assert_eq!(input.total(), None);
    writer.write_all(b"one\ntw").unwrap();
    assert_eq!(input.next().await.unwrap().unwrap().name.title, "echo one");
    // Dropped again and again in the middle of a line, it loses nothing.
    for part in ["", "o a", "nd", " more"] {
        writer.write_all(part.as_bytes()).unwrap();
        for _ in 0..3 {
            assert!(input.next().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    }
    writer.write_all(b"\n").unwrap();
    assert_eq!(input.next().await.unwrap().unwrap().name.title, "echo 'two and more'");
    // What waits for more holds a thread of the runtime until there is some.
    writer.write_all(b"\n").unwrap();
    assert_eq!(input.next().await.unwrap().unwrap().seq, 3);
}

#[tokio::test]
async fn what_cannot_be_begun_says_why() {
    let error = |request: Request| async move {
        let opened = Input::open(request, Job::default(), MAX).await;
        opened.err().map(|error| error.to_string()).unwrap()
    };
    let missing = error(Request::Jobs(vec!["/no/such".into()])).await;
    assert!(
        missing.starts_with("failed to open /no/such: No such file"),
        "{missing}"
    );
    let folder = Folder::new();
    let good = folder.file("good.jsonl", "{\"script\":\"x\"}\n");
    // Before the first job of the first file.
    let second = error(Request::Jobs(vec![good.clone(), "-".into(), "/no/such".into()])).await;
    assert!(second.starts_with("failed to open /no/such"), "{second}");
    let no_file = error(Request::Jobs(vec![good, "/".into()])).await;
    assert_eq!(no_file, "failed to open /: is a directory");
    let file = folder.file("t.tsv", "host\tuser\n");
    let rows = Items::Rows {
        file,
        separator: Separator::Tab,
    };
    assert_eq!(
        error(Request::Each(rows, words("ssh {hos}"))).await,
        r#"no column is called "hos"; did you mean {host}?"#
    );
}
