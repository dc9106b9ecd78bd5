//! The parts of a path that a template can ask for, as GNU parallel cuts them: by its text, without a look at any file.

use std::borrow::Cow;

/// What of an item is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// All of it: `{}`.
    Whole,
    /// Without the extension: `{.}`.
    NoExtension,
    /// The last part: `{/}`.
    Name,
    /// What is before the last part, as `dirname(1)` has it: `{//}`.
    Folder,
    /// The last part without its extension: `{/.}`.
    Stem,
}

/// The marks of each, the longest first.
const MARKS: [(&str, Form); 4] = [
    ("//", Form::Folder),
    ("/.", Form::Stem),
    ("/", Form::Name),
    (".", Form::NoExtension),
];

impl Form {
    /// Cuts the marks off the end of what is in braces.
    pub(super) fn split(place: &str) -> (&str, Self) {
        let found = MARKS
            .iter()
            .find_map(|(mark, form)| Some((place.strip_suffix(mark)?, *form)));
        found.unwrap_or((place, Self::Whole))
    }

    /// This part of an item.
    pub(super) fn of(self, item: &str) -> Cow<'_, str> {
        match self {
            Self::Whole => item.into(),
            Self::NoExtension => without_extension(item).into(),
            Self::Name => name(item).into(),
            Self::Folder => folder(item).into(),
            Self::Stem => without_extension(name(item)).into(),
        }
    }
}

/// A dot at the start of a name counts as any other, as in GNU parallel: `.bashrc` has an extension and nothing else.
fn without_extension(path: &str) -> &str {
    match path.rfind(['.', '/']) {
        Some(at) if path[at..].starts_with('.') => &path[..at],
        _ => path,
    }
}

fn name(path: &str) -> &str {
    path.rfind('/').map_or(path, |at| &path[at + 1..])
}

fn folder(path: &str) -> &str {
    let top = if path.starts_with('/') { "/" } else { "." };
    let inner = path.trim_end_matches('/');
    let folder = inner.rfind('/').map_or("", |at| inner[..at].trim_end_matches('/'));
    if folder.is_empty() { top } else { folder }
}
