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

/// Counts the letters to insert, remove, replace or swap with their neighbours to make one text of the other (the optimal
/// string alignment of Damerau and Levenshtein).
pub(crate) fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut above: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut below = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let changed = row[j] + usize::from(a != b);
            let mut least = changed.min(row[j + 1] + 1).min(below[j] + 1);
            if i > 0 && j > 0 && (a, &from[i - 1]) == (&to[j - 1], b) {
                least = least.min(above[j - 1] + 1);
            }
            below.push(least);
        }
        above = std::mem::replace(&mut row, below);
    }
    row[to.len()]
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
    fn distance_counts_the_letters_to_change() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("slots", "slots", 0),
            ("hots", "host", 1),
            ("ca", "abc", 3),
        ] {
            assert_eq!(
                (distance(from, to), distance(to, from)),
                (expected, expected),
                "{from} {to}"
            );
        }
    }
}
