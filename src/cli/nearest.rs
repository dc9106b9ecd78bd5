//! Which name was meant, when there is none like the one that was given.

use strsim::damerau_levenshtein;

/// What to add to an error about a name that is not known: `; did you mean "default"?`, or nothing.
pub(super) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known)
        .map(|known| format!("; did you mean {known:?}?"))
        .unwrap_or_default()
}

/// The known name that is nearest, if it is so near that it may be a slip: a third of its characters, or a name that
/// goes on.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let slips = (name.chars().count() / 3).max(1);
    let near = known.into_iter().filter_map(|known| {
        let distance = damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
        let goes_on = name.chars().count() >= 3 && known.starts_with(name);
        (distance <= slips || goes_on).then_some((distance, known))
    });
    near.min().map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

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
