//! A command's environment: what all commands of a pool share, and what one has over it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::NotStarted;
use super::request::block;

/// Variables by name that many commands get, kept once, and once as the kernel wants them. They hold secrets, so there is
/// no `Debug`.
#[derive(Clone, Default)]
pub struct Variables {
    by_name: BTreeMap<String, String>,
    /// As [`encode`] has them, from the first time that they are asked for; `None` if it refuses them.
    block: OnceLock<Option<Vec<u8>>>,
}

impl Variables {
    fn block(&self) -> Option<&[u8]> {
        let all = || self.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        self.block.get_or_init(|| encode(all()).ok()).as_deref()
    }
}

impl Deref for Variables {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.by_name
    }
}

/// Whether they are the same by name; what is written down says nothing more.
impl PartialEq for Variables {
    fn eq(&self, other: &Self) -> bool {
        self.by_name == other.by_name
    }
}

impl From<BTreeMap<String, String>> for Variables {
    fn from(by_name: BTreeMap<String, String>) -> Self {
        Self {
            by_name,
            block: OnceLock::new(),
        }
    }
}

impl Extend<(String, String)> for Variables {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, variables: I) {
        self.block = OnceLock::new();
        self.by_name.extend(variables);
    }
}

/// A command's variables by name.
#[derive(Clone, Default)]
pub struct Environment {
    shared: Arc<Variables>,
    /// These win. The names that every command gets are not copied for each.
    own: BTreeMap<Cow<'static, str>, String>,
}

impl Environment {
    /// Variables that others have too.
    #[must_use]
    pub fn shared(shared: &Arc<Variables>) -> Self {
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
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let shared = self.shared.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        shared
            .filter(|(name, _)| !self.own.contains_key(*name))
            .chain(self.own())
    }

    fn own(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.own.iter().map(|(name, value)| (&**name, value.as_str()))
    }

    /// All of it as `KEY=value`, each ended by a NUL.
    ///
    /// # Errors
    ///
    /// When there is a NUL in one of them.
    pub(super) fn encode(&self) -> Result<Encoded<'_>, NotStarted> {
        let is_new = |(name, _)| !self.shared.contains_key(name);
        let Some(shared) = self.shared.block().filter(|_| self.own().all(is_new)) else {
            let own = encode(self.iter())?;
            return Ok(Encoded { shared: &[], own });
        };
        // As good as always: what commands share is written down already.
        let own = encode(self.own())?;
        Ok(Encoded { shared, own })
    }
}

/// An environment in two blocks.
pub(super) struct Encoded<'a> {
    /// What other commands have too.
    pub(super) shared: &'a [u8],
    /// The rest, or all of it.
    pub(super) own: Vec<u8>,
}

fn encode<'a>(variables: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Result<Vec<u8>, NotStarted> {
    block(variables.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()]))
}

impl<N: Into<Cow<'static, str>>> Extend<(N, String)> for Environment {
    fn extend<I: IntoIterator<Item = (N, String)>>(&mut self, variables: I) {
        let variables = variables.into_iter();
        self.own.extend(variables.map(|(name, value)| (name.into(), value)));
    }
}

impl From<BTreeMap<String, String>> for Environment {
    fn from(own: BTreeMap<String, String>) -> Self {
        let mut environment = Self::default();
        environment.extend(own);
        environment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        owned.collect()
    }

    /// A pool's environment with a command's own over it.
    fn over(pool: &Arc<Variables>, own: &[(&str, &str)]) -> Environment {
        let mut env = Environment::shared(pool);
        env.extend(map(own));
        env
    }

    #[test]
    fn a_commands_own_variables_win_over_those_it_shares() {
        let pool = Arc::new(map(&[("A", "pool"), ("B", "pool")]).into());
        let env = over(&pool, &[("B", "job"), ("C", "job")]);
        let all: Vec<_> = env.iter().collect();
        assert_eq!(all, [("A", "pool"), ("B", "job"), ("C", "job")]);
        assert_eq!((env.get("B"), env.get("D")), (Some("job"), None));
        assert_eq!(pool["B"], "pool");
    }

    #[test]
    fn what_is_encoded_has_every_variable_once_also_when_more_came_to_the_pool() {
        let mut pool = Arc::new(Variables::from(map(&[("A", "pool"), ("B", "pool")])));
        let encoded = |env: Environment| {
            let Encoded { shared, own } = env.encode().unwrap();
            String::from_utf8([shared, &own].concat()).unwrap()
        };
        assert_eq!(encoded(over(&pool, &[("C", "job")])), "A=pool\0B=pool\0C=job\0");
        assert_eq!(encoded(over(&pool, &[("B", "job")])), "A=pool\0B=job\0");
        Arc::make_mut(&mut pool).extend(map(&[("D", "more")]));
        assert_eq!(encoded(over(&pool, &[("C", "job")])), "A=pool\0B=pool\0D=more\0C=job\0");
    }

    #[test]
    fn a_nul_is_refused_wherever_it_is() {
        let (good, bad) = (map(&[("A", "a")]), [("B", "b\0")]);
        assert!(over(&Arc::new(good.into()), &bad).encode().is_err());
        assert!(over(&Arc::new(map(&bad).into()), &[]).encode().is_err());
    }
}
