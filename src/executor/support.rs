//! What this machine lets us do to hold commands, for people who ask before there are any.

use std::path::PathBuf;

use super::cgroup::{CgroupError, Choice, Delegation};
use super::landlock;

/// What there is of cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupSupport {
    /// None was given to us.
    None,
    /// A group that can be divided among jobs.
    Delegated {
        /// Where it is.
        path: PathBuf,
        /// The controllers that it has not.
        lacks: Vec<&'static str>,
    },
}

impl CgroupSupport {
    /// Looks for the group that a worker would take. Changes nothing.
    ///
    /// # Errors
    ///
    /// When a group that was named cannot be used.
    pub fn find(choice: &Choice) -> Result<Self, CgroupError> {
        let Some(delegation) = Delegation::find(choice)? else {
            return Ok(Self::None);
        };
        Ok(Self::Delegated {
            path: delegation.path().to_owned(),
            lacks: delegation.lacks()?,
        })
    }
}

/// How much of Landlock this kernel has for where commands may write: an ABI from 1 to 3, where 3 is all that is used;
/// `None` for nothing.
#[must_use]
pub fn landlock_abi() -> Option<u8> {
    landlock::abi()
}
