//! Texts that others wrote, for a terminal.

/// A text without control characters, which a terminal would obey, and never empty.
pub(crate) fn harmless(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let harmless = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_terminal_is_given_orders() {
        assert_eq!(
            harmless("\x1b]0;x\x07\u{9b}31mä\n"),
            "\u{fffd}]0;x\u{fffd}\u{fffd}31mä\u{fffd}"
        );
        assert_eq!(harmless(""), "-");
    }
}
