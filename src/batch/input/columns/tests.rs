use std::io::Cursor;

use tokio::io::BufReader;

use super::*;

/// The rows of a table as `line: fields`, read in pieces of `piece` bytes.
async fn rows_in(piece: usize, text: &[u8], separator: Separator) -> Vec<String> {
    let reader = BufReader::with_capacity(piece, Cursor::new(text.to_vec()));
    let mut columns = Columns::new("t".to_owned(), Box::new(reader), separator, 64);
    let mut rows = Vec::new();
    while let Some(row) = columns.next().await.unwrap() {
        rows.push(match row.fields {
            Ok(fields) => format!("{} {}", row.origin, fields.join("|")),
            Err(error) => format!("{} ! {error}", row.origin),
        });
    }
    rows
}

async fn rows(text: &[u8], separator: Separator) -> Vec<String> {
    let all = rows_in(4096, text, separator).await;
    for piece in [1, 2, 3, 7] {
        assert_eq!(rows_in(piece, text, separator).await, all, "in pieces of {piece}");
    }
    all
}

#[tokio::test]
async fn a_row_is_known_by_the_line_it_begins_in() {
    let text = b"a,b\r\n\"q, r\",\"x\ny\"\n\n\r\n\"say \"\"hi\"\"\",\nlast,row";
    assert_eq!(
        rows(text, Separator::Comma).await,
        ["t:1 a|b", "t:2 q, r|x\ny", "t:6 say \"hi\"|", "t:7 last|row"]
    );
}

#[tokio::test]
async fn tabs_know_no_quotes() {
    assert_eq!(
        rows(b"a\tb\n\"x\ty,z\"\n", Separator::Tab).await,
        ["t:1 a|b", "t:2 \"x|y,z\""]
    );
}

#[tokio::test]
async fn a_quote_that_is_never_closed_is_a_bad_row_and_named_by_its_line() {
    let open = "a quote that is opened here is never closed";
    assert_eq!(
        rows(b"a,b\n1,\"x\n2,y\n3,z\n", Separator::Comma).await,
        ["t:1 a|b".to_owned(), format!("t:2 ! {open}")]
    );
    // The line of the quote, not of the row; and a quote that is doubled there does not close it.
    let text = [&b"a,b\n\"1\n\n\",\"x\"\"\n"[..], "y".repeat(200).as_bytes()].concat();
    assert_eq!(
        rows(&text, Separator::Comma).await,
        ["t:1 a|b".to_owned(), format!("t:4 ! {open}")]
    );
    for fine in [
        "a,\"\"",
        "a,\"\"\"\"",
        "a,b\"",
        "a, \"b",
        "\"a\nb\"\n",
        "\"\"\n\"\"\r\n",
    ] {
        let rows = rows(fine.as_bytes(), Separator::Comma).await;
        assert!(rows.iter().all(|row| !row.contains('!')), "{fine}: {rows:?}");
    }
}

#[tokio::test]
async fn text_behind_a_closing_quote_is_a_bad_row() {
    let rows = rows(b"a,b\n2,\"y\"z\n3,\"y\" ,\n4,\"x\n5,\"y\"\n6,z\n", Separator::Comma).await;
    let told: Vec<_> = rows.iter().map(|row| &row[..row.len().min(32)]).collect();
    let bad = "! expected a comma or the en";
    assert_eq!(
        told,
        [
            "t:1 a|b",
            &format!("t:2 {bad}"),
            &format!("t:3 {bad}"),
            // What a quote too many has swallowed is seen where the next one stands.
            &format!("t:4 {bad}"),
            "t:6 6|z"
        ]
    );
}

#[tokio::test]
async fn a_bad_row_does_not_harm_the_next() {
    let long = "x".repeat(200);
    let text = [b"a\n\xff,b\n", long.as_bytes(), b",", long.as_bytes(), b"\nc,d\n"].concat();
    assert_eq!(
        rows(&text, Separator::Comma).await,
        [
            "t:1 a",
            "t:2 ! column 1: expected UTF-8, got an invalid byte at offset 0",
            "t:3 ! expected a row of at most 64 bytes and 1024 columns",
            "t:4 c|d"
        ]
    );
    let wide = [",".repeat(5000).as_bytes(), b"\nc,d\n"].concat();
    let all = rows_in(4096, &wide, Separator::Comma).await;
    assert_eq!(
        all,
        ["t:1 ! expected a row of at most 64 bytes and 1024 columns", "t:2 c|d"]
    );
}

#[tokio::test]
async fn the_header_loses_its_byte_order_mark() {
    let header = |text: &'static [u8]| async move {
        let mut columns = Columns::new("t".to_owned(), Box::new(Cursor::new(text)), Separator::Comma, 64);
        columns.header().await.map_err(|error| error.to_string())
    };
    assert_eq!(header(b"\xef\xbb\xbfhost,user\n").await.unwrap(), ["host", "user"]);
    assert_eq!(header(b"\xef\xbb\xbf\"a,b\",user\n").await.unwrap(), ["a,b", "user"]);
    assert_eq!(
        header(b"\xef\xbb\xbf\"host,user\n").await.unwrap_err(),
        "t:1: a quote that is opened here is never closed"
    );
    assert_eq!(
        header(b"\n").await.unwrap_err(),
        "t has no header: its first line names the columns"
    );
    assert_eq!(
        header(b"\xff\n").await.unwrap_err(),
        "t:1: column 1: expected UTF-8, got an invalid byte at offset 0"
    );
}
