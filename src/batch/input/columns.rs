//! Rows of a table with a header: CSV as RFC 4180 has it (quotes, doubled quotes, line breaks in quotes), and TSV, which
//! knows no quotes (IANA's text/tab-separated-values).
//!
//! Rows are found by the state machine of `csv-core`, which takes what is there and asks for more; so reading from a pipe
//! can be dropped at any time and goes on where it was.

mod quotes;

use std::io;
use std::path::Path;

use tokio::io::AsyncBufReadExt;

use super::lines::{self, BYTE_ORDER_MARK, Reader};
use quotes::{QuoteFault, Quotes};

/// Most columns of a table.
const MAX_COLUMNS: usize = 1024;
/// What a reader of rows begins with, and its fields with.
const ROW: usize = 1024;
const FIELDS: usize = 16;

/// What separates the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separator {
    /// A comma; a field may be in double quotes.
    Comma,
    /// A tab.
    Tab,
}

/// A table that is read.
pub(super) struct Columns {
    name: String,
    reader: Reader,
    parser: csv_core::Reader,
    row: Partial,
    /// Of a table that knows quotes.
    quotes: Option<Quotes>,
    line: u64,
    has_begun: bool,
    max_row: usize,
}

/// A row of it.
#[derive(Debug)]
pub(super) struct Row {
    /// The file and the number of the line that it begins in, or that the quote does which swallowed what follows:
    /// `hosts.csv:3`.
    pub(super) origin: String,
    /// Its fields, or why there are none.
    pub(super) fields: Result<Vec<String>, String>,
}

/// A row of which not all may have been read.
#[derive(Default)]
struct Partial {
    begins: Option<u64>,
    bytes: Vec<u8>,
    used: usize,
    ends: Vec<usize>,
    fields: usize,
    too_long: bool,
}

impl Columns {
    /// Opens a table. Of a row larger than `max_row` bytes nothing is kept.
    pub(super) async fn open(file: &Path, separator: Separator, max_row: usize) -> io::Result<Self> {
        Ok(Self::new(
            lines::name_of(file),
            lines::open(file).await?,
            separator,
            max_row,
        ))
    }

    fn new(name: String, reader: Reader, separator: Separator, max_row: usize) -> Self {
        let mut parser = csv_core::ReaderBuilder::new();
        if separator == Separator::Tab {
            parser.delimiter(b'\t').quoting(false);
        }
        Self {
            name,
            reader,
            parser: parser.build(),
            row: Partial::default(),
            quotes: (separator == Separator::Comma).then(Quotes::default),
            line: 1,
            has_begun: false,
            max_row,
        }
    }

    /// The names in the first row, which are to be read before [`Columns::next`].
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(super) async fn header(&mut self) -> io::Result<Vec<String>> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let Some(mut row) = self.next().await? else {
            return Err(invalid(format!(
                "{} has no header: its first line names the columns",
                self.name
            )));
        };
        if let Ok([first, ..]) = row.fields.as_deref_mut()
            && let Some(name) = first.strip_prefix('\u{feff}')
        {
            *first = name.to_owned(); // a byte order mark, as spreadsheets write it
        }
        row.fields
            .map_err(|message| invalid(format!("{}: {message}", row.origin)))
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// When reading fails.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Row>> {
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .await
                .map_err(|error| lines::unread(&self.name, &error))?;
            let is_end = buffer.is_empty();
            let blank = self.row.blank_before(buffer);
            self.line += newlines(&buffer[..blank]);
            if blank > 0 && blank == buffer.len() {
                self.reader.consume(blank);
                continue;
            }
            self.row.begins.get_or_insert(self.line);
            let (result, read) = self.row.feed(&mut self.parser, &buffer[blank..], self.max_row);
            let taken = &buffer[blank..blank + read];
            let is_start = !std::mem::replace(&mut self.has_begun, true);
            let marked = taken.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_start); // the parser passes over it, too
            for byte in marked.unwrap_or(taken) {
                if let Some(quotes) = &mut self.quotes {
                    quotes.follow(*byte, self.line);
                }
                self.line += u64::from(*byte == b'\n');
            }
            self.reader.consume(blank + read);
            match result {
                csv_core::ReadRecordResult::Record => return Ok(Some(self.take())),
                csv_core::ReadRecordResult::End => return Ok(None),
                csv_core::ReadRecordResult::OutputFull => self.row.grow_bytes(self.max_row),
                csv_core::ReadRecordResult::OutputEndsFull => self.row.grow_fields(),
                csv_core::ReadRecordResult::InputEmpty => debug_assert!(!is_end, "the end of the input ends a row"),
            }
        }
    }

    fn take(&mut self) -> Row {
        let begins = self.row.begins.unwrap_or(self.line);
        let fields = self.row.take(self.max_row);
        let (line, fields) = match self.quotes.as_mut().and_then(Quotes::end_row) {
            None => (begins, fields),
            Some(QuoteFault::Open(line)) => (line, Err("a quote that is opened here is never closed".to_owned())),
            Some(QuoteFault::TextBehind) => {
                let message = "expected a comma or the end of the line behind a closing quote; a quote within quotes is \
                               written twice";
                (begins, Err(message.to_owned()))
            }
        };
        Row {
            origin: format!("{}:{line}", self.name),
            fields,
        }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

impl Partial {
    /// How many bytes of `buffer` are ends of lines in front of the row.
    fn blank_before(&self, buffer: &[u8]) -> usize {
        if self.begins.is_some() {
            return 0;
        }
        let is_end = |byte: &&u8| matches!(**byte, b'\r' | b'\n');
        buffer.iter().take_while(is_end).count()
    }

    /// Gives the parser what is there; returns what it made of it and how much it took.
    fn feed(&mut self, parser: &mut csv_core::Reader, input: &[u8], max: usize) -> (csv_core::ReadRecordResult, usize) {
        if self.bytes.is_empty() {
            self.bytes.resize(ROW.min(max), 0);
            self.ends.resize(FIELDS, 0);
        }
        let (bytes, ends) = (&mut self.bytes[self.used..], &mut self.ends[self.fields..]);
        let (result, read, written, ended) = parser.read_record(input, bytes, ends);
        self.used += written;
        self.fields += ended;
        (result, read)
    }

    fn grow_bytes(&mut self, max: usize) {
        if self.bytes.len() < max {
            self.bytes.resize((self.bytes.len() * 2).min(max), 0);
        } else {
            (self.used, self.too_long) = (0, true); // the rest is read over what there is
        }
    }

    fn grow_fields(&mut self) {
        if self.ends.len() < MAX_COLUMNS {
            self.ends.resize(self.ends.len() * 2, 0);
        } else {
            (self.fields, self.too_long) = (0, true);
        }
    }

    fn take(&mut self, max: usize) -> Result<Vec<String>, String> {
        let fields = if self.too_long {
            Err(format!(
                "expected a row of at most {max} bytes and {MAX_COLUMNS} columns"
            ))
        } else {
            self.fields()
        };
        (self.begins, self.used, self.fields, self.too_long) = (None, 0, 0, false);
        fields
    }

    fn fields(&self) -> Result<Vec<String>, String> {
        let mut start = 0;
        let mut fields = Vec::with_capacity(self.fields);
        for (index, end) in self.ends[..self.fields].iter().enumerate() {
            let field = std::str::from_utf8(&self.bytes[start..*end])
                .map_err(|error| not_utf8(&format!("column {}", index + 1), error))?;
            fields.push(field.to_owned());
            start = *end;
        }
        Ok(fields)
    }
}

/// Says where text is not UTF-8.
pub(super) fn not_utf8(what: &str, error: std::str::Utf8Error) -> String {
    format!(
        "{what}: expected UTF-8, got an invalid byte at offset {}",
        error.valid_up_to()
    )
}

#[cfg(test)]
mod tests;
