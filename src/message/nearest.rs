//! Which of the names that there are an unknown one was probably meant to be, for error messages.

/// Finds the nearest of `names`; none that differs in more than a third of the letters.
pub(crate) fn nearest<'a>(unknown: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = most_typos(unknown);
    names
        .into_iter()
        .map(|name| (distance(unknown, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters of a name may be wrong for it still to be known again.
pub(crate) fn most_typos(name: &str) -> usize {
    (name.chars().count() / 3).max(1)
}

/// Counts the letters to insert, remove or replace to make one text of the other (Levenshtein).
pub(crate) fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_may_have_been_meant() {
        assert_eq!(nearest("hots", ["user", "host", "hosts"]), Some("hosts"));
        assert_eq!(nearest("hostt", ["user", "host"]), Some("host"));
        assert_eq!(nearest("colour", ["user", "host"]), None);
        assert_eq!(nearest("x", []), None);
    }
}
