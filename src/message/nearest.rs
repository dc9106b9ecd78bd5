//! Which of the names that there are an unknown one was probably meant to be, for error messages.

/// Finds the nearest of `names`, if it is so near that the unknown one may be a slip: a third of the letters, or a name
/// that goes on.
pub(crate) fn nearest<'a>(unknown: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = most_typos(unknown);
    let near = names.into_iter().filter_map(|name| {
        let distance = distance(unknown, name);
        let goes_on = unknown.chars().count() >= 3 && name.starts_with(unknown);
        (distance <= most || goes_on).then_some((distance, name))
    });
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// What to add to an error about a name that is not known: `; did you mean "default"?`, or nothing.
pub(crate) fn hint<'a>(unknown: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(unknown, names)
        .map(|name| format!("; did you mean {name:?}?"))
        .unwrap_or_default()
}

/// How many letters of a name may be wrong for it still to be known again.
pub(crate) fn most_typos(name: &str) -> usize {
    (name.chars().count() / 3).max(1)
}

/// Counts the letters to insert, remove, replace or swap with their neighbours to make one text of the other (the optimal
/// string alignment of Damerau and Levenshtein), in whatever case they are.
pub(crate) fn distance(from: &str, to: &str) -> usize {
    strsim::osa_distance(&from.to_lowercase(), &to.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_may_have_been_meant() {
        assert_eq!(nearest("hots", ["user", "hosts", "host"]), Some("hosts"));
        assert_eq!(nearest("hostt", ["user", "host"]), Some("host"));
        assert_eq!(nearest("colour", ["user", "host"]), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn a_slip_is_near_and_another_name_is_not() {
        let known = ["default", "render", "render-gpu", "web-1-42-abcdef"];
        let hint = |name| hint(name, known);
        assert_eq!(hint("defualt"), r#"; did you mean "default"?"#);
        assert_eq!(hint("Render"), r#"; did you mean "render"?"#);
        assert_eq!(hint("web-1"), r#"; did you mean "web-1-42-abcdef"?"#);
        assert_eq!(hint("rendergpu"), r#"; did you mean "render-gpu"?"#);
        for other in ["batch", "de", "x", ""] {
            assert_eq!(hint(other), "", "{other}");
        }
    }
}
