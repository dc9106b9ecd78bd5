//! Commands with places in them that each item fills: the rules of GNU parallel, without its shell.
//!
//! | place | becomes |
//! |---|---|
//! | `{}` | the item |
//! | `{.}` | without its extension |
//! | `{/}` | the last part of its path |
//! | `{//}` | its folder |
//! | `{/.}` | the last part of its path, without its extension |
//! | `{#}` | its place in the input, from 1 |
//! | `{2}`, `{-1}`, `{2/.}` | the second field of an item that has several, the last one, the second in another form |
//! | `{host}`, `{host/.}` | a column by its name |
//!
//! An item has several fields when it is a row of a table or a combination of lists. `{}` alone in its argument becomes
//! an argument for each field; inside a longer one, the fields with spaces between. A template without any place gets the
//! fields as its last arguments.
//!
//! Invariant: what an item puts into an argument stays in this argument, whatever characters it has, since no shell reads
//! the command.
//!
//! Where it parts from GNU parallel: a place that the items have nothing for is an error there and then, not the empty
//! text; and so is a name in braces that is no column's. A name after a `$` is the shell's own (`${HOME}`).

use super::paths::Form;
use crate::message::nearest::nearest;

/// What the items of an input have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// So many fields, without names.
    Fields(usize),
    /// A field for each column.
    Columns(Vec<String>),
}

/// A command with places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    words: Vec<Vec<Piece>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(usize, Form),
    All(Form),
    Seq,
}

/// Why a template does not fit the items.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The command is empty.
    #[error("a command goes after --; to run each line as a command of a shell: -- sh -c {{}}")]
    Empty,
    /// A name in braces that is no column's.
    #[error("no column is called {name:?}; {advice}")]
    Column {
        /// The name.
        name: String,
        /// The nearest one, or all.
        advice: String,
    },
    /// A name in braces, of items that have no names.
    #[error(
        "unknown placeholder {{{0}}}: an item is {{}}, and only the columns of --csv and --tsv have names; with spaces in \
         the braces it is left as it is"
    )]
    Name(String),
    /// Several columns have that name.
    #[error("several columns are called {name:?}; the first is {{{first}}}")]
    Ambiguous {
        /// The name.
        name: String,
        /// The position of the first.
        first: usize,
    },
    /// A field that items do not have.
    #[error("{{{place}}}: an item has {fields} here, counted from 1")]
    Position {
        /// What is in the braces.
        place: String,
        /// How many there are, in words.
        fields: String,
    },
    /// Only marks in the braces, in an order that means nothing.
    #[error("unknown placeholder {{{place}}}; did you mean {{{meant}}}?")]
    Marks {
        /// What is in the braces.
        place: String,
        /// The nearest one that there is.
        meant: &'static str,
    },
}

/// The marks of a place without a name or position.
const MARKS: [&str; 5] = ["#", ".", "/", "//", "/."];

/// The first word of a command without items that would be a place if there were any: `{}`, `{/.}`, `{#}`, `{1}`. Only whole
/// words count, as braces within one may be there for another reader.
#[must_use]
pub fn idle_place(command: &[String]) -> Option<&str> {
    let is_place = |word: &str| {
        let inside = word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        inside.is_some_and(|place| {
            let (which, _) = Form::split(place);
            place == "#" || which.is_empty() || position(which).is_some()
        })
    };
    command.iter().map(String::as_str).find(|word| is_place(word))
}

impl Template {
    /// Finds the places in `words`.
    ///
    /// # Errors
    /// When there is no command, or a place that items of this shape have nothing for.
    pub(super) fn parse(words: &[String], shape: &Shape) -> Result<Self, TemplateError> {
        if words.is_empty() {
            return Err(TemplateError::Empty);
        }
        let mut stray = None;
        let mut parsed = Vec::with_capacity(words.len() + 1);
        for word in words {
            parsed.push(parse_word(word, shape, &mut stray)?);
        }
        let has_place = parsed.iter().flatten().any(|piece| !matches!(piece, Piece::Text(_)));
        match stray {
            // In a template that says elsewhere where the item goes, braces may be there for another reader: awk '{print}'.
            Some(name) if !has_place => return Err(TemplateError::Name(name)),
            _ if !has_place => parsed.push(vec![Piece::All(Form::Whole)]),
            _ => {}
        }
        Ok(Self { words: parsed })
    }

    /// The command for one item, which has the template's shape.
    pub(super) fn fill(&self, fields: &[String], seq: u64) -> Vec<String> {
        let mut command = Vec::with_capacity(self.words.len());
        for word in &self.words {
            match word.as_slice() {
                [Piece::All(form)] => command.extend(fields.iter().map(|field| form.of(field).into_owned())),
                pieces => command.push(pieces.iter().map(|piece| piece.fill(fields, seq)).collect()),
            }
        }
        command
    }
}

impl Piece {
    fn fill(&self, fields: &[String], seq: u64) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Seq => seq.to_string(),
            Self::Field(index, form) => fields
                .get(*index)
                .map_or_else(String::new, |field| form.of(field).into_owned()),
            Self::All(form) => {
                let fields: Vec<_> = fields.iter().map(|field| form.of(field)).collect();
                fields.join(" ")
            }
        }
    }
}

/// Cuts a word at its places. `stray` becomes the first name in braces that is left as it is.
fn parse_word(word: &str, shape: &Shape, stray: &mut Option<String>) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = word;
    while let Some(open) = rest.find('{') {
        let (before, inside) = (&rest[..open], &rest[open + 1..]);
        text.push_str(before);
        let place = inside.find(['{', '}']).filter(|end| inside[*end..].starts_with('}'));
        let found = match place.map(|end| &inside[..end]) {
            Some(place) => find(place, shape, before.ends_with('$'), stray)?,
            None => None,
        };
        match (found, place) {
            (Some(piece), Some(end)) => {
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(piece);
                rest = &inside[end + 1..];
            }
            _ => {
                text.push('{');
                rest = inside;
            }
        }
    }
    text.push_str(rest);
    if !text.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(text));
    }
    Ok(pieces)
}

/// What stands for the text between two braces; `None` if it stands for itself.
fn find(
    place: &str,
    shape: &Shape,
    is_shells: bool,
    stray: &mut Option<String>,
) -> Result<Option<Piece>, TemplateError> {
    if let Some(column) = column(place, shape)? {
        return Ok(Some(column));
    }
    if place == "#" {
        return Ok(Some(Piece::Seq));
    }
    let (which, form) = Form::split(place);
    if which.is_empty() {
        return Ok(Some(Piece::All(form)));
    }
    if let Some(position) = position(which) {
        let index = index(position, shape.fields()).ok_or_else(|| TemplateError::Position {
            place: place.to_owned(),
            fields: shape.fields_in_words(),
        })?;
        return Ok(Some(Piece::Field(index, form)));
    }
    if place.chars().all(|c| "./#%".contains(c)) {
        let meant = nearest(place, MARKS).unwrap_or_default();
        return Err(TemplateError::Marks {
            place: place.to_owned(),
            meant,
        });
    }
    if is_name(which) && !is_shells {
        match shape {
            Shape::Columns(names) => return Err(no_column(which, names)),
            Shape::Fields(_) => stray.get_or_insert_with(|| place.to_owned()),
        };
    }
    Ok(None)
}

fn column(place: &str, shape: &Shape) -> Result<Option<Piece>, TemplateError> {
    let Shape::Columns(names) = shape else { return Ok(None) };
    for (name, form) in [(place, Form::Whole), Form::split(place)] {
        let mut found = names
            .iter()
            .enumerate()
            .filter(|(_, column)| !name.is_empty() && *column == name);
        match (found.next(), found.next()) {
            (Some((index, _)), None) => return Ok(Some(Piece::Field(index, form))),
            (Some((index, _)), Some(_)) => {
                return Err(TemplateError::Ambiguous {
                    name: name.to_owned(),
                    first: index + 1,
                });
            }
            _ => {}
        }
    }
    Ok(None)
}

fn no_column(name: &str, names: &[String]) -> TemplateError {
    let advice = match nearest(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {{{meant}}}?"),
        None => {
            let names: Vec<String> = names.iter().map(|name| format!("{{{name}}}")).collect();
            format!(
                "there are {}; with spaces in the braces it is left as it is",
                names.join(" ")
            )
        }
    };
    TemplateError::Column {
        name: name.to_owned(),
        advice,
    }
}

/// A word that looks as if it named something.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

fn position(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn index(position: i64, fields: usize) -> Option<usize> {
    let from_start = usize::try_from(position)
        .ok()
        .and_then(|position| position.checked_sub(1));
    let from_end = || fields.checked_sub(usize::try_from(position.checked_neg()?).ok()?);
    from_start.or_else(from_end).filter(|index| *index < fields)
}

impl Shape {
    fn fields(&self) -> usize {
        match self {
            Self::Fields(count) => *count,
            Self::Columns(names) => names.len(),
        }
    }

    fn fields_in_words(&self) -> String {
        match self.fields() {
            1 => "one field".to_owned(),
            count => format!("{count} fields"),
        }
    }
}

#[cfg(test)]
mod tests;
