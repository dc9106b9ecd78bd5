//! The one place that reads our own environment (besides clap, which reads the twins of flags).

use std::collections::BTreeMap;

/// The caller's environment, for commands that run as if the caller had started them. What is not UTF-8 is left out, and
/// so are our own settings: the broker's address holds a password.
pub(super) fn of_the_caller() -> BTreeMap<String, String> {
    #[expect(clippy::disallowed_methods, reason = "this file owns the environment")]
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| !name.starts_with("SYNTHEX_"))
        .collect()
}
