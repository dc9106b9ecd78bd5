//! A command's environment: what all commands of a pool share, and what one has over it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables by name. Those of a pool are kept once, however many commands have them.
#[derive(Clone, Default)]
pub struct Environment {
    shared: Arc<BTreeMap<String, String>>,
    /// These win.
    own: BTreeMap<String, String>,
}

impl Environment {
    /// Variables that others have too.
    #[must_use]
    pub fn shared(shared: &Arc<BTreeMap<String, String>>) -> Self {
        Self {
            shared: shared.clone(),
            own: BTreeMap::new(),
        }
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.own.get(name).or_else(|| self.shared.get(name)).map(String::as_str)
    }

    /// Every variable once, with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let shared = self.shared.iter().filter(|(name, _)| !self.own.contains_key(*name));
        let all = shared.chain(&self.own);
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl Extend<(String, String)> for Environment {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, variables: I) {
        self.own.extend(variables);
    }
}

impl From<BTreeMap<String, String>> for Environment {
    fn from(own: BTreeMap<String, String>) -> Self {
        Self {
            shared: Arc::default(),
            own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_own_variables_win_over_those_it_shares() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            owned.collect()
        };
        let pool = Arc::new(map(&[("A", "pool"), ("B", "pool")]));
        let mut env = Environment::shared(&pool);
        env.extend(map(&[("B", "job"), ("C", "job")]));
        let all: Vec<_> = env.iter().collect();
        assert_eq!(all, [("A", "pool"), ("B", "job"), ("C", "job")]);
        assert_eq!((env.get("B"), env.get("D")), (Some("job"), None));
        assert_eq!(pool["B"], "pool");
    }
}
