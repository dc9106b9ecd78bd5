//! `::: a b ::: 1 2`: each combination of words from lists, the last list the fastest, as GNU parallel has it.

/// Lists of words, of which an item takes one each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists(Vec<Vec<String>>);

/// Arguments that are no lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} is not supported; {instead}")]
pub struct ListsError {
    found: String,
    instead: &'static str,
}

/// What is before each list.
const SEPARATOR: &str = ":::";
/// What else GNU parallel has there, and what there is in its place.
const OTHERS: [(&str, &str); 3] = [
    ("::::", "give a file with --each FILE"),
    (":::+", PAIRS),
    ("::::+", PAIRS),
];
const PAIRS: &str = "::: gives all combinations; give pairs as a table: --each FILE.tsv";

impl Lists {
    /// Cuts the lists off the end of a command; `None` if there are none.
    ///
    /// # Errors
    /// When there is one of GNU parallel's other separators, with or without `:::`.
    pub fn split_off(command: &mut Vec<String>) -> Result<Option<Self>, ListsError> {
        for (found, instead) in OTHERS {
            if command.iter().any(|word| word == found) {
                let found = found.to_owned();
                return Err(ListsError { found, instead });
            }
        }
        let Some(start) = command.iter().position(|word| word == SEPARATOR) else {
            return Ok(None);
        };
        let words = command.split_off(start);
        let lists = words[1..].split(|word| word == SEPARATOR).map(<[String]>::to_vec);
        Ok(Some(Self(lists.collect())))
    }

    /// How many words an item has.
    pub(super) fn fields(&self) -> usize {
        self.0.len()
    }

    /// How many combinations there are.
    pub(super) fn len(&self) -> u64 {
        let lengths = self.0.iter().map(|list| list.len() as u64);
        lengths.fold(1, u64::saturating_mul)
    }

    /// The combination at `index`, from 0.
    pub(super) fn get(&self, index: u64) -> Option<Vec<String>> {
        if index >= self.len() {
            return None;
        }
        let mut rest = index;
        let mut words: Vec<String> = Vec::with_capacity(self.0.len());
        for list in self.0.iter().rev() {
            let length = list.len() as u64; // not 0, or there were no combinations
            let at = usize::try_from(rest % length).ok()?;
            words.push(list.get(at)?.clone());
            rest /= length;
        }
        words.reverse();
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn lists(text: &str) -> Lists {
        Lists::split_off(&mut words(text)).unwrap().unwrap()
    }

    fn combinations(text: &str) -> Vec<String> {
        let lists = lists(text);
        let all: Vec<String> = (0..)
            .map_while(|index| lists.get(index))
            .map(|words| words.join(""))
            .collect();
        assert_eq!(all.len() as u64, lists.len());
        all
    }

    #[test]
    fn several_lists_are_combined_the_last_the_fastest() {
        assert_eq!(combinations("echo ::: a b"), ["a", "b"]);
        assert_eq!(
            combinations("echo ::: a b ::: 1 2 3"),
            ["a1", "a2", "a3", "b1", "b2", "b3"]
        );
        assert_eq!(combinations("echo ::: a b ::: 1 ::: x y"), ["a1x", "a1y", "b1x", "b1y"]);
        assert_eq!(combinations("echo ::: a ::: :: "), ["a::", "a"]);
        assert_eq!(combinations("echo ::: a :::"), [""; 0]);
    }

    #[test]
    fn the_command_is_what_is_before_the_first() {
        let mut command = words("echo x ::: a");
        Lists::split_off(&mut command).unwrap();
        assert_eq!(command, ["echo", "x"]);
        assert_eq!(Lists::split_off(&mut command), Ok(None));
    }

    #[test]
    fn other_separators_of_gnu_parallel_are_not_taken_for_words() {
        let error = |text| Lists::split_off(&mut words(text)).unwrap_err().to_string();
        let pairs = ":::+ is not supported; ::: gives all combinations; give pairs as a table: --each FILE.tsv";
        assert_eq!(error("echo ::: a :::+ b"), pairs);
        assert_eq!(error("echo :::+ b"), pairs);
        assert_eq!(
            error("echo :::: f"),
            ":::: is not supported; give a file with --each FILE"
        );
        assert!(error("echo ::::+ f").starts_with("::::+ is not supported"));
    }
}
