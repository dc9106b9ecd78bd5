//! A command as a person would type it, to show; nothing is run from it.

/// Joins the arguments, those quoted that a shell would not take as they are.
pub(super) fn quote(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quote_word(word)).collect();
    words.join(" ")
}

fn quote_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        // One line, and nothing that a terminal would obey.
        return format!("$'{}'", word.escape_debug().to_string().replace("\\\"", "\""));
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let shown = |words: &[&str]| quote(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(shown(&["echo", "a/b.c", "x=1"]), "echo a/b.c x=1");
        assert_eq!(
            shown(&["echo", "A b", "", "$x", "it's"]),
            r"echo 'A b' '' '$x' 'it'\''s'"
        );
        assert_eq!(shown(&["echo", "a\tb\n\"\x1b[2J'"]), r#"echo $'a\tb\n"\u{1b}[2J\''"#);
    }
}
