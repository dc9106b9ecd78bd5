//! How the quotes of a row stand. `csv-core` does not say: it takes the end of the input for a closing quote, and text
//! behind a closing quote for a part of the field, so that one quote too many silently swallows rows.

/// The quotes of the row that is read.
#[derive(Debug, Default)]
pub(super) struct Quotes {
    state: State,
    /// The line of the last opening quote.
    opened_in: u64,
    is_text_behind: bool,
}

/// Where in a field the row is (RFC 4180, section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Bare,
    Quoted,
    /// Behind a closing quote, or the first one of a doubled one.
    Closed,
}

/// What is wrong with the quotes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuoteFault {
    /// The one that is opened in this line is never closed.
    Open(u64),
    /// There is text between a closing quote and the end of its field.
    TextBehind,
}

impl Quotes {
    /// Follows a byte of the row, which stands in `line`.
    pub(super) fn follow(&mut self, byte: u8, line: u64) {
        self.state = match (self.state, byte) {
            (State::Quoted, b'"') => State::Closed,
            (State::Quoted, _) | (State::Closed, b'"') => State::Quoted,
            (_, b',' | b'\r' | b'\n') => State::Before,
            (State::Before, b'"') => {
                self.opened_in = line;
                State::Quoted
            }
            (State::Closed, _) => {
                self.is_text_behind = true;
                State::Bare
            }
            _ => State::Bare,
        };
    }

    /// What is wrong with the row that has ended here. The next one begins.
    pub(super) fn end_row(&mut self) -> Option<QuoteFault> {
        let ended = std::mem::take(self);
        match ended.state {
            State::Quoted => Some(QuoteFault::Open(ended.opened_in)),
            _ => ended.is_text_behind.then_some(QuoteFault::TextBehind),
        }
    }
}
